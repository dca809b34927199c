# SPDX-License-Identifier: Apache-2.0
"""The asyncio client: the same operations, concurrently, with cancellation and deadlines."""

import asyncio
import contextlib
import inspect

import gemmd
import numpy as np
import pytest
from conftest import START_TIMEOUT, Daemon
from reference import check, normal, product

RNG = np.random.default_rng(1)
A = gemmd.quantize(normal(RNG, 16, 256))
B = gemmd.quantize(normal(RNG, 128, 256), (128, 128))


def with_client(test):
    """Runs the coroutine function with a client of the daemon."""

    def run(daemon):
        async def body():
            async with gemmd.aio.connect(daemon.address, connect_timeout=START_TIMEOUT) as client:
                await test(client)

        asyncio.run(asyncio.wait_for(body(), 120))

    run.__name__ = test.__name__
    return run


def test_it_has_the_methods_of_the_blocking_client():
    def methods(kind):
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in vars(kind).items()
            if callable(value) and not name.startswith("_") and name != "stream"
        }

    assert methods(gemmd.aio.Client) == methods(gemmd.Client)
    for name in ("gemm", "grouped_gemm", "k_grouped_gemm", "quantize"):
        assert getattr(gemmd.aio.Client, name).__doc__ == getattr(gemmd.Client, name).__doc__
    assert inspect.signature(gemmd.aio.Client.gemm).return_annotation == "Awaitable[Array]"
    blocking = dict(inspect.signature(gemmd.connect).parameters)
    assert set(inspect.signature(gemmd.aio.connect).parameters) - set(blocking) == {"max_in_flight"}


@with_client
async def test_every_call(client):
    weights = await client.put(B)
    check(await client.gemm(A, weights), product(A, B), "float32")
    out = await client.empty((16, 128))
    assert await client.gemm(await client.share(A), B, out=out) is out
    check(out, product(A, B), "float32")
    w = gemmd.Quantized(B.data[None], B.scales[None], B.block)
    check(await client.grouped_gemm(A, w, offsets=[0, 16]), product(A, B), "bfloat16")
    x = normal(RNG, 16, 256)
    flat = gemmd.quantize_k_groups(x, [256])
    check((await client.k_grouped_gemm(flat, flat, [256]))[0], product(gemmd.quantize(x), gemmd.quantize(x)), "float32")
    assert np.array_equal((await client.quantize(x)).scales, gemmd.quantize(x).scales)
    large = np.arange(1 << 21)
    tensor = await client.put(large, "large", shared=True)
    assert np.array_equal(await client.read(tensor), large)
    assert await client.tensor("large") == tensor and tensor in await client.list_tensors()
    await client.delete(tensor)
    await client.delete(weights)
    small = await client.put(gemmd.quantize(x, (128, 128)), "small", shared=True)
    assert (await client.quantized("small")).data == small.data
    await client.delete(small)
    assert await client.list_tensors() == []
    async with contextlib.AsyncExitStack() as stack:
        region = stack.enter_context(await client.region(4096))
        assert region.empty(16).shape == (16,)
    assert (await client.info()).workers[0].device == "cpu"
    assert await client.health() == "SERVING"
    with pytest.raises(gemmd.NotFoundError):
        await client.tensor("nobody")
    with pytest.raises(gemmd.InvalidArgumentError):
        await client.gemm(A, B, priority=9)


@with_client
async def test_many_operations_at_once(client):
    weights = await client.put(B)
    operands = [gemmd.quantize(normal(RNG, int(rows), 256)) for rows in RNG.integers(1, 1500, 150)]
    results = await asyncio.gather(*(client.gemm(a, weights) for a in operands))
    for a, result in zip(operands, results, strict=True):
        check(result, product(a, B), "float32")


@with_client
async def test_cancelled_and_late_operations_do_no_harm(client):
    x = gemmd.to_bfloat16(normal(RNG, 1024, 2048))
    for _ in range(3):
        task = asyncio.create_task(client.gemm(x, x))
        await asyncio.sleep(0.005)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        with pytest.raises(gemmd.DeadlineExceededError):
            await client.gemm(x, x, timeout=0.001)
        check(await client.gemm(A, B), product(A, B), "float32")
    ones = gemmd.to_bfloat16(np.full((1024, 128), 1, np.float32))
    assert ((await client.gemm(ones, ones[:128])) == 128).all()


@with_client
async def test_linear_layers(client):
    weight, bias, x = normal(RNG, 136, 256), normal(RNG, 136), normal(RNG, 5, 256)
    layer = await gemmd.aio.Linear.create(client, weight, bias)
    check(
        await layer(x) - bias, product(gemmd.quantize(x), gemmd.quantize(weight, (128, 128))), "float32"
    )
    await layer.close()
    assert await client.list_tensors() == []


def test_a_remote_client(daemon):
    async def body():
        client = await gemmd.aio.connect(daemon.tcp_address, connect_timeout=START_TIMEOUT)
        assert not client.shares_memory
        check(await client.gemm(A, await client.put(B)), product(A, B), "float32")
        await client.close()
        await client.close()
        with pytest.raises(gemmd.FailedPreconditionError, match="client: closed"):
            await client.gemm(A, B)

    asyncio.run(body())


def test_nobody_there_and_a_daemon_that_dies():
    async def body():
        with pytest.raises(gemmd.UnavailableError, match="no gemmd at"):
            await gemmd.aio.connect("unix:/nowhere/gemmd.sock", connect_timeout=0.2)
        with Daemon() as daemon:
            async with gemmd.aio.connect(daemon.address, connect_timeout=START_TIMEOUT) as client:
                daemon.kill()
                with pytest.raises(gemmd.UnavailableError):
                    await client.gemm(A, B)

    asyncio.run(body())
