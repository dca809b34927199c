# SPDX-License-Identifier: Apache-2.0
"""Memory of a device that is shared with gemmd: of gemmd (`pool`), of this process (`device`), and of other allocators
(`device_ipc`, which nobody has to ask for: it is made when an array of such memory is first used).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
from typing import Any

from gemmd import cuda, dlpack
from gemmd.arrays import Array, Bits, DType, torch_type
from gemmd.cuda import Allocation, Driver, Gpu
from gemmd.device_arrays import DeviceArray, GpuView
from gemmd.errors import FailedPreconditionError, GemmdError, InvalidArgumentError, ResourceExhaustedError
from gemmd.regions import Mapping, Region, Regions, Window, array_in

CPU = "cpu"


class _GpuMapping:
    """A region's memory on a GPU. Arrays keep it; when the last is gone, it is closed and freed."""

    def __init__(self, allocation: Allocation, window: Window, regions: Regions) -> None:
        self.allocation = allocation
        self.window = window
        self._regions = regions

    def __del__(self) -> None:
        # In this order: what is mapped at this address next must not be taken for the region.
        self._regions.forget(self.window)
        self.allocation.free()


class DeviceRegion(Region):
    """Memory on a device that gemmd uses where it lies; a context manager that closes it.

    Made by Client.pool and Client.device_region. Arrays in it are DeviceArray, or torch CUDA tensors if torch types are
    asked for; where gemmd computes on the CPU, a pool's are numpy arrays and host tensors. The region is itself an
    array of bytes for from_dlpack() of numpy (on the CPU), torch and cupy, and for CUDA's array interface. Closing ends
    the sharing; arrays keep the memory. Cannot be pickled.
    """

    def __init__(self, mapping: Mapping | _GpuMapping, regions: Regions) -> None:
        super().__init__(mapping.window, regions)
        self._mapping = mapping
        self._bytes: Any = self._array(0, (self.nbytes,), DType.U8, torch=False)

    def __enter__(self) -> DeviceRegion:
        return self

    @property
    def device(self) -> str:
        """UUID of the GPU, or "cpu"."""
        return CPU if isinstance(self._mapping, Mapping) else self._mapping.allocation.gpu.uuid

    @property
    def bytes(self) -> Bits | DeviceArray:
        """All of it, as uint8 [nbytes]."""
        value: Bits | DeviceArray = self._bytes
        return value

    def _array(self, offset: int, shape: tuple[int, ...], dtype: DType, *, torch: bool) -> Array:
        if isinstance(self._mapping, Mapping):
            return array_in(self._mapping.bytes, offset, shape, dtype, torch=torch)
        array = DeviceArray(self._mapping.allocation.gpu, self._window.begin + offset, shape, dtype, self._mapping)
        return as_torch(array) if torch else array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if isinstance(self._bytes, DeviceArray):
            return self._bytes.__cuda_array_interface__
        raise AttributeError("__cuda_array_interface__: this region is in host memory")

    def __dlpack_device__(self) -> tuple[int, int]:
        if isinstance(self._bytes, DeviceArray):
            return self._bytes.__dlpack_device__()
        return dlpack.CPU, 0

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """As DeviceArray.__dlpack__."""
        dlpack.check_request(self.__dlpack_device__(), dl_device, copy)
        return dlpack.capsule(self._window.begin, (self.nbytes,), DType.U8, self.__dlpack_device__(), self._mapping)


def as_torch(array: DeviceArray) -> Array:
    """The torch CUDA tensor on the same memory. Requires: torch is imported."""
    return sys.modules["torch"].from_dlpack(array).view(torch_type(array.dtype))


def device_uuid(device: object) -> str:
    """The UUID of "cuda", "cuda:1" and torch.device, as this process numbers GPUs; anything else as it is."""
    text = str(device)
    if not text.startswith("cuda"):
        return text
    index = text.removeprefix("cuda").removeprefix(":")
    if index and not index.isdecimal():
        raise InvalidArgumentError(f'device: expected "", "cpu", "cuda", "cuda:N" or the UUID of a GPU, got {text}')
    if index:
        return Driver.load().uuid(int(index))
    torch = sys.modules.get("torch")
    ordinal = torch.cuda.current_device() if torch is not None and torch.cuda.is_available() else 0
    return Driver.load().uuid(ordinal)


def create_pool(regions: Regions, byte_size: int, device: object) -> DeviceRegion:
    """See Client.pool."""
    broker = regions.broker(byte_size)
    pool = broker.create_pool(byte_size, device_uuid(device))
    try:
        if pool.device == CPU:
            try:
                memory = mmap.mmap(pool.fd, byte_size)
            except OSError as error:
                raise ResourceExhaustedError(f"pool: cannot map {byte_size} bytes: {error}") from None
            mapping: Mapping | _GpuMapping = Mapping(memory, pool.region_id, regions)
        else:
            allocation = Driver.load().find_gpu(pool.device).import_memory(pool.fd, byte_size)
            mapping = _mapping_of(allocation, pool.region_id, byte_size, regions)
    except BaseException:
        with contextlib.suppress(GemmdError):
            broker.close_region(pool.region_id)
        raise
    finally:
        os.close(pool.fd)
    regions.add(mapping.window)
    return DeviceRegion(mapping, regions)


def create_device_region(regions: Regions, byte_size: int, device: object, writable: bool) -> DeviceRegion:
    """See Client.device_region."""
    broker = regions.broker(byte_size)
    allocation = Driver.load().find_gpu(device_uuid(device)).allocate(byte_size)
    try:
        fd = allocation.export()
        try:
            region_id = broker.register_device(fd, byte_size, writable, allocation.gpu.uuid)
        finally:
            os.close(fd)
    except BaseException:
        allocation.free()
        raise
    mapping = _mapping_of(allocation, region_id, byte_size, regions)
    regions.add(mapping.window)
    return DeviceRegion(mapping, regions)


def _mapping_of(allocation: Allocation, region_id: int, byte_size: int, regions: Regions) -> _GpuMapping:
    window = Window(region_id, allocation.address, allocation.address + byte_size)
    return _GpuMapping(allocation, window, regions)


class SharedAllocations:
    """Finds the regions that arrays on GPUs lie in, and makes them of memory of other allocators. Thread-safe.

    An allocation of cudaMalloc is shared whole, so that PyTorch's, which hold many tensors, are shared once. It is
    known again by its buffer id, since an address may be another allocation's the next time; regions of what was freed
    are closed when the next one is made.
    """

    def __init__(self, regions: Regions, devices: tuple[str, ...]) -> None:
        """`devices`: the daemon's."""
        self._regions = regions
        self._devices = devices
        self._lock = threading.Lock()

    def window(self, field: str, view: GpuView) -> Window:
        """The region that the array lies in; may ask the broker.

        Raises:
            FailedPreconditionError: no memory can be shared over this connection, this memory has no handle, or gemmd
                has no GPU.
            InvalidArgumentError: memory of another GPU, a small allocation, no memory of a GPU.
            ResourceExhaustedError: a quota of the daemon.
        """
        window = self._known(view.address)
        if window is not None:
            return window
        if not self._regions.shareable:
            raise FailedPreconditionError(
                f"{field}: expected an array in host memory, since this connection cannot share memory (GPU memory "
                f"needs a session over the Unix socket); got one on a GPU ({view.owner})"
            )
        if self._devices and all(device == CPU for device in self._devices):
            raise FailedPreconditionError(
                f"{field}: expected an array in host memory, since this gemmd computes on the CPU; got one on a GPU "
                f"({view.owner}). Copy it first"
            )
        with self._lock:
            self._regions.forget_freed(Driver.load().buffer_id)
            window = self._known(view.address)
            return window if window is not None else self._register(field, view.address)

    def knows(self, view: GpuView) -> bool:
        """Whether window() will not have to ask the broker."""
        return self._known(view.address) is not None

    def _known(self, address: int) -> Window | None:
        window = self._regions.find(address)
        if window is not None or not self._regions.shareable:
            return window
        buffer_id = Driver.load().buffer_id(address)
        return None if buffer_id is None else self._regions.find_allocation(address, buffer_id)

    def _register(self, field: str, address: int) -> Window:
        driver = Driver.load()
        try:
            gpu = driver.gpu_of(address)
            buffer = gpu.buffer_of(address)
        except GemmdError as error:
            raise InvalidArgumentError(
                f"{field}: expected memory of a GPU that this process sees, got other memory ({error.message})"
            ) from None
        try:
            handle = gpu.ipc_handle(buffer.begin)
        except GemmdError as error:
            raise FailedPreconditionError(
                f"{field}: {error.message}; expected memory of cudaMalloc. Memory of cuMemCreate (PyTorch with "
                "expandable_segments) and of memory pools has none: switch expandable_segments off, or use arrays of "
                "Client.pool or Client.device_region"
            ) from None
        try:
            broker = self._regions.broker(buffer.nbytes)
            region_id = broker.register_device_ipc(handle, buffer.nbytes, gpu.uuid, cuda.pid_namespace())
        except GemmdError as error:
            raise self._refusal(field, gpu, error) from None
        buffer_id = driver.buffer_id(address)
        window = Window(region_id, buffer.begin, buffer.begin + buffer.nbytes, -1 if buffer_id is None else buffer_id)
        self._regions.add(window)
        return window

    def _refusal(self, field: str, gpu: Gpu, error: GemmdError) -> GemmdError:
        """What the broker said, for the operand that it is about."""
        if error.field == "gpu":
            served = ", ".join(device for device in self._devices if device != CPU)
            return InvalidArgumentError(
                f"{field}: expected memory of a GPU that gemmd serves ({served}), got memory of {gpu.uuid}"
            )
        return type(error)(f"{field}: {error.message}", code=error.code, retry_after=error.retry_after)
