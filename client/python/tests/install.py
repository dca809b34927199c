#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds and installs the package into a virtual environment for its tests.

Usage: install.py SOURCE VENV [--index]

By default nothing is downloaded: the environment sees the distribution's Python packages (those of .ci/install-deps),
and the package is built with protoc and grpc_python_plugin. With --index everything comes from the package index in its
newest version, ml_dtypes included.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

MODULES = ("grpc", "google.protobuf", "numpy", "pytest", "mypy", "setuptools", "wheel", "venv")
IGNORED = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", ".mypy_cache")


def has_modules(python):
    command = [python, "-c", f"import sys, {', '.join(MODULES)}; assert sys.version_info >= (3, 10)"]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def find_python():
    """An interpreter with the modules: this one, or the distribution's own."""
    for python in (sys.executable, "/usr/bin/python3"):
        if pathlib.Path(python).exists() and has_modules(python):
            return python
    sys.exit(
        f"gemmd: expected a Python 3.10 or later with {', '.join(MODULES)}, as .ci/install-deps installs them; "
        "found none. To download them instead, run this with --index"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("venv", type=pathlib.Path)
    parser.add_argument("--index", action="store_true")
    arguments = parser.parse_args()
    python = sys.executable if arguments.index else find_python()
    options = [] if arguments.index else ["--system-site-packages"]
    subprocess.run([python, "-m", "venv", "--clear", *options, arguments.venv], check=True)
    # Building leaves files beside the source, so it is done on a copy (which has proto/ instead of a link to it).
    copy = arguments.venv / "source"
    shutil.copytree(arguments.source, copy, ignore=IGNORED)
    pip = [arguments.venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if arguments.index:
        subprocess.run([*pip, f"{copy}[dtypes]", "pytest", "mypy"], check=True)
    else:
        subprocess.run([*pip, "--no-index", "--no-build-isolation", "--no-deps", copy], check=True)


if __name__ == "__main__":
    main()
