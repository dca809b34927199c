# SPDX-License-Identifier: Apache-2.0
"""Memory of GPUs shared with a real daemon, on the fake CUDA driver and fake workers, which fill results.

And pools on the CPU worker, which computes them. What a real driver does is not tested here.
"""

import asyncio
import ctypes
import gc
import os
import pickle

import fake_torch
import gemmd
import numpy as np
import pytest
from conftest import Daemon, fake_worker, wait_until
from fake_gpus import FILL, GPUS, GRANULE, REGIONS, K, M, N, is_filled
from gemmd import cuda
from gemmd.cuda import Driver
from reference import check, normal, product

RNG = np.random.default_rng(1)
A = gemmd.quantize(normal(RNG, M, K))
B = gemmd.quantize(normal(RNG, N, K), (128, 128))


class CudaArray:
    """What cupy and numba have."""

    def __init__(self, address, shape, typestr, **more):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "data": (address, False), "version": 3, "stream": None, **more}
        self.shape, self.ndim = shape, len(shape)
        self.bits = fake_torch.host_view(address, shape, typestr)


@pytest.fixture
def allocate(fake_cuda):
    """cudaMalloc."""
    addresses = []

    def make(byte_size, gpu=0):
        addresses.append(fake_torch.cuda_malloc(gpu, byte_size))
        return addresses[-1]

    yield make
    for address in addresses:
        fake_torch.cuda_free(address)


def arrays_at(address):
    """Operands and result in memory of cudaMalloc."""
    a = gemmd.Quantized(CudaArray(address, (M, K), "|u1"), CudaArray(address + 16384, (M, 1), "<f4"))
    b = gemmd.Quantized(
        CudaArray(address + 8192, (N, K), "|u1"), CudaArray(address + 20480, (1, 1), "<f4"), (128, 128))
    return a, b, CudaArray(address + 24576, (M, N), "<f4")


def arrays_in(region):
    a = gemmd.Quantized(region.empty((M, K), "float8_e4m3fn"), region.empty((M, 1)))
    b = gemmd.Quantized(region.empty((N, K), "float8_e4m3fn"), region.empty((1, 1)), (128, 128))
    return a, b, region.empty((M, N))


@pytest.mark.parametrize("gpu", [0, 1])
@pytest.mark.parametrize("make", REGIONS.values(), ids=REGIONS.keys())
def test_a_result_appears_in_a_region_on_a_gpu(gpu_client, make, gpu):
    with make(gpu_client, gpu) as region:
        assert region.device == GPUS[gpu] and region.nbytes == 1 << 20 and region.id > 0
        a, b, out = arrays_in(region)
        a.data.copy_from_host(A.data)
        assert gpu_client.gemm(a, b, out=out) is out
        assert is_filled(out)
        assert (a.data.to_host() == A.data).all() and not b.data.to_host().any()
    assert region.closed
    with pytest.raises(gemmd.FailedPreconditionError, match="region: closed"):
        region.empty(4)
    with pytest.raises(gemmd.FailedPreconditionError, match=r"a: no legacy IPC handle.*Client\.pool"):
        gpu_client.gemm(a, b, out=out)


def test_a_result_appears_in_memory_of_cudamalloc(gpu_client, allocate):
    for gpu in (0, 1):
        a, b, out = arrays_at(allocate(2 * GRANULE, gpu) + GRANULE + 512)
        regions = gpu_client.info().regions
        for _ in range(3):
            out.bits[...] = 0
            assert gpu_client.gemm(a, b, out=out) is out
            assert is_filled(out)
        assert gpu_client.info().regions == regions + 1


def test_strides_of_arrays_on_a_gpu_are_kept(gpu_client, allocate):
    address = allocate(GRANULE)
    wide = CudaArray(address, (M, 2 * N), "<f4")
    wide.bits[...] = 0
    left = CudaArray(address, (M, N), "<f4", strides=(8 * N, 4))
    a, b, _ = arrays_at(address + (1 << 20))
    gpu_client.gemm(a, b, out=left)
    assert (wide.bits[:, :N].view(np.uint8) == FILL).all() and not wide.bits[:, N:].any()


def test_freed_memory_is_not_taken_for_what_is_at_its_address_now(gpu_client, fake_cuda):
    regions = gpu_client.info().regions
    address = fake_torch.cuda_malloc(0, GRANULE)
    for number in range(5):
        a, b, out = arrays_at(address)
        gpu_client.gemm(a, b, out=out)
        assert is_filled(out), number  # Stays what it was if the daemon writes to the former allocation.
        assert wait_until(lambda: gpu_client.info().regions == regions + 1)
        del a, b, out
        fake_torch.cuda_free(address)
        again = fake_torch.cuda_malloc(0, GRANULE)
        assert again == address or number > 0, "the fake driver was expected to use the address again"
        address = again
    fake_torch.cuda_free(address)


def test_nothing_is_left_after_many_registrations(gpu_client, gpu_daemon, allocate):
    def once():
        address = fake_torch.cuda_malloc(1, GRANULE)
        a, b, out = arrays_at(address)
        gpu_client.gemm(a, b, out=out)
        fake_torch.cuda_free(address)
        for make in REGIONS.values():
            with make(gpu_client, 0) as region:
                region.empty(8)

    def descriptors(pid):
        return len(os.listdir(f"/proc/{pid}/fd"))

    def left():
        gc.collect()
        return gpu_client.info().regions <= regions + 1 and descriptors("self") <= own + 1

    regions, own = gpu_client.info().regions, descriptors("self")
    once()
    assert wait_until(left)
    own = descriptors("self")
    pids = [gpu_daemon.process.pid, *(worker.pid for worker in gpu_client.info().workers)]
    before = [descriptors(pid) for pid in pids]
    for _ in range(100):
        once()
    assert wait_until(left)
    assert wait_until(lambda: all(descriptors(pid) <= count + 1 for pid, count in zip(pids, before, strict=True)))


def test_an_array_keeps_its_memory(gpu_client):
    region = gpu_client.pool(1 << 20, GPUS[0])
    regions = gpu_client.info().regions
    array = region.empty((4, 8), "int32")
    array.copy_from_host(np.arange(32, dtype=np.int32).reshape(4, 8))
    row = array[3]
    del region, array
    gc.collect()
    assert (row.to_host() == np.arange(24, 32)).all() and gpu_client.info().regions == regions
    del row
    gc.collect()
    assert wait_until(lambda: gpu_client.info().regions == regions - 1)


def test_device_arrays_are_arrays(gpu_client):
    array = gpu_client.pool(1 << 20, GPUS[1]).empty((2, 3, 4), "bfloat16")
    assert (array.shape, array.ndim, array.nbytes, len(array)) == ((2, 3, 4), 3, 48, 2)
    assert array.reshape(-1, 4).shape == (6, 4) and array[-1].address == array.address + 24
    assert repr(array) == f"DeviceArray(shape=(2, 3, 4), dtype=BF16, device={GPUS[1]})"
    assert array.__cuda_array_interface__["typestr"] == "<u2" and array.__dlpack_device__() == (2, 1)
    with pytest.raises(IndexError):
        array[2]
    with pytest.raises(gemmd.InvalidArgumentError, match=r"x: expected BF16 \(2, 3, 4\), got F32 \(4,\)"):
        array.copy_from_host(np.zeros(4, np.float32))
    with pytest.raises(BufferError, match="dl_device"):
        array.__dlpack__(dl_device=(1, 0))
    for value in (array, gpu_client.pool(64, GPUS[1])):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(value)


def test_tensors_are_stored_from_a_gpu_and_read_to_it(gpu_client, allocate):
    region = gpu_client.pool(1 << 20, GPUS[1])
    x = region.empty((8, 16), "float32")
    values = normal(RNG, 8, 16)
    x.copy_from_host(values)
    tensor = gpu_client.put(x, "x")
    assert tensor.device == GPUS[1] and tensor.shape == (8, 16)
    assert (gpu_client.read(tensor) == values).all()
    back = CudaArray(allocate(GRANULE, 1), (8, 16), "<f4")
    assert gpu_client.read(tensor, out=back) is back and (back.bits == values).all()
    x.copy_from_host(values + 1)
    gpu_client.write(tensor, x)
    assert (gpu_client.read(tensor) == values + 1).all()
    with pytest.raises(gemmd.InvalidArgumentError, match="x: expected a contiguous array on the GPU"):
        gpu_client.write(tensor, CudaArray(back.__cuda_array_interface__["data"][0], (8, 8), "<f4", strides=(64, 4)))


def test_groups_on_a_gpu_are_copied_but_for_masks(gpu_client, allocate):
    address = allocate(GRANULE)
    masked_m = CudaArray(address, (2,), "<i4")
    masked_m.bits[...] = (3, 100)  # Beyond M_max: refused, if it is read.
    region = gpu_client.pool(1 << 20, GPUS[0])
    a = gemmd.Quantized(region.empty((2, 16, K), "uint8"), region.empty((2, 16, 1)))
    b = gemmd.Quantized(region.empty((2, N, K), "uint8"), region.empty((2, 1, 1)), (128, 128))
    out = region.empty((2, 16, N), "bfloat16")
    with pytest.raises(gemmd.InvalidArgumentError, match="groups"):
        gpu_client.grouped_gemm(A3, B3, masked_m=masked_m)
    masked_m.bits[...] = (3, 16)
    gpu_client.grouped_gemm(a, b, masked_m=masked_m, out=out)
    rows = gemmd.Quantized(a.data.reshape(32, K), a.scales.reshape(32, 1))
    offsets = CudaArray(address + 512, (3,), "<i8")
    offsets.bits[...] = (0, 40, 32)
    with pytest.raises(gemmd.InvalidArgumentError):
        gpu_client.grouped_gemm(rows, b, offsets=offsets, out=out.reshape(32, N))
    offsets.bits[...] = (0, 4, 32)
    gpu_client.grouped_gemm(rows, b, offsets=offsets, out=out.reshape(32, N))


A3 = gemmd.quantize(normal(RNG, 2, 16, K))
B3 = gemmd.quantize(normal(RNG, 2, N, K), (128, 128))


def refused(call, error, *texts):
    with pytest.raises(error) as caught:
        call()
    for text in texts:
        assert text in str(caught.value)


def test_refusals_name_cause_and_cure(gpu_client, gpu_daemon, allocate):
    small = gemmd.Quantized(CudaArray(allocate(GRANULE // 2), (M, K), "|u1"), A.scales)
    refused(lambda: gpu_client.gemm(small, B), gemmd.InvalidArgumentError, "a: ", "Allocate 2 MiB or more")
    host = np.zeros((M, K), np.uint8)
    nowhere = gemmd.Quantized(CudaArray(host.ctypes.data, (M, K), "|u1"), A.scales)
    refused(lambda: gpu_client.gemm(nowhere, B), gemmd.InvalidArgumentError, "a: expected memory of a GPU")
    a, b, out = arrays_at(allocate(GRANULE))
    with gpu_daemon.connect_by_tcp() as remote:
        refused(lambda: remote.gemm(a, b), gemmd.FailedPreconditionError, "a: ", "over the Unix socket", "(CudaArray)")
        refused(lambda: remote.pool(64), gemmd.FailedPreconditionError, "region: memory can be shared only")
    there = arrays_at(allocate(GRANULE, 1))[2]
    refused(lambda: gpu_client.gemm(a, b, out=there), gemmd.FailedPreconditionError, "memory on the same device")
    read_only = CudaArray(allocate(GRANULE), (M, N), "<f4", data=(out.__cuda_array_interface__["data"][0], True))
    refused(lambda: gpu_client.gemm(a, b, out=read_only), gemmd.InvalidArgumentError, "d: expected an array that can")
    lent = gpu_client.device_region(1 << 20, writable=False)
    refused(lambda: gpu_client.gemm(*arrays_in(lent)[:2], out=lent.empty((M, N))), gemmd.InvalidArgumentError, "d")
    halves = CudaArray(allocate(GRANULE), (M, K), "<f2")
    refused(lambda: gpu_client.gemm(halves, B), gemmd.InvalidArgumentError, "a.dtype: expected", "got <f2")
    refused(lambda: gemmd.quantize(out), gemmd.InvalidArgumentError, "Client.quantize takes it where it lies")
    refused(lambda: gemmd.to_float32(out), gemmd.InvalidArgumentError, "expected an array in host memory")
    refused(lambda: gpu_client.pool(64, "GPU-elsewhere"), gemmd.InvalidArgumentError, "GPU-elsewhere")
    refused(lambda: gpu_client.device_region(64, "GPU-elsewhere"), gemmd.NotFoundError, "GPU-elsewhere")
    refused(lambda: gpu_client.pool(64, "cuda:x"), gemmd.InvalidArgumentError, "device: expected")
    refused(lambda: gpu_client.pool(0), gemmd.InvalidArgumentError, "byte_size: expected at least 1")


def test_memory_of_a_gpu_that_gemmd_does_not_serve_is_refused(fake_cuda, allocate, tmp_path):
    worker = fake_worker(tmp_path)
    with Daemon(f"--workers={GPUS[0]}", f"--worker_binary={worker}") as started, started.connect() as client:
        a, b, _ = arrays_at(allocate(GRANULE, 1))
        refused(lambda: client.gemm(a, b), gemmd.InvalidArgumentError, f"gemmd serves ({GPUS[0]})", f"of {GPUS[1]}")


def test_memory_of_a_gpu_is_refused_by_a_daemon_on_the_cpu(client, fake_cuda, allocate):
    a, b, _ = arrays_at(allocate(GRANULE))
    refused(lambda: client.gemm(a, b), gemmd.FailedPreconditionError, "a: ", "computes on the CPU", "Copy it first")
    no_gpu = "gpu: expected the UUID of a GPU that gemmd serves"
    refused(lambda: client.device_region(64), gemmd.InvalidArgumentError, no_gpu)


def test_without_a_driver_the_error_says_so(client, monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-of-nobody.so.1")
    monkeypatch.setattr(Driver, "_loaded", None)
    refused(lambda: client.device_region(64), gemmd.FailedPreconditionError, "needs a CUDA driver", "was not found")
    monkeypatch.setattr(cuda, "LIBRARY", "libc.so.6")
    refused(lambda: client.device_region(64), gemmd.FailedPreconditionError, "has no cuInit")


# The order of things.


@pytest.fixture
def waits(monkeypatch):
    """The streams that gemmd has waited for; None: the whole GPU."""
    seen = []
    monkeypatch.setattr(cuda.Gpu, "synchronize", lambda self, stream=None: seen.append(stream))
    return seen


@pytest.mark.parametrize(
    ("stream", "expected"), [({"stream": None}, []), ({"stream": 2}, [2]), ({"stream": 77}, [77])], ids=str)
def test_the_stream_of_an_array_is_waited_for(gpu_client, allocate, waits, stream, expected):
    a, b, out = arrays_at(allocate(GRANULE))
    a.data.__cuda_array_interface__.update(stream)
    gpu_client.gemm(a, b, out=out)
    assert waits == expected


def test_without_a_stream_all_of_the_gpu_is_waited_for(gpu_client, gpu_daemon, allocate, waits):
    a, b, out = arrays_at(allocate(GRANULE))
    for array in (a.data, b.data, out):
        del array.__cuda_array_interface__["stream"]
    gpu_client.gemm(a, b, out=out)
    assert isinstance(gpu_client.gemm(*arrays_in(gpu_client.pool(1 << 20, GPUS[0]))[:2]), np.ndarray)
    with gpu_client.stream() as pipelined:
        pipelined.gemm(a, b, out=out)

    async def awaited():
        async with gemmd.aio.connect(gpu_daemon.address) as client:
            await client.gemm(a, b, out=out)
            region = await client.pool(1 << 20, "cuda:0")
            assert (await client.device_region(64, "cuda:1")).device == GPUS[1]
            tensor = await client.put(region.empty((4, 4)))
            await client.write(tensor, region.empty((4, 4)))
            await client.read(tensor, out=region.empty((4, 4)))

    asyncio.run(awaited())
    assert waits == [None] * 7
    with gpu_daemon.connect(synchronize=False) as unordered:
        unordered.gemm(a, b, out=out)
    assert waits == [None] * 7


# Pools on the CPU worker.


@pytest.mark.parametrize("device", ["", "cpu"])
def test_a_pool_on_the_cpu_holds_operands_and_results(client, device):
    with client.pool(1 << 20, device) as region:
        assert region.device == "cpu" and region.nbytes == 1 << 20
        assert not region.bytes.any()
        a, b, out = arrays_in(region)
        for place, source in ((a, A), (b, B)):
            place.data[...], place.scales[...] = source.data, source.scales
        assert client.gemm(a, b, out=out) is out
        check(out, product(A, B), "float32")
        check(client.gemm(a, B), product(A, B), "float32")
        with pytest.raises(gemmd.ResourceExhaustedError, match="region: expected room for"):
            region.empty(1 << 20)
        with pytest.raises(AttributeError):
            region.__cuda_array_interface__
    assert region.closed
    check(out, product(A, B), "float32")


def test_numpy_takes_a_pool_on_the_cpu_by_dlpack(client):
    regions = client.info().regions
    region = client.pool(4096)
    region.empty(16, "int32")[...] = np.arange(16)
    taken = np.from_dlpack(region)
    assert taken.dtype == np.uint8 and taken.shape == (4096,) and region.__dlpack_device__() == (1, 0)
    assert (taken[:64].view(np.int32) == np.arange(16)).all()
    never_taken = region.__dlpack__()
    del region, never_taken
    gc.collect()
    assert client.info().regions == regions + 1 and taken[4] == 1
    del taken
    gc.collect()
    assert wait_until(lambda: client.info().regions == regions)


def test_the_layouts_are_those_of_c():
    assert ctypes.sizeof(cuda._Properties) == 32 and ctypes.sizeof(cuda._Access) == 12
    assert ctypes.sizeof(gemmd.dlpack._ManagedTensor) == 64 and ctypes.sizeof(gemmd.dlpack._Tensor) == 48
