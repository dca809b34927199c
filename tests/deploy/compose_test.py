#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The compose files fit the image, the flags of the programs, Prometheus' and Grafana's provisioning, and the dashboards.

Usage: compose_test.py BUILD_FOLDER
"""

import functools
import pathlib
import re
import subprocess
import sys
import unittest

import dashboards
import yaml

BUILD = pathlib.Path(sys.argv[1])
DEPLOY = pathlib.Path(__file__).resolve().parents[2] / "deploy"
COMPOSE = DEPLOY / "compose"


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def merged(*names):
    """What compose makes of several files, one after the other: maps are joined, lists grow, except that a command is replaced."""
    def join(base, more):
        for key, value in more.items():
            if isinstance(value, dict):
                join(base.setdefault(key, {}), value)
            elif isinstance(value, list) and key != "command":
                base[key] = base.get(key, []) + value
            else:
                base[key] = value
        return base
    return functools.reduce(join, (load(COMPOSE / name) for name in names), {})


def known_flags(program):
    text = subprocess.run([BUILD / "bin" / program, "--helpfull"], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"--(\w+) \(", text))


class ComposeTest(unittest.TestCase):
    def setUp(self):
        self.file = load(COMPOSE / "compose.yaml")
        self.services = self.file["services"]

    def test_flags_are_flags_of_the_programs(self):
        commands = [("gemmd", self.services["gemmd"]["command"]), ("gemmctl", self.services["gemmd"]["healthcheck"]["test"]),
                    ("gemmload", self.services["load"]["command"]), ("gemmd", load(COMPOSE / "gpu.yaml")["services"]["gemmd"]["command"])]
        for program, words in commands:
            flags = {word[2:].split("=")[0] for word in words if word.startswith("--")}
            self.assertTrue(flags)
            self.assertLessEqual(flags, known_flags(program))

    def test_everything_that_is_mounted_is_there(self):
        for service in self.services.values():
            for mount in service["volumes"]:
                source = mount.split(":")[0]
                if source.startswith("."):
                    self.assertTrue((COMPOSE / source).resolve().exists(), source)
                else:
                    self.assertIn(source, self.file["volumes"])
        self.assertTrue((COMPOSE / self.services["gemmd"]["build"]["context"] / self.services["gemmd"]["build"]["dockerfile"]).exists())

    def test_ports_are_open_to_this_machine_only(self):
        for service in self.services.values():
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_mps_is_added_to_the_gpus(self):
        alone = merged("compose.yaml", "gpu.yaml")["services"]
        services = merged("compose.yaml", "gpu.yaml", "mps.yaml")["services"]
        self.assertEqual([name for name in services if services[name] != alone.get(name)], ["gemmd"])
        gemmd = services["gemmd"]
        self.assertEqual(gemmd["ipc"], "host")
        self.assertEqual([gemmd[key] for key in ("command", "deploy")], [alone["gemmd"][key] for key in ("command", "deploy")])
        self.assertEqual(gemmd["volumes"][:-1], alone["gemmd"]["volumes"])
        # In a folder that compose made would be no control daemon, and CUDA would go on without MPS.
        folder = gemmd["environment"]["CUDA_MPS_PIPE_DIRECTORY"]
        self.assertEqual(gemmd["volumes"][-1], {"type": "bind", "source": folder, "target": folder, "bind": {"create_host_path": False}})

    def test_mps_is_in_the_folder_that_kubernetes_and_systemd_name(self):
        folder = merged("mps.yaml")["services"]["gemmd"]["environment"]["CUDA_MPS_PIPE_DIRECTORY"]
        pod = load(DEPLOY / "kubernetes/mps/pod.yaml")["spec"]["template"]["spec"]
        self.assertEqual([volume["hostPath"]["path"] for volume in pod["volumes"]], [folder])
        self.assertIn(f"CUDA_MPS_PIPE_DIRECTORY={folder}\n", (DEPLOY / "systemd/mps.conf").read_text(encoding="utf-8"))

    def test_prometheus_scrapes_where_gemmd_listens(self):
        config = load(DEPLOY / "prometheus/prometheus.yaml")
        listens = [word.split(":")[-1] for word in self.services["gemmd"]["command"] if word.startswith("--metrics_listen")]
        targets = [target for job in config["scrape_configs"] for static in job["static_configs"] for target in static["targets"]]
        self.assertEqual(targets, [f"gemmd:{port}" for port in listens])

    def test_grafana_finds_prometheus_and_the_dashboards(self):
        source = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
        self.assertIn(re.match(r"http://(\w+):9090$", source["url"]).group(1), self.services)
        path = load(DEPLOY / "grafana/provisioning/dashboards/gemmd.yaml")["providers"][0]["options"]["path"]
        self.assertIn(path, [mount.split(":")[1] for mount in self.services["grafana"]["volumes"]])
        home = pathlib.Path(self.services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
        self.assertEqual(str(home.parent), path)
        self.assertIn(home.stem, dashboards.load())

    def test_dashboards_are_sound(self):
        seen = set()
        for name, dashboard in dashboards.load().items():
            self.assertEqual(dashboard["uid"], f"gemmd-{name}")
            ids = [panel["id"] for panel in dashboard["panels"]]
            self.assertEqual(len(ids), len(set(ids)))
            self.assertNotIn(dashboard["title"], seen)
            seen.add(dashboard["title"])
            variables = {variable["name"] for variable in dashboard["templating"]["list"]}
            cells = set()
            for panel in dashboard["panels"]:
                used = set(re.findall(r"\$(?:\{(\w+)\}|(\w+))", str(panel)))
                names = {first or second for first, second in used}
                self.assertLessEqual(names - {"__rate_interval"}, variables, panel["title"])
                self.assertTrue(panel["type"] == "row" or panel["description"], panel["title"])
                at = panel["gridPos"]
                covered = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
                self.assertFalse(covered & cells, f"{panel['title']} overlaps another panel")
                self.assertLessEqual(at["x"] + at["w"], 24)
                cells |= covered

    def test_kubernetes_gets_every_dashboard(self):
        made = load(DEPLOY / "grafana/kustomization.yaml")["configMapGenerator"]
        self.assertEqual({path for item in made for path in item["files"]}, {f"dashboards/{name}.json" for name in dashboards.load()})


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
