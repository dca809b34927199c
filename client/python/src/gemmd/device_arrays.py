# SPDX-License-Identifier: Apache-2.0
"""Arrays on a GPU: the one of this package, and how those of torch, cupy, numba and others are seen.

Nothing here touches elements but the copies of DeviceArray. An array of another package is looked at once, as a
GpuView; what its owner has started on the GPU before is an Order, which is waited for before gemmd is asked.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from gemmd import dlpack
from gemmd.arrays import (
    Array,
    Bits,
    DType,
    as_array,
    contiguous_strides,
    host_bits,
    is_gpu_array,
    is_torch,
    torch_dtype,
)
from gemmd.cuda import Driver, Gpu
from gemmd.errors import InvalidArgumentError

# The types of CUDA's array interface that gemmd has; as for numpy, the bits of FP8 and bfloat16 among them.
_BY_TYPESTR: dict[str, DType] = {
    "|u1": DType.U8,
    "<u1": DType.U8,
    "<u2": DType.BF16,
    "<f4": DType.F32,
    "<i4": DType.I32,
    "<i8": DType.I64,
}


class Order(Protocol):
    """Work on the GPU that comes before a call."""

    def query(self) -> bool:
        """Whether it is known to be done."""

    def synchronize(self) -> object:
        """Waits until it is. On any thread."""


@dataclass(frozen=True)
class DriverOrder:
    """What a stream has been given (a CUstream), or, for None, the process to the GPU of this address."""

    address: int = field(compare=False)
    stream: int | None

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        Driver.load().gpu_of(self.address).synchronize(self.stream)


class GpuView(NamedTuple):
    """Where the elements of an array on a GPU are. Keeps nothing alive.

    Attributes:
        strides: in elements; None if they are contiguous.
        before: what its owner may have started: a torch.device, whose current stream it is, an order, or nothing.
        owner: what to call it: the torch.device, otherwise the name of its class.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: DType
    writable: bool
    before: Any
    owner: object

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.bits.itemsize

    @property
    def order(self) -> Order | None:
        """What `before` means on this thread. Streams of torch take a while, so for arrays of one device ask once."""
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(self.before, torch.device):
            stream: Order = torch.cuda.current_stream(self.before)
            return stream
        order: Order | None = self.before
        return order

    def ordered_here(self) -> GpuView:
        """The same, with the order that it has on this thread, for use on another."""
        return self._replace(before=self.order)


def locate(name: str, value: Any) -> tuple[GpuView | Bits, DType]:
    """Where the elements of an array are, and their type: on a GPU, or as host_bits, which also says what it raises.

    An array on a GPU without elements is taken for one of the host: there is nothing that could be shared.
    """
    view = gpu_view(name, value)
    if view is None:
        return host_bits(name, value)
    return (view if view.nbytes else np.empty(view.shape, view.dtype.bits)), view.dtype


def gpu_view(name: str, value: Any) -> GpuView | None:
    """None for what is not on a GPU. Raises InvalidArgumentError for types and layouts that gemmd does not have."""
    if isinstance(value, DeviceArray):
        order = DriverOrder(value.address, None)
        return GpuView(value.address, value.shape, None, value.dtype, True, order, "DeviceArray")
    if not is_gpu_array(value):
        return None
    return _view_of_torch(name, value) if is_torch(value) else _view_of_interface(name, value)


def _view_of_torch(name: str, tensor: Any) -> GpuView:
    torch = sys.modules["torch"]
    dtype = torch_dtype(name, tensor)
    if tensor.layout != torch.strided:
        raise InvalidArgumentError(f"{name}.layout: expected torch.strided, got {tensor.layout}")
    return GpuView(
        address=tensor.data_ptr(),
        shape=tuple(tensor.shape),
        strides=None if tensor.is_contiguous() else tuple(tensor.stride()),
        dtype=dtype,
        writable=True,
        before=tensor.device,
        owner=tensor.device,
    )


def _view_of_interface(name: str, value: Any) -> GpuView:
    """Of __cuda_array_interface__ (version 3 is described in the documentation of numba)."""
    interface: dict[str, Any] = value.__cuda_array_interface__
    dtype = _BY_TYPESTR.get(interface["typestr"])
    if dtype is None:
        raise InvalidArgumentError(
            f"{name}.dtype: expected float32, int32, int64 or the bits of float8_e4m3fn and bfloat16 (uint8, uint16), "
            f"got {interface['typestr']}"
        )
    if interface.get("mask") is not None:
        raise InvalidArgumentError(f"{name}.mask: expected none, got one")
    shape = tuple(interface["shape"])
    steps = interface.get("strides")
    if steps is not None and any(step % dtype.bits.itemsize for step in steps):
        raise InvalidArgumentError(f"{name}.strides: expected whole elements, got {tuple(steps)} bytes")
    strides = None if steps is None else _unless_contiguous(shape, [step // dtype.bits.itemsize for step in steps])
    address, read_only = interface["data"]
    # No stream, said by an interface that could name one: there is nothing to wait for. Older ones know no streams.
    stream = interface.get("stream")
    done = stream is None and "stream" in interface
    order = None if done else DriverOrder(address or 0, stream)
    return GpuView(address or 0, shape, strides, dtype, not read_only, order, type(value).__name__)


def _unless_contiguous(shape: tuple[int, ...], strides: Sequence[int]) -> tuple[int, ...] | None:
    each = zip(shape, strides, contiguous_strides(shape), strict=True)
    contiguous = 0 in shape or all(extent == 1 or stride == wanted for extent, stride, wanted in each)
    return None if contiguous else tuple(strides)


def gpu_to_host(name: str, value: Any) -> Array:
    """A numpy array with the elements of a contiguous array on a GPU, of its type; waits for what comes before."""
    view = gpu_view(name, value)
    assert view is not None
    if view.strides is not None:
        raise InvalidArgumentError(f"{name}: expected a contiguous array, got strides {view.strides}")
    bits = np.empty(view.shape, view.dtype.bits)
    if bits.nbytes:
        if (order := view.order) is not None:
            order.synchronize()
        Driver.load().gpu_of(view.address).copy_to_host(bits.ctypes.data, view.address, bits.nbytes)
    return as_array(bits, view.dtype, torch=False)


class DeviceArray:
    """A contiguous array in GPU memory that is shared with gemmd; an operand, and an `out`, for every operation.

    Made by DeviceRegion.empty. It has no arithmetic: torch.from_dlpack(x), cupy.from_dlpack(x) and whatever takes
    __cuda_array_interface__ see the same memory. FP8 goes there as uint8. Keeps its memory; cannot be pickled.

    Attributes:
        shape: extents; row-major, contiguous.
        dtype: element type.
        address: on the GPU.
    """

    def __init__(self, gpu: Gpu, address: int, shape: tuple[int, ...], dtype: DType, owner: object) -> None:
        self._gpu = gpu
        self._owner = owner
        self.address = address
        self.shape = shape
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype.name}, device={self.device})"

    def __reduce__(self) -> Any:
        raise TypeError("DeviceArray: cannot be pickled; it is memory that one session shares with gemmd")

    @property
    def device(self) -> str:
        """UUID of the GPU."""
        return self._gpu.uuid

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.bits.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> DeviceArray:
        """One of the arrays that the first dimension counts. Raises IndexError."""
        if not -self.shape[0] <= index < self.shape[0]:
            raise IndexError(f"index: expected one of {self.shape[0]}, got {index}")
        rest = self.shape[1:]
        step = math.prod(rest) * self.dtype.bits.itemsize
        return DeviceArray(self._gpu, self.address + index % self.shape[0] * step, rest, self.dtype, self._owner)

    def reshape(self, *shape: Any) -> DeviceArray:
        """The same elements; one extent may be -1. Raises ValueError, as numpy."""
        wanted = np.broadcast_to(np.uint8(0), self.shape).reshape(*shape).shape
        return DeviceArray(self._gpu, self.address, wanted, self.dtype, self._owner)

    def copy_from_host(self, x: Array) -> None:
        """Copies a numpy array or a host tensor of the same shape and type; there, for gemmd too, on return.

        Raises InvalidArgumentError for another shape or type. Kernels that use the array must be done.
        """
        bits, kind = host_bits("x", x)
        if tuple(bits.shape) != self.shape or (kind is not self.dtype and {kind, self.dtype} != {DType.U8, DType.E4M3}):
            raise InvalidArgumentError(
                f"x: expected {self.dtype.name} {self.shape}, got {kind.name} {tuple(bits.shape)}"
            )
        bits = np.ascontiguousarray(bits)
        if bits.nbytes:
            self._gpu.copy_to_gpu(self.address, bits.ctypes.data, bits.nbytes)

    def to_host(self) -> Array:
        """A copy as a numpy array of the same shape, after all that this process has started on the GPU."""
        return gpu_to_host("x", self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "|u1" if self.dtype.bits.itemsize == 1 else self.dtype.bits.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": None,  # Results are there when calls return.
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._gpu.ordinal

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """For from_dlpack() of a consumer, whose `stream` has nothing to wait for."""
        dlpack.check_request(self.__dlpack_device__(), dl_device, copy)
        return dlpack.capsule(self.address, self.shape, self.dtype, self.__dlpack_device__(), self._owner)
