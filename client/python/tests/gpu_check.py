#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""GPU memory shared with gemmd on a real driver and with the real torch, where the tests beside this have fakes.

A program, run by hand on a machine with a GPU, torch with CUDA, and a gemmd that computes on that GPU and has no other
clients (regions are counted). Prints one line for each check, and goes on after one that failed.
Exit status: 0, 1 if a check failed, 2 if there is no torch with CUDA or gemmd is not on its GPU.

Example: gpu_check.py --server=unix:/run/gemmd/gemmd.sock
"""

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import time
import traceback
from unittest import SkipTest

import gemmd
import numpy as np
import reference
from fake_torch import cuda_free, cuda_malloc
from gemmd.device_regions import device_uuid

try:
    import torch
except ImportError:
    torch = None

M, N, K, WEIGHTS = 200, 256, 512, (128, 128)
REGION_BYTES = 4 << 20  # Holds all that expect_products puts there.
NO_HANDLE = ("a: no legacy IPC handle", "expandable_segments", "Client.pool")
# Flags of the child, and what makes its PyTorch allocate otherwise than by cudaMalloc.
ALLOCATORS = {"--expandable": "expandable_segments:True", "--malloc_async": "backend:cudaMallocAsync"}


def cuda_array(address, shape, stream=None):
    """What cupy and numba have, of bfloat16. `stream`: the one that writes it; None: there is nothing to wait for."""
    interface = {"shape": shape, "typestr": "<u2", "data": (address, False), "version": 3, "stream": stream}
    return type("CudaArray", (), {"shape": shape, "__cuda_array_interface__": interface})()


def wait_until(condition, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def count_allocations(*tensors):
    return len({gemmd.cuda.Driver.load().gpu_of(x.data_ptr()).buffer_of(x.data_ptr()).begin for x in tensors})


def normal(*shape):
    return torch.randn(shape, device="cuda").to(torch.bfloat16)


def weights(*shape):
    return gemmd.quantize(normal(*shape), WEIGHTS)


def product(a, b):
    """float64; of rows that are bfloat16 beside a Quantized, as gemmd quantizes them on the way."""
    if isinstance(b, gemmd.Quantized) and not isinstance(a, gemmd.Quantized):
        a = gemmd.quantize(a)
    a, b = (gemmd.Quantized(x.data.cpu(), x.scales.cpu(), x.block) if isinstance(x, gemmd.Quantized) else x.cpu()
            for x in (a, b))
    return torch.from_numpy(reference.product(a, b))


def expect_close(actual, expected, what="result"):
    actual = torch.as_tensor(actual)
    assert actual.shape == expected.shape, f"{what}: expected {tuple(expected.shape)}, got {tuple(actual.shape)}"
    limit, _ = reference.LIMITS["bfloat16" if actual.dtype == torch.bfloat16 else "float32"]
    error = float((actual.cpu().double() - expected).norm() / expected.norm())
    assert error <= limit, f"{what}: relative error {error:.1e}, expected at most {limit}"


def placed(region, x):
    if isinstance(x, gemmd.Quantized):
        return gemmd.Quantized(placed(region, x.data), placed(region, x.scales), x.block)
    return region.empty(tuple(x.shape), x.dtype).copy_(x)


def expect_products(client, operands, results):
    """With operands in one region and `out` in another: FP8, rows quantized on the way, bfloat16."""
    assert operands.device == results.device == device_uuid("cuda"), f"regions on {operands.device}"
    x, y = normal(M, K), normal(N, K)
    for a, b in ((gemmd.quantize(x), gemmd.quantize(y, WEIGHTS)), (x, gemmd.quantize(y, WEIGHTS)), (x, y)):
        for dtype in (torch.bfloat16, torch.float32):
            out = results.empty((M, N), dtype)
            assert client.gemm(placed(operands, a), placed(operands, b), out=out) is out and out.is_cuda
            expect_close(out, product(a, b))
        expect_close(client.gemm(a, b, out=out, accumulate=True), 2 * product(a, b))


def refused(call, kinds, *texts):
    try:
        call()
    except kinds as error:
        assert all(text in str(error) for text in texts), f"expected {texts} in: {error}"
    else:
        raise AssertionError("expected a refusal, got a result")


def check_operands_and_results_lie_in_a_pool_and_in_a_device_region(client):
    for make in (client.pool, client.device_region):
        with make(REGION_BYTES, "cuda") as region:
            expect_products(client, region, region)


def check_memory_lent_for_reading_has_operands_but_no_results(client):
    lent = client.device_region(REGION_BYTES, "cuda", writable=False)
    expect_products(client, lent, client.device_region(REGION_BYTES, "cuda"))
    a, b, out = normal(8, K), weights(N, K), lent.empty((8, N), torch.bfloat16)
    refused(lambda: client.gemm(a, b, out=out), gemmd.InvalidArgumentError, "d: expected a writable region")


def check_tensors_of_one_allocation_are_shared_by_one_region(client):
    regions, a, b = client.info().regions, gemmd.quantize(normal(M, K)), weights(N, K)
    out = torch.empty((M, N), device="cuda")
    for _ in range(3):
        assert client.gemm(a, b, out=out.zero_()) is out
        expect_close(out, product(a, b))
    made, allocations = client.info().regions - regions, count_allocations(a.data, a.scales, b.data, b.scales, out)
    assert 1 <= made <= allocations < 5, f"{made} regions of {allocations} allocations that have 5 tensors"


def check_strides_of_torch_tensors_are_kept(client):
    x, b, both = normal(M, K), weights(N, K), torch.zeros((M, 2 * N), device="cuda")
    a, wide = gemmd.quantize(x), torch.zeros((M, 2 * K), dtype=torch.uint8, device="cuda")
    wide[:, K:] = a.data.view(torch.uint8)
    right = gemmd.Quantized(wide.view(torch.float8_e4m3fn)[:, K:], a.scales.T.contiguous().T)
    for rows in (right, torch.cat([x, x + 1], 1)[:, :K]):
        expect_close(client.gemm(rows, b, out=both[:, N:]), product(a, b))
    assert not both[:, :N].any(), "written beside the result"
    refused(lambda: client.gemm(normal(K, M).T, b), gemmd.InvalidArgumentError, "a.strides[1]: expected 1")


def check_dlpack_consumers_see_the_memory_of_a_region_and_keep_it(client):
    for make in (client.pool, client.device_region):
        regions, region = client.info().regions, make(REGION_BYTES, "cuda")
        array, values = region.empty((16, 32)), np.arange(512, dtype=np.float32).reshape(16, 32)
        whole, seen, also = torch.from_dlpack(region), torch.from_dlpack(array), torch.as_tensor(array, device="cuda")
        assert {whole.data_ptr(), seen.data_ptr(), also.data_ptr()} == {array.address}, "got a copy"
        array.copy_from_host(values)
        assert (seen.cpu().numpy() == values).all(), "torch did not read what was written"
        whole[: values.nbytes].view(torch.float32).add_(1)
        assert (array.to_host() == values + 1).all(), "to_host did not read what torch wrote"
        del region, array, whole, also
        assert client.info().regions > regions and (seen.cpu().numpy() == values + 1).all(), "memory was not kept"
        del seen
        assert wait_until(lambda before=regions: client.info().regions == before), "the region was not closed"


def right_after_kernels(what, gemm):
    """`gemm(a, b)` of an A that kernels of the current stream, the default one or another, have yet to write."""
    b = gemmd.quantize(torch.randn((N, K)), WEIGHTS)  # On the host: nothing else is waited for.
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            busy, scratch, a = normal(4096, 4096), normal(4096, 4096), normal(M, K)
            gemm(a, b)  # Now memory is shared and kernels are ready.
            for number in range(20):
                x = normal(M, K)
                expected = product(x, b)
                torch.cuda.synchronize()
                for _ in range(40):
                    torch.mm(busy, busy, out=scratch)
                a.copy_(x)
                assert not stream.query(), "the kernels were expected to take longer than their launch"
                expect_close(gemm(a, b), expected, f"{what}, call {number} on {stream}")


def check_calls_wait_for_the_stream_that_is_current_or_named(client):
    right_after_kernels("gemm", client.gemm)
    right_after_kernels("put", lambda a, b: client.gemm(client.put(a), b))
    right_after_kernels("interface", lambda a, b: client.gemm(
        cuda_array(a.data_ptr(), (M, K), torch.cuda.current_stream().cuda_stream or 1), b))  # 1: the default one.


def check_pipelined_and_awaited_calls_wait_for_the_current_stream(client):
    with client.stream() as pipelined:
        right_after_kernels("pipelined", lambda a, b: pipelined.gemm(a, b).result(timeout=60))
    loop = asyncio.new_event_loop()
    wait = loop.run_until_complete
    awaited = wait(gemmd.aio.connect(client.address))
    right_after_kernels("awaited gemm", lambda a, b: wait(awaited.gemm(a, b)))
    right_after_kernels("awaited put", lambda a, b: wait(awaited.gemm(wait(awaited.put(a)), b)))
    wait(awaited.close())
    loop.close()


def check_groups_are_multiplied_and_rows_of_none_are_zero(client):
    x, b, counts = normal(4, 64, K), weights(4, N, K), [64, 0, 7, 40]
    masked_m, offsets = (torch.tensor(x, dtype=torch.int32, device="cuda") for x in (counts, [0, 64, 64, 71, 111]))
    rows = torch.cat([x[group, :count] for group, count in enumerate(counts)])
    for taken in (lambda a: a, gemmd.quantize):
        masked = client.grouped_gemm(taken(x), b, masked_m=masked_m)
        parts = client.grouped_gemm(taken(rows), b, offsets=offsets, dtype="float32").bfloat16().split(counts)
        for group, count in enumerate(counts):
            assert masked.is_cuda and not masked[group, count:].any(), f"group {group}: no zeros after row {count}"
            for d in (masked[group, :count], parts[group]) if count else ():
                expect_close(d, product(x[group, :count], b[group]), f"group {group}")


def check_resident_tensors_are_stored_written_and_read_on_the_gpu(client):
    for values in (normal(64, 96), normal(64, 96).float()):
        x, back = values.clone(), torch.empty_like(values)
        tensor = client.put(x)
        x.zero_()
        assert tensor.device == device_uuid("cuda"), f"a tensor on {tensor.device}"
        assert client.read(tensor, out=back) is back and torch.equal(back, values), "not what was put"
        client.write(tensor, values + 1)
        assert torch.equal(client.read(tensor, out=back), values + 1), "not what was written"
    a, b, out = gemmd.quantize(normal(M, K)), weights(N, K), client.put(torch.zeros((M, N), device="cuda"))
    assert client.gemm(client.put(a), client.put(b), out=out) is out
    expect_close(client.read(out), product(a, b))


def check_quantize_gives_the_bits_of_torch(client):
    x = torch.randn((200, 400), device="cuda") * 2.0 ** torch.randint(-60, 60, (200, 400), device="cuda")
    x[0, :128], x[1, 5], x[3, :128], x[4, :128] = 0, torch.nan, 1e-44, 448
    for values, block in ((x, (1, 128)), (x, WEIGHTS), (x.bfloat16(), (1, 128)), (x.bfloat16(), WEIGHTS)):
        made = client.quantize(values, block)
        for other in (gemmd.quantize(values, block), gemmd.quantize(values.cpu(), block)):
            for one, two in ((made.data.view(torch.uint8), other.data.view(torch.uint8)), (made.scales, other.scales)):
                assert torch.equal(one, two.cuda()), f"{one.dtype} not as on {two.device}: {values.dtype}, {block}"


def check_memory_that_cannot_be_shared_is_refused_with_the_reason(client):
    ordinal, x, b = torch.cuda.current_device(), normal(M, K), weights(N, K)
    kinds = (gemmd.InvalidArgumentError, gemmd.FailedPreconditionError)
    for byte_size in (64 << 10, 1 << 20):
        address = cuda_malloc(ordinal, byte_size)
        refused(lambda at=address: client.gemm(cuda_array(at, (32, K)), b), kinds, "a: ", "2 MiB")
        cuda_free(address)
    with client.pool(REGION_BYTES, "cuda") as region:
        of_closed = placed(region, x)
    allocation = gemmd.cuda.Driver.load().gpu(ordinal).allocate(2 << 20)
    for array in (of_closed, cuda_array(allocation.address, (M, K))):
        refused(lambda array=array: client.gemm(array, b), gemmd.FailedPreconditionError, *NO_HANDLE)
    allocation.free()
    host = x.float().cpu().numpy()  # Refused as memory of a GPU, fine as what it is.
    refused(lambda: client.gemm(cuda_array(host.ctypes.data, (M, K)), b), kinds, "a: expected memory of a GPU")
    expect_close(client.gemm(gemmd.quantize(host), b), product(x, b))


def expect_no_handles(client):
    """In the child: tensors of its PyTorch are refused, and a pool works."""
    x, b, region = normal(M, K), gemmd.quantize(torch.randn((N, K)), WEIGHTS), client.pool(REGION_BYTES, "cuda")
    refused(lambda: client.gemm(x, b), gemmd.FailedPreconditionError, *NO_HANDLE)
    expect_close(client.gemm(placed(region, x), b, out=region.empty((M, N), torch.float32)), product(x, b))


def check_memory_of_other_allocators_of_torch_is_refused_and_a_pool_works(client):
    for flag, setting in ALLOCATORS.items():
        command = [sys.executable, os.path.abspath(__file__), f"--server={client.address}", flag]
        environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": setting, "PYTORCH_ALLOC_CONF": setting}
        child = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
        assert child.returncode == 0, f"{setting}: exit status {child.returncode}: {child.stderr[-500:]}"


def check_freed_memory_is_not_taken_for_what_is_at_its_address_now(client):
    regions, b, addresses = client.info().regions, weights(N, 4096), set()
    for _ in range(10):
        a = normal(2048, 4096)  # Large enough for an allocation of its own.
        d = client.gemm(a, b)
        expect_close(d, product(a, b))
        addresses.add(a.data_ptr())
        most = regions + count_allocations(a, b.data, b.scales, d)
        assert wait_until(lambda most=most: client.info().regions <= most), "regions of freed memory remain"
        del a, d
        torch.cuda.empty_cache()
    if len(addresses) == 10:
        raise SkipTest("no address came again")


def check_a_client_that_closes_leaves_no_regions(client):
    regions, other = client.info().regions, gemmd.connect(client.address)
    kept = [make(REGION_BYTES, "cuda").empty((8, 8)) for make in (other.pool, other.device_region)]
    other.gemm(normal(M, K), weights(N, K))
    assert client.info().regions >= regions + 3, "expected a pool, a device region and PyTorch's allocations"
    other.close()
    assert wait_until(lambda: client.info().regions == regions), f"{client.info().regions - regions} regions remain"
    assert not any(array.to_host().any() for array in kept), "arrays were expected to keep their memory"


def run(check, server, regions):
    try:
        gc.collect()
        torch.cuda.empty_cache()
        torch.manual_seed(1)
        with gemmd.connect(server, client_name="gpu_check") as client:
            wait_until(lambda: client.info().regions <= regions, timeout=5)  # Those of the check before are closed.
            return "ok", check(client)
    except SkipTest as reason:
        return "skipped", reason
    except Exception as error:  # Whatever it is, the next check may work.
        line = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.name == check.__name__]
        return "FAILED", f"line {line}: {type(error).__name__}: {' '.join(str(error).split())}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="unix:/run/gemmd/gemmd.sock", help="address of gemmd")
    parser.add_argument(*ALLOCATORS, dest="child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if torch is None or not torch.cuda.is_available():
        found = "no torch" if torch is None else f"torch {torch.__version__} without it"
        print(f"gpu_check: expected torch with CUDA, got {found}", file=sys.stderr)
        return 2
    with gemmd.connect(arguments.server, client_name="gpu_check") as client:
        if device_uuid("cuda") not in [worker.device for worker in client.info().workers]:
            print(f"gpu_check: expected a gemmd on {device_uuid('cuda')}, got another", file=sys.stderr)
            return 2
        if arguments.child:
            return expect_no_handles(client)
        regions, outcomes = client.info().regions, []
        for name, check in [item for item in globals().items() if item[0].startswith("check_")]:
            outcome, text = run(check, arguments.server, regions)
            outcomes.append(outcome)
            print(f"{name[6:].replace('_', ' ')}: {outcome}{f' ({text})' if text else ''}", flush=True)
        return 1 if "FAILED" in outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
