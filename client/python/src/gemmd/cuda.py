# SPDX-License-Identifier: Apache-2.0
"""The functions of the CUDA driver that sharing GPU memory takes, found in libcuda at run time.

Nothing here is loaded until GPU memory is shared, and no CUDA toolkit or CUDA package of Python is needed. Works on
the primary contexts, which are those of the CUDA runtime and of PyTorch: addresses of theirs are valid here and ours
there. Types and constants are those of cuda.h, whose ABI NVIDIA keeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint8, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from gemmd.errors import (
    FailedPreconditionError,
    GemmdError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)

LIBRARY = "libcuda.so.1"
_SUCCESS, _INVALID_VALUE, _OUT_OF_MEMORY, _INVALID_CONTEXT = 0, 1, 2, 201
_PINNED = 1  # CU_MEM_ALLOCATION_TYPE_PINNED
_POSIX_DESCRIPTOR = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
_ON_DEVICE = 1  # CU_MEM_LOCATION_TYPE_DEVICE
_READ_WRITE = 3  # CU_MEM_ACCESS_FLAGS_PROT_READWRITE
_BUFFER_ID, _DEVICE_ORDINAL = 7, 9  # CU_POINTER_ATTRIBUTE_...


class _Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class _Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("win32", c_void_p),
        ("flags", c_uint8 * 8),
    ]


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = [("location", _Location), ("flags", c_int)]


_Uuid = c_char * 16
_IpcHandle = c_char * 64

_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetUuid": (POINTER(_Uuid), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxGetState": (c_int, POINTER(c_uint), POINTER(c_int)),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuCtxSynchronize": (),
    "cuStreamSynchronize": (c_void_p,),
    "cuMemCreate": (POINTER(c_uint64), c_size_t, POINTER(_Properties), c_uint64),
    "cuMemRelease": (c_uint64,),
    "cuMemAddressReserve": (POINTER(c_uint64), c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemAddressFree": (c_uint64, c_size_t),
    "cuMemMap": (c_uint64, c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemUnmap": (c_uint64, c_size_t),
    "cuMemSetAccess": (c_uint64, c_size_t, POINTER(_Access), c_size_t),
    "cuMemExportToShareableHandle": (POINTER(c_int), c_uint64, c_int, c_uint64),
    "cuMemImportFromShareableHandle": (POINTER(c_uint64), c_void_p, c_int),
    "cuMemGetAllocationGranularity": (POINTER(c_size_t), POINTER(_Properties), c_int),
    "cuIpcGetMemHandle": (POINTER(_IpcHandle), c_uint64),
    "cuMemGetAddressRange_v2": (POINTER(c_uint64), POINTER(c_size_t), c_uint64),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuMemsetD8_v2": (c_uint64, c_uint8, c_size_t),
}


@dataclass(frozen=True)
class Buffer:
    """One allocation, of whatever allocator."""

    begin: int
    nbytes: int


class Driver:
    """libcuda, loaded once for the process. Thread-safe."""

    _loaded: Driver | None = None
    _lock = threading.Lock()

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises FailedPreconditionError: the driver is too old, or does not start."""
        self._library = library
        for name, arguments in _FUNCTIONS.items():
            try:
                function = getattr(library, name)
            except AttributeError:
                raise FailedPreconditionError(f"the CUDA driver of this machine has no {name}") from None
            function.argtypes = list(arguments)
            function.restype = c_int
        result = library.cuInit(0)
        if result != _SUCCESS:
            raise FailedPreconditionError(self._error("starting the CUDA driver", result).message)
        self._gpus: dict[int, Gpu] = {}

    @classmethod
    def load(cls) -> Driver:
        """Raises FailedPreconditionError: no driver, or one that does not start."""
        with cls._lock:
            if cls._loaded is None:
                try:
                    library = ctypes.CDLL(LIBRARY)
                except OSError:
                    raise FailedPreconditionError(
                        f"GPU memory needs a CUDA driver on this machine: {LIBRARY} was not found"
                    ) from None
                cls._loaded = cls(library)
            return cls._loaded

    def call(self, what: str, name: str, *arguments: Any) -> None:
        """Raises ResourceExhaustedError (no memory), InvalidArgumentError or InternalError; the message says `what`."""
        result = getattr(self._library, name)(*arguments)
        if result != _SUCCESS:
            raise self._error(what, result)

    def _error(self, what: str, result: int) -> GemmdError:
        name = c_char_p()
        known = self._library.cuGetErrorName(result, byref(name)) == _SUCCESS and name.value is not None
        message = f"{what}: {name.value.decode() if known and name.value else 'unknown error'}"
        if result == _OUT_OF_MEMORY:
            return ResourceExhaustedError(message)
        return InvalidArgumentError(message) if result == _INVALID_VALUE else InternalError(message)

    def gpu(self, ordinal: int) -> Gpu:
        """The GPU that this process numbers so; the number of PyTorch and of DLPack too."""
        with self._lock:
            if ordinal not in self._gpus:
                self._gpus[ordinal] = Gpu(self, ordinal)
            return self._gpus[ordinal]

    def find_gpu(self, uuid: str) -> Gpu:
        """The GPU with this UUID; "": the first. Raises FailedPreconditionError (no GPU), NotFoundError (no such)."""
        count = self._count()
        if count == 0:
            raise FailedPreconditionError("this process sees no GPU")
        for ordinal in range(count):
            if uuid in ("", self.uuid(ordinal)):
                return self.gpu(ordinal)
        raise NotFoundError(f"no GPU {uuid} among the {count} that this process sees")

    def _count(self) -> int:
        count = c_int()
        self.call("counting GPUs", "cuDeviceGetCount", byref(count))
        return count.value

    def uuid(self, ordinal: int) -> str:
        """As nvidia-smi prints it."""
        device, uuid = c_int(), _Uuid()
        self.call("opening a GPU", "cuDeviceGet", byref(device), ordinal)
        self.call("reading the UUID of a GPU", "cuDeviceGetUuid", byref(uuid), device)
        text = uuid.raw.hex()
        return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def gpu_of(self, address: int) -> Gpu:
        """The GPU whose memory is there. Raises InvalidArgumentError if it is none's."""
        ordinal = c_int()
        result = self._attribute(ordinal, _DEVICE_ORDINAL, address)
        if result != _SUCCESS:
            raise self._error("finding the GPU of an address", result)
        return self.gpu(ordinal.value)

    def buffer_id(self, address: int) -> int | None:
        """A number that no other allocation of this process ever has; None if nothing is allocated there."""
        buffer_id = c_uint64()
        return buffer_id.value if self._attribute(buffer_id, _BUFFER_ID, address) == _SUCCESS else None

    def _attribute(self, value: c_int | c_uint64, attribute: int, address: int) -> int:
        """Of a pointer. A thread that has no context yet borrows those that are there, and makes none."""
        result: int = self._library.cuPointerGetAttribute(byref(value), attribute, address)
        if result != _INVALID_CONTEXT:
            return result
        for ordinal in range(self._count()):
            flags, active = c_uint(), c_int()
            self.call("looking for a context", "cuDevicePrimaryCtxGetState", ordinal, byref(flags), byref(active))
            if active.value:
                with self.gpu(ordinal)._current():
                    result = self._library.cuPointerGetAttribute(byref(value), attribute, address)
            if result == _SUCCESS:
                break
        return result


class Gpu:
    """One GPU, by its primary context, which is kept while the process lives. Thread-safe; made by Driver.gpu."""

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.driver = driver
        self.ordinal = ordinal
        self.uuid = driver.uuid(ordinal)
        device = c_int()
        driver.call("opening a GPU", "cuDeviceGet", byref(device), ordinal)
        self._context = c_void_p()
        driver.call("opening a GPU", "cuDevicePrimaryCtxRetain", byref(self._context), device)

    @contextlib.contextmanager
    def _current(self) -> Iterator[Callable[..., None]]:
        """The context as the thread's current one; gives Driver.call."""
        self.driver.call("entering a GPU's context", "cuCtxPushCurrent_v2", self._context)
        try:
            yield self.driver.call
        finally:
            self.driver.call("leaving a GPU's context", "cuCtxPopCurrent_v2", byref(c_void_p()))

    def _properties(self) -> _Properties:
        return _Properties(_PINNED, _POSIX_DESCRIPTOR, _Location(_ON_DEVICE, self.ordinal))

    def allocate(self, byte_size: int) -> Allocation:
        """New, zeroed memory that has a descriptor, in whole granules. Raises ResourceExhaustedError."""
        return Allocation(self, byte_size, None)

    def import_memory(self, fd: int, byte_size: int) -> Allocation:
        """Maps memory of another process. Raises InvalidArgumentError, ResourceExhaustedError."""
        return Allocation(self, byte_size, fd)

    def buffer_of(self, address: int) -> Buffer:
        """The allocation that an address lies in."""
        begin, nbytes = c_uint64(), c_size_t()
        with self._current() as call:
            call("finding the allocation", "cuMemGetAddressRange_v2", byref(begin), byref(nbytes), address)
        return Buffer(begin.value, nbytes.value)

    def ipc_handle(self, begin: int) -> bytes:
        """The legacy handle of an allocation of cudaMalloc. Raises GemmdError for memory that has none."""
        handle = _IpcHandle()
        with self._current() as call:
            call("no legacy IPC handle", "cuIpcGetMemHandle", byref(handle), begin)
        return handle.raw

    def copy_to_gpu(self, address: int, source: int, nbytes: int) -> None:
        """From memory of the host at `source`; done, for other processes too, on return."""
        with self._current() as call:
            call("copying to the GPU", "cuMemcpyHtoD_v2", address, source, nbytes)
            # From pageable memory the copy returns when the bytes have left it, which is before they have arrived.
            call("copying to the GPU", "cuCtxSynchronize")

    def copy_to_host(self, destination: int, address: int, nbytes: int) -> None:
        with self._current() as call:
            call("copying from the GPU", "cuMemcpyDtoH_v2", destination, address, nbytes)

    def synchronize(self, stream: int | None = None) -> None:
        """Waits for a stream (a CUstream; 1 and 2 are the default ones), or for all that this process has started."""
        with self._current() as call:
            if stream is None:
                call("waiting for the GPU", "cuCtxSynchronize")
            else:
                call("waiting for a stream", "cuStreamSynchronize", stream)


class Allocation:
    """GPU memory with a descriptor, this process's own or imported; mapped here at `address`.

    Unmapped by free(), on a thread of its own after all that the process has started on the GPU: arrays may be
    collected at any time, also while kernels that use them are under way.
    """

    def __init__(self, gpu: Gpu, byte_size: int, fd: int | None) -> None:
        """New memory, or that of the descriptor `fd`. Nothing is left behind by an error."""
        self.gpu = gpu
        self.address = 0
        self._handle = 0
        self._reserved = 0
        self._mapped = False
        self._process = os.getpid()
        try:
            with gpu._current() as call:
                self._map(call, byte_size, fd)
        except BaseException:
            self._unmap()
            raise
        _freeing.start()

    def _map(self, call: Callable[..., None], byte_size: int, fd: int | None) -> None:
        properties = self.gpu._properties()
        granule = c_size_t()
        call("allocation granularity", "cuMemGetAllocationGranularity", byref(granule), byref(properties), 0)
        nbytes = -(-byte_size // granule.value) * granule.value
        handle, address = c_uint64(), c_uint64()
        if fd is None:
            call("allocating GPU memory", "cuMemCreate", byref(handle), nbytes, byref(properties), 0)
        else:
            call("importing GPU memory", "cuMemImportFromShareableHandle", byref(handle), fd, _POSIX_DESCRIPTOR)
        self._handle = handle.value
        call("reserving addresses", "cuMemAddressReserve", byref(address), nbytes, 0, 0, 0)
        self.address, self._reserved = address.value, nbytes
        call("mapping GPU memory", "cuMemMap", address, nbytes, 0, handle, 0)
        self._mapped = True
        access = _Access(_Location(_ON_DEVICE, self.gpu.ordinal), _READ_WRITE)
        call("opening GPU memory", "cuMemSetAccess", address, nbytes, byref(access), 1)
        if fd is None:
            call("clearing GPU memory", "cuMemsetD8_v2", address, 0, nbytes)
            call("clearing GPU memory", "cuCtxSynchronize")

    def export(self) -> int:
        """A descriptor of it, to be closed by the caller."""
        fd = c_int(-1)
        with self.gpu._current() as call:
            call("exporting GPU memory", "cuMemExportToShareableHandle", byref(fd), self._handle, _POSIX_DESCRIPTOR, 0)
        return fd.value

    def free(self) -> None:
        """Gives it back, soon. Never blocks. Requires: nobody uses it any more, but for kernels under way."""
        _freeing.put(self)

    def _unmap(self) -> None:
        """What fails here has no remedy; the process keeps the memory."""
        if os.getpid() != self._process:
            return  # A child of fork() has the addresses, but no GPU.
        with contextlib.suppress(GemmdError), self.gpu._current() as call:
            if self._mapped:
                call("waiting for the GPU", "cuCtxSynchronize")
                call("unmapping GPU memory", "cuMemUnmap", self.address, self._reserved)
            if self._reserved:
                call("freeing addresses", "cuMemAddressFree", self.address, self._reserved)
            if self._handle:
                call("freeing GPU memory", "cuMemRelease", self._handle)


class _Freeing:
    """The thread that unmaps allocations; started by the first."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Allocation] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gemmd-gpu", daemon=True)
                self._thread.start()

    def put(self, allocation: Allocation) -> None:
        self._queue.put(allocation)

    def _run(self) -> None:
        while True:
            self._queue.get()._unmap()


_freeing = _Freeing()


def pid_namespace() -> int:
    """The inode of this process's PID namespace; 0 if /proc is not mounted."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
