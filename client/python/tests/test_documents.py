# SPDX-License-Identifier: Apache-2.0
"""What the READMEs show works as it stands, and so do the examples."""

import json
import os
import pathlib
import re
import subprocess
import sys

import gemmd
import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
README = (PACKAGE / "README.md").read_text(encoding="utf-8")
ROOT_README = (PACKAGE / "../../README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README + ROOT_README, re.DOTALL)
ADDRESS = re.compile(r"unix:/[a-z/]+/gemmd\.sock")


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_readmes_run(daemon, number):
    code = EXAMPLES[number]
    if "torch" in code:
        pytest.importorskip("torch")
    code, count = ADDRESS.subn(daemon.address, code)
    assert count == 1
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_readme_shows_what_the_package_has():
    assert len(EXAMPLES) == 5
    table = README[README.index("| call |") :].split("\n\n")[0]
    named = set(re.findall(r"`client\.(\w+)", table))
    public = {name for name in dir(gemmd.Client) if not name.startswith("_")}
    assert named == public


@pytest.mark.parametrize("framework", [[], ["--torch"]], ids=["numpy", "torch"])
def test_the_moe_layer_is_right(daemon, framework):
    if framework:
        pytest.importorskip("torch")
    sizes = ["--tokens=23", "--hidden=512", "--intermediate=256", "--experts=6", "--top_k=3"]
    result = subprocess.run(
        [sys.executable, PACKAGE / "examples" / "moe_layer.py", f"--server={daemon.address}", *sizes, *framework],
        stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["contiguous", "masked"]


def test_the_moe_layer_on_a_gpu_says_what_it_needs():
    example = PACKAGE / "examples" / "moe_torch.py"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, example], stderr=subprocess.PIPE, text=True, timeout=120, check=False, env=environment)
    assert result.returncode == 2
    assert re.fullmatch(r"moe_torch: expected torch with CUDA, got .*\n", result.stderr)


def test_the_benchmark_measures_every_part(daemon):
    program = PACKAGE / "../../tests/bench/python_bench.py"
    output = subprocess.check_output(
        [sys.executable, program, f"--server={daemon.address}", "--repeats=3", "--m=16", "--n=128", "--k=256"],
        timeout=120)
    report = json.loads(output)
    assert report["devices"] == ["cpu"] and report["round_trip_p50_us"] > 0
    for result in report["results"]:
        parts = [result[f"{part}_p50_us"] for part in ("request", "rpc", "result")]
        assert all(part > 0 for part in parts) and result["total_p50_us"] > max(parts)
        assert 0 < result["device_p50_us"] < result["rpc_p50_us"]
    assert {"arrays", "region"} <= {result["operands"] for result in report["results"]}
