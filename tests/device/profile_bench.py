#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kernel times of gpu_bench, without launch latency, as CUPTI reports them through PyTorch's profiler.

profile_bench.py LIBRARY OUTPUT.json [options of gpu_bench]: loads gpu_bench (built as a library) into a process with
PyTorch, runs it under the profiler, and writes the median time of each shape and configuration, in microseconds.
"""

import collections
import ctypes
import json
import statistics
import sys

import torch
from torch.profiler import ProfilerActivity, profile


# What gpu_bench writes before a call, to evict L2, and after it.
EVICTION_BYTES = 4 << 30
END_BYTES = 264


def main():
    library, output, options = sys.argv[1], sys.argv[2], sys.argv[3:]
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
        shape, what, flops = label.split("|")
        row = shapes.setdefault(shape, {"shape": shape, "flops": float(flops or 0), "times": {}})
        row["times"][what] = round(statistics.median(values), 2)
    for row in shapes.values():
        selected = [what for what in row["times"] if what.startswith("selected ")]
        if selected:
            row["config"] = selected[0][len("selected "):]
            row["us"] = row["times"].pop(selected[0])
            if "cublaslt" in row["times"]:
                row["cublaslt_us"] = row["times"].pop("cublaslt")
                row["ratio"] = round(row["us"] / row["cublaslt_us"], 3)
    result = {"gpu": torch.cuda.get_device_name(0), "method": "CUPTI kernel time, median, cold L2", "shapes": list(shapes.values())}
    with open(output, "w") as file:
        json.dump(result, file, indent=1)
    for row in shapes.values():
        best = min(row["times"].items(), key=lambda item: item[1], default=None)
        print(row["shape"], row.get("config"), row.get("us"), "cublaslt", row.get("cublaslt_us"), row.get("ratio"), "best", best)
    sys.exit(status)


if __name__ == "__main__":
    main()
