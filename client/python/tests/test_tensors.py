# SPDX-License-Identifier: Apache-2.0
"""Resident tensors: written, read back, found by name, shared between clients, deleted."""

import gemmd
import numpy as np
import pytest
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
