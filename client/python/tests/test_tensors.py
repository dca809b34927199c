# SPDX-License-Identifier: Apache-2.0
"""Resident tensors: written, read back, found by name, shared between clients, deleted."""

import asyncio
import json
import struct

import gemmd
import numpy as np
import pytest
from conftest import Daemon
from gemmd.arrays import host_bits
from reference import check, normal, product

RNG = np.random.default_rng(1)
ARRAYS = {
    "float32": normal(RNG, 3, 5),
    "bfloat16": gemmd.to_bfloat16(normal(RNG, 4, 3, 2)),
    "float8": gemmd.quantize(normal(RNG, 4, 128)).data,
    "int64": np.arange(7),
    "int32": np.arange(7, dtype=np.int32),
    "bytes": np.arange(7, dtype=np.uint8),
    "transposed": normal(RNG, 30, 50).T,
    "large": RNG.integers(0, 256, (5, 1 << 20), dtype=np.uint8),
}


def same(one, other):
    (one, kind), (other, other_kind) = host_bits("one", one), host_bits("other", other)
    assert kind is other_kind and np.array_equal(one, other)


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_what_is_put_is_read(client, remote, array):
    for connected in (client, remote):
        tensor = connected.put(array, dtype="e4m3" if array is ARRAYS["float8"] else None)
        assert tensor.shape == array.shape and tensor.nbytes == array.nbytes and tensor.device == "cpu"
        same(connected.read(tensor), array)
        out = np.zeros(array.shape, array.dtype)
        assert connected.read(tensor, out=out) is out
        same(out, array)
        connected.delete(tensor)


def test_a_region_is_written_where_it_lies(client):
    array = client.share(ARRAYS["large"])
    same(client.read(client.put(array)), ARRAYS["large"])
    tensor = client.put(array[1:3])
    same(client.read(tensor), ARRAYS["large"][1:3])


def test_more_than_a_scratch_region_is_written_in_parts(client, monkeypatch):
    monkeypatch.setattr("gemmd.connection.WRITE_BYTES", 2 << 20)
    same(client.read(client.put(ARRAYS["large"])), ARRAYS["large"])


def test_a_part_is_written(client):
    tensor = client.put(np.zeros(8, np.float32))
    client.write(tensor, np.float32([1, 2]), offset=8)
    assert client.read(tensor).tolist() == [0, 0, 1, 2, 0, 0, 0, 0]
    with pytest.raises(gemmd.InvalidArgumentError, match=r"x\.dtype: expected F32, got I32"):
        client.write(tensor, np.int32([1]))


def test_wrong_arrays_to_read_into_are_refused(client):
    tensor = client.put(np.zeros((8, 4), np.float32))
    for wrong in (np.zeros((4, 8), np.float32), np.zeros((8, 4), np.int32), np.zeros((4, 8), np.float32).T):
        with pytest.raises(gemmd.InvalidArgumentError, match="out: expected"):
            client.read(tensor, out=wrong)


def test_weights_are_transposed_and_quantized_once(client, remote):
    flat, grouped = normal(RNG, 256, 144), normal(RNG, 2, 256, 128)
    for connected in (client, remote):
        same(connected.read(connected.put(flat, transpose=True)), np.ascontiguousarray(flat.T))
        same(connected.read(connected.put(gemmd.to_bfloat16(grouped), transpose=True)),
             gemmd.to_bfloat16(np.ascontiguousarray(grouped.transpose(0, 2, 1))))
        for x, block in ((flat, (1, 128)), (flat, (128, 128)), (gemmd.to_bfloat16(flat), (128, 128)), (grouped, (128, 128))):
            stored = connected.put(x, transpose=True, quantize=block)
            values = gemmd.to_float32(x)
            expected = gemmd.quantize(np.ascontiguousarray(np.swapaxes(values, -1, -2)), block)
            assert stored.block == block
            same(connected.read(stored.data), expected.data)
            same(connected.read(stored.scales), expected.scales)
        raw = connected.put(flat.T.copy())
        stored = connected.put(raw, quantize=(128, 128))
        a = gemmd.quantize(normal(RNG, 8, 256))
        check(connected.gemm(a, stored), product(a, gemmd.quantize(flat.T.copy(), (128, 128))), "float32")
    before = len(client.list_tensors())
    client.put(flat, transpose=True)
    assert len(client.list_tensors()) == before + 1  # Not the array as it was.
    with pytest.raises(gemmd.InvalidArgumentError, match="got a Quantized"):
        client.put(gemmd.quantize(flat), transpose=True)
    with pytest.raises(gemmd.InvalidArgumentError, match="block: expected"):
        client.put(flat, quantize=(64, 64))
    with pytest.raises(gemmd.InvalidArgumentError, match="rank|dimensions|shape"):
        client.put(np.zeros(8, np.float32), transpose=True)
    assert len(client.list_tensors()) == before + 1


def test_quantized_weights_are_found_by_name_and_deleted_whole(daemon, client):
    w = normal(RNG, 128, 256)
    stored = client.put(w, "quantized here", shared=True, quantize=(128, 128))
    with daemon.connect() as other:
        found = other.quantized("quantized here")
        assert (found.data.id, found.scales.id, found.block) == (stored.data.id, stored.scales.id, (128, 128))
    client.delete(stored)
    with pytest.raises(gemmd.NotFoundError):
        client.tensor("quantized here")
    assert stored.scales.id not in {tensor.id for tensor in client.list_tensors()}


def safetensors(path, **arrays):
    """A file of float32 arrays."""
    header, data = {}, b""
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_weights_are_loaded_from_a_file_of_the_daemon(tmp_path):
    w, bias = normal(RNG, 256, 128), normal(RNG, 128)
    safetensors(tmp_path / "model.safetensors", w=w, bias=bias)
    with Daemon(f"--tensor_dirs={tmp_path}") as started, started.connect() as client:
        same(client.read(client.load("model.safetensors", "bias")), bias)
        stored = client.load("model.safetensors", "w", "layer.w", shared=True, transpose=True, quantize=(128, 128))
        expected = gemmd.quantize(np.ascontiguousarray(w.T), (128, 128))
        same(client.read(stored.data), expected.data)
        same(client.read(client.quantized("layer.w").scales), expected.scales)
        for path, tensor in (("model.safetensors", "no"), ("none.safetensors", "w")):
            with pytest.raises(gemmd.NotFoundError):
                client.load(path, tensor)

        async def load():
            async with gemmd.aio.connect(started.address) as awaited:
                loaded = await awaited.load("model.safetensors", "w", transpose=True, quantize=(128, 128))
                same(await awaited.read(loaded.data), expected.data)
                put = await awaited.put(w, transpose=True, quantize=(128, 128))
                same(await awaited.read(put.scales), expected.scales)
                found = await awaited.quantized("layer.w")
                assert found.scales.id == stored.scales.id
        asyncio.run(load())


def test_torch_tensors(client):
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8):
        values = torch.arange(64).to(dtype).reshape(8, 8)
        tensor = client.put(values)
        out = torch.zeros(8, 8).to(dtype)
        assert client.read(tensor, out=out) is out
        assert torch.equal(out.float(), values.float())
        same(client.share(values), values)


def test_shared_weights_are_found_by_name_and_outlive_their_session(daemon, client):
    w, x = normal(RNG, 128, 256), gemmd.quantize(normal(RNG, 4, 256))
    b = gemmd.quantize(w, (128, 128))
    with daemon.connect() as other:
        put = other.put(b, "layer0.w", shared=True)
        with pytest.raises(gemmd.AlreadyExistsError):
            client.put(b, "layer0.w", shared=True)
    found = client.quantized("layer0.w")
    assert (found.data.id, found.scales.id, found.block) == (put.data.id, put.scales.id, (128, 128))
    assert found.data.shared and found.data.name == "layer0.w" and client.tensor(found.data.id) == found.data
    check(client.gemm(x, found), product(x, b), "float32")
    assert {tensor.name for tensor in client.list_tensors()} == {"layer0.w", "layer0.w.scales"}
    client.delete(found)
    assert client.list_tensors() == []
    rows = client.put(gemmd.quantize(w), "rows", shared=True)
    assert client.quantized("rows").block == (1, 128)
    client.delete(rows)


def test_a_put_that_fails_leaves_nothing(client):
    taken = client.put(np.zeros(4, np.float32), "w.scales", shared=True)
    with pytest.raises(gemmd.AlreadyExistsError):
        client.put(gemmd.quantize(normal(RNG, 128, 256), (128, 128)), "w", shared=True)
    assert client.list_tensors() == [taken]
    client.delete(taken)


def test_a_tensor_whose_write_fails_is_deleted(client, monkeypatch):
    def fail(*_, **__):
        raise gemmd.UnavailableError("worker: died")

    monkeypatch.setattr(gemmd.Client, "write", fail)
    with pytest.raises(gemmd.UnavailableError):
        client.put(np.zeros(4, np.float32))
    assert client.list_tensors() == []
