# SPDX-License-Identifier: Apache-2.0
"""torch CUDA tensors as operands and results, on the fake CUDA driver, fake workers and a torch that is a fake too."""

import asyncio
import gc
import sys
import time
import types

import fake_torch
import gemmd
import numpy as np
import pytest
from conftest import Daemon, fake_worker, wait_until
from fake_gpus import FILL, GPUS, REGIONS, K, M, N, is_filled


@pytest.fixture
def torch(fake_cuda, monkeypatch):
    made = fake_torch.make()
    monkeypatch.setitem(sys.modules, "torch", made)
    return made


def cuda_operands(torch, gpu=0):
    place = torch.device("cuda", gpu)

    def make(shape, dtype):
        return torch.empty(shape, dtype=dtype, device=place)

    a = gemmd.Quantized(make((M, K), torch.float8_e4m3fn), make((M, 1), torch.float32))
    return a, gemmd.Quantized(make((N, K), torch.float8_e4m3fn), make((1, 1), torch.float32), (128, 128))


def test_results_of_torch_cuda_tensors_are_torch_cuda_tensors(gpu_client, torch):
    regions = gpu_client.info().regions
    for gpu in (0, 1):
        a, b = cuda_operands(torch, gpu)
        d = gpu_client.gemm(a, b)
        assert d.is_cuda and d.device == a.data.device and d.dtype is torch.bfloat16 and d.shape == (M, N)
        assert is_filled(d)
        assert gpu_client.gemm(a, b, dtype="float32").dtype is torch.float32
        stream = torch.cuda.streams[gpu]
        assert stream.done and stream.waits == 2
        resident = gpu_client.put(b)
        assert {resident.data.device, resident.scales.device} == {GPUS[gpu]}
        assert is_filled(gpu_client.gemm(a, resident))
    assert gpu_client.info().regions == regions + 2  # One for each allocation, however many tensors are in it.


def test_asyncio_waits_for_the_stream_that_is_current_where_it_is_called(gpu_daemon, fake_cuda, torch):
    async def run():
        a, b = cuda_operands(torch)
        async with gemmd.aio.connect(gpu_daemon.address) as client:
            async def awaited(call):
                torch.cuda.thread.stream = side = fake_torch.Stream()
                value = await call()
                assert side.done
                return value

            tensor = await awaited(lambda: client.put(b.data))
            await awaited(lambda: client.write(tensor, b.data))
            await awaited(lambda: client.read(tensor, out=b.data))
            await awaited(lambda: client.gemm(a, b))
    asyncio.run(run())


def test_grouped_results_have_zeros_where_no_group_is(gpu_client, torch):
    a, b = cuda_operands(torch)
    b = gemmd.Quantized(b.data.reshape(1, N, K), b.scales.reshape(1, 1, 1), b.block)
    row_index = torch.empty((M,), dtype=torch.int32, device=a.data.device)
    row_index.bits[...] = np.where(np.arange(M) < 7, 0, -1)
    d = gpu_client.grouped_gemm(a, b, row_index=row_index, dtype=torch.float32)
    assert d.dtype is torch.float32 and d.shape == (M, N) and torch.cuda.streams[0].done
    assert (d.bits.view(np.uint32) == FILL << 24 | FILL << 16).all()
    masked_m = torch.empty((1,), dtype=torch.int32, device=a.data.device)
    a = gemmd.Quantized(a.data.reshape(1, M, K), a.scales.reshape(1, M, 1))
    assert gpu_client.grouped_gemm(a, b, masked_m=masked_m).dtype is torch.bfloat16


def test_grouped_results_are_not_cleared_where_offsets_own_all(gpu_client, torch, monkeypatch):
    a, b = cuda_operands(torch)
    b = gemmd.Quantized(b.data.reshape(1, N, K), b.scales.reshape(1, 1, 1), b.block)
    cleared = []
    make_zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *args, **more: cleared.append(args) or make_zeros(*args, **more))
    assert is_filled(gpu_client.grouped_gemm(a, b, offsets=[0, M]))
    assert not cleared
    gpu_client.grouped_gemm(a, b, aligned_ends=[M - 1])
    assert len(cleared) == 1


def test_quantized_torch_cuda_tensors(gpu_client, torch):
    x = torch.empty((2, 128, K), dtype=torch.bfloat16, device=torch.device("cuda", 0))
    q = gpu_client.quantize(x, (128, 128))
    assert (q.data.shape, q.scales.shape, q.block) == ((2, 128, K), (2, 1, 1), (128, 128))
    assert q.data.dtype is torch.float8_e4m3fn and q.scales.is_cuda and is_filled(q.data)
    with pytest.raises(gemmd.InvalidArgumentError, match=r"data\.device: .* got one on cuda:0; copy .*data\.cpu\(\)"):
        q.dequantize()


def test_empty_torch_tensors_are_no_special_case(gpu_client, torch):
    place = torch.device("cuda", 0)
    a = gemmd.Quantized(
        torch.empty((0, K), dtype=torch.float8_e4m3fn, device=place),
        torch.empty((0, 1), dtype=torch.float32, device=place))
    d = gpu_client.gemm(a, cuda_operands(torch)[1])
    assert d.is_cuda and d.shape == (0, N)


def test_regions_give_torch_tensors(gpu_client, torch):
    for make in REGIONS.values():
        region = make(gpu_client, 1)
        for kind in (torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.int32, torch.int64, torch.uint8):
            tensor = region.empty((3, 5), kind)
            assert tensor.is_cuda and tensor.device.index == 1 and tensor.dtype is kind and tensor.shape == (3, 5)
        assert torch.from_dlpack(region).shape == (1 << 20,)
        regions = gpu_client.info().regions
        view = tensor[1]
        del region, tensor
        gc.collect()
        assert gpu_client.info().regions == regions
        del view
        gc.collect()
        assert wait_until(lambda: gpu_client.info().regions == regions - 1)


def test_the_result_of_a_call_that_may_still_run_is_kept(torch, tmp_path, monkeypatch):
    hold = tmp_path / "hold"
    worker = fake_worker(tmp_path, f"--fill={FILL}", f"--hold_file={hold}")
    with Daemon("--workers=gpu", f"--worker_binary={worker}") as started, started.connect() as client:
        a, b = cuda_operands(torch)
        client.gemm(a, b)
        assert not client.context._held
        hold.touch()
        with pytest.raises(gemmd.DeadlineExceededError):
            client.gemm(a, b, timeout=0.2)
        assert len(client.context._held) == 1
        with pytest.raises(gemmd.InvalidArgumentError):
            client.gemm(a, b, priority=9)
        assert len(client.context._held) == 1
        hold.unlink()
        client.gemm(a, b)
        assert len(client.context._held) == 1
        later = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 21)
        monkeypatch.setattr(gemmd.request, "time", later)
        client.gemm(a, b)
        assert not client.context._held
