# SPDX-License-Identifier: Apache-2.0
"""As much of torch as gemmd touches, on the fake CUDA driver, whose GPU memory is the host's.

What is asked of torch, and in which order, can so be tested without torch and without a GPU; what torch does cannot.
"""

import ctypes
import threading
import types

import numpy as np
from gemmd.cuda import Driver

SEGMENT_BYTES = 4 << 20
GRANULE = 512


class dtype:
    def __init__(self, name, bits):
        self.name, self.bits = name, np.dtype(bits)

    def __repr__(self):
        return f"torch.{self.name}"


class device:
    def __init__(self, type, index=None):
        self.type, self.index = type, index

    def __str__(self):
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __eq__(self, other):
        return str(self) == str(other)

    def __hash__(self):
        return hash(str(self))


class Stream:
    """Has work under way from the start, until somebody waits for it."""

    def __init__(self):
        self.done, self.waits = False, 0

    def query(self):
        return self.done

    def synchronize(self):
        self.done, self.waits = True, self.waits + 1


class Tensor:
    def __init__(self, bits, kind, place):
        self.bits, self.dtype, self.device = bits, kind, place
        self.layout = "strided"
        self.is_cuda = place.type == "cuda"

    shape = property(lambda self: self.bits.shape)
    ndim = property(lambda self: self.bits.ndim)

    def stride(self):
        return tuple(stride // self.bits.itemsize for stride in self.bits.strides)

    def is_contiguous(self):
        return self.bits.flags.c_contiguous

    def data_ptr(self):
        return self.bits.__array_interface__["data"][0]

    def detach(self):
        return self

    def cpu(self):
        return Tensor(self.bits.copy(), self.dtype, device("cpu"))

    def numpy(self):
        assert not self.is_cuda
        return self.bits

    def view(self, kind):
        return Tensor(self.bits.view(kind.bits), kind, self.device)

    def reshape(self, *shape):
        return Tensor(self.bits.reshape(*shape), self.dtype, self.device)

    def copy_(self, other):
        """From bfloat16 to float32; a kernel of the current stream."""
        assert (self.dtype, other.dtype) == (module.float32, module.bfloat16)
        self.bits[...] = (other.bits.astype(np.uint32) << 16).view(np.float32)
        module.cuda.streams[self.device.index].done = False

    def __getitem__(self, index):
        return Tensor(self.bits[index], self.dtype, self.device)


class Allocator:
    """Of one GPU: many tensors in an allocation of cudaMalloc, as PyTorch's default allocator has them."""

    def __init__(self, index):
        self.index, self.address, self.used = index, 0, SEGMENT_BYTES

    def take(self, byte_size):
        if self.used + byte_size > SEGMENT_BYTES:
            self.address, self.used = cuda_malloc(self.index, SEGMENT_BYTES), 0
        address = self.address + self.used
        self.used += -(-byte_size // GRANULE) * GRANULE
        return address


def cuda_malloc(index, byte_size):
    address = ctypes.c_uint64()
    with Driver.load().gpu(index)._current() as call:
        call("cudaMalloc", "cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(byte_size))
    return address.value


def cuda_free(address):
    with Driver.load().gpu(0)._current() as call:
        call("cudaFree", "cuMemFree_v2", ctypes.c_uint64(address))


def host_view(address, shape, bits):
    """A numpy array on memory of the fake GPU."""
    count = int(np.prod(shape)) * np.dtype(bits).itemsize
    memory = (ctypes.c_uint8 * count).from_address(address)
    return np.frombuffer(memory, np.uint8).view(bits).reshape(shape)


def empty(shape, *, dtype, device):
    bits = host_view(module.allocators[device.index].take(int(np.prod(shape)) * dtype.bits.itemsize), shape, dtype.bits)
    bits[...] = 1  # Anything but zeros.
    return Tensor(bits, dtype, device)


def zeros(shape, *, dtype, device):
    tensor = empty(shape, dtype=dtype, device=device)
    tensor.bits[...] = 0
    module.cuda.streams[device.index].done = False  # A kernel writes them.
    return tensor


class _OnHost:
    """Lets numpy, which takes no GPU's memory, be the consumer."""

    CODES = {(1, 8): "uint8", (4, 16): "bfloat16", (2, 32): "float32", (0, 32): "int32", (0, 64): "int64"}

    def __init__(self, array):
        self.capsule = array.__dlpack__(stream=1)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        place = pointer(self.capsule, b"dltensor")
        kind = ctypes.c_int32.from_address(place + 8)
        assert kind.value == array.__dlpack_device__()[0] == 2
        kind.value = 1
        code, bits = ctypes.c_uint8.from_address(place + 20), ctypes.c_uint8.from_address(place + 21)
        self.dtype = getattr(module, self.CODES[code.value, bits.value])
        code.value = 1 if self.dtype is module.bfloat16 else code.value

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **_):
        return self.capsule


def from_dlpack(array):
    proxy = _OnHost(array)
    return Tensor(np.from_dlpack(proxy), proxy.dtype, device("cuda", array.__dlpack_device__()[1]))


def make():
    """The module. Requires: the fake driver is in use."""
    made = types.ModuleType("torch")
    made.Tensor, made.dtype, made.device, made.strided = Tensor, dtype, device, "strided"
    for name, bits in (("float8_e4m3fn", "u1"), ("bfloat16", "u2"), ("float32", "f4"), ("int32", "i4"),
                       ("int64", "i8"), ("uint8", "u1"), ("int16", "i2")):
        setattr(made, name, dtype(name, bits))
    made.empty, made.zeros, made.from_dlpack = empty, zeros, from_dlpack
    made.allocators = [Allocator(0), Allocator(1)]
    streams = [Stream(), Stream()]
    thread = threading.local()  # `thread.stream`: its current stream, if it is a side stream.
    made.cuda = types.SimpleNamespace(
        streams=streams, thread=thread, current_device=lambda: 0, is_available=lambda: True,
        current_stream=lambda place: getattr(thread, "stream", streams[place.index]))
    global module
    module = made
    return made


module = None
