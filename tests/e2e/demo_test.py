#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the demo as `make demo` does, and looks at its table: every product of every transport was checked.

Usage: demo_test.py DEMO BIN_FOLDER
"""

import subprocess
import sys
import unittest

DEMO, BIN_FOLDER = sys.argv[1:3]
OPERATIONS = ("dense", "m_grouped_contiguous", "m_grouped_masked", "k_grouped", "quantize")


class DemoTest(unittest.TestCase):
    def test_every_product_is_right(self):
        demo = subprocess.run([DEMO, BIN_FOLDER], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=280,
                              check=False, encoding="utf-8")
        self.assertEqual(demo.returncode, 0, demo.stdout)
        rows = [line.split() for line in demo.stdout.splitlines() if line.endswith((" ok", " FAILED"))]
        self.assertGreaterEqual(len(rows), 20, demo.stdout)
        self.assertEqual([row for row in rows if row[-1] != "ok"], [], demo.stdout)
        words = {word for row in rows for word in row}
        for word in (*OPERATIONS, "inline", "host", "shm", "tensor", "unary", "stream"):
            self.assertIn(word, words)
        # What `gemmctl info` says of each worker: no MPS on the CPU.
        lines = demo.stdout.splitlines()
        header = next(number for number, line in enumerate(lines) if line.startswith("device"))
        self.assertEqual(lines[header].split()[-1], "MPS")
        self.assertTrue(lines[header + 1].startswith("cpu") and lines[header + 1].endswith("-"), demo.stdout)
        self.assertIn("over TCP", demo.stdout)
        self.assertIn("was drained and ended with status 0", demo.stdout)

    def test_a_folder_without_programs_is_refused(self):
        self.assertNotEqual(subprocess.run([DEMO, "/nonexistent"], stderr=subprocess.DEVNULL, check=False).returncode, 0)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
