# SPDX-License-Identifier: Apache-2.0
"""One operation on its way: the request, where its operands travel, and how the result is taken from the response.

Pure bookkeeping without any I/O but the making of scratch regions, so that the blocking and the asyncio client
share it.

Where an operand travels: a resident Tensor by its id or name; an array in a region as a slice of it, never copied; an
array on a GPU likewise, in a region that is made of its allocation if need be. What is left is copied: into the message
while it is small or memory cannot be shared, otherwise into a scratch region.
"""

from __future__ import annotations

import collections
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import grpc
import numpy as np

from gemmd.arrays import Bits, DType
from gemmd.device_arrays import GpuView, Order, locate
from gemmd.device_regions import SharedAllocations
from gemmd.errors import GemmdError, InvalidArgumentError, ResourceExhaustedError
from gemmd.quantized import check_block
from gemmd.regions import HostRegion, Regions, align_up
from gemmd.tensors import Tensor, operand
from gemmd.v1 import gemm_pb2

# Up to this size (operands and result) a message costs less than a copy to and from a scratch region.
INLINE_BYTES = 128 << 10
# What a message holds beside operands.
_MESSAGE_MARGIN = 16 << 10

# After which nothing is written any more for a call that ended: a worker that hangs for 10 s is killed.
_HOLD_SECONDS = 20.0
# A call that ends so may still be running.
_UNFINISHED = (
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
)

R = TypeVar("R")


def block_value(block: Sequence[int]) -> Any:
    """gemmd.v1.Quantize.Block of (1, 128) or (128, 128). Raises InvalidArgumentError for another."""
    rows = check_block(block)[0]
    return gemm_pb2.Quantize.BLOCK_1X128 if rows == 1 else gemm_pb2.Quantize.BLOCK_128X128


@dataclass
class Context:
    """What the building of a request needs to know about a client."""

    regions: Regions
    max_message_bytes: int
    allocations: SharedAllocations
    synchronize: bool = True  # Whether calls wait for what the caller has started on a GPU.
    # Results on a GPU of calls that failed: the daemon may still be writing there, and their owner would use the memory
    # again. With the time until which they are kept.
    _held: collections.deque[tuple[float, Any]] = field(default_factory=collections.deque)

    def hold(self, values: list[Any]) -> None:
        """Keeps arrays that gemmd may still be writing to."""
        until = time.monotonic() + _HOLD_SECONDS
        self._held.extend((until, value) for value in values)

    def let_go(self) -> None:
        """Of what was held long enough."""
        now = time.monotonic()
        with contextlib.suppress(IndexError):  # Another thread may take the last one.
            while self._held[0][0] < now:
                self._held.popleft()


class HasContext(Protocol):
    @property
    def context(self) -> Context: ...


@dataclass
class Result:
    """One output: where it comes to, and where its caller wants it."""

    ref: Any  # gemmd.v1.TensorRef
    shape: tuple[int, ...]
    dtype: DType
    out: Bits | None = None  # The caller's array, unless that is in a region (then there is nothing to do).
    in_place: bool = False
    load: bool = False  # Whether the operation reads what it holds.
    partial: bool = False  # Whether there may be rows that no group owns.
    scratch: Bits | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self.in_place else math.prod(self.shape) * self.dtype.bits.itemsize

    def fetch(self, inline: bytes) -> Bits:
        """The elements, in the caller's array if it gave one. Requires: not in_place."""
        if self.scratch is not None:
            bits = self.scratch
        else:
            bits = np.frombuffer(inline, self.dtype.bits).reshape(self.shape)
        if self.out is None:
            return bits.copy()
        self.out[...] = bits
        return self.out


@dataclass
class Call(Generic[R]):
    """A request with its operands. place(), then send `request`, then finish() or abandon()."""

    context: Context
    timeout: float | None
    request: Any = field(default_factory=gemm_pb2.RunRequest)
    take: Callable[[Any], R] | None = None
    _copies: list[tuple[str, Any, Bits]] = field(default_factory=list)
    _results: list[Result] = field(default_factory=list)
    # The scratch region, once it is taken. A list, because pop() is atomic: in the asyncio client a cancelled task
    # abandons the call while a thread may be finishing it.
    _scratch: list[HostRegion] = field(default_factory=list)
    _keep: list[Any] = field(default_factory=list)
    _on_gpu: list[tuple[str, Any, GpuView]] = field(default_factory=list)
    # By GpuView.before.
    _orders: dict[Any, Order] = field(default_factory=dict)
    _gpu_results: list[Any] = field(default_factory=list)

    def input(self, name: str, ref: Any, value: Any, *, dtype: DType | None = None) -> None:
        """Adds an operand. `dtype`: E4M3 where uint8 means its bits.

        Raises InvalidArgumentError and TypeError as host_bits.
        """
        if isinstance(value, Tensor):
            operand(ref, value)
            return
        memory, kind = locate(name, value)
        if dtype is DType.E4M3 and kind is DType.U8:
            kind = DType.E4M3
        ref.dtype = kind.value
        ref.shape.extend(memory.shape)
        if isinstance(memory, GpuView):
            self._share(name, ref, memory, value)
        elif self._slice(ref, memory):
            self._keep.append(value)
        else:
            self._copies.append((name, ref, memory))

    def output(
        self,
        name: str,
        ref: Any,
        out: Any,
        shape: tuple[int, ...],
        dtype: DType,
        *,
        load: bool = False,
        partial: bool = False,
    ) -> Result:
        """Adds a result of this shape and type, or the one of `out`. `load` and `partial` as in Result."""
        result = Result(ref, shape, dtype, load=load, partial=partial)
        self._results.append(result)
        if isinstance(out, Tensor):
            ref.tensor_id = out.id
            result.in_place = True
            return result
        if out is not None:
            memory, result.dtype = locate(name, out)
            if dtype is DType.E4M3 and result.dtype is DType.U8:
                result.dtype = DType.E4M3
            result.shape = tuple(memory.shape)
            if not (memory.writable if isinstance(memory, GpuView) else memory.flags.writeable):
                raise InvalidArgumentError(f"{name}: expected an array that can be written, got a read-only one")
            if isinstance(memory, GpuView):
                self._share(name, ref, memory, out)
                self._gpu_results.append(out)
                result.in_place = True
            elif self._slice(ref, memory):
                self._keep.append(out)
                result.in_place = True
            else:
                result.out = memory
        ref.dtype = result.dtype.value
        ref.shape.extend(result.shape)
        return result

    def _share(self, name: str, ref: Any, view: GpuView, value: Any) -> None:
        """Will refer to an array on a GPU: place() asks where, since that may take the broker."""
        self._keep.append(value)
        self._on_gpu.append((name, ref, view))
        if self.context.synchronize and view.before not in self._orders and (order := view.order) is not None:
            self._orders[view.before] = order

    def _slice(self, ref: Any, bits: Bits) -> bool:
        """Refers to the array where it lies, if that is a region."""
        address = bits.__array_interface__["data"][0]
        window = self.context.regions.find(address)
        if window is None:
            return False
        ref.slice.region_id = window.region_id
        ref.slice.offset = address - window.begin
        if not bits.flags.c_contiguous:
            ref.strides.extend(stride // bits.itemsize for stride in bits.strides)
        return True

    @property
    def bytes_to_copy(self) -> int:
        """Bytes that place() and finish() copy."""
        return sum(bits.nbytes for _, _, bits in self._copies) + sum(result.nbytes for result in self._results)

    @property
    def may_wait(self) -> bool:
        """Whether place() waits, for the GPU or for the broker."""
        new = any(not self.context.allocations.knows(view) for _, _, view in self._on_gpu)
        return new or any(not order.query() for order in self._orders.values())

    def place(self) -> None:
        """Copies what has to be copied, shares what is on a GPU, and waits for what was started there. Once, before the
        request is sent; on any thread.

        Raises ResourceExhaustedError (no memory, quota, message too large), InvalidArgumentError and, for memory of a
        GPU that cannot be shared, FailedPreconditionError.
        """
        if self._gpu_results:
            self.context.let_go()
        for name, ref, view in self._on_gpu:
            window = self.context.allocations.window(name, view)
            ref.slice.region_id = window.region_id
            ref.slice.offset = view.address - window.begin
            if view.strides is not None:
                ref.strides.extend(view.strides)
        for order in self._orders.values():
            order.synchronize()
        loads = any(result.load and not result.in_place for result in self._results)
        if not self.context.regions.shareable or (self.bytes_to_copy <= INLINE_BYTES and not loads):
            self._place_inline(loads)
        else:
            self._place_in_scratch()
        self._keep += [bits for _, _, bits in self._copies]

    def _place_inline(self, loads: bool) -> None:
        if loads:
            raise InvalidArgumentError(
                "out: expected a resident Tensor to accumulate into, since this connection cannot share memory; "
                "got an array"
            )
        size = sum(bits.nbytes for _, _, bits in self._copies)
        limit = self.context.max_message_bytes - _MESSAGE_MARGIN
        if size > limit:
            largest = max(self._copies, key=lambda copy: copy[2].nbytes)[0]
            raise ResourceExhaustedError(
                f"{largest}: expected at most {limit} bytes of operands in a message, got {size} in all; make the "
                "largest ones resident (put), or connect over the Unix socket"
            )
        for _, ref, bits in self._copies:
            ref.inline = bits.tobytes()

    def _place_in_scratch(self) -> None:
        results = [result for result in self._results if not result.in_place]
        size = sum(align_up(bits.nbytes) for _, _, bits in self._copies) + sum(align_up(r.nbytes) for r in results)
        region = self.context.regions.take_scratch(max(size, 1))
        self._scratch.append(region)
        offset = 0
        for _, ref, bits in self._copies:
            _part(region, ref, offset, bits.dtype, bits.shape)[...] = bits
            offset += align_up(bits.nbytes)
        for result in results:
            result.scratch = _part(region, result.ref, offset, result.dtype.bits, result.shape)
            if result.load and result.out is not None:
                result.scratch[...] = result.out
            elif result.partial:
                result.scratch[...] = 0
            offset += align_up(result.nbytes)

    def finish(self, response: Any) -> R:
        """What the caller gets. Once, after success."""
        assert self.take is not None
        value = self.take(response)
        for result in self._results:
            result.scratch = None
        with contextlib.suppress(IndexError):
            self.context.regions.give_scratch(self._scratch.pop())
        return value

    def abandon(self, error: BaseException) -> None:
        """After a failure: the daemon may still be writing to its results, so their memory is not used again."""
        if self._gpu_results and (not isinstance(error, GemmdError) or error.code in _UNFINISHED):
            self.context.hold(self._gpu_results)
        with contextlib.suppress(IndexError):
            self._scratch.pop().close()


def _part(region: HostRegion, ref: Any, offset: int, dtype: Any, shape: tuple[int, ...]) -> Bits:
    """A stretch of a scratch region, which `ref` then refers to."""
    ref.slice.region_id = region.id
    ref.slice.offset = offset
    byte_size = math.prod(shape) * dtype.itemsize
    part: Bits = region.bytes[offset : offset + byte_size].view(dtype).reshape(shape)
    return part
