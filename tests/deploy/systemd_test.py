#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The systemd unit, alone and with its drop-in, is one that systemd understands, is confined, and fits the flags of gemmd.

Usage: systemd_test.py BUILD_FOLDER
"""

import configparser
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BUILD = pathlib.Path(sys.argv[1])
SYSTEMD = pathlib.Path(__file__).resolve().parents[2] / "deploy/systemd"
# What `systemd-analyze security` says of the unit, times ten: 19 when this was written; 50 and more is "medium".
MOST_EXPOSURE = 20


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|min)", text).groups()
    return int(number) * {"s": 1, "min": 60}[unit]


def service_section(text):
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read_string(text)
    return parser["Service"]


class SystemdTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.text = (SYSTEMD / "gemmd.service").read_text(encoding="utf-8")
        self.unit = pathlib.Path(self.folder.name, "gemmd.service")
        # Verification looks for the programs where the unit says that they are.
        self.unit.write_text(self.text.replace("/usr/bin/", f"{BUILD}/bin/"), encoding="utf-8")
        self.service = service_section(self.text)
        self.mps_text = (SYSTEMD / "mps.conf").read_text(encoding="utf-8")

    def add_mps(self, text):
        folder = pathlib.Path(f"{self.unit}.d")
        folder.mkdir()
        (folder / "mps.conf").write_text(text, encoding="utf-8")

    def test_systemd_finds_nothing_wrong_in_the_unit(self):
        result = run("systemd-analyze", "verify", "--man=no", str(self.unit))
        self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_systemd_finds_something_wrong_in_a_wrong_unit(self):
        self.unit.write_text(self.unit.read_text(encoding="utf-8").replace("KillMode=mixed", "KillMode=gently"), encoding="utf-8")
        self.assertIn("gently", run("systemd-analyze", "verify", "--man=no", str(self.unit)).stderr)

    def test_the_service_is_confined(self):
        result = run("systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(self.unit))
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_systemd_finds_nothing_wrong_in_the_unit_with_mps(self):
        self.add_mps(self.mps_text)
        result = run("systemd-analyze", "verify", "--man=no", str(self.unit))
        self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_systemd_finds_something_wrong_in_a_wrong_drop_in(self):
        self.add_mps(self.mps_text.replace("ReadWritePaths=/run", "ReadWritePaths=run"))
        self.assertIn("run/nvidia-mps", run("systemd-analyze", "verify", "--man=no", str(self.unit)).stderr)

    def test_the_service_is_confined_with_mps(self):
        self.add_mps(self.mps_text)
        result = run("systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(self.unit))
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_the_service_reaches_the_folder_of_mps(self):
        mps = service_section(self.mps_text)
        name, folder = mps["Environment"].split("=")
        self.assertEqual((name, mps["ReadWritePaths"]), ("CUDA_MPS_PIPE_DIRECTORY", folder))
        # What the unit hides: PrivateTmp and ProtectHome.
        self.assertFalse(re.match(r"/(tmp|var/tmp|home|root|run/user)(/|$)", folder), folder)

    def test_flags_of_the_unit_are_flags_of_the_programs(self):
        for command in (self.service["ExecStart"], self.service["ExecStartPost"]):
            program, *words = command.split()
            known = run(str(BUILD / "bin" / pathlib.Path(program).name), "--helpfull").stdout
            for flag in (word[2:].split("=")[0] for word in words if word.startswith("--")):
                self.assertIn(f"--{flag} (", known)

    def test_stopping_takes_longer_than_a_drain(self):
        text = re.sub(r"\s+", " ", run(str(BUILD / "bin/gemmd"), "--help").stdout)
        drain = sum(seconds(re.search(rf"--{flag} \(.*?default: (\w+);", text).group(1))
                    for flag in ("drain_delay", "drain_timeout"))
        self.assertGreater(seconds(self.service["TimeoutStopSec"]), drain)

    def test_the_socket_is_in_the_runtime_folder(self):
        self.assertIn(f"--listen=unix:/run/{self.service['RuntimeDirectory']}/", self.service["ExecStart"])

    @unittest.skipUnless(shutil.which("systemd-sysusers"), "no systemd-sysusers")
    def test_the_user_of_the_unit_is_made(self):
        (pathlib.Path(self.folder.name) / "etc").mkdir()
        result = run("systemd-sysusers", f"--root={self.folder.name}", str(SYSTEMD / "gemmd.sysusers.conf"))
        self.assertEqual(result.returncode, 0, result.stderr)
        users = pathlib.Path(self.folder.name, "etc/passwd").read_text(encoding="utf-8")
        self.assertIn(f"{self.service['User']}:x:", users)
        self.assertIn(f"{self.service['Group']}:x:", pathlib.Path(self.folder.name, "etc/group").read_text(encoding="utf-8"))


if __name__ == "__main__":
    if not shutil.which("systemd-analyze"):
        print("skipped: systemd-analyze is not installed (package systemd)")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1])
