#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What calls of the Python client cost, one at a time; prints JSON.

Of each call, as medians in microseconds: `total`; `request` and `result` (this package, before and after), `rpc` (gRPC on
both sides, the socket and the daemon), and the daemon's own stages in it. `round_trip` is a health check. With torch and
a GPU also operands that are torch CUDA tensors, with a kernel of torch's before each call and without.

Needs the package gemmd, and a daemon on this machine.
Example: python_bench.py --server=unix:/run/gemmd/gemmd.sock
"""

import argparse
import json
import os
import statistics
import time

import gemmd
import grpc
import numpy as np
from gemmd import operations

try:
    import torch
except ImportError:
    torch = None

WARM_UP = 20
STAGES = ("decode", "queue", "device", "reply")


def microseconds(begin, end):
    return (end - begin) * 1e6


def measure(client, operation, repeats, before=lambda: None):
    """The medians of `operation`, a function that gives a Call, taken through the steps of Client._run."""
    samples = []
    for _ in range(WARM_UP + repeats):
        before()
        times = [time.perf_counter()]
        call = operation()
        call.place()
        times.append(time.perf_counter())
        response = client.run(call.request)
        times.append(time.perf_counter())
        call.finish(response)
        times.append(time.perf_counter())
        sample = {"total": microseconds(times[0], times[3])}
        for part, begin, end in zip(("request", "rpc", "result"), times, times[1:]):
            sample[part] = microseconds(begin, end)
        for stage in STAGES:
            sample[stage] = getattr(response.times, f"{stage}_ns") / 1e3
        samples.append(sample)
    samples = samples[WARM_UP:]
    return {f"{part}_p50_us": round(statistics.median(sample[part] for sample in samples), 1) for part in samples[0]}


def round_trip(client, repeats):
    samples = []
    for _ in range(WARM_UP + repeats):
        begin = time.perf_counter()
        client.health()
        samples.append(microseconds(begin, time.perf_counter()))
    return round(statistics.median(samples[WARM_UP:]), 1)


def host_cases(client, m, n, k):
    """Operations on numpy arrays, with resident weights: (where A and D are, function that gives a Call)."""
    rng = np.random.default_rng(1)
    weights = client.put(gemmd.quantize(rng.standard_normal((n, k), dtype=np.float32), (128, 128)))
    a = gemmd.quantize(rng.standard_normal((m, k), dtype=np.float32))
    yield "arrays", lambda: operations.gemm(client, a, weights, dtype="bfloat16")
    shared, out = client.share(a), client.empty((m, n), "bfloat16")
    yield "region", lambda: operations.gemm(client, shared, weights, out=out)


def gpu_cases(client, m, n, k):
    """Likewise of torch CUDA tensors; the last one has BF16 rows."""
    weights = client.put(gemmd.quantize(torch.randn((n, k), device="cuda"), (128, 128)))
    x = torch.randn((m, k), device="cuda").to(torch.bfloat16)
    a, out = gemmd.quantize(x), torch.empty((m, n), dtype=torch.bfloat16, device="cuda")
    yield "torch", lambda: operations.gemm(client, a, weights, out=out)
    yield "torch, new result", lambda: operations.gemm(client, a, weights)
    yield "torch, BF16 rows", lambda: operations.gemm(client, x, weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="unix:/run/gemmd/gemmd.sock", help="address of gemmd")
    parser.add_argument("--repeats", type=int, default=300, help="calls that are timed, of each kind")
    parser.add_argument("--m", type=int, default=128)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--k", type=int, default=7168)
    arguments = parser.parse_args()
    shape = (arguments.m, arguments.n, arguments.k)
    with gemmd.connect(arguments.server, client_name="python_bench") as client:
        devices = [worker.device for worker in client.info().workers]
        on_gpu = torch is not None and torch.cuda.is_available() and "cpu" not in devices
        results = [
            {"operands": where, **measure(client, operation, arguments.repeats)}
            for where, operation in host_cases(client, *shape)
        ]
        if on_gpu:
            scratch = torch.zeros(1 << 20, device="cuda")
            for where, operation in gpu_cases(client, *shape):
                results.append({"operands": where, **measure(client, operation, arguments.repeats)})
                timed = measure(client, operation, arguments.repeats, lambda: scratch.add_(1))
                results.append({"operands": f"{where}, after a kernel", **timed})
        report = {
            "benchmark": "python_calls",
            "m": arguments.m,
            "n": arguments.n,
            "k": arguments.k,
            "cores": os.cpu_count(),
            "devices": devices,
            "grpc": grpc.__version__,
            "grpc_experiments": os.environ.get("GRPC_EXPERIMENTS", ""),
            "torch": torch.__version__ if torch is not None else None,
            "round_trip_p50_us": round_trip(client, arguments.repeats),
            "results": results,
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
