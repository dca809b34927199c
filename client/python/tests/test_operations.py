# SPDX-License-Identifier: Apache-2.0
"""Every operation, with operands in every place, of numpy and of torch, against float64."""

import gemmd
import numpy as np
import pytest
from gemmd.arrays import host_bits
from reference import check, float64, normal, product


def in_messages(client, operand):
    return operand


def in_regions(client, operand):
    return client.share(operand)


def resident(client, operand):
    return client.put(operand)


def as_torch(client, operand):
    torch = pytest.importorskip("torch")
    if isinstance(operand, gemmd.Quantized):
        data = torch.from_numpy(host_bits("data", operand.data)[0]).view(torch.float8_e4m3fn)
        return gemmd.Quantized(data, torch.from_numpy(operand.scales), operand.block)
    bits, kind = host_bits("operand", operand)
    tensor = torch.from_numpy(bits.view(np.int16) if kind is gemmd.DType.BF16 else bits)
    return tensor.view(torch.bfloat16) if kind is gemmd.DType.BF16 else tensor


@pytest.fixture(params=[in_messages, in_regions, resident, as_torch], ids=lambda place: place.__name__)
def place(request, client):
    return lambda operand: request.param(client, operand)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def weights(rng, *shape):
    return gemmd.quantize(normal(rng, *shape), (128, 128))


def activations(rng, *shape):
    return gemmd.quantize(normal(rng, *shape))


# Small enough for a message, and large enough for a scratch region.
SIZES = [(37, 264, 400), (150, 528, 1040)]


@pytest.mark.parametrize("m, n, k", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gemm_of_activations_and_weights(client, place, rng, m, n, k, dtype):
    a, b = activations(rng, m, k), weights(rng, n, k)
    check(client.gemm(place(a), place(b), dtype=dtype), product(a, b), dtype)


@pytest.mark.parametrize("m, n, k", SIZES)
def test_gemm_for_weight_gradients(client, place, rng, m, n, k):
    a, b = activations(rng, m, k), activations(rng, n, k)
    check(client.gemm(place(a), place(b), dtype="float32"), product(a, b), "float32")


@pytest.mark.parametrize("m, n, k", SIZES)
def test_gemm_of_bfloat16(client, place, rng, m, n, k):
    a, b = gemmd.to_bfloat16(normal(rng, m, k)), gemmd.to_bfloat16(normal(rng, n, k))
    check(client.gemm(place(a), place(b), dtype="bfloat16"), product(a, b), "bfloat16")


def test_gemm_quantizes_bfloat16_on_the_way(client, place, rng):
    x, b = gemmd.to_bfloat16(normal(rng, 37, 400)), weights(rng, 264, 400)
    check(client.gemm(place(x), place(b), dtype="float32"), product(gemmd.quantize(x), b), "float32")


def test_gemm_accumulates(client, place, rng):
    a, b, c = activations(rng, 17, 256), weights(rng, 132, 256), normal(rng, 17, 132)
    expected = product(a, b) + c
    for out in (c.copy(), client.share(c)):
        assert client.gemm(place(a), place(b), out=out, accumulate=True) is out
        check(out, expected, "float32")
    tensor = client.put(c)
    assert client.gemm(place(a), place(b), out=tensor, accumulate=True) is tensor
    check(client.read(tensor), expected, "float32")


def test_results_go_where_they_are_wanted(client, place, rng):
    a, b = activations(rng, 16, 256), weights(rng, 128, 256)
    expected = product(a, b)
    strided = np.zeros((16, 2, 128), np.float32)[:, 1]
    window = client.empty((16, 256))[:, 128:]
    for out in (np.zeros((16, 128), np.float32), strided, client.empty((16, 128)), window):
        assert client.gemm(place(a), place(b), out=out) is out
        check(out, expected, "float32")
    half = client.empty((16, 128), "bfloat16")
    client.gemm(place(a), place(b), out=half)
    check(half, expected, "bfloat16")


def test_operands_may_have_any_layout_unless_they_lie_in_a_region(client, rng):
    x = normal(rng, 64, 256)
    a, b = gemmd.quantize(x), weights(rng, 128, 256)
    transposed = gemmd.Quantized(np.asfortranarray(a.data), np.asfortranarray(a.scales))
    reversed_rows = gemmd.Quantized(a.data[::-1], a.scales[::-1])
    check(client.gemm(transposed, b), product(a, b), "float32")
    check(client.gemm(reversed_rows, b), product(a, b)[::-1], "float32")
    shared = client.share(a)
    check(client.gemm(gemmd.Quantized(shared.data[::2], shared.scales[::2]), b), product(a, b)[::2], "float32")
    # Scale factors may be M-major.
    columns = client.empty((2, 64)).T
    columns[...] = a.scales
    check(client.gemm(gemmd.Quantized(shared.data, columns), b), product(a, b), "float32")
    wrong = client.empty((256, 64), "float8_e4m3fn").T
    with pytest.raises(gemmd.InvalidArgumentError, match=r"a\.strides"):
        client.gemm(gemmd.Quantized(wrong, shared.scales), b)


GROUPS = [0, 1, 30, 0, 9]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_grouped_gemm_by_offsets(client, place, rng, dtype):
    a, b = activations(rng, 40, 256), weights(rng, 5, 136, 256)
    offsets = np.cumsum([0, *GROUPS])
    expected = np.concatenate([product(a[low:high], b[g]) for g, (low, high) in enumerate(zip(offsets, offsets[1:]))])
    for value in (offsets, offsets.tolist(), offsets.astype(np.int32), client.share(offsets)):
        check(client.grouped_gemm(place(a), place(b), offsets=value, dtype=dtype), expected, "bfloat16")


def test_grouped_gemm_by_row_index(client, place, rng):
    a, b = activations(rng, 64, 128), weights(rng, 3, 128, 128)
    row_index = np.repeat([0, -1, 2, -1], [10, 20, 30, 4])
    expected = np.zeros((64, 128))
    for row, group in enumerate(row_index):
        if group >= 0:
            expected[row] = product(a[row : row + 1], b[group])[0]
    check(client.grouped_gemm(place(a), place(b), row_index=row_index), expected, "bfloat16")


def test_grouped_gemm_by_aligned_ends(client, place, rng):
    a, b = activations(rng, 300, 128), weights(rng, 2, 128, 128)
    expected = np.zeros((300, 128))
    expected[:100] = product(a[:100], b[0])
    expected[128:250] = product(a[128:250], b[1])
    check(client.grouped_gemm(place(a), place(b), aligned_ends=[100, 250]), expected, "bfloat16")
    expected[:] = 0
    expected[:20] = product(a[:20], b[0])
    expected[32:90] = product(a[32:90], b[1])
    check(client.grouped_gemm(place(a), place(b), aligned_ends=[20, 90], alignment=32), expected, "bfloat16")


def test_grouped_gemm_by_masks(client, place, rng):
    a, b = activations(rng, 4, 24, 256), weights(rng, 4, 136, 256)
    masked_m = [24, 0, 1, 17]
    expected = np.zeros((4, 24, 136))
    for group, rows in enumerate(masked_m):
        expected[group, :rows] = product(a[group], b[group])[:rows]
    check(client.grouped_gemm(place(a), place(b), masked_m=masked_m), expected, "bfloat16")
    out = client.empty((4, 24, 136), "bfloat16")
    host_bits("out", out)[0].fill(0x3F80)  # 1.0
    client.grouped_gemm(place(a), place(b), masked_m=np.int32(masked_m), out=out)
    for group, rows in enumerate(masked_m):
        check(out[group, :rows], expected[group, :rows], "bfloat16")
        assert (gemmd.to_float32(out[group, rows:]) == 1).all()


def test_grouped_gemm_of_bfloat16(client, place, rng):
    a, b = gemmd.to_bfloat16(normal(rng, 40, 256)), gemmd.to_bfloat16(normal(rng, 2, 136, 256))
    expected = np.concatenate([float64(a)[:13] @ float64(b)[0].T, float64(a)[13:] @ float64(b)[1].T])
    check(client.grouped_gemm(place(a), place(b), offsets=[0, 13, 40], dtype="float32"), expected, "float32")


def test_grouped_gemm_quantizes_bfloat16_rows(client, place, rng):
    x, b = gemmd.to_bfloat16(normal(rng, 40, 256)), weights(rng, 2, 128, 256)
    a = gemmd.quantize(x)
    expected = np.concatenate([product(a[:13], b[0]), product(a[13:], b[1])])
    check(client.grouped_gemm(place(x), place(b), offsets=[0, 13, 40]), expected, "bfloat16")
    expected = np.stack([product(a[:20], b[0]), product(a[20:], b[1])])
    expected[1, 7:] = 0
    padded = x.reshape(2, 20, 256)
    check(client.grouped_gemm(place(padded), place(b), masked_m=[20, 7]), expected, "bfloat16")


def test_k_grouped_gemm(client, place, rng):
    x, y, ks = normal(rng, 24, 544), normal(rng, 40, 544), [400, 0, 144]
    a, b = gemmd.quantize_k_groups(x, ks), gemmd.quantize_k_groups(y, ks)
    starts = np.cumsum([0, *ks])
    expected = np.stack(
        [product(gemmd.quantize(x[:, i:j]), gemmd.quantize(y[:, i:j])) for i, j in zip(starts, starts[1:])]
    )
    check(client.k_grouped_gemm(place(a), place(b), ks), expected, "float32")
    for out in (np.ones((3, 24, 40), np.float32), client.share(np.ones((3, 24, 40), np.float32))):
        client.k_grouped_gemm(place(a), place(b), np.int32(ks), out=out, accumulate=True)
        check(out, expected + 1, "float32")
    tensor = client.put(np.ones((3, 24, 40), np.float32))
    client.k_grouped_gemm(place(a), place(b), ks, out=tensor)
    check(client.read(tensor), expected, "float32")


def test_k_grouped_gemm_of_bfloat16(client, place, rng):
    x, y = gemmd.to_bfloat16(normal(rng, 24, 64)), gemmd.to_bfloat16(normal(rng, 40, 64))
    flat = [np.concatenate([v[:, :40].reshape(-1), v[:, 40:].reshape(-1)]) for v in (x, y)]
    expected = np.stack([product(x[:, :40], y[:, :40]), product(x[:, 40:], y[:, 40:])])
    if not isinstance(place(x), gemmd.Tensor):
        check(client.k_grouped_gemm(place(flat[0]), place(flat[1]), [40, 24]), expected, "float32")
    out = client.empty((2, 24, 40))
    check(client.k_grouped_gemm(place(flat[0]), place(flat[1]), [40, 24], out=out), expected, "float32")


def test_quantize_into_arrays(client, rng):
    x = normal(rng, 130, 336)
    expected = gemmd.quantize(x)
    for make in (client.empty, lambda shape, dtype: np.empty(shape, np.uint8 if "float8" in dtype else dtype)):
        out = gemmd.Quantized(make((130, 336), "float8_e4m3fn"), make((130, 3), "float32"))
        assert client.quantize(client.share(x), out=out) is out
        assert np.array_equal(host_bits("q", out.data)[0], host_bits("q", expected.data)[0])
        assert np.array_equal(out.scales, expected.scales)
    assert np.array_equal(client.quantize(client.put(x)).scales, expected.scales)


def test_empty_extents_give_empty_or_zero_results(client, rng):
    b = weights(rng, 128, 256)
    assert client.gemm(activations(rng, 0, 256), b).shape == (0, 128)
    zeros = client.gemm(activations(rng, 3, 0), weights(rng, 128, 0))
    assert zeros.shape == (3, 128) and not zeros.any()


def test_remote_operands_travel_in_messages(remote, rng):
    a, b = activations(rng, 150, 1040), weights(rng, 528, 1040)
    assert not remote.shares_memory
    check(remote.gemm(a, b), product(a, b), "float32")
    check(remote.gemm(a, remote.put(b)), product(a, b), "float32")
    out = np.zeros((150, 528), np.float32)
    assert remote.gemm(a, b, out=out) is out
    check(out, product(a, b), "float32")


def test_torch_results_are_torch(client, rng):
    torch = pytest.importorskip("torch")
    x, w = torch.from_numpy(normal(rng, 8, 256)), torch.from_numpy(normal(rng, 128, 256))
    a, b = gemmd.quantize(x), gemmd.quantize(w, (128, 128))
    expected = product(a, b)
    made = client.gemm(a, b)
    assert made.dtype is torch.bfloat16
    check(made, expected, "bfloat16")
    out = client.empty((8, 128), torch.float32)
    assert isinstance(out, torch.Tensor)
    assert client.gemm(client.share(a), b, out=out) is out
    check(out, expected, "float32")
    grouped = client.grouped_gemm(a, gemmd.quantize(w[None], (128, 128)), offsets=torch.tensor([0, 8]))
    check(grouped, expected, "bfloat16")
    x.requires_grad_(True)
    check(client.gemm(x.bfloat16(), b), product(gemmd.quantize(x.detach().bfloat16()), b), "bfloat16")


def test_run_gives_the_whole_response(client, rng):
    from gemmd.v1 import gemm_pb2, types_pb2

    tensor = client.put(gemmd.to_bfloat16(normal(rng, 8, 16)))
    request = gemm_pb2.RunRequest()
    request.dense.scaling = gemm_pb2.SCALING_NONE
    request.dense.a.tensor_id = request.dense.b.tensor_id = tensor.id
    request.dense.d.dtype = types_pb2.F32
    response = client.run(request)
    assert len(response.d) == 8 * 8 * 4 and response.times.device_ns > 0 and response.batch_jobs == 1


def test_linear_layers(client, rng):
    weight, bias, x = normal(rng, 136, 256), normal(rng, 136), normal(rng, 2, 5, 256)
    expected = x.reshape(10, 256).astype(np.float64) @ weight.T.astype(np.float64) + bias
    with gemmd.Linear(client, weight, bias) as layer:
        y = layer(x)
        assert y.shape == (2, 5, 136) and y.dtype == np.float32
        assert np.linalg.norm(y.reshape(10, 136) - expected) < 0.06 * np.linalg.norm(expected)
        half = layer(gemmd.to_bfloat16(x))
        assert host_bits("y", half)[1] is gemmd.DType.BF16
        assert np.abs(gemmd.to_float32(half) - y).max() < 0.06 * np.abs(y).max()
        with pytest.raises(gemmd.InvalidArgumentError, match=r"x\.shape: expected \[\.\.\., 256\]"):
            layer(x[..., :128])
    assert client.list_tensors() == []
    with pytest.raises(gemmd.InvalidArgumentError, match=r"bias\.shape"):
        gemmd.Linear(client, weight, bias[:3])
    with gemmd.Linear(client, client.put(gemmd.quantize(weight, (128, 128)))) as layer:
        assert np.allclose(layer(x) + bias, y, atol=1e-4)
    assert len(client.list_tensors()) == 2
    torch = pytest.importorskip("torch")
    with gemmd.Linear(client, torch.from_numpy(weight), torch.from_numpy(bias)) as layer:
        assert np.allclose(layer(torch.from_numpy(x)).numpy(), y, atol=1e-4)
        assert layer(torch.from_numpy(x).bfloat16()).dtype is torch.bfloat16
