# SPDX-License-Identifier: Apache-2.0
"""Generates gemmd/v1/*_pb2.py and *_pb2_grpc.py from proto/ when the package is built.

The generator is grpcio-tools, or else the programs protoc and grpc_python_plugin (Debian: protobuf-compiler,
protobuf-compiler-grpc). The oldest grpcio and protobuf that take its output become dependencies of the package.
"""

import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE / "proto"  # A link to proto/ of the repository; a folder in a source distribution.
GENERATED = HERE / "build" / "generated"
PACKAGE = ("gemmd", "v1")


def generator():
    """The command that stands for protoc with the plugin for gRPC."""
    if importlib.util.find_spec("grpc_tools") is not None:
        return [sys.executable, "-m", "grpc_tools.protoc"]
    protoc, plugin = shutil.which("protoc"), shutil.which("grpc_python_plugin")
    if protoc is None or plugin is None:
        sys.exit("gemmd: expected grpcio-tools, or protoc and grpc_python_plugin, to build the package; found neither")
    return [protoc, f"--plugin=protoc-gen-grpc_python={plugin}"]


def generate():
    """Leaves the modules under GENERATED and gives their folder."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir(parents=True)
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.joinpath(*PACKAGE).glob("*.proto"))
    if not sources:
        sys.exit(f"gemmd: expected *.proto under {PROTO}; found none")
    outputs = [f"--{kind}_out={GENERATED}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*generator(), f"--proto_path={PROTO}", *outputs, *sources], check=True)
    folder = GENERATED.joinpath(*PACKAGE)
    (folder / "__init__.py").write_text(
        "# SPDX-License-Identifier: Apache-2.0\n"
        '"""The messages of the contract, as proto/gemmd/v1 describes them (generated)."""\n',
        encoding="utf-8",
    )
    return folder


def dependencies(folder):
    """Requirements with the versions that the generated modules ask for; old generators ask for none."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    protobuf = re.search(r"^# Protobuf Python Version: ([0-9.]+)", text, re.MULTILINE)
    grpc = re.search(r"^GRPC_GENERATED_VERSION = '([0-9.]+)'", text, re.MULTILINE)
    return [
        f"grpcio>={grpc.group(1) if grpc else '1.51'}",
        f"protobuf>={protobuf.group(1) if protobuf else '3.20'}",
        "numpy>=1.24",
    ]


class BuildWithContract(build_py):
    """build_py that adds the generated modules to the package."""

    def run(self):
        super().run()
        target = pathlib.Path(self.build_lib).joinpath(*PACKAGE)
        if self.editable_mode:
            target = HERE.joinpath("src", *PACKAGE)
        shutil.copytree(GENERATED.joinpath(*PACKAGE), target, dirs_exist_ok=True)


setup(install_requires=dependencies(generate()), cmdclass={"build_py": BuildWithContract})
