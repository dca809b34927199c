# SPDX-License-Identifier: Apache-2.0
"""FP8 operands as one value: E4M3 elements with their FP32 scale factors, and how they are made from a matrix."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmd.arrays import Array, Bits, DType, as_array, host_bits, is_gpu_array, is_torch, to_float32
from gemmd.errors import InvalidArgumentError

SCALE_BLOCK = 128
BLOCKS = ((1, SCALE_BLOCK), (SCALE_BLOCK, SCALE_BLOCK))
_E4M3_MAX = np.float32(448)
# Elements that are worked on at a time, so that temporaries stay small.
_CHUNK_ELEMENTS = 1 << 22


def ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def check_block(block: Sequence[int]) -> tuple[int, int]:
    """(1, 128) or (128, 128); InvalidArgumentError for anything else."""
    if tuple(block) not in BLOCKS:
        raise InvalidArgumentError(f"block: expected (1, 128) or (128, 128), got {tuple(block)}")
    return block[0], block[1]


@dataclass(frozen=True, eq=False)
class Quantized:
    """FP8 elements and their scale factors: value = element * scale.

    Attributes:
        data: E4M3 elements [M, K], or [G, M, K] for a group of matrices: an array (float8_e4m3fn, or uint8 for its
            bits) or a resident Tensor. For k-grouped products flat: [M * sum(K_g)].
        scales: FP32 decode factors, an array or a resident Tensor; of block (1, 128) [..., M, ceil(K/128)], of block
            (128, 128) [..., ceil(M/128), ceil(K/128)].
        block: rows and columns that share a scale: (1, 128) for activations, (128, 128) for weights.
    """

    data: Any
    scales: Any
    block: tuple[int, int] = (1, SCALE_BLOCK)

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", check_block(self.block))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of `data`."""
        return tuple(self.data.shape)

    def __getitem__(self, group: int) -> Quantized:
        """One matrix of a group."""
        return Quantized(self.data[group], self.scales[group], self.block)

    def dequantize(self) -> NDArray[np.float32]:
        """float32 numpy array of the shape of `data`, which must be [M, K] or [G, M, K] and in host memory."""
        bits, _ = host_bits("data", self.data)
        scales, _ = host_bits("scales", self.scales)
        rows, columns = bits.shape[-2:]
        spread = np.repeat(np.repeat(scales, self.block[0], axis=-2), self.block[1], axis=-1)
        values: NDArray[np.float32] = decode_e4m3(bits) * spread[..., :rows, :columns]
        return values


def _decode_table() -> NDArray[np.float32]:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10.0), mantissa * 2.0**-9)
    magnitude[(codes & 127) == 127] = np.nan
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


_DECODED = _decode_table()


def decode_e4m3(bits: Bits) -> NDArray[np.float32]:
    """float32 of the same shape from the bits of E4M3; exact."""
    values: NDArray[np.float32] = _DECODED[bits]
    return values


def encode_e4m3(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bits of E4M3 of the same shape: rounded to nearest, ties to even; beyond 448 to 448; NaN stays NaN."""
    words = np.ascontiguousarray(x).view(np.uint32)
    magnitude = words & np.uint32(0x7FFFFFFF)
    # Adding 1.5 * 2^14 leaves a multiple of 2^-9, the step of subnormals, in the last bits.
    subnormal = (magnitude.view(np.float32) + np.float32(24576)).view(np.uint32) & np.uint32(15)
    rounded = (magnitude + np.uint32(0x7FFFF) + ((magnitude >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
    normal = np.minimum(rounded - np.uint32(120 << 3), np.uint32(0x7E))
    result = np.where(magnitude < np.uint32(0x3C800000), subnormal, normal)  # 2^-6, the smallest normal number.
    result[magnitude > np.uint32(0x7F800000)] = 0x7F
    codes: NDArray[np.uint8] = (((words >> np.uint32(24)) & np.uint32(0x80)) | result).astype(np.uint8)
    return codes


def quantize(x: Array, block: Sequence[int] = (1, SCALE_BLOCK)) -> Quantized:
    """FP8 from a matrix, computed here: scale = amax / 448 of each block, element = x / scale rounded to nearest even.

    The same bits as gemmd's own quantize operation (Client.quantize): blocks whose amax / 448 is 0 get scale 1, NaN
    stays NaN and does not count for amax, a block with an infinity dequantizes to NaN.

    Args:
        x: [M, K] or [G, M, K], float32 or bfloat16; a numpy array, or a torch tensor on any device, where torch
            computes it. Client.quantize takes other arrays on a GPU too.
        block: (1, 128) for A and weight gradients, (128, 128) for weights.

    Returns:
        Quantized, torch tensors for a torch tensor.

    Raises:
        InvalidArgumentError: x is of another type or rank, or block is another.
    """
    rows = check_block(block)[0]
    _check_place(x)
    if x.ndim not in (2, 3):
        raise InvalidArgumentError(f"x.shape: expected 2 or 3 dimensions, got {x.ndim}")
    one = _quantize_torch if is_torch(x) else _quantize_numpy
    if x.ndim == 2:
        data, scales = one(x, rows)
        return Quantized(data, scales, (rows, SCALE_BLOCK))
    scales_shape = (x.shape[0], ceil_div(x.shape[1], rows), ceil_div(x.shape[2], SCALE_BLOCK))
    if is_torch(x):
        torch = sys.modules["torch"]
        data = torch.empty(tuple(x.shape), dtype=torch.float8_e4m3fn, device=x.device)
        scales = torch.empty(scales_shape, device=x.device)
    else:
        data = as_array(np.empty(x.shape, np.uint8), DType.E4M3, torch=False)
        scales = np.empty(scales_shape, np.float32)
    for group in range(x.shape[0]):
        data[group], scales[group] = one(x[group], rows)
    return Quantized(data, scales, (rows, SCALE_BLOCK))


def _check_place(x: Array) -> None:
    if is_gpu_array(x) and not is_torch(x):
        raise InvalidArgumentError(
            f"x: expected a numpy array or a torch tensor, got a {type(x).__name__} on a GPU; Client.quantize takes it "
            "where it lies"
        )


def _quantize_numpy(x: Bits, rows: int) -> tuple[Array, NDArray[np.float32]]:
    data = np.empty(x.shape, np.uint8)
    scales = np.empty((ceil_div(x.shape[0], rows), ceil_div(x.shape[1], SCALE_BLOCK)), np.float32)
    chunk = max(_CHUNK_ELEMENTS // max(x.shape[1], 1) // SCALE_BLOCK, 1) * SCALE_BLOCK
    for row in range(0, x.shape[0], chunk):
        part = to_float32(x[row : row + chunk])
        data[row : row + chunk], scales[row // rows : ceil_div(row + chunk, rows)] = _quantize_rows(part, rows)
    return as_array(data, DType.E4M3, torch=False), scales


def _quantize_rows(x: NDArray[np.float32], rows: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    m, k = x.shape
    if m == 0 or k == 0:
        return np.empty((m, k), np.uint8), np.ones((ceil_div(m, rows), ceil_div(k, SCALE_BLOCK)), np.float32)
    with np.errstate(all="ignore"):
        magnitude = np.abs(x)
        magnitude[np.isnan(magnitude)] = 0
        amax = np.maximum.reduceat(magnitude, np.arange(0, k, SCALE_BLOCK), axis=1)
        amax = np.maximum.reduceat(amax, np.arange(0, m, rows), axis=0)
        scales: NDArray[np.float32] = np.divide(amax, _E4M3_MAX, dtype=np.float32)
        scales[scales == 0] = 1
        spread = np.repeat(np.repeat(scales, rows, axis=0)[:m], SCALE_BLOCK, axis=1)[:, :k]
        return encode_e4m3(x / spread), scales


def _quantize_torch(x: Any, rows: int) -> tuple[Array, Array]:
    torch = sys.modules["torch"]
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise InvalidArgumentError(f"x.dtype: expected torch.float32 or torch.bfloat16, got {x.dtype}")
    m, k = x.shape
    blocks = (ceil_div(m, rows), ceil_div(k, SCALE_BLOCK))
    if m == 0 or k == 0:
        return torch.empty((m, k), dtype=torch.float8_e4m3fn, device=x.device), torch.ones(blocks, device=x.device)
    padding = (0, blocks[1] * SCALE_BLOCK - k, 0, blocks[0] * rows - m)
    padded = torch.nn.functional.pad(x.detach().float(), padding).view(blocks[0], rows, blocks[1], SCALE_BLOCK)
    magnitude = torch.where(padded.isnan(), torch.zeros_like(padded), padded.abs())
    # By a tensor: on a GPU torch divides by a number by multiplying with its inverse, which rounds otherwise.
    scales = magnitude.amax(dim=(1, 3)) / magnitude.new_full((), float(_E4M3_MAX))
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    data = (padded / scales[:, None, :, None]).view(blocks[0] * rows, blocks[1] * SCALE_BLOCK)[:m, :k]
    return data.to(torch.float8_e4m3fn).contiguous(), scales


def quantize_k_groups(x: Array, ks: Sequence[int]) -> Quantized:
    """The operand of a k-grouped product from a matrix whose columns belong to groups.

    Args:
        x: [M, sum(ks)], float32 or bfloat16.
        ks: columns of each group, in order; each a multiple of 16.

    Returns:
        Quantized with flat data [M * sum(ks)] (the K-major [M, K_g] matrices one after another) and scales
        [M, sum(ceil(K_g/128))] per 1x128. Groups do not share scales.

    Raises:
        InvalidArgumentError: ks does not add up to the columns of x.
    """
    sizes = [int(k) for k in ks]
    _check_place(x)
    if x.ndim != 2 or sum(sizes) != x.shape[1] or any(k < 0 for k in sizes):
        raise InvalidArgumentError(f"ks: expected sizes of at least 0 that add up to the columns of x, got {sizes}")
    ends = np.cumsum(sizes)
    parts = [quantize(x[:, end - k : end]) for k, end in zip(sizes, ends, strict=True)]
    if is_torch(x):
        torch = sys.modules["torch"]
        flat = [part.data.view(torch.uint8).reshape(-1) for part in parts]
        no_data, no_scales = x.new_empty(0, dtype=torch.uint8), x.new_empty((x.shape[0], 0), dtype=torch.float32)
        data = torch.cat([no_data, *flat]).view(torch.float8_e4m3fn)
        return Quantized(data, torch.cat([no_scales, *(part.scales for part in parts)], dim=1))
    bits = [host_bits("x", part.data)[0].reshape(-1) for part in parts]
    data = np.concatenate([np.empty(0, np.uint8), *bits])
    scales = np.concatenate([np.empty((x.shape[0], 0), np.float32), *(part.scales for part in parts)], axis=1)
    return Quantized(as_array(data, DType.E4M3, torch=False), scales)
