# SPDX-License-Identifier: Apache-2.0
"""The package is typed: mypy finds nothing in it, and finds what a caller does wrong."""

import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).resolve().parent.parent

CALLER = """
import asyncio
import gemmd

def right(client: gemmd.Client, x: gemmd.Quantized) -> gemmd.Quantized:
    client.gemm(x, x, timeout=1.0)
    with client.stream() as stream:
        stream.gemm(x, x).result(timeout=1.0)
    return client.quantize(x.data, (1, 128), timeout=1.0)

async def right_too(client: gemmd.aio.Client, x: gemmd.Quantized) -> gemmd.Quantized:
    return await client.quantize(x.data)

def wrong(client: gemmd.Client, x: gemmd.Quantized) -> gemmd.Quantized:
    client.gemm(x, x, timeout="1 s")
    client.gemm(x)
    client.gemm(x, x, nonsense=True)
    return client.quantize(x.data).shape
"""


def mypy(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", f"--cache-dir={cwd}/.mypy_cache", *arguments],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def test_the_package_has_no_type_errors(tmp_path):
    result = mypy(f"--config-file={PACKAGE}/pyproject.toml", PACKAGE / "src" / "gemmd", cwd=tmp_path)
    assert result.returncode == 0, result.stdout


def test_callers_are_checked(tmp_path):
    (tmp_path / "caller.py").write_text(CALLER, encoding="utf-8")
    result = mypy("--ignore-missing-imports", "caller.py", cwd=tmp_path)
    lines = [int(line.split(":")[1]) for line in result.stdout.splitlines() if ": error:" in line]
    begin = CALLER.splitlines().index("def wrong(client: gemmd.Client, x: gemmd.Quantized) -> gemmd.Quantized:") + 2
    assert lines == list(range(begin, begin + 4)), result.stdout
