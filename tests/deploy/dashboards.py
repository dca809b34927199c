# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboards as data: their panels, and their queries with Grafana's variables filled in."""

import json
import pathlib

DASHBOARDS = pathlib.Path(__file__).resolve().parents[2] / "deploy/grafana/dashboards"
# Any instance, any device; an interval that holds some scrapes of a test.
VARIABLES = {"$__rate_interval": "30s", "$instance": ".*", "$device": ".*"}


def load():
    """name -> dashboard."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


def fill_in(expression):
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def queries(dashboard):
    """(panel, expression, legend) of each query."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel, fill_in(target["expr"]), target["legendFormat"]
