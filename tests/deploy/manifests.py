# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes manifests as kustomize renders them."""

import functools
import json
import os
import pathlib
import re
import subprocess
import tempfile

import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
KUBERNETES = REPOSITORY / "deploy/kubernetes"
# What can be applied, alone and with each component.
OVERLAYS = ("node", "remote", "autoscaling", "monitoring")
COMPONENTS = {"node": ("mps", "cpu", "tensors"), "remote": ("mps", "cpu", "tensors")}


def _kustomize_version(program):
    """As "v5.6.0"; "" where there is no such program."""
    try:
        output = subprocess.run([program, "version", "--client", "--output=json"], check=True, capture_output=True).stdout
        return json.loads(output).get("kustomizeVersion", "v0")
    except (OSError, subprocess.CalledProcessError, ValueError):
        return ""


@functools.lru_cache(maxsize=None)
def _kubectl():
    """One with kustomize 5: the machine's, or the one that .ci/install-deps unpacks. None: there is none."""
    for program in ("kubectl", str(REPOSITORY / "build/tools/kubectl/kubectl")):
        if re.match(r"v([5-9]|\d\d)", _kustomize_version(program)):
            return program
    return None


def cannot_render():
    """None, or the reason why manifests cannot be rendered here."""
    if _kubectl():
        return None
    found = _kustomize_version("kubectl") or "no kubectl"
    return f"expected a kubectl with kustomize 5, got {found} (.ci/install-deps unpacks one into build/tools)"


@functools.lru_cache(maxsize=None)
def render(overlay, *components):
    """The objects of one overlay with these components."""
    if not components:
        return _kustomize(KUBERNETES / overlay)
    with tempfile.TemporaryDirectory() as folder:
        def relative(name):
            return os.path.relpath(KUBERNETES / name, os.path.realpath(folder))
        pathlib.Path(folder, "kustomization.yaml").write_text(yaml.dump({
            "resources": [relative(overlay)], "components": [relative(name) for name in components]}), encoding="utf-8")
        return _kustomize(folder)


def every_rendering():
    """(title, objects) of each overlay, alone and with each component."""
    for overlay in OVERLAYS:
        yield overlay, render(overlay)
        for component in COMPONENTS.get(overlay, ()):
            yield f"{overlay} with {component}", render(overlay, component)


def find(objects, kind, name):
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    if len(found) != 1:
        raise AssertionError(f"expected one {kind} {name}, got {len(found)}")
    return found[0]


def workload(objects):
    """The DaemonSet or Deployment."""
    return next(item for item in objects if item["kind"] in ("DaemonSet", "Deployment"))


def flags(objects):
    """The flags file of gemmd as a dictionary."""
    pod = workload(objects)["spec"]["template"]["spec"]
    name = next(volume for volume in pod["volumes"] if volume["name"] == "flags")["configMap"]["name"]
    lines = find(objects, "ConfigMap", name)["data"]["gemmd.flags"].split("\n")
    return dict(line[2:].split("=", 1) for line in lines if line.startswith("--"))


def duration(text):
    """Seconds of a flag's value."""
    number, unit = re.fullmatch(r"([\d.]+)(ms|s|m)", text).groups()
    return float(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def _kustomize(folder):
    result = subprocess.run([_kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise AssertionError(f"kubectl kustomize {folder}: {result.stderr}")
    return list(yaml.safe_load_all(result.stdout))
