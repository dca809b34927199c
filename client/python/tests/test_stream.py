# SPDX-License-Identifier: Apache-2.0
"""Operations pipelined on a stream."""

import threading

import gemmd
import numpy as np
import pytest
from conftest import Daemon
from reference import check, normal, product

RNG = np.random.default_rng(1)
B = gemmd.quantize(normal(RNG, 128, 256), (128, 128))


def test_results_belong_to_their_operations(client):
    weights = client.put(B)
    operands = [gemmd.quantize(normal(RNG, int(rows), 256)) for rows in RNG.integers(1, 900, 100)]
    with client.stream(max_in_flight=16) as stream:
        futures = [stream.gemm(a, weights) for a in operands]
    for a, future in zip(operands, futures, strict=True):
        check(future.result(timeout=0), product(a, B), "float32")


def test_every_operation_can_be_submitted(client):
    x = normal(RNG, 32, 256)
    a, w = gemmd.quantize(x), gemmd.quantize(x[None], (128, 128))
    with client.stream() as stream:
        quantized = stream.quantize(x)
        grouped = stream.grouped_gemm(a, w, offsets=[0, 32])
        k_grouped = stream.k_grouped_gemm(gemmd.quantize_k_groups(x, [256]), gemmd.quantize_k_groups(x, [256]), [256])
    assert np.array_equal(quantized.result().scales, a.scales)
    check(grouped.result(), product(a, w[0]), "bfloat16")
    check(k_grouped.result()[0], product(a, a), "float32")


def test_an_error_is_told_to_its_operation_alone(client):
    a = gemmd.quantize(normal(RNG, 8, 256))
    with client.stream() as stream:
        good, bad = stream.gemm(a, B), stream.gemm(a, B, priority=9)
        also_good = stream.gemm(a, B)
        with pytest.raises(TypeError, match="a: expected a numpy array"):
            stream.gemm(None, B)
    with pytest.raises(gemmd.InvalidArgumentError) as caught:
        bad.result()
    assert caught.value.field == "priority"
    check(good.result(), product(a, B), "float32")
    check(also_good.result(), product(a, B), "float32")


def test_threads_share_a_stream(client):
    a = gemmd.quantize(normal(RNG, 8, 256))
    results = []
    with client.stream(max_in_flight=4) as stream:
        threads = [
            threading.Thread(target=lambda: results.extend(stream.gemm(a, B).result(30) for _ in range(50)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 200
    for result in results:
        check(result, product(a, B), "float32")


def test_a_closed_stream_takes_nothing(client):
    stream = client.stream()
    stream.close()
    stream.close()
    with pytest.raises(gemmd.FailedPreconditionError, match="stream: closed"):
        stream.gemm(gemmd.quantize(normal(RNG, 8, 256)), B)
    with pytest.raises(gemmd.InvalidArgumentError, match="max_in_flight"):
        client.stream(max_in_flight=0)


def test_a_stream_that_breaks_fails_what_is_left():
    x = gemmd.to_bfloat16(normal(RNG, 512, 2048))
    with Daemon() as daemon, daemon.connect() as client:
        stream = client.stream()
        futures = [stream.gemm(x, x) for _ in range(32)]
        daemon.kill()
        errors = [error for error in (future.exception(60) for future in futures) if error is not None]
        assert errors and all(isinstance(error, gemmd.UnavailableError) for error in errors)
        with pytest.raises(gemmd.UnavailableError):
            stream.gemm(x, x)
        stream.close()


def test_closing_the_client_ends_its_streams(daemon):
    client = daemon.connect()
    stream = client.stream()
    client.close()
    stream.close()
    with pytest.raises(gemmd.GemmdError):
        stream.gemm(gemmd.quantize(normal(RNG, 8, 256)), B)
