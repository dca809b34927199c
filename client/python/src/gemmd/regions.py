# SPDX-License-Identifier: Apache-2.0
"""Memory shared with gemmd (regions of kind `host`), arrays in it, and how an array is found to lie in one.

A region is a memfd that cannot shrink (so that the daemon can map it without risk), mapped here and registered at the
broker. Arrays keep their region: it is closed when the last of them is gone, or when it is told to. Regions on devices
(device_regions.py) are found here too.
"""

from __future__ import annotations

import bisect
import fcntl
import mmap
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemmd.arrays import Array, Bits, DType, as_array, extents_of, is_torch_dtype, parse_dtype
from gemmd.errors import FailedPreconditionError, GemmdError, InvalidArgumentError, ResourceExhaustedError
from gemmd.session import BrokerConnection, Session

# Where arrays of one region begin: a cache line, which is more than any operand needs.
ALIGNMENT = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# Scratch regions that are kept for later calls. The daemon may page-lock a region, so making one may take milliseconds.
_SCRATCH_REGIONS = 32
_SCRATCH_BYTES = 1 << 30
_SMALLEST_SCRATCH = 1 << 20
# From here on sizes are multiples of this, below they are powers of two.
_SCRATCH_STEP = 64 << 20


def align_up(byte_size: int) -> int:
    return -(-byte_size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Window:
    """Where a registered region lies in this process."""

    region_id: int
    begin: int
    end: int
    # Of memory that is not ours to keep, on a GPU: which allocation it is the memory of (see Driver.buffer_id). An
    # array at its address is in the region only as long as that is still there.
    buffer_id: int | None = None


class Mapping:
    """The mapping of one region. numpy arrays on it keep it alive through __array_interface__."""

    def __init__(self, memory: mmap.mmap, region_id: int, regions: Regions) -> None:
        begin = int(np.frombuffer(memory, np.uint8).ctypes.data)
        window = Window(region_id, begin, begin + len(memory))
        self._memory = memory
        self._window = window
        self._regions = regions
        self.__array_interface__ = {
            "shape": (window.end - window.begin,),
            "typestr": "|u1",
            "data": (window.begin, False),
            "version": 3,
        }

    @property
    def window(self) -> Window:
        return self._window

    @property
    def bytes(self) -> Bits:
        """uint8, which keeps the mapping."""
        return np.asarray(self)

    def __del__(self) -> None:
        # Before the memory is unmapped: what is mapped at this address next must not be taken for the region.
        self._regions.forget(self._window)


class Region:
    """What regions of every kind have in common. A context manager that closes it; cannot be pickled."""

    def __init__(self, window: Window, regions: Regions) -> None:
        self._regions = regions
        self._window = window
        self._used = 0

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"{type(self).__name__}: cannot be pickled; it is memory that one session shares with gemmd")

    @property
    def id(self) -> int:
        """As gemmd.v1.Slice.region_id wants it."""
        return self._window.region_id

    @property
    def nbytes(self) -> int:
        return self._window.end - self._window.begin

    @property
    def closed(self) -> bool:
        return not self._regions.knows(self._window)

    def empty(self, shape: int | Sequence[int], dtype: object = "float32") -> Array:
        """An array in the next free stretch of the region, zeros at first.

        Args:
            shape: extents.
            dtype: "float32", "bfloat16", "float8_e4m3fn", "int32", "int64", "uint8", a numpy type, or a torch type,
                which gives a torch tensor.

        Raises:
            InvalidArgumentError: dtype is another.
            ResourceExhaustedError: the region has no room for it.
            FailedPreconditionError: the region is closed.
        """
        if self.closed:
            raise FailedPreconditionError("region: closed")
        kind = parse_dtype("dtype", dtype)
        extents = extents_of(shape)
        byte_size = int(np.prod(extents, dtype=np.int64)) * kind.bits.itemsize
        if self._used + byte_size > self.nbytes:
            raise ResourceExhaustedError(
                f"region: expected room for {byte_size} bytes, got {self.nbytes - self._used} of {self.nbytes}"
            )
        array = self._array(self._used, extents, kind, torch=is_torch_dtype(dtype))
        self._used = min(self._used + align_up(byte_size), self.nbytes)
        return array

    def _array(self, offset: int, shape: tuple[int, ...], dtype: DType, *, torch: bool) -> Array:
        """The array at this offset. Requires: it is inside."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the sharing. Operations in flight finish first on the daemon's side. May be called again."""
        self._regions.forget(self._window)


class HostRegion(Region):
    """Memory shared with gemmd; a context manager that closes it.

    Made by Client.region. Reading or writing an array in it while an operation that names it is in flight is a race, as
    with any buffer. Closing ends the sharing; arrays stay valid as ordinary memory. Cannot be pickled.
    """

    def __init__(self, mapping: Mapping, regions: Regions) -> None:
        super().__init__(mapping.window, regions)
        self._bytes = mapping.bytes

    def __enter__(self) -> HostRegion:
        return self

    @property
    def bytes(self) -> Bits:
        """All of it, as uint8 [nbytes]."""
        return self._bytes

    def _array(self, offset: int, shape: tuple[int, ...], dtype: DType, *, torch: bool) -> Array:
        return array_in(self._bytes, offset, shape, dtype, torch=torch)


def array_in(memory: Bits, offset: int, shape: tuple[int, ...], dtype: DType, *, torch: bool) -> Array:
    """The array at this offset of uint8 `memory`."""
    byte_size = int(np.prod(shape, dtype=np.int64)) * dtype.bits.itemsize
    bits = memory[offset : offset + byte_size].view(dtype.bits).reshape(shape)
    return as_array(bits, dtype, torch=torch)


class Regions:
    """The regions of one session. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        # By address. Only single operations on the dictionary, which are atomic, because __del__ of a mapping may
        # come at any time on any thread; for the same reason regions are closed on a thread of their own.
        self._windows: dict[int, Window] = {}
        self._begins: list[int] = []  # Sorted; replaced as a whole; may name some that are gone.
        self._to_close: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._closer: threading.Thread | None = None
        self._scratch: list[HostRegion] = []

    @property
    def shareable(self) -> bool:
        """Whether memory can be shared with the daemon at all."""
        return self._session.broker is not None

    def broker(self, byte_size: int) -> BrokerConnection:
        """Where regions are made. Raises FailedPreconditionError, and InvalidArgumentError for a byte_size below 1."""
        self._session.check()
        broker = self._session.broker
        if broker is None:
            raise FailedPreconditionError("region: memory can be shared only over a Unix socket, with a session")
        if byte_size < 1:
            raise InvalidArgumentError(f"byte_size: expected at least 1, got {byte_size}")
        return broker

    def create(self, byte_size: int, *, writable: bool = True) -> HostRegion:
        """A new region of zeros.

        Raises:
            FailedPreconditionError: the daemon is not on this machine.
            InvalidArgumentError: byte_size is below 1.
            ResourceExhaustedError: no memory, or a quota of the daemon.
        """
        broker = self.broker(byte_size)
        fd = os.memfd_create("gemmd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            try:
                os.ftruncate(fd, byte_size)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
                memory = mmap.mmap(fd, byte_size)
            except (OSError, OverflowError) as error:
                raise ResourceExhaustedError(f"region: cannot have {byte_size} bytes: {error}") from None
            region_id = broker.register(fd, byte_size, writable)
        finally:
            os.close(fd)
        mapping = Mapping(memory, region_id, self)
        self.add(mapping.window)
        return HostRegion(mapping, self)

    def add(self, window: Window) -> None:
        """From now on arrays are found in it."""
        with self._lock:
            former = self._windows.pop(window.begin, None)
            if former is not None:  # Of memory that was freed meanwhile.
                self._to_close.put(former.region_id)
            self._windows[window.begin] = window
            self._begins = sorted(self._windows)
            if self._closer is None:
                self._closer = threading.Thread(target=self._close_regions, name="gemmd-regions", daemon=True)
                self._closer.start()

    def find(self, address: int) -> Window | None:
        """The region of memory that is ours to keep which the address lies in."""
        window = self._find(address)
        return window if window is not None and window.buffer_id is None else None

    def find_allocation(self, address: int, buffer_id: int) -> Window | None:
        """The region of an allocation of somebody else which the address lies in; the allocation there is this one."""
        window = self._find(address)
        return window if window is not None and window.buffer_id == buffer_id else None

    def forget_freed(self, buffer_at: Callable[[int], int | None]) -> None:
        """Closes the regions of allocations that are gone; `buffer_at` says which one is at an address now."""
        for window in list(self._windows.values()):
            if window.buffer_id is not None and buffer_at(window.begin) != window.buffer_id:
                self.forget(window)
        with self._lock:
            self._begins = sorted(self._windows)

    def _find(self, address: int) -> Window | None:
        begins = self._begins
        index = bisect.bisect_right(begins, address) - 1
        if index < 0:
            return None
        window = self._windows.get(begins[index])
        return window if window is not None and address < window.end else None

    def knows(self, window: Window) -> bool:
        return self._windows.get(window.begin) is window

    def forget(self, window: Window) -> None:
        """Closes a region, soon. Never blocks."""
        if self._windows.get(window.begin) is window and self._windows.pop(window.begin, None) is window:
            self._to_close.put(window.region_id)

    def take_scratch(self, byte_size: int) -> HostRegion:
        """A region of at least `byte_size` bytes for one call, with anything in it. Errors: as create."""
        with self._lock:
            for index, region in enumerate(self._scratch):
                if region.nbytes >= byte_size:
                    return self._scratch.pop(index)
        if byte_size > _SCRATCH_STEP:
            return self.create(-(-byte_size // _SCRATCH_STEP) * _SCRATCH_STEP)
        return self.create(max(_SMALLEST_SCRATCH, 1 << (byte_size - 1).bit_length()))

    def give_scratch(self, region: HostRegion) -> None:
        """Keeps it for another call, and closes the smallest ones if more is kept than should be."""
        closing: list[HostRegion] = []
        with self._lock:
            if region.nbytes > _SCRATCH_BYTES:
                closing.append(region)
            else:
                bisect.insort(self._scratch, region, key=lambda other: other.nbytes)
            kept = sum(other.nbytes for other in self._scratch)
            while len(self._scratch) > _SCRATCH_REGIONS or kept > _SCRATCH_BYTES:
                kept -= self._scratch[0].nbytes
                closing.append(self._scratch.pop(0))
        for smallest in closing:
            smallest.close()

    def close(self) -> None:
        """Forgets every region, after the session has ended."""
        with self._lock:
            self._scratch.clear()
            self._windows.clear()
            self._begins = []
            if self._closer is not None:
                self._to_close.put(None)

    def _close_regions(self) -> None:
        while (region_id := self._to_close.get()) is not None:
            broker = self._session.broker
            if self._session.closed or broker is None:
                continue
            try:
                broker.close_region(region_id)
            except GemmdError:
                pass  # The session is gone, and the region with it.
