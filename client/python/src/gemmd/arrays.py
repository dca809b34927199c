# SPDX-License-Identifier: Apache-2.0
"""Element types, and what numpy arrays and torch tensors have in common: their bits.

numpy has no 8-bit floats and no bfloat16. Everything here therefore works on *bits*: a numpy array on the same memory
whose type has the right size (uint8 for E4M3, uint16 for BF16), with a DType beside it that says what they mean.
Arrays come back with the types of ml_dtypes where it is installed, otherwise as bits.
"""

from __future__ import annotations

import enum
import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmd.errors import InvalidArgumentError
from gemmd.v1 import types_pb2

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None  # type: ignore[assignment]

# A numpy.ndarray, a torch.Tensor, or an array on a GPU (gemmd.device_arrays).
Array = Any
Bits = NDArray[Any]


class DType(enum.Enum):
    """Element type of a tensor; the values are those of gemmd.v1.DType."""

    E4M3 = types_pb2.E4M3
    BF16 = types_pb2.BF16
    F32 = types_pb2.F32
    I32 = types_pb2.I32
    I64 = types_pb2.I64
    U8 = types_pb2.U8

    @property
    def bits(self) -> np.dtype[Any]:
        """The numpy type that holds it without meaning."""
        return _BITS[self]


_BITS: dict[DType, np.dtype[Any]] = {
    DType.E4M3: np.dtype(np.uint8),
    DType.BF16: np.dtype(np.uint16),
    DType.F32: np.dtype(np.float32),
    DType.I32: np.dtype(np.int32),
    DType.I64: np.dtype(np.int64),
    DType.U8: np.dtype(np.uint8),
}
# By the names of numpy, ml_dtypes, torch and gemmctl. uint16 can only be the bits of bfloat16.
_BY_NAME: dict[str, DType] = {
    "e4m3": DType.E4M3,
    "float8_e4m3fn": DType.E4M3,
    "bf16": DType.BF16,
    "bfloat16": DType.BF16,
    "uint16": DType.BF16,
    "f32": DType.F32,
    "float32": DType.F32,
    "i32": DType.I32,
    "int32": DType.I32,
    "i64": DType.I64,
    "int64": DType.I64,
    "u8": DType.U8,
    "uint8": DType.U8,
}
_TORCH_NAME: dict[DType, str] = {
    DType.E4M3: "float8_e4m3fn",
    DType.BF16: "bfloat16",
    DType.F32: "float32",
    DType.I32: "int32",
    DType.I64: "int64",
    DType.U8: "uint8",
}


def is_torch(value: object) -> bool:
    """Whether it is a torch.Tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_torch_dtype(value: object) -> bool:
    """Whether it is a torch.dtype."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.dtype)


def parse_dtype(field: str, value: object) -> DType:
    """The DType that a name, a numpy type, a torch type or a DType means."""
    if isinstance(value, DType):
        return value
    if isinstance(value, str):
        name = value
    elif is_torch_dtype(value):
        name = str(value).removeprefix("torch.")
    else:
        name = np.dtype(value).name  # type: ignore[call-overload]
    if name not in _BY_NAME:
        raise InvalidArgumentError(f"{field}: expected one of {', '.join(sorted(_BY_NAME))}, got {name}")
    return _BY_NAME[name]


def is_gpu_array(value: object) -> bool:
    """Whether its elements are on a GPU: a torch CUDA tensor, or what has __cuda_array_interface__."""
    if isinstance(value, np.ndarray):
        return False
    if is_torch(value):
        return bool(value.is_cuda)  # type: ignore[attr-defined]
    return hasattr(value, "__cuda_array_interface__")


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """In elements, row-major."""
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def extents_of(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Raises InvalidArgumentError for negative ones."""
    extents = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(extent) for extent in shape)
    if any(extent < 0 for extent in extents):
        raise InvalidArgumentError(f"shape: expected extents of at least 0, got {extents}")
    return extents


# Names are made anew each time that they are asked for, by numpy in Python.
@functools.lru_cache(maxsize=64)
def _of_torch_dtype(dtype: Any) -> DType | None:
    return _BY_NAME.get(str(dtype).removeprefix("torch."))


@functools.lru_cache(maxsize=64)
def _of_numpy_dtype(dtype: np.dtype[Any]) -> DType | None:
    """None for another byte order too."""
    return _BY_NAME.get(dtype.name) if dtype.isnative else None


def torch_dtype(field: str, tensor: Any) -> DType:
    """The type of a torch tensor. Raises InvalidArgumentError for types that gemmd does not have."""
    dtype = _of_torch_dtype(tensor.dtype)
    if dtype is None:
        raise InvalidArgumentError(
            f"{field}.dtype: expected float8_e4m3fn, bfloat16, float32, int32, int64 or uint8, got "
            f"{str(tensor.dtype).removeprefix('torch.')}"
        )
    return dtype


def torch_type(dtype: DType) -> Any:
    """The torch.dtype. Requires: torch is imported."""
    return getattr(sys.modules["torch"], _TORCH_NAME[dtype])


def host_bits(field: str, value: Array) -> tuple[Bits, DType]:
    """The bits of an array on its own memory, never copied, and their type.

    Raises InvalidArgumentError for types that gemmd does not have and for memory that is not the host's, TypeError for
    what is no array.
    """
    if isinstance(value, np.ndarray):
        dtype = _of_numpy_dtype(value.dtype)
        if dtype is None:
            raise InvalidArgumentError(
                f"{field}.dtype: expected float8_e4m3fn, bfloat16, float32, int32, int64 or their bits (uint8, uint16) "
                f"in the byte order of the machine, got {value.dtype}"
            )
        return (value if value.dtype == dtype.bits else value.view(dtype.bits)), dtype
    if is_torch(value):
        return _torch_bits(field, value)
    if is_gpu_array(value):
        raise InvalidArgumentError(
            f"{field}: expected an array in host memory here, got a {type(value).__name__} on a GPU; copy it first"
        )
    raise TypeError(f"{field}: expected a numpy array or a torch tensor, got {type(value).__name__}")


def _torch_bits(field: str, tensor: Any) -> tuple[Bits, DType]:
    torch = sys.modules["torch"]
    dtype = torch_dtype(field, tensor)
    if tensor.device.type != "cpu":
        raise InvalidArgumentError(
            f"{field}.device: expected a tensor in host memory here, got one on {tensor.device}; copy it first: "
            f"{field}.cpu()"
        )
    if tensor.layout != torch.strided:
        raise InvalidArgumentError(f"{field}.layout: expected torch.strided, got {tensor.layout}")
    tensor = tensor.detach()
    if dtype is DType.E4M3:
        tensor = tensor.view(torch.uint8)
    elif dtype is DType.BF16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy().view(dtype.bits), dtype


def as_array(bits: Bits, dtype: DType, *, torch: bool) -> Array:
    """The array that a caller gets: on the memory of `bits`, with the type that the framework has for `dtype`."""
    if torch:
        module = sys.modules["torch"]
        signed = bits.view(np.int16) if dtype is DType.BF16 else bits
        return module.from_numpy(signed).view(torch_type(dtype))
    if ml_dtypes is None:
        return bits
    if dtype is DType.BF16:
        return bits.view(ml_dtypes.bfloat16)
    if dtype is DType.E4M3:
        return bits.view(ml_dtypes.float8_e4m3fn)
    return bits


def widen(bits: Bits) -> NDArray[np.float32]:
    """FP32 from the bits of BF16; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_float32(x: Array) -> NDArray[np.float32]:
    """A float32 numpy array of the same shape from bfloat16 (or its bits as uint16) or float32; exact.

    Raises InvalidArgumentError for other types.
    """
    bits, dtype = host_bits("x", x)
    if dtype is DType.BF16:
        return widen(np.ascontiguousarray(bits)).reshape(bits.shape)
    if dtype is DType.F32:
        return np.array(bits)
    raise InvalidArgumentError(f"x.dtype: expected bfloat16 or float32, got {dtype.name}")


def to_bfloat16(x: Array) -> Array:
    """bfloat16 from float32 (rounded to nearest, ties to even): for numpy of ml_dtypes.bfloat16, or uint16 without
    ml_dtypes; a torch tensor for a torch tensor. Same shape. Raises InvalidArgumentError for other types."""
    bits, dtype = host_bits("x", x)
    if dtype is not DType.F32:
        raise InvalidArgumentError(f"x.dtype: expected float32, got {dtype.name}")
    words = np.ascontiguousarray(bits).view(np.uint32)
    rounded = (words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # Rounding could carry a NaN into an infinity or a zero.
    rounded[(words & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)] = 0x7FC0
    return as_array(rounded.astype(np.uint16).reshape(bits.shape), DType.BF16, torch=is_torch(x))
