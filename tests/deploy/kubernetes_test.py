#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes manifests render, and what they name in each other is there.

Usage: kubernetes_test.py
"""

import json
import sys
import unittest

import manifests
import yaml

# What a worker may take to end after the drain, and the kubelet to notice.
SLACK_SECONDS = 10


def matches(selector, labels):
    return selector.items() <= labels.items()


class KubernetesTest(unittest.TestCase):
    def for_each_workload(self):
        for title, objects in manifests.every_rendering():
            if title != "monitoring":
                with self.subTest(title):
                    yield objects, manifests.workload(objects)["spec"]["template"]

    def test_every_kustomization_is_one_that_the_tests_render(self):
        folders = {path.parent.name for path in manifests.KUBERNETES.glob("*/kustomization.yaml")}
        components = {name for names in manifests.COMPONENTS.values() for name in names}
        self.assertEqual(folders, set(manifests.OVERLAYS) | components | {"base", "pod"})

    def test_termination_is_longer_than_a_drain(self):
        for objects, template in self.for_each_workload():
            drain = manifests.duration(manifests.flags(objects)["drain_delay"]) + manifests.duration(manifests.flags(objects)["drain_timeout"])
            self.assertGreaterEqual(template["spec"]["terminationGracePeriodSeconds"], drain + SLACK_SECONDS)

    def test_readiness_is_noticed_within_the_drain_delay(self):
        for objects, template in self.for_each_workload():
            probe = template["spec"]["containers"][0]["readinessProbe"]
            self.assertLess(probe["periodSeconds"] * probe["failureThreshold"], manifests.duration(manifests.flags(objects)["drain_delay"]))

    def test_what_a_pod_mounts_is_there(self):
        secrets, claims = {"gemmd-tls", "gemmd-tokens"}, {"gemmd-tensors"}
        for objects, template in self.for_each_workload():
            volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
            for container in template["spec"]["containers"] + template["spec"].get("initContainers", []):
                for mount in container["volumeMounts"]:
                    self.assertIn(mount["name"], volumes)
            for volume in volumes.values():
                if "configMap" in volume:
                    manifests.find(objects, "ConfigMap", volume["configMap"]["name"])
                if "secret" in volume:
                    self.assertIn(volume["secret"]["secretName"], secrets)
                if "persistentVolumeClaim" in volume:
                    self.assertIn(volume["persistentVolumeClaim"]["claimName"], claims)
            manifests.find(objects, "ServiceAccount", template["spec"]["serviceAccountName"])

    def test_containers_are_confined(self):
        for _, template in self.for_each_workload():
            self.assertTrue(template["spec"]["securityContext"]["runAsNonRoot"])
            for container in template["spec"]["containers"]:
                context = container["securityContext"]
                self.assertTrue(context["readOnlyRootFilesystem"])
                self.assertFalse(context["allowPrivilegeEscalation"])
                self.assertEqual(context["capabilities"], {"drop": ["ALL"]})

    def test_selectors_select_the_pods(self):
        for objects, template in self.for_each_workload():
            labels = template["metadata"]["labels"]
            selectors = [manifests.workload(objects)["spec"]["selector"]["matchLabels"]]
            for item in objects:
                if item["kind"] == "Service":
                    selectors.append(item["spec"]["selector"])
                elif item["kind"] == "NetworkPolicy":
                    selectors.append(item["spec"]["podSelector"]["matchLabels"])
                elif item["kind"] == "PodDisruptionBudget":
                    selectors.append(item["spec"]["selector"]["matchLabels"])
            for selector in selectors:
                self.assertTrue(matches(selector, labels), selector)

    def test_ports_that_are_named_are_opened_by_the_container(self):
        for objects, template in self.for_each_workload():
            ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
            for item in objects:
                if item["kind"] == "Service":
                    for port in item["spec"]["ports"]:
                        self.assertEqual(ports[port["targetPort"]], port["port"])
                elif item["kind"] == "NetworkPolicy":
                    for rule in item["spec"]["ingress"]:
                        self.assertLessEqual({port["port"] for port in rule["ports"]}, set(ports))
            listens = manifests.flags(objects)["listen"].split(",") + [manifests.flags(objects)["metrics_listen"]]
            self.assertEqual({int(address.rsplit(":", 1)[1]) for address in listens if not address.startswith("unix:")},
                             set(ports.values()))

    def test_the_autoscaler_scales_the_deployment_by_a_metric_of_the_adapter(self):
        objects = manifests.render("autoscaling")
        scaler = manifests.find(objects, "HorizontalPodAutoscaler", "gemmd")["spec"]
        manifests.find(objects, scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"])
        self.assertNotIn("replicas", manifests.workload(objects)["spec"])
        self.assertGreaterEqual(scaler["minReplicas"], manifests.workload(manifests.render("remote"))["spec"]["replicas"])
        rules = yaml.safe_load((manifests.KUBERNETES / "autoscaling/adapter_rules.yaml").read_text(encoding="utf-8"))["rules"]
        self.assertEqual([metric["pods"]["metric"]["name"] for metric in scaler["metrics"]],
                         [rule["name"]["as"] for rule in rules])
        flags_of_pod = manifests.flags(objects)
        drain = manifests.duration(flags_of_pod["drain_delay"]) + manifests.duration(flags_of_pod["drain_timeout"])
        self.assertGreater(scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"], drain)

    def test_clients_look_for_new_pods_before_the_autoscaler_judges_them(self):
        window = manifests.find(manifests.render("autoscaling"), "HorizontalPodAutoscaler", "gemmd")["spec"]["behavior"][
            "scaleDown"]["stabilizationWindowSeconds"]
        for overlay in ("remote", "autoscaling"):
            age = manifests.duration(manifests.flags(manifests.render(overlay))["max_connection_age"])
            self.assertLessEqual(age, window)
            self.assertGreaterEqual(age, 60)  # A TLS handshake costs more than most requests.

    def test_rollouts_and_node_drains_leave_a_replica_that_serves_and_need_no_spare_gpu(self):
        for overlay in ("remote", "autoscaling"):
            objects = manifests.render(overlay)
            deployment = manifests.workload(objects)["spec"]
            replicas = deployment.get("replicas")
            if replicas is None:
                replicas = manifests.find(objects, "HorizontalPodAutoscaler", "gemmd")["spec"]["minReplicas"]
            rollout = deployment["strategy"]["rollingUpdate"]
            budget = manifests.find(objects, "PodDisruptionBudget", "gemmd")["spec"]
            self.assertEqual(rollout["maxSurge"], 0)
            self.assertEqual(rollout["maxUnavailable"], budget["maxUnavailable"])
            self.assertGreaterEqual(replicas - rollout["maxUnavailable"], 1)

    def test_the_tensors_component_mounts_what_its_flags_name_and_its_manifest_names_files_of_the_volume(self):
        for overlay in ("node", "remote"):
            objects = manifests.render(overlay, "tensors")
            pod = manifests.workload(objects)["spec"]["template"]["spec"]
            arguments = dict(word[2:].split("=", 1) for word in pod["containers"][0]["args"])
            mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            self.assertIn("persistentVolumeClaim", volumes[mounts[arguments["tensor_dirs"]]])
            folder, name = arguments["tensor_manifest"].rsplit("/", 1)
            listed = manifests.find(objects, "ConfigMap", volumes[mounts[folder]]["configMap"]["name"])["data"][name]
            for tensor in json.loads(listed)["tensors"]:
                self.assertFalse(tensor["file"]["path"].startswith("/"))

    def test_the_service_monitor_selects_the_metrics_service_of_both_overlays(self):
        monitor = manifests.find(manifests.render("monitoring"), "ServiceMonitor", "gemmd")["spec"]
        for overlay in ("node", "remote"):
            service = manifests.find(manifests.render(overlay), "Service", "gemmd-metrics")
            self.assertTrue(matches(monitor["selector"]["matchLabels"], service["metadata"]["labels"]))
            ports = {port["name"] for port in service["spec"]["ports"]}
            self.assertEqual({endpoint["port"] for endpoint in monitor["endpoints"]}, ports)

    def test_the_cpu_component_asks_for_no_gpu(self):
        for overlay in ("node", "remote"):
            self.assertNotIn("nvidia.com/gpu:", yaml.dump(manifests.workload(manifests.render(overlay, "cpu"))["spec"]["template"]["spec"]["containers"]))

    def test_the_mps_component_mounts_the_pipe_folder_that_it_names(self):
        for overlay in ("node", "remote"):
            objects = manifests.render(overlay, "mps")
            pod = manifests.workload(objects)["spec"]["template"]["spec"]
            namespace = next(item for item in objects if item["kind"] == "Namespace")
            self.assertTrue(pod["hostIPC"])
            self.assertEqual(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged")
            container = pod["containers"][0]
            named = next(item["value"] for item in container["env"] if item["name"] == "CUDA_MPS_PIPE_DIRECTORY")
            self.assertIn(named, [mount["mountPath"] for mount in container["volumeMounts"]])

    def test_the_example_client_mounts_the_folder_of_the_daemon_set(self):
        client = yaml.safe_load((manifests.KUBERNETES / "node/client_example.yaml").read_text(encoding="utf-8"))["spec"]
        objects = manifests.render("node")
        pod = manifests.workload(objects)["spec"]["template"]["spec"]
        sockets = [next(volume["hostPath"]["path"] for volume in spec["volumes"] if volume["name"] == "socket")
                   for spec in (client, pod)]
        self.assertEqual(sockets[0], sockets[1])
        self.assertIn(pod["securityContext"]["runAsGroup"], client["securityContext"]["supplementalGroups"])
        self.assertIn("--server=" + manifests.flags(objects)["listen"], client["containers"][0]["command"])
        self.assertEqual(client["containers"][0]["image"], pod["containers"][0]["image"])


if __name__ == "__main__":
    reason = manifests.cannot_render()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(77)
    unittest.main()
