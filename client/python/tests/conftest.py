# SPDX-License-Identifier: Apache-2.0
"""What the tests share: real daemons on the CPU worker and on fake GPUs, and clients of them.

Run by ctest; by hand: GEMMD_PROGRAMS=build/dev/bin VENV/bin/python -m pytest client/python/tests
"""

import os
import pathlib
import re
import select
import subprocess
import tempfile
import time
import urllib.request

import pytest

import fake_gpus
import gemmd

START_TIMEOUT = 60.0


def programs():
    """The folder with gemmd and gemmd-worker."""
    folder = pathlib.Path(os.environ.get("GEMMD_PROGRAMS", "build/bin"))
    assert (folder / "gemmd").exists(), f"no gemmd in {folder}; set GEMMD_PROGRAMS"
    return folder


def fake_worker(folder, *flags):
    """A program in this folder that is gemmd-worker-fake with flags, for --worker_binary."""
    script = folder / "worker"
    quoted = " ".join(f"'{flag}'" for flag in flags)
    script.write_text(f"#!/bin/sh\nexec {programs().resolve()}/gemmd-worker-fake \"$@\" {quoted}\n", encoding="utf-8")
    script.chmod(0o700)
    return script


def wait_until(condition, timeout=20.0):
    """Asks every few milliseconds until it is true; False if `timeout` passes first."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


class Daemon:
    """A gemmd with a CPU worker in a temporary folder, ready for requests; a context manager that kills it."""

    def __init__(self, *flags, tcp=False):
        self._folder = tempfile.TemporaryDirectory(prefix="gemmd-")
        self.address = f"unix:{self._folder.name}/run/gemmd.sock"
        listen = self.address + (",127.0.0.1:0" if tcp else "")
        self._command = [
            programs() / "gemmd",
            f"--listen={listen}",
            "--metrics_listen=",
            "--workers=cpu",
            "--worker_threads=1",
            "--drain_delay=0s",
            "--log_level=error",
            *flags,
        ]
        self._start()

    def _start(self):
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        ready, _, _ = select.select([self.process.stdout], [], [], START_TIMEOUT)
        line = self.process.stdout.readline() if ready else "nothing"
        if not line.startswith("gemmd ready:"):
            self.kill()
            raise AssertionError(f"gemmd did not start: {line}")
        self.metrics_address = re.search(r" metrics=(\S*)", line).group(1)
        self.tcp_address = next((word for word in re.split("[ ,]", line) if word.startswith("127.0.0.1:")), None)

    def connect(self, **options):
        """A client over the Unix socket; a machine that tests may be too busy for the usual timeout."""
        return gemmd.connect(self.address, connect_timeout=START_TIMEOUT, **options)

    def connect_by_tcp(self, **options):
        return gemmd.connect(self.tcp_address, connect_timeout=START_TIMEOUT, **options)

    def answered(self):
        """Operations that it answered with OK. Requires: a flag --metrics_listen."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=START_TIMEOUT) as page:
            lines = page.read().decode().splitlines()
        ok = [line for line in lines if line.startswith("gemmd_requests_total{") and 'code="OK"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in ok)

    def restart(self):
        """Kills it and starts another one at the same Unix socket."""
        self._stop()
        self._start()

    def _stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        self._stop()
        self._folder.cleanup()

    def resident_bytes(self):
        """Memory of the daemon that is its own."""
        return anonymous_bytes(self.process.pid)


def anonymous_bytes(pid):
    """Memory of a process that it shares with no file and no other process."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no RssAnon of process {pid}")


@pytest.fixture(scope="session")
def daemon():
    with Daemon(tcp=True) as started:
        yield started


@pytest.fixture
def client(daemon):
    with daemon.connect() as connected:
        yield connected


@pytest.fixture
def remote(daemon):
    with daemon.connect_by_tcp() as connected:
        yield connected


@pytest.fixture(scope="session")
def fake_cuda():
    """Takes the fake CUDA driver for libcuda, in this process, from now on."""
    folder = pathlib.Path(os.environ.get("GEMMD_FAKE_CUDA", programs() / "../tests/fake_cuda"))
    assert (folder / "libcuda.so.1").exists(), f"no libcuda.so.1 in {folder}; set GEMMD_FAKE_CUDA"
    gemmd.cuda.LIBRARY = str((folder / "libcuda.so.1").resolve())
    gemmd.cuda.Driver.load()


@pytest.fixture(scope="module")
def gpu_daemon(tmp_path_factory):
    worker = fake_worker(tmp_path_factory.mktemp("worker"), f"--fill={fake_gpus.FILL}")
    with Daemon("--workers=gpu", f"--worker_binary={worker}", tcp=True) as started:
        yield started


@pytest.fixture
def gpu_client(gpu_daemon, fake_cuda):
    with gpu_daemon.connect() as connected:
        yield connected
