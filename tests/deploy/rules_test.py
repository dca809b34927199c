#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prometheus takes the configuration and the rules, every alert has a unit test, and Kubernetes gets the same rules.

Usage: rules_test.py PROMTOOL
"""

import os
import pathlib
import re
import subprocess
import sys
import unittest

import yaml

PROMTOOL = sys.argv[1]
HERE = pathlib.Path(__file__).resolve().parent
DEPLOY = HERE.parents[1] / "deploy"
UNIT_TESTS = ("alerts_test.yaml", "alerts_slow_test.yaml")


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules():
    return [rule for path in sorted((DEPLOY / "prometheus/rules").glob("*.yaml"))
            for group in load(path)["groups"] for rule in group["rules"]]


def unit_tests():
    return [test for name in UNIT_TESTS for test in load(HERE / name)["tests"]]


def alerts_that_fire(test):
    """(alert, window or "") of each that a unit test expects."""
    for case in test["promql_expr_test"]:
        alert = re.search(r'alertname="(\w+)"', case["expr"])
        for sample in case["exp_samples"]:
            named = re.search(r'alertname="(\w+)"', sample["labels"]) or alert
            window = re.search(r'window="(\w+)"', sample["labels"])
            if named:
                yield named.group(1), window.group(1) if window else ""


class RulesTest(unittest.TestCase):
    def assert_accepted(self, *arguments):
        result = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=120, cwd=HERE, check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_promtool_accepts_configuration_and_rules(self):
        self.assert_accepted("check", "config", str(DEPLOY / "prometheus/prometheus.yaml"))

    def test_the_unit_tests_of_the_rules_pass(self):
        self.assert_accepted("test", "rules", *UNIT_TESTS)

    def test_every_alert_fires_in_a_unit_test_in_each_of_its_windows(self):
        alerts = {(rule["alert"], rule["labels"].get("window", "")) for rule in rules() if "alert" in rule}
        self.assertEqual(alerts, {alert for test in unit_tests() for alert in alerts_that_fire(test)})

    def test_every_alert_says_what_and_what_to_do(self):
        for rule in rules():
            if "alert" in rule:
                self.assertIn(rule["labels"]["severity"], ("page", "ticket"))
                self.assertEqual(set(rule["annotations"]), {"summary", "description"})

    def test_kubernetes_gets_the_same_rules(self):
        made = subprocess.run([DEPLOY / "prometheus/prometheus-rule"], capture_output=True, text=True, check=True).stdout
        path = DEPLOY / "kubernetes/monitoring/prometheus_rule.yaml"
        self.assertEqual(path.read_text(encoding="utf-8"), made, "run deploy/prometheus/prometheus-rule > " + str(path))
        groups = [group for file in sorted((DEPLOY / "prometheus/rules").glob("*.yaml")) for group in load(file)["groups"]]
        self.assertEqual(yaml.safe_load(made)["spec"]["groups"], groups)


if __name__ == "__main__":
    if not os.path.exists(PROMTOOL):
        print("skipped: no promtool (package prometheus; .ci/install-deps unpacks it into build/tools)")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1])
