#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every metric and label that dashboards, rules and autoscaling name exists on a real gemmd, and every query has an answer.

A real Prometheus scrapes a real gemmd under gemmload, and evaluates the rules.

Usage: metrics_test.py BUILD_FOLDER PROMETHEUS
"""

import os
import pathlib
import re
import sys
import unittest

import dashboards
import scraped_daemon
import yaml

BUILD, PROMETHEUS = sys.argv[1], sys.argv[2]
DEPLOY = pathlib.Path(__file__).resolve().parents[2] / "deploy"
# Series that the CPU has none of; that gemmd defines them is checked by tests/repository.
ONLY_ON_GPUS = re.compile(r"\bgemmd_(gpu_|device_peak_memory_)\w*")
SELECTOR = re.compile(r"(?<![\w:$])((?:gemmd[_:]|up\b)[\w:]*)(\{[^}]*\})?")
GROUPING = re.compile(r"\bby \(([^)]*)\)")
LEGEND_LABEL = re.compile(r"\{\{(\w+)\}\}")


def rules():
    return [rule for path in sorted((DEPLOY / "prometheus/rules").glob("*.yaml"))
            for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def adapter_query():
    """The autoscaler's query, as the Prometheus adapter would fill it in for pods (here: instances)."""
    text = (DEPLOY / "kubernetes/autoscaling/adapter_rules.yaml").read_text(encoding="utf-8")
    query = yaml.safe_load(text)["rules"][0]["metricsQuery"]
    return query.replace("<<.GroupBy>>", "instance").replace("<<.LabelMatchers>>", 'instance=~".*"')


class MetricsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = scraped_daemon.ScrapedDaemon(BUILD, PROMETHEUS)
        cls.addClassCleanup(cls.daemon.__exit__)
        cls.daemon.load(seconds=5)
        # The rules that are evaluated last have seen the load.
        cls.daemon.stay_at(cls.daemon.wait_for("up == 1", "gemmd:kernel_cache_hits:ratio_rate5m", "gemmd:slow:ratio_rate3d"))

    def assert_inputs_exist(self, expression):
        """Each selector has series, and they have the labels that the expression groups by."""
        labels = set()
        for name, matchers in SELECTOR.findall(expression):
            found = self.daemon.query(name + matchers)
            self.assertTrue(found, f"no series {name}{matchers} for: {expression}")
            labels |= {label for series in found for label in series["metric"]}
        for group in GROUPING.findall(expression):
            for label in group.split(","):
                self.assertIn(label.strip(), labels, expression)

    def test_every_query_of_a_dashboard_has_an_answer_with_the_labels_of_its_legend(self):
        count = 0
        for name, dashboard in dashboards.load().items():
            for panel, expression, legend in dashboards.queries(dashboard):
                if ONLY_ON_GPUS.search(expression):
                    continue
                with self.subTest(dashboard=name, panel=panel["title"]):
                    self.assert_inputs_exist(expression)
                    result = self.daemon.query(expression)
                    if not expression.endswith("> 0"):
                        self.assertTrue(result, expression)
                    for series in result:
                        self.assertLessEqual(set(LEGEND_LABEL.findall(legend)), set(series["metric"]), expression)
                    count += 1
        self.assertGreater(count, 60)

    def test_every_rule_finds_its_inputs(self):
        for rule in rules():
            if ONLY_ON_GPUS.search(rule["expr"]):
                continue
            with self.subTest(rule.get("record") or rule["alert"]):
                self.assert_inputs_exist(rule["expr"])
                if "record" in rule:
                    self.assertTrue(self.daemon.query(rule["record"]), rule["record"])

    def test_the_unit_tests_of_the_rules_are_fed_series_that_exist(self):
        count = 0
        for name in ("alerts_test.yaml", "alerts_slow_test.yaml"):
            for test in yaml.safe_load((pathlib.Path(__file__).parent / name).read_text(encoding="utf-8"))["tests"]:
                for series in (item["series"] for item in test["input_series"]):
                    if ONLY_ON_GPUS.search(series):
                        continue
                    known = re.sub(r'\b(job|instance|device)="[^"]*",? ?', "", series)
                    with self.subTest(series=known):
                        self.assertTrue(self.daemon.query(known))
                        count += 1
        self.assertGreater(count, 40)

    def test_no_alert_is_pending_on_a_healthy_daemon(self):
        self.assertEqual(self.daemon.query("ALERTS"), [])

    def test_the_autoscaler_gets_a_number(self):
        self.assert_inputs_exist(adapter_query())
        self.assertGreater(float(self.daemon.query(adapter_query())[0]["value"][1]), 0)

    def test_load_moves_what_the_overview_shows_first(self):
        overview = dashboards.load()["overview"]
        moving = {"Requests": 0, "p99": 0, "Computed": 0}
        for panel, expression, _ in dashboards.queries(overview):
            if panel["type"] == "stat" and panel["title"] in moving:
                moving[panel["title"]] = float(self.daemon.query(expression)[0]["value"][1])
        for title, value in moving.items():
            self.assertGreater(value, 0, title)

    def test_a_name_that_does_not_exist_is_noticed(self):
        for expression in ("rate(gemmd_no_such_total[1m])", 'gemmd_requests_total{code="FINE"}', "sum by (shape) (gemmd_ready)"):
            with self.assertRaises(AssertionError):
                self.assert_inputs_exist(expression)


if __name__ == "__main__":
    if not os.path.exists(PROMETHEUS):
        print("skipped: no prometheus (.ci/install-deps unpacks its package into build/tools)")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1])
