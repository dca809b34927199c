#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks of the repository itself: include directions, licences, folder documents, file sizes, names in deploy/, comments
of the contract.

Usage: check.py [--root DIR]; prints one line per violation and fails if there is any. Standard library only.
"""

import argparse
import os
import re
import subprocess
import sys

SPDX = "SPDX-License-Identifier: Apache-2.0"
SOURCE_FOLDERS = ("proto", "gpu", "server", "client", "deploy", "tests")
SOURCE_SUFFIXES = (".h", ".cc", ".cuh")
# Files whose format has no place for a licence line in front.
WITHOUT_SPDX = re.compile(r"(^|/)(LICENSE|CMakePresets\.json|.*\.(md|json|npy|safetensors|svg|png|csv|txt))$")
CMAKE_LISTS = "CMakeLists.txt"
MAX_LINES = 500

# folder -> project folders it may include; "gemmd" is the generated contract.
MAY_INCLUDE = {
    "proto": {"proto", "gemmd"},
    "gpu": {"proto", "gpu"},
    "server": {"proto", "server", "gemmd"},
    "client": {"proto", "client", "gemmd"},
}
# folder -> prefixes of third-party headers it must not know.
MUST_NOT_INCLUDE = {
    "gpu": ("grpc/", "grpcpp/", "google/protobuf/", "prometheus/"),
    "server": ("cuda", "nvrtc", "cblas"),
    "client": ("prometheus/", "cblas"),
    "proto": ("prometheus/", "cuda", "cblas"),
}
PROJECT_FOLDERS = {"proto", "gpu", "server", "client", "tests", "gemmd"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
METRIC = re.compile(r"\bgemmd_[a-z0-9_]+\b")
# Suffixes that Prometheus adds to a histogram's name.
HISTOGRAM_SUFFIX = re.compile(r"_(bucket|sum|count)$")
# What opens a block of a .proto file, and a field of a message.
PROTO_BLOCK = re.compile(r"^\s*(message|oneof|enum|service|rpc)\b[^;]*\{")
PROTO_FIELD = re.compile(r"^\s*(?:(?:repeated|optional)\s+)?[\w.]+(?:\s*<[^>]*>)?\s+(\w+)\s*=\s*\d+\s*(?:\[[^\]]*\]\s*)?;(.*)")
# Paths of a developer's machine do not belong into the repository. Split, so that this file passes its own check.
PRIVATE_PATH = re.compile(r"(?<![\w.$}-])/(?:" + "|".join(("work", "farm", "home/[a-z]", "Users/[A-Za-z]")) + r")/")


def list_files(root):
    """Paths of the project's files, relative to root: what git tracks or would track, else everything but build/."""
    try:
        output = subprocess.run(
            ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        top = subprocess.run(["git", "-C", root, "rev-parse", "--show-prefix"],
                             check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.strip()
        if not top:
            paths = {path for path in output.decode().split("\0") if path}
            return sorted(path for path in paths if os.path.isfile(os.path.join(root, path)))
    except (OSError, subprocess.CalledProcessError):
        pass
    paths = []
    for folder, folders, names in os.walk(root):
        relative = os.path.relpath(folder, root)
        folders[:] = [name for name in folders if name not in (".git", "__pycache__", ".cache")
                      and not (relative == "." and name.startswith("build"))]
        paths += [os.path.normpath(os.path.join(relative, name)) for name in names]
    return sorted(paths)


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
        return file.read()


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def check_includes(root, paths):
    for path in paths:
        folder = path.split("/")[0]
        if not path.endswith(SOURCE_SUFFIXES) or folder not in MAY_INCLUDE:
            continue
        text = read(root, path)
        for match in INCLUDE.finditer(text):
            quote, header = match.groups()
            where = f"{path}:{line_of(text, match.start())}"
            target = header.split("/")[0]
            if quote == '"' and (header.startswith(".") or "/" not in header):
                yield f"{where}: include {header} by its path from the root"
            elif target in PROJECT_FOLDERS and target not in MAY_INCLUDE[folder]:
                yield f"{where}: {folder}/ must not include {header}"
            elif header.startswith(MUST_NOT_INCLUDE[folder]):
                yield f"{where}: {folder}/ must not know {header}"


def check_spdx(root, paths):
    for path in paths:
        if WITHOUT_SPDX.search(path) and os.path.basename(path) != CMAKE_LISTS:
            continue
        first_lines = read(root, path).split("\n")[:2]
        if not any(SPDX in line for line in first_lines):
            yield f"{path}:1: the first line must say {SPDX}"


def check_documents(root, paths):
    known = set(paths)
    for folder in SOURCE_FOLDERS:
        if f"{folder}/README.md" not in known:
            yield f"{folder}/README.md: every folder has a README.md"
    readme = read(root, "README.md") if "README.md" in known else ""
    for command in ("make demo", "make test"):
        if command not in readme:
            yield f"README.md: does not name `{command}`"


def check_sizes(root, paths):
    for path in paths:
        if path.split("/")[0] in SOURCE_FOLDERS and path.endswith(SOURCE_SUFFIXES + (".py", ".proto")):
            lines = read(root, path).count("\n")
            if lines > MAX_LINES:
                yield f"{path}: {lines} lines; at most {MAX_LINES}"


def check_private_paths(root, paths):
    for path in paths:
        text = read(root, path)
        for match in PRIVATE_PATH.finditer(text):
            yield f"{path}:{line_of(text, match.start())}: names a path of one machine ({match.group()})"


def check_metrics(root, paths):
    defined = set()
    for path in paths:
        if path.startswith("server/") and path.endswith(SOURCE_SUFFIXES):
            defined |= set(METRIC.findall(read(root, path)))
    for path in paths:
        if not path.startswith("deploy/") or not path.endswith((".yaml", ".yml", ".json")):
            continue
        text = read(root, path)
        for match in METRIC.finditer(text):
            name = match.group()
            if name not in defined and HISTOGRAM_SUFFIX.sub("", name) not in defined:
                yield f"{path}:{line_of(text, match.start())}: no metric {name} in server/"


def check_proto_comments(root, paths):
    """Every field of the contract says what it is: on its own line, or in a comment right above."""
    for path in paths:
        if not path.startswith("proto/") or not path.endswith(".proto"):
            continue
        blocks, above = [], ""
        for number, line in enumerate(read(root, path).split("\n"), start=1):
            code = line.split("//")[0]
            field = PROTO_FIELD.match(line)
            if field and blocks[-1:] in (["message"], ["oneof"]):
                if not field.group(2).strip().startswith("//") and not above.strip().startswith("//"):
                    yield f"{path}:{number}: field {field.group(1)} has no comment on its line or above"
            opened = PROTO_BLOCK.match(code)
            blocks += [opened.group(1)] if opened else []
            for _ in range(code.count("}")):
                del blocks[-1:]
            above = line


CHECKS = (check_includes, check_spdx, check_documents, check_sizes, check_private_paths, check_metrics,
          check_proto_comments)


def violations(root):
    paths = list_files(root)
    return [line for check in CHECKS for line in check(root, paths)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    found = violations(os.path.normpath(parser.parse_args().root))
    for line in found:
        print(line)
    print(f"repository: {len(found)} violations")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
