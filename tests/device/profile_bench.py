#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kernel times of gpu_bench, without launch latency, as CUPTI reports them through PyTorch's profiler.

profile_bench.py LIBRARY OUTPUT.json [--targets=TABLE.csv] [options of gpu_bench]: loads gpu_bench (built as a library)
into a process with PyTorch, runs it under the profiler, and writes the median time of each shape and configuration, in
microseconds. With a table of what other libraries need (columns op, shape, floor_us, best_us) it compares with the best of
them and prints geometric means. Dense shapes are compared by time. Group sizes are drawn, and differ from table to table:
grouped shapes are compared by how many times longer than its own floor each one takes, floor = the larger of
bytes / memory bandwidth and FLOPs / peak of the sizes that were drawn.
"""

import collections
import csv
import ctypes
import json
import math
import statistics
import sys

import torch
from torch.profiler import ProfilerActivity, profile


# What gpu_bench writes before a call, to evict L2, and after it.
EVICTION_BYTES = 4 << 30
END_BYTES = 264

FLOPS_PER_US = 1979e6  # Dense FP8, H100 and H200.
BYTES_PER_US = {"H200": 4.8e6, "H100": 3.35e6}


def compare(rows, table, gpu):
    """Adds each row's comparison with the table's best library; returns geometric means by kind."""
    bandwidth = BYTES_PER_US["H200" if "H200" in gpu else "H100"]
    with open(table) as file:
        targets = {entry["op"] + "," + entry["shape"]: entry for entry in csv.DictReader(file)}
    ratios = collections.OrderedDict((kind, []) for kind in ("dense", "contig", "masked", "kgrouped"))
    for row in rows:
        row["floor_us"] = round(max(row["bytes"] / bandwidth, row["flops"] / FLOPS_PER_US), 2)
        target = targets.pop(row.get("target", ""), None)
        if target is None or "us" not in row:
            continue
        kind = target["op"]
        best = float(target["best_us"])
        row["best"] = target["best_peer"]
        if kind == "dense":
            row["best_us"] = best
            row["to_best"] = round(row["us"] / best, 3)
        else:
            row["of_floor"] = round(row["us"] / row["floor_us"], 3)
            row["best_of_floor"] = round(best / float(target["floor_us"]), 3)
            row["to_best"] = round(row["of_floor"] / row["best_of_floor"], 3)
        ratios[kind].append(row["to_best"])
    mean = lambda values: round(math.exp(statistics.mean(map(math.log, values))), 3) if values else None
    means = {kind: {"shapes": len(values), "to_best": mean(values)} for kind, values in ratios.items()}
    grouped = ratios["contig"] + ratios["masked"] + ratios["kgrouped"]
    means["grouped, by floor"] = {"shapes": len(grouped), "to_best": mean(grouped)}
    means["all"] = {"shapes": len(grouped) + len(ratios["dense"]), "to_best": mean(grouped + ratios["dense"])}
    means["not measured"] = sorted(targets)
    return means


def main():
    library, output, options = sys.argv[1], sys.argv[2], sys.argv[3:]
    tables = [option.split("=", 1)[1] for option in options if option.startswith("--targets=")]
    options = [option for option in options if not option.startswith("--targets=")]
    bench = ctypes.CDLL(library)
    plan = output + ".plan"
    arguments = [b"gpu_bench", f"--plan={plan}".encode()] + [option.encode() for option in options]
    argv = (ctypes.c_char_p * len(arguments))(*arguments)
    torch.cuda.init()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        status = bench.gpu_bench_main(len(arguments), argv)
    trace = output + ".trace"
    profiler.export_chrome_trace(trace)
    with open(trace) as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("cat") in ("kernel", "gpu_memset")]
    events.sort(key=lambda event: event["ts"])

    # Libraries may use memsets of their own inside a call.
    calls = []
    inside = False
    for event in events:
        size = event["args"].get("bytes", 0) if event["cat"] == "gpu_memset" else 0
        if size == EVICTION_BYTES:
            calls.append(0.0)
            inside = True
        elif size == END_BYTES:
            inside = False
        elif inside:
            calls[-1] += event["dur"]
    labels = [line.rstrip("\n") for line in open(plan)]
    if len(labels) != len(calls):
        sys.exit(f"{len(labels)} calls planned, {len(calls)} seen")

    times = collections.OrderedDict()
    for label, time in zip(labels, calls):
        times.setdefault(label, []).append(time)
    shapes = collections.OrderedDict()
    for label, values in times.items():
        shape, what, flops, least_bytes, target = label.split("|")
        row = shapes.setdefault(shape, {"shape": shape, "flops": float(flops or 0), "bytes": float(least_bytes or 0),
                                        "target": target, "times": {}})
        row["times"][what] = round(statistics.median(values), 2)
    for row in shapes.values():
        selected = [what for what in row["times"] if what.startswith("selected ")]
        if selected:
            row["config"] = selected[0][len("selected "):]
            row["us"] = row["times"].pop(selected[0])
            if "cublaslt" in row["times"]:
                row["cublaslt_us"] = row["times"].pop("cublaslt")
                row["ratio"] = round(row["us"] / row["cublaslt_us"], 3)
    gpu = torch.cuda.get_device_name(0)
    result = {"gpu": gpu, "method": "CUPTI kernel time, median, cold L2", "shapes": list(shapes.values())}
    if tables:
        result["means"] = compare(result["shapes"], tables[0], gpu)
    with open(output, "w") as file:
        json.dump(result, file, indent=1)
    for row in shapes.values():
        best = min(row["times"].items(), key=lambda item: item[1], default=None)
        print(row["shape"], row.get("config"), row.get("us"), "cublaslt", row.get("cublaslt_us"), row.get("ratio"), "best", best,
              "to best library", row.get("to_best"), "" if "of_floor" not in row else "(by floor)")
    for kind, value in result.get("means", {}).items():
        print(kind, value)
    sys.exit(status)


if __name__ == "__main__":
    main()
