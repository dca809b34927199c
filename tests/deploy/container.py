# SPDX-License-Identifier: Apache-2.0
"""A container without a container engine: bubblewrap runs a program in the root file system of the image.

As Kubernetes and Docker would: the root is read-only, the user is not root and has no capabilities, the program is
process 1 of its own PID namespace, and the network, too, is its own (loopback only), so that ports can be fixed ones.
The user namespace makes the user's number; nothing here needs root.
"""

import json
import os
import signal
import subprocess
import time

USER = 10001
DEADLINE_SECONDS = 60
ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}


def can_run():
    """None, or the reason why containers cannot be run here."""
    try:
        subprocess.run(["bwrap", "--unshare-all", "--uid", str(USER), "--ro-bind", "/", "/", "true"], check=True,
                       capture_output=True, timeout=DEADLINE_SECONDS)
    except FileNotFoundError:
        return "bwrap is not installed (package bubblewrap)"
    except subprocess.CalledProcessError as error:
        return f"no namespaces here: {error.stderr.decode().strip()}"
    return None


class Container:
    """Runs `command` in `root`. `mounts`: path in the container -> folder here; `read_only_mounts` alike."""

    def __init__(self, root, command, mounts, read_only_mounts=None, environment=None):
        info_end, bwrap_end = os.pipe()
        arguments = ["bwrap", "--unshare-all", "--as-pid-1", "--die-with-parent", "--new-session", "--clearenv",
                     "--uid", str(USER), "--gid", str(USER), "--cap-drop", "ALL", "--info-fd", str(bwrap_end),
                     "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev"]
        for path, folder in mounts.items():
            arguments += ["--bind", folder, path]
        for path, folder in (read_only_mounts or {}).items():
            arguments += ["--ro-bind", folder, path]
        for name, value in {"PATH": "/usr/bin", **(environment or {})}.items():
            arguments += ["--setenv", name, value]
        self.process = subprocess.Popen(arguments + ["--"] + command, pass_fds=(bwrap_end,), stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        os.close(bwrap_end)
        with os.fdopen(info_end) as info:
            self.pid = json.load(info)["child-pid"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def _entering(self, command, *namespaces):
        return ["nsenter", "--target", str(self.pid), "--user", "--preserve-credentials", "--mount", "--net", "--ipc",
                *namespaces, "--root", "--wd"] + command

    def execute(self, command):
        """Runs a command inside, as `docker exec` and exec probes do."""
        return subprocess.run(self._entering(command, "--pid"), capture_output=True, text=True, timeout=DEADLINE_SECONDS,
                              env=ENVIRONMENT)

    def start_client(self, command):
        """Starts a program of the image that outlives process 1: with its network and files, not among its processes."""
        return subprocess.Popen(self._entering(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=ENVIRONMENT)

    def wait_for(self, command, seconds=DEADLINE_SECONDS):
        """Repeats a probe until it succeeds, for at most `seconds`; the last result."""
        end = time.monotonic() + seconds
        while True:
            result = self.execute(command)
            if result.returncode == 0 or time.monotonic() > end or self.process.poll() is not None:
                return result
            time.sleep(0.05)

    def status(self, field):
        """A line of /proc/PID/status of process 1 (as seen from here)."""
        with open(f"/proc/{self.pid}/status", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith(field + ":"))

    def terminate(self, seconds):
        """SIGTERM; (exit status, output). Raises subprocess.TimeoutExpired, as Kubernetes would SIGKILL then."""
        os.kill(self.pid, signal.SIGTERM)
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, output.decode()
