#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The pods of the Kubernetes manifests run: with their flags, mounts, user and probes, and their termination loses nothing.

The manifests are rendered with the component `cpu`; the container is bubblewrap's (container.py).

Usage: pods_test.py BUILD_FOLDER
"""

import array
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import container
import manifests

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = sys.argv[1]
TOKEN = "3f8a1c5e7b9d2f4a6c8e0b1d"
SOCKET = "--server=unix:/run/gemmd/gemmd.sock"
# How long before the gate closes the load ends that must see no error, and how long beyond it the other one goes on.
MARGIN_SECONDS = 2
BEYOND_SECONDS = 5


def write(folder, name, text, mode=0o640):
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def drain_delay(overlay):
    return manifests.duration(manifests.flags(manifests.render(overlay))["drain_delay"])


def make_secrets(folder):
    """What the secrets of remote/ hold: a certificate of its own authority, and tokens."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
                    "-subj", "/CN=gemmd.gemmd.svc", "-addext", "subjectAltName=DNS:gemmd.gemmd.svc,IP:127.0.0.1", "-keyout",
                    f"{folder}/tls.key", "-out", f"{folder}/tls.crt"], check=True, capture_output=True)
    os.chmod(f"{folder}/tls.key", 0o640)
    write(folder, "tokens", TOKEN + "\n")


def make_weights(folder):
    """What the claim of tensors/ holds for its manifest: FP32 weights; and, for gemmload, a shape that they fit."""
    n, k = 256, 128
    header = json.dumps({"layers.0.w": {"dtype": "F32", "shape": [n, k], "data_offsets": [0, 4 * n * k]}}).encode()
    weights = array.array("f", ((i * 37 % 101 - 50) / 50 for i in range(n * k))).tobytes()
    pathlib.Path(folder, "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)
    write(folder, "shapes", f"1 dense 8 {n} {k}\n")


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
        elif "persistentVolumeClaim" in volume:
            make_weights(folder)
        elif "secret" in volume:
            make_secrets(folder)
            kept = {"tls": {"tls.crt", "tls.key"}, "tokens": {"tokens"}}[volume["name"]]
            for name in set(os.listdir(folder)) - kept:
                os.remove(os.path.join(folder, name))
        return folder

    def start(self, overlay, *components):
        """The pod of an overlay, started: (container, its spec)."""
        objects = manifests.render(overlay, "cpu", *components)
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

    def sessions(self, daemon):
        info = daemon.execute(["gemmctl", SOCKET, "--json", "info"])
        self.assertEqual(info.returncode, 0, info.stderr)
        return json.loads(info.stdout)["sessions"]

    def wait_for_sessions(self, daemon, count):
        end = time.monotonic() + container.DEADLINE_SECONDS
        while self.sessions(daemon) < count:
            self.assertLess(time.monotonic(), end, "no load")

    def finish(self, load):
        """What a load generator measured, and what it complained of."""
        output, complaints = load.communicate(timeout=container.DEADLINE_SECONDS)
        self.assertTrue(output, complaints)
        return json.loads(output), complaints

    def assert_loses_nothing(self, daemon, pod, delay, load_flags):
        """SIGTERM under load. Until the gate closes no request fails, and there is load when it does: what comes then is
        refused with a code that clients of several pods send elsewhere, and nothing else happens to any request."""
        def start_load(seconds):
            load = daemon.start_client(["gemmload", *load_flags, "--shapes=tiny", "--concurrency=4", "--warmup=0s",
                                        f"--duration={seconds}s", "--json"])
            self.addCleanup(load.kill)
            return load
        before = self.sessions(daemon)
        # They begin before the signal, so the first ends before the gate closes, and the second after it.
        loads = [start_load(delay - MARGIN_SECONDS), start_load(delay + BEYOND_SECONDS)]
        self.wait_for_sessions(daemon, before + len(loads))
        status, output = daemon.terminate(seconds=pod["terminationGracePeriodSeconds"])
        during, _ = self.finish(loads[0])
        across, _ = self.finish(loads[1])
        self.assertEqual(status, 0, output)
        self.assertNotIn("timed out", output)
        for report in (during, across):
            self.assertGreater(report["succeeded"], 0)
        self.assertEqual(during["errors"], {}, "before the gate closed")
        self.assertIn("UNAVAILABLE", across["errors"], "no load when the gate closed")
        self.assertLessEqual(set(across["errors"]), {"UNAVAILABLE", "CANCELLED"})

    def test_the_pod_on_a_node_serves_its_socket_and_loses_nothing_when_it_ends(self):
        daemon, pod = self.start("node")
        self.assert_ready(daemon, pod)
        self.assert_loses_nothing(daemon, pod, drain_delay("node"), [SOCKET])

    def test_the_remote_pod_serves_tls_with_tokens_and_loses_nothing_when_it_ends(self):
        daemon, pod = self.start("remote")
        self.assert_ready(daemon, pod)
        tls = ["--server=127.0.0.1:50051", "--tls", "--tls_ca=/etc/gemmd-tls/tls.crt"]
        refused = daemon.execute(["gemmctl", *tls, "gemm"])
        self.assertIn("UNAUTHENTICATED", refused.stderr)
        with_token = tls + ["--token_file=/etc/gemmd-tokens/tokens"]
        product = daemon.execute(["gemmctl", *with_token, "gemm", "--transport=inline", "--check"])
        self.assertEqual(product.returncode, 0, product.stderr)
        self.assert_loses_nothing(daemon, pod, drain_delay("remote"), with_token + ["--transport=inline"])

    def test_a_pod_with_the_component_tensors_has_the_weights_of_its_manifest_when_it_is_ready(self):
        daemon, pod = self.start("remote", "tensors")
        self.assert_ready(daemon, pod)
        by_name = daemon.execute(["gemmload", SOCKET, "--transport=inline", "--weights=name:layer0.w", "--warmup=0s",
                                  "--duration=200ms", "--shapes=/var/lib/gemmd/tensors/shapes"])
        self.assertEqual(by_name.returncode, 0, by_name.stderr)

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
