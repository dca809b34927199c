# SPDX-License-Identifier: Apache-2.0
"""DLPack: how numpy, torch, cupy and others take an array on memory that is not theirs, without a copy.

Only the producer's side, by ctypes: a capsule "dltensor" with a DLManagedTensor, whose deleter lets go of the memory's
owner. (Layout and protocol: dlpack.h and "Python Specification for DLPack".)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any

from gemmd.arrays import DType, contiguous_strides

# DLDeviceType.
CPU, CUDA = 1, 2
# DLDataTypeCode and bits. FP8 goes as its bits: few consumers know more.
_TYPES: dict[DType, tuple[int, int]] = {
    DType.E4M3: (1, 8),  # kDLUInt
    DType.U8: (1, 8),
    DType.BF16: (4, 16),  # kDLBfloat
    DType.F32: (2, 32),  # kDLFloat
    DType.I32: (0, 32),  # kDLInt
    DType.I64: (0, 64),
}
_NAME = b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = [("type", c_int32), ("id", c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device", _Device),
        ("ndim", c_int32),
        ("dtype", _DataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class _ManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p)]


# What consumers hold, by the address of its _ManagedTensor: that, its shape and strides, and the memory's owner.
_held: dict[int, tuple[Any, ...]] = {}


def _delete(address: int) -> None:
    """Called by the consumer, on any thread, once."""
    _held.pop(address, None)


def _destroy(capsule: int) -> None:
    """Of a capsule. One that a consumer has taken has another name, and is the consumer's to delete."""
    if _is_valid(capsule, _NAME):
        _held.pop(_get_pointer(capsule, _NAME), None)


_deleter = ctypes.CFUNCTYPE(None, c_void_p)(_delete)
_destructor = ctypes.PYFUNCTYPE(None, c_void_p)(_destroy)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_get_pointer = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_new_capsule: Callable[..., Any] = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, c_char_p, c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
# A consumer may call it until the process ends, later than modules live.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_deleter))
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_destructor))


def capsule(address: int, shape: Sequence[int], dtype: DType, device: tuple[int, int], owner: object) -> Any:
    """A capsule of the contiguous array at `address`, for one consumer, which keeps `owner` as long as it likes."""
    extents = (c_int64 * max(len(shape), 1))(*shape)
    strides = (c_int64 * max(len(shape), 1))(*contiguous_strides(shape))
    code, bits = _TYPES[dtype]
    tensor = _Tensor(
        c_void_p(address),
        _Device(*device),
        len(shape),
        _DataType(code, bits, 1),
        ctypes.cast(extents, POINTER(c_int64)),
        ctypes.cast(strides, POINTER(c_int64)),
        0,
    )
    managed = _ManagedTensor(tensor, None, ctypes.cast(_deleter, c_void_p))
    place = ctypes.addressof(managed)
    _held[place] = (managed, extents, strides, owner)
    return _new_capsule(place, _NAME, ctypes.cast(_destructor, c_void_p))


def check_request(device: tuple[int, int], dl_device: tuple[int, int] | None, copy: bool | None) -> None:
    """BufferError for what a consumer may ask of __dlpack__ and does not get: another device, or a copy."""
    if dl_device is not None and tuple(dl_device) != device:
        raise BufferError(f"dl_device: expected {device}, where the memory is, got {tuple(dl_device)}")
    if copy:
        raise BufferError("copy: expected False or None, since memory shared with gemmd is not copied; got True")
