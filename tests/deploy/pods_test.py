#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The pods of the Kubernetes manifests run: with their flags, mounts, user and probes, and their termination loses nothing.

The manifests are rendered with the component `cpu`; the container is bubblewrap's (container.py).

Usage: pods_test.py BUILD_FOLDER
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import container
import manifests

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = sys.argv[1]
TOKEN = "3f8a1c5e7b9d2f4a6c8e0b1d"


def write(folder, name, text, mode=0o640):
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def make_secrets(folder):
    """What the secrets of remote/ hold: a certificate of its own authority, and tokens."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
                    "-subj", "/CN=gemmd.gemmd.svc", "-addext", "subjectAltName=DNS:gemmd.gemmd.svc,IP:127.0.0.1", "-keyout",
                    f"{folder}/tls.key", "-out", f"{folder}/tls.crt"], check=True, capture_output=True)
    os.chmod(f"{folder}/tls.key", 0o640)
    write(folder, "tokens", TOKEN + "\n")


class PodsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = os.path.join(cls.folder.name, "root")
        subprocess.run([REPOSITORY / "deploy/image/build-rootfs", BUILD, cls.root], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def volume(self, volume, objects):
        """A folder for a volume of the pod: (folder, whether it is read-only)."""
        folder = tempfile.mkdtemp(dir=self.folder.name)
        if "configMap" in volume:
            for name, text in manifests.find(objects, "ConfigMap", volume["configMap"]["name"])["data"].items():
                write(folder, name, text)
        elif "secret" in volume:
            make_secrets(folder)
            kept = {"tls": {"tls.crt", "tls.key"}, "tokens": {"tokens"}}[volume["name"]]
            for name in set(os.listdir(folder)) - kept:
                os.remove(os.path.join(folder, name))
        return folder

    def start(self, overlay):
        """The pod of an overlay, started: (container, the spec of its container)."""
        objects = manifests.render(overlay, "cpu")
        pod = manifests.workload(objects)["spec"]["template"]["spec"]
        self.assertEqual(pod["securityContext"]["runAsUser"], container.USER)
        self.assertEqual(pod["securityContext"]["runAsGroup"], container.USER)
        spec = pod["containers"][0]
        folders = {volume["name"]: self.volume(volume, objects) for volume in pod["volumes"]}
        mounts = {False: {}, True: {}}
        for mount in spec["volumeMounts"]:
            # The image has the folders that it mounts on; Kubernetes makes those that are missing.
            os.makedirs(self.root + mount["mountPath"], exist_ok=True)
            mounts[mount.get("readOnly", False)][mount["mountPath"]] = folders[mount["name"]]
        daemon = container.Container(self.root, ["/usr/bin/gemmd"] + spec["args"], mounts[False], mounts[True])
        self.addCleanup(daemon.__exit__)
        return daemon, pod

    def assert_ready(self, daemon, pod):
        probe = pod["containers"][0]["startupProbe"]
        started = daemon.wait_for(probe["exec"]["command"], seconds=probe["periodSeconds"] * probe["failureThreshold"])
        self.assertEqual(started.returncode, 0, started.stderr)
        for name in ("readinessProbe", "livenessProbe"):
            result = daemon.execute(pod["containers"][0][name]["exec"]["command"])
            self.assertEqual(result.returncode, 0, result.stderr)

    def wait_until_loaded(self, daemon):
        """Until the load generator has made its weights, which it does right before it starts."""
        end = time.monotonic() + container.DEADLINE_SECONDS
        while True:
            info = daemon.execute(["gemmctl", "--server=unix:/run/gemmd/gemmd.sock", "--json", "info"])
            self.assertEqual(info.returncode, 0, info.stderr)
            if json.loads(info.stdout)["tensors"] > 0:
                return
            self.assertLess(time.monotonic(), end, "no load")

    def assert_loses_nothing(self, daemon, pod, load_flags):
        """SIGTERM under load: no request that was accepted fails, and the pod ends within its grace period."""
        report = {}

        def load():
            report["result"] = daemon.execute(["gemmload", *load_flags, "--shapes=tiny", "--concurrency=4", "--warmup=0s",
                                               "--duration=2s", "--json"])
        thread = threading.Thread(target=load)
        thread.start()
        self.wait_until_loaded(daemon)
        status, output = daemon.terminate(seconds=pod["terminationGracePeriodSeconds"])
        thread.join()
        self.assertEqual(status, 0, output)
        self.assertEqual(report["result"].returncode, 0, report["result"].stderr)
        self.assertGreater(json.loads(report["result"].stdout)["succeeded"], 0)
        self.assertNotIn("timed out", output)

    def test_the_pod_on_a_node_serves_its_socket_and_loses_nothing_when_it_ends(self):
        daemon, pod = self.start("node")
        self.assert_ready(daemon, pod)
        self.assert_loses_nothing(daemon, pod, ["--server=unix:/run/gemmd/gemmd.sock"])

    def test_the_remote_pod_serves_tls_with_tokens_and_loses_nothing_when_it_ends(self):
        daemon, pod = self.start("remote")
        self.assert_ready(daemon, pod)
        tls = ["--server=127.0.0.1:50051", "--tls", "--tls_ca=/etc/gemmd-tls/tls.crt"]
        refused = daemon.execute(["gemmctl", *tls, "gemm"])
        self.assertIn("UNAUTHENTICATED", refused.stderr)
        with_token = tls + ["--token_file=/etc/gemmd-tokens/tokens"]
        product = daemon.execute(["gemmctl", *with_token, "gemm", "--transport=inline", "--check"])
        self.assertEqual(product.returncode, 0, product.stderr)
        self.assert_loses_nothing(daemon, pod, with_token + ["--transport=inline"])

    def test_the_probes_fail_where_nothing_listens(self):
        daemon, pod = self.start("node")
        self.assert_ready(daemon, pod)
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            command = pod["containers"][0][name]["exec"]["command"]
            elsewhere = [word.replace("/run/gemmd/", "/tmp/") for word in command]
            self.assertNotEqual(elsewhere, command)
            self.assertNotEqual(daemon.execute(elsewhere).returncode, 0)


if __name__ == "__main__":
    reason = container.can_run() or manifests.cannot_render()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1])
