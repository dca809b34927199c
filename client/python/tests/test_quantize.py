# SPDX-License-Identifier: Apache-2.0
"""FP8 is made here as gemmd makes it, bit by bit, from numpy and from torch."""

import gemmd
import numpy as np
import pytest
from gemmd.arrays import host_bits, ml_dtypes
from gemmd.quantized import decode_e4m3, encode_e4m3
from reference import normal

BLOCKS = [(1, 128), (128, 128)]


def bits(array):
    return host_bits("array", array)[0]


def same(one, other):
    assert np.array_equal(bits(one.data), bits(other.data))
    assert np.array_equal(bits(one.scales), bits(other.scales))
    assert one.block == other.block


def difficult(rows, columns):
    """All magnitudes, zeros, a block of zeros, NaN, infinities, subnormal amax."""
    rng = np.random.default_rng(3)
    x = normal(rng, rows, columns) * np.float32(2.0) ** rng.integers(-60, 60, (rows, columns)).astype(np.float32)
    x[0, :128] = 0
    x[1, 5] = np.nan
    x[2, 7] = np.inf
    x[3, :128] = 1e-44
    x[4, :128] = 448
    x[5, 0] = -0.0
    return x


def test_every_code_survives_a_round_trip():
    codes = np.arange(256, dtype=np.uint8)
    values = decode_e4m3(codes)
    assert np.isnan(values[[0x7F, 0xFF]]).all() and values[0x7E] == 448 and values[1] == 2.0**-9
    numbers = codes[~np.isnan(values)]
    assert np.array_equal(encode_e4m3(decode_e4m3(numbers)), numbers)


def test_values_between_codes_go_to_the_nearest_and_ties_to_even():
    values = decode_e4m3(np.arange(0x7F, dtype=np.uint8))
    middle = (values[:-1] + values[1:]) / 2
    lower = np.arange(0x7E, dtype=np.uint8)
    assert np.array_equal(encode_e4m3(middle), lower + (lower & 1))
    assert np.array_equal(encode_e4m3(np.nextafter(middle, np.float32(0))), lower)
    assert np.array_equal(encode_e4m3(np.nextafter(middle, np.float32(1e9))), lower + 1)
    assert encode_e4m3(np.float32([1e9, -np.inf])).tolist() == [0x7E, 0xFE]


@pytest.mark.skipif(ml_dtypes is None, reason="ml_dtypes is not installed")
def test_the_types_of_ml_dtypes_agree():
    x = np.linspace(-448, 448, 100_001, dtype=np.float32)
    assert np.array_equal(encode_e4m3(x), x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    assert np.array_equal(bits(gemmd.to_bfloat16(x)), x.astype(ml_dtypes.bfloat16).view(np.uint16))
    assert gemmd.quantize(x[:256].reshape(1, 256)).data.dtype == ml_dtypes.float8_e4m3fn


def test_bfloat16_keeps_nan_and_rounds_to_even():
    x = np.float32([1.0, 1.00390625, 1.01171875, np.inf, -0.0])
    assert gemmd.to_float32(gemmd.to_bfloat16(x)).tolist() == [1.0, 1.0, 1.015625, np.inf, 0.0]
    assert np.isnan(gemmd.to_float32(gemmd.to_bfloat16(np.float32([np.nan]))))[0]


@pytest.mark.parametrize("block", BLOCKS)
def test_gemmd_makes_the_same_bits(client, block):
    for x in (difficult(300, 400), normal(np.random.default_rng(1), 1, 16), np.zeros((0, 128), np.float32)):
        same(client.quantize(x, block), gemmd.quantize(x, block))
    x = gemmd.to_bfloat16(normal(np.random.default_rng(2), 130, 256))
    same(client.quantize(x, block), gemmd.quantize(x, block))


@pytest.mark.parametrize("block", BLOCKS)
def test_torch_makes_the_same_bits(client, block):
    torch = pytest.importorskip("torch")
    x = difficult(300, 400)
    made = gemmd.quantize(torch.from_numpy(x), block)
    assert made.data.dtype is torch.float8_e4m3fn
    same(made, gemmd.quantize(x, block))
    same(client.quantize(torch.from_numpy(x), block), gemmd.quantize(x, block))
    assert client.quantize(torch.from_numpy(x), block).data.dtype is torch.float8_e4m3fn
    stacked = torch.from_numpy(x).reshape(3, 100, 400)
    same(gemmd.quantize(stacked, block), gemmd.quantize(stacked.numpy(), block))
    assert gemmd.quantize(torch.empty(0, 5, 128), block).data.shape == (0, 5, 128)


@pytest.mark.parametrize("block", BLOCKS)
def test_groups_are_quantized_one_by_one(client, block):
    x = normal(np.random.default_rng(5), 3, 256, 144)
    whole = gemmd.quantize(x, block)
    for group in range(3):
        same(whole[group], gemmd.quantize(x[group], block))
    same(client.quantize(x, block), whole)
    assert gemmd.quantize(x[:0], block).scales.shape == (0, 256 // block[0], 2)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_error_of_a_value_is_at_most_a_step(block):
    x = normal(np.random.default_rng(4), 200, 300)
    made = gemmd.quantize(x, block)
    spread = np.repeat(np.repeat(made.scales, block[0], 0), 128, 1)[:200, :300]
    assert (np.abs(made.dequantize() - x) <= np.maximum(np.abs(x) / 16, spread * 2.0**-10) * 1.0001).all()


def test_k_groups_have_scales_of_their_own():
    x = normal(np.random.default_rng(6), 24, 544)
    made = gemmd.quantize_k_groups(x, [400, 0, 144])
    assert made.data.shape == (24 * 544,) and made.scales.shape == (24, 4 + 2)
    first = gemmd.quantize(x[:, :400])
    assert np.array_equal(bits(made.data)[: 24 * 400], bits(first.data).reshape(-1))
    assert np.array_equal(made.scales[:, :4], first.scales)
    torch = pytest.importorskip("torch")
    same(gemmd.quantize_k_groups(torch.from_numpy(x), [400, 0, 144]), made)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: gemmd.quantize(np.zeros((2, 2), np.float64)), "x.dtype: expected"),
        (lambda: gemmd.quantize(np.zeros(4, np.float32)), "x.shape: expected 2 or 3 dimensions, got 1"),
        (lambda: gemmd.quantize(np.zeros((2, 2), np.float32), (128, 1)), "block: expected"),
        (lambda: gemmd.Quantized(None, None, (1, 64)), "block: expected"),
        (lambda: gemmd.quantize_k_groups(np.zeros((2, 32), np.float32), [16]), "ks: expected"),
        (lambda: gemmd.to_bfloat16(np.zeros(2, np.int32)), "x.dtype: expected float32, got I32"),
        (lambda: gemmd.to_float32(np.zeros(2, np.uint8)), "x.dtype: expected bfloat16 or float32, got U8"),
        (lambda: gemmd.to_float32(np.zeros(2, ">f4")), "x.dtype: expected"),
    ],
)
def test_bad_arguments_are_named(wrong, message):
    with pytest.raises(gemmd.InvalidArgumentError) as caught:
        wrong()
    assert caught.value.message.startswith(message)
    assert isinstance(caught.value, ValueError)
