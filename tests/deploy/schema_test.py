#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes manifests fit the schemas of the versions of Kubernetes that they are for.

Usage: schema_test.py KUBERNETES_VALIDATE (the program of the PyPI package)
"""

import os
import subprocess
import sys
import tempfile
import unittest

import manifests
import yaml

VALIDATOR = sys.argv[1]
# The oldest with everything that is used (unhealthyPodEvictionPolicy without a feature gate: 1.31), and the newest known.
VERSIONS = ("1.31", "1.37")
# Kinds of the Prometheus operator: their schemas are not part of Kubernetes.
WITHOUT_SCHEMA = {"ServiceMonitor", "PrometheusRule"}


def validate(objects, version):
    """The validator's output and exit status for these objects, with fields that the schema does not have refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "objects.yaml")
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump_all([item for item in objects if item["kind"] not in WITHOUT_SCHEMA], file)
        result = subprocess.run([VALIDATOR, "--strict", "--kubernetes-version", version, path], capture_output=True,
                                text=True, timeout=120, check=False)
        return result.returncode, result.stdout + result.stderr


class SchemaTest(unittest.TestCase):
    def test_every_rendering_is_valid(self):
        everything = [item for _, objects in manifests.every_rendering() for item in objects]
        everything.append(yaml.safe_load((manifests.KUBERNETES / "node/client_example.yaml").read_text(encoding="utf-8")))
        for version in VERSIONS:
            status, output = validate(everything, version)
            self.assertEqual(status, 0, output)

    def test_an_unknown_field_is_refused(self):
        objects = [dict(manifests.workload(manifests.render("remote")))]
        objects[0]["spec"] = {**objects[0]["spec"], "replica": 2}
        status, output = validate(objects, VERSIONS[0])
        self.assertNotEqual(status, 0)
        self.assertIn("replica", output)


if __name__ == "__main__":
    reason = manifests.cannot_render()
    if not os.path.exists(VALIDATOR):
        reason = f"{VALIDATOR} is not there (.ci/install-deps makes it if PyPI can be reached)"
    if reason:
        print(f"skipped: {reason}")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1])
