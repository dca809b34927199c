# SPDX-License-Identifier: Apache-2.0
"""What the blocking and the asyncio client share: addresses, channels, and how operations become methods."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import numpy as np

from gemmd import tensors
from gemmd.arrays import Array, Bits, DType, as_array, host_bits, parse_dtype
from gemmd.cuda import Driver
from gemmd.device_arrays import GpuView, gpu_view, locate
from gemmd.device_regions import SharedAllocations
from gemmd.errors import InvalidArgumentError
from gemmd.quantized import Quantized
from gemmd.regions import HostRegion, Regions, align_up
from gemmd.request import INLINE_BYTES, Context, block_value
from gemmd.session import Session
from gemmd.tensors import Tensor
from gemmd.v1 import tensors_pb2

DEFAULT_ADDRESS = "unix:/run/gemmd/gemmd.sock"
DEFAULT_CLIENT_NAME = "gemmd-python"
# Copies into a resident tensor go through a scratch region of this size at most.
WRITE_BYTES = 64 << 20
HEALTH_METHOD = "/grpc.health.v1.Health/Check"
_HEALTH = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}

# The same as kRoundRobinServiceConfig of the C++ client, and what it sets beside it: every daemon that the address names
# gets the next call, as long as it is SERVING; a product that meets one that drains or is gone is sent again.
ROUND_ROBIN_SERVICE_CONFIG = """{
  "loadBalancingConfig": [{"round_robin": {}}],
  "healthCheckConfig": {"serviceName": "gemmd.v1.Gemm"},
  "methodConfig": [{
    "name": [{"service": "gemmd.v1.Gemm", "method": "Run"}],
    "retryPolicy": {
      "maxAttempts": 5, "initialBackoff": "0.02s", "maxBackoff": "0.5s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
    }
  }]
}"""
ROUND_ROBIN_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", ROUND_ROBIN_SERVICE_CONFIG),
    # A request must be kept whole to be sent again; the daemon takes none longer by default.
    ("grpc.per_rpc_retry_buffer_size", 64 << 20),
    # A daemon that was restarted is found again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 2000),
]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ConnectOptions:
    """The arguments of connect()."""

    address: str
    connect_timeout: float
    call_timeout: float
    client_name: str
    session: bool
    tls: bool
    tls_root_certificates: bytes | str | None
    tls_certificate: bytes | str | None
    tls_key: bytes | str | None = field(repr=False)
    token: str | None = field(repr=False)
    round_robin: bool
    synchronize: bool = True

    def __post_init__(self) -> None:
        if not self.address:
            raise InvalidArgumentError("address: expected unix:/path or host:port, got nothing")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidArgumentError("tls_certificate and tls_key: expected both or none, got one")
        if self.tls and self.unix_path is not None:
            raise InvalidArgumentError(f"tls: expected a host:port as the address, got {self.address}")
        if not self.tls and (self.tls_root_certificates is not None or self.tls_certificate is not None):
            raise InvalidArgumentError("tls: expected True with certificates, got False")
        if self.round_robin and self.session:
            raise InvalidArgumentError("round_robin: expected session=False, since a session is one daemon's, got True")
        for name in ("connect_timeout", "call_timeout"):
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(f"{name}: expected seconds above 0, got {getattr(self, name)}")

    @property
    def unix_path(self) -> str | None:
        """/path of unix:/path and unix:///path."""
        if not self.address.startswith("unix:"):
            return None
        return self.address.removeprefix("unix:").removeprefix("//")

    @property
    def channel_options(self) -> list[tuple[str, Any]]:
        options: list[tuple[str, Any]] = [
            # Results may be larger than the 4 MiB that gRPC takes by default; the daemon bounds what it sends.
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            # Each client has a connection of its own.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self.unix_path is not None:
            options.append(("grpc.default_authority", "localhost"))
        return options + ROUND_ROBIN_OPTIONS if self.round_robin else options

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None without TLS."""
        if not self.tls:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=_pem(self.tls_root_certificates),
            private_key=_pem(self.tls_key),
            certificate_chain=_pem(self.tls_certificate),
        )


def _pem(text: bytes | str | None) -> bytes | None:
    return text.encode() if isinstance(text, str) else text


class Connection:
    """What both clients are: a session, its memory, and the parts of methods that do no I/O."""

    def __init__(self, options: ConnectOptions, session: Session, info: Any) -> None:
        """`info`: gemmd.v1.ServerInfo."""
        self._options = options
        self._session = session
        self._regions = Regions(session)
        allocations = SharedAllocations(self._regions, tuple(worker.device for worker in info.workers))
        self._context = Context(self._regions, info.max_message_bytes, allocations, options.synchronize)

    def __reduce__(self) -> Any:
        raise TypeError(f"{type(self).__name__}: cannot be pickled; connect again in the other process")

    @property
    def context(self) -> Context:
        """For the operations."""
        return self._context

    @property
    def address(self) -> str:
        return self._options.address

    @property
    def shares_memory(self) -> bool:
        """Whether regions can be made: with a session over a Unix socket."""
        return self._regions.shareable

    @property
    def closed(self) -> bool:
        return self._session.closed

    def _deadline(self, timeout: float | None) -> float:
        return self._options.call_timeout if timeout is None else timeout

    def _create_region(self, byte_size: int, writable: bool = True) -> HostRegion:
        return self._regions.create(byte_size, writable=writable)

    def _create_empty(self, shape: Any, dtype: object) -> Array:
        kind = parse_dtype("dtype", dtype)
        byte_size = int(np.prod(shape, dtype=np.int64)) * kind.bits.itemsize
        return self._create_region(max(byte_size, 1)).empty(shape, dtype)

    def _create_shared(self, x: Any) -> Any:
        parts = (x.data, x.scales) if isinstance(x, Quantized) else (x,)
        originals = [host_bits("x", part)[0] for part in parts]
        region = self._create_region(max(sum(align_up(bits.nbytes) for bits in originals), 1))
        copies = [region.empty(bits.shape, part.dtype) for part, bits in zip(parts, originals, strict=True)]
        for copy, bits in zip(copies, originals, strict=True):
            host_bits("x", copy)[0][...] = bits
        return Quantized(copies[0], copies[1], x.block) if isinstance(x, Quantized) else copies[0]


def stored(x: Array, dtype: object) -> tuple[GpuView | Bits, DType]:
    """Where an array to store is, and the type to store it as. Raises InvalidArgumentError."""
    memory, kind = locate("x", x)
    if dtype is None:
        return memory, kind
    wanted = parse_dtype("dtype", dtype)
    if wanted is not kind and not (wanted is DType.E4M3 and kind is DType.U8):
        raise InvalidArgumentError(f"dtype: expected {kind.name}, which the array has, got {wanted.name}")
    return memory, wanted


def create_request(context: Context, memory: GpuView | Bits, dtype: DType, name: str, shared: bool) -> Any:
    """Of a tensor that is still to be written, or that holds what an array on a GPU does and is on the same GPU. Then
    it waits for what comes before, and raises as SharedAllocations.window."""
    request = tensors_pb2.CreateTensorRequest(dtype=dtype.value, shape=memory.shape, name=name, shared=shared)
    if isinstance(memory, GpuView):
        _refer(request.data.slice, context, memory)
        request.data.dtype = dtype.value
        request.data.shape.extend(memory.shape)
    return request


def content_request(name: str, shared: bool, transpose: bool, quantize: Sequence[int] | None) -> Any:
    """gemmd.v1.CreateTensorRequest of a tensor that is made of content, which is still to be said. Raises
    InvalidArgumentError for a block that is none."""
    request = tensors_pb2.CreateTensorRequest(name=name, shared=shared, transpose=transpose)
    if quantize is not None:
        request.quantize = block_value(quantize)
    return request


def check_changeable(x: Any) -> None:
    """Raises InvalidArgumentError for what can be neither transposed nor quantized."""
    if isinstance(x, Quantized):
        raise InvalidArgumentError("x: expected an array or a Tensor to transpose or to quantize, got a Quantized")


def _refer(message: Any, context: Context, view: GpuView) -> None:
    """Fills gemmd.v1.Slice."""
    if view.strides is not None:
        raise InvalidArgumentError(f"x: expected a contiguous array on the GPU, got strides {view.strides}")
    window = context.allocations.window("x", view)
    message.region_id, message.offset = window.region_id, view.address - window.begin
    if context.synchronize and (order := view.order) is not None:
        order.synchronize()


def memory_to_write(tensor: Tensor, x: Array) -> GpuView | Bits:
    """Where an array is that goes into a tensor; on the host contiguous. Raises InvalidArgumentError."""
    memory, kind = locate("x", x)
    if kind is not tensor.dtype and {kind, tensor.dtype} != {DType.U8, DType.E4M3}:
        raise InvalidArgumentError(f"x.dtype: expected {tensor.dtype.name}, got {kind.name}")
    return memory if isinstance(memory, GpuView) else np.ascontiguousarray(memory)


def slice_request(context: Context, tensor: Tensor, offset: int, memory: GpuView | Bits) -> Any | None:
    """gemmd.v1.WriteFromSliceRequest if the array lies in a region, or on a GPU (as create_request)."""
    request = tensors_pb2.WriteFromSliceRequest(tensor_id=tensor.id, offset=offset, byte_size=memory.nbytes)
    if isinstance(memory, GpuView):
        _refer(request.slice, context, memory)
        return request
    address = memory.__array_interface__["data"][0]
    window = context.regions.find(address)
    if window is None:
        return None
    request.slice.region_id = window.region_id
    request.slice.offset = address - window.begin
    return request


def read_target(tensor: Tensor, out: Array | None) -> Bits:
    """Host memory that a tensor is read into, which `out` fits. Raises InvalidArgumentError."""
    if out is None:
        return np.empty(tensor.shape, tensor.dtype.bits)
    memory, kind = locate("out", out)
    if isinstance(memory, GpuView):
        tensors.check_read_out(tensor, memory.shape, kind, memory.strides is None)
        return np.empty(tensor.shape, tensor.dtype.bits)
    tensors.check_read_out(tensor, memory.shape, kind, memory.flags.c_contiguous)
    return memory


def gpu_target(out: Array | None) -> GpuView | None:
    """An `out` on a GPU, as the caller's thread sees it."""
    view = None if out is None else gpu_view("out", out)
    return None if view is None else view.ordered_here()


def read_value(tensor: Tensor, bits: Bits, out: Array | None, view: GpuView | None) -> Array:
    """What reading gives, once `bits` of read_target has it all; copies it to an `out` on a GPU, `view`. Any thread."""
    if out is None:
        return as_array(bits, tensor.dtype, torch=False)
    if view is not None and view.nbytes:
        if (order := view.order) is not None:
            order.synchronize()
        Driver.load().gpu_of(view.address).copy_to_gpu(view.address, bits.ctypes.data, bits.nbytes)
    return out


def write_through_scratch(regions: Regions, bits: Bits) -> bool:
    """Whether an array outside of regions is better copied through one than sent in messages."""
    return regions.shareable and bits.nbytes > INLINE_BYTES


def flat_bytes(bits: Bits) -> Bits:
    """uint8 on the memory of a contiguous array."""
    return bits.reshape(-1).view(np.uint8)


def tensor_request(key: int | str) -> Any:
    """gemmd.v1.GetTensorRequest by id or shared name."""
    if isinstance(key, str):
        return tensors_pb2.GetTensorRequest(name=key)
    return tensors_pb2.GetTensorRequest(id=key)


def tensors_of(value: Tensor | Quantized) -> tuple[Tensor, ...]:
    """The tensors that it is made of, scales first: those that gemmd made go with the data. Raises TypeError."""
    parts = (value.scales, value.data) if isinstance(value, Quantized) else (value,)
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(f"tensor: expected a Tensor or a Quantized of two, got {type(part).__name__}")
    return parts


def health_request(service: str) -> bytes:
    """grpc.health.v1.HealthCheckRequest: one string, field 1. By hand, as Debian 12 has no generated module."""
    name = service.encode()
    if len(name) > 127:
        raise InvalidArgumentError(f"service: expected at most 127 bytes, got {len(name)}")
    return b"\x0a" + bytes([len(name)]) + name if name else b""


def health_status(response: bytes) -> str:
    """Of grpc.health.v1.HealthCheckResponse: one enum, field 1."""
    number = response[1] if len(response) >= 2 and response[0] == 0x08 else 0
    return _HEALTH.get(number, "UNKNOWN")


def like_operation(operation: Callable[..., Any], returned: str) -> Callable[[F], F]:
    """Gives a method the name, documentation and signature of the operation that it runs."""

    def decorate(method: F) -> F:
        functools.update_wrapper(method, operation)
        del method.__wrapped__  # type: ignore[attr-defined]
        signature = inspect.signature(operation)
        value = str(signature.return_annotation).removeprefix("Call[").removesuffix("]")
        method.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=returned.format(value)
        )
        return method

    return decorate
