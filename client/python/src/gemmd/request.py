# SPDX-License-Identifier: Apache-2.0
"""One operation on its way: the request, where its operands travel, and how the result is taken from the response.

Pure bookkeeping without any I/O but the making of scratch regions, so that the blocking and the asyncio client
share it.

Where an operand travels: a resident Tensor by its id or name; an array in a region as a slice of it, never copied. What is left
is copied: into the message while it is small or memory cannot be shared, otherwise into a scratch region.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from gemmd.arrays import Bits, DType, host_bits
from gemmd.errors import InvalidArgumentError, ResourceExhaustedError
from gemmd.regions import HostRegion, Regions, align_up
from gemmd.tensors import Tensor, operand
from gemmd.v1 import gemm_pb2

# Up to this size (operands and result) a message costs less than a copy to and from a scratch region.
INLINE_BYTES = 128 << 10
# What a message holds beside operands.
_MESSAGE_MARGIN = 16 << 10

R = TypeVar("R")


@dataclass
class Context:
    """What the building of a request needs to know about a client."""

    regions: Regions
    max_message_bytes: int


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
        return 0 if self.in_place else int(np.prod(self.shape, dtype=np.int64)) * self.dtype.bits.itemsize

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

    def input(self, name: str, ref: Any, value: Any, *, dtype: DType | None = None) -> None:
        """Adds an operand. `dtype`: E4M3 where uint8 means its bits.

        Raises InvalidArgumentError and TypeError as host_bits.
        """
        if isinstance(value, Tensor):
            operand(ref, value)
            return
        bits, kind = host_bits(name, value)
        if dtype is DType.E4M3 and kind is DType.U8:
            kind = DType.E4M3
        ref.dtype = kind.value
        ref.shape.extend(bits.shape)
        if self._slice(ref, bits):
            self._keep.append(value)
        else:
            self._copies.append((name, ref, bits))

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
            bits, result.dtype = host_bits(name, out)
            if dtype is DType.E4M3 and result.dtype is DType.U8:
                result.dtype = DType.E4M3
            result.shape = tuple(bits.shape)
            if not bits.flags.writeable:
                raise InvalidArgumentError(f"{name}: expected an array that can be written, got a read-only one")
            result.in_place = self._slice(ref, bits)
            if result.in_place:
                self._keep.append(out)
            else:
                result.out = bits
        ref.dtype = result.dtype.value
        ref.shape.extend(result.shape)
        return result

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

    def place(self) -> None:
        """Copies what has to be copied. Once, before the request is sent.

        Raises ResourceExhaustedError (no memory, quota, message too large) and InvalidArgumentError.
        """
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

    def abandon(self) -> None:
        """After a failure: the daemon may still be working on the scratch region, so it is not used again."""
        with contextlib.suppress(IndexError):
            self._scratch.pop().close()


def _part(region: HostRegion, ref: Any, offset: int, dtype: Any, shape: tuple[int, ...]) -> Bits:
    """A stretch of a scratch region, which `ref` then refers to."""
    ref.slice.region_id = region.id
    ref.slice.offset = offset
    byte_size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    part: Bits = region.bytes[offset : offset + byte_size].view(dtype).reshape(shape)
    return part
