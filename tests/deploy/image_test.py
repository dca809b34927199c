#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The root file system of the image runs gemmd: read-only, not as root, alone, and drains it on SIGTERM.

Usage: image_test.py BUILD_FOLDER NVRTC_FOLDER|""
"""

import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import unittest

import container

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = {"gemmd", "gemmd-worker", "gemmctl", "gemmload"}
BUILD, NVRTC = sys.argv[1], sys.argv[2]
SERVER = "--server=unix:/run/gemmd/gemmd.sock"


class ImageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = os.path.join(cls.folder.name, "root")
        subprocess.run([REPOSITORY / "deploy/image/build-rootfs", BUILD, cls.root] + ([NVRTC] if NVRTC else []), check=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def start(self, *flags):
        volumes = {path: tempfile.mkdtemp(dir=self.folder.name) for path in ("/run/gemmd", "/var/cache/gemmd")}
        daemon = container.Container(self.root, ["/usr/bin/gemmd", "--workers=cpu", *flags], volumes)
        self.addCleanup(daemon.__exit__)
        ready = daemon.wait_for(["gemmctl", SERVER, "health"])
        self.assertEqual(ready.returncode, 0, ready.stderr)
        return daemon

    def test_it_holds_the_programs_and_no_shell(self):
        self.assertEqual(set(os.listdir(f"{self.root}/usr/bin")), PROGRAMS)
        files = [os.path.join(folder, name) for folder, _, names in os.walk(self.root) for name in names]
        executable = {os.path.basename(path) for path in files
                      if not os.path.islink(path) and os.stat(path).st_mode & stat.S_IXUSR}
        self.assertEqual(executable, PROGRAMS | {"ld-linux-x86-64.so.2"})

    def test_nothing_in_it_is_set_uid_or_writable_by_all(self):
        for folder, names, files in os.walk(self.root):
            for path in [os.path.join(folder, name) for name in names + files]:
                mode = os.lstat(path).st_mode
                self.assertFalse(mode & (stat.S_ISUID | stat.S_ISGID), path)
                if not stat.S_ISLNK(mode) and path != f"{self.root}/tmp":
                    self.assertFalse(mode & stat.S_IWOTH, path)

    def test_a_checked_product_comes_out_of_it(self):
        daemon = self.start()
        product = daemon.execute(["gemmctl", SERVER, "gemm", "--m=64", "--n=512", "--k=512", "--check"])
        self.assertEqual(product.returncode, 0, product.stderr)

    def test_process_1_is_not_root_and_has_no_capabilities(self):
        daemon = self.start()
        self.assertEqual(daemon.status("NSpid").split()[-1], "1")
        self.assertEqual(int(daemon.status("CapEff"), 16), 0)
        self.assertEqual(int(daemon.status("CapBnd"), 16), 0)
        with open(f"/proc/{daemon.pid}/uid_map", encoding="utf-8") as file:
            self.assertEqual(file.read().split()[0], str(container.USER))

    def test_its_root_is_read_only(self):
        daemon = self.start()
        with open(f"/proc/{daemon.pid}/mounts", encoding="utf-8") as file:
            mounts = {fields[1]: fields[3].split(",") for fields in (line.split() for line in file)}
        self.assertIn("ro", mounts["/"])
        self.assertIn("rw", mounts["/run/gemmd"])

    def test_sigterm_drains_it(self):
        daemon = self.start("--drain_delay=100ms")
        status, output = daemon.terminate(seconds=20)
        self.assertEqual(status, 0, output)
        self.assertIn("drain: done", output)

    @unittest.skipUnless(NVRTC, "no CUDA toolkit")
    def test_gpu_workers_find_nvrtc_in_it(self):
        with container.Container(self.root, ["/usr/bin/gemmd-worker", "--list_gpus"], {}) as worker:
            output = worker.process.communicate(timeout=container.DEADLINE_SECONDS)[0].decode()
        self.assertNotIn("libnvrtc", output)


if __name__ == "__main__":
    reason = container.can_run()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1])
