# SPDX-License-Identifier: Apache-2.0
"""The blocking client. One Client is one connection and one session; any number of threads may use it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc
import numpy as np

from gemmd import connection, operations, tensors
from gemmd.arrays import Array
from gemmd.connection import Connection, ConnectOptions, like_operation
from gemmd.device_arrays import GpuView
from gemmd.device_regions import DeviceRegion, create_device_region, create_pool
from gemmd.errors import GemmdError, UnavailableError, from_rpc_error
from gemmd.quantized import Quantized, check_block
from gemmd.regions import HostRegion
from gemmd.request import Call, HasContext
from gemmd.session import BROKER_SUFFIX, Session
from gemmd.stream import Stream
from gemmd.tensors import Tensor
from gemmd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    gemm_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    tensors_pb2,
    tensors_pb2_grpc,
)

P = ParamSpec("P")
R = TypeVar("R")


def connect(
    address: str = connection.DEFAULT_ADDRESS,
    *,
    connect_timeout: float = 5.0,
    call_timeout: float = 120.0,
    client_name: str = connection.DEFAULT_CLIENT_NAME,
    session: bool = True,
    tls: bool = False,
    tls_root_certificates: bytes | str | None = None,
    tls_certificate: bytes | str | None = None,
    tls_key: bytes | str | None = None,
    token: str | None = None,
    round_robin: bool = False,
    synchronize: bool = True,
) -> Client:
    """Connects to gemmd and opens a session.

    Args:
        address: "unix:/path" (memory can be shared) or "host:port" (operands in messages, and resident tensors).
        connect_timeout: seconds to wait for the daemon and for the session.
        call_timeout: seconds for each call that does not say otherwise.
        client_name: for the daemon's logs and lists; up to 63 printable characters.
        session: False for operands in messages only, and no session to pay for.
        tls: for host:port; with the system's certificate authorities unless `tls_root_certificates` has others.
        tls_root_certificates, tls_certificate, tls_key: PEM; the last two are this client's own, for mTLS.
        token: bearer token, as the daemon's --token_file has it; for host:port, and over TLS or who listens learns it.
        round_robin: for an address that names several daemons ("dns:///name:port", "ipv4:host:port,host:port"): each that
            is healthy gets the next call, and a product that meets one that stops is sent to another. With session=False.
        synchronize: whether calls with arrays on a GPU wait for what was started there before. False if whoever makes
            the calls does it.

    Raises:
        UnavailableError: nobody there in time; the message has the reason.
        UnauthenticatedError: no or a wrong token.
        InvalidArgumentError: options that contradict each other.
    """
    options = ConnectOptions(
        address,
        connect_timeout,
        call_timeout,
        client_name,
        session,
        tls,
        tls_root_certificates,
        tls_certificate,
        tls_key,
        token,
        round_robin,
        synchronize,
    )
    credentials = options.credentials()
    if credentials is None:
        channel = grpc.insecure_channel(address, options.channel_options)
    else:
        channel = grpc.secure_channel(address, credentials, options.channel_options)
    try:
        opened = Session(token)
        info = _wait_for_daemon(channel, options, opened)
        if session:
            _open_session(channel, options, opened)
    except BaseException:
        channel.close()
        raise
    return Client(options, opened, channel, info)


def _wait_for_daemon(channel: grpc.Channel, options: ConnectOptions, session: Session) -> Any:
    """ServerInfo, as soon as the daemon is there."""
    get_info = admin_pb2_grpc.AdminStub(channel).GetInfo
    request = admin_pb2.GetInfoRequest()
    try:
        return get_info(request, timeout=options.connect_timeout, metadata=session.metadata, wait_for_ready=True)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise from_rpc_error(error) from None
    # A channel tells the reason, a failed handshake for example, only to a call that does not wait for it.
    try:
        get_info(request, timeout=1, metadata=session.metadata)
        reason = "connected too late"
    except grpc.RpcError as error:
        reason = error.details()
    raise UnavailableError(
        f"no gemmd at {options.address}: not connected within {options.connect_timeout:g} s: {reason}"
    )


def _open_session(channel: grpc.Channel, options: ConnectOptions, session: Session) -> None:
    if options.unix_path is not None:
        path = options.unix_path + BROKER_SUFFIX
        session.open_at_broker(path, options.client_name, options.connect_timeout, options.call_timeout)
        return
    request = sessions_pb2.OpenSessionRequest(client_name=options.client_name)
    call = sessions_pb2_grpc.SessionsStub(channel).Open(request, metadata=session.metadata)
    try:
        event = next(call)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    session.opened_by_call(call, event.session_id, event.secret)


def _blocking(operation: Callable[Concatenate[HasContext, P], Call[R]]) -> Callable[Concatenate[Client, P], R]:
    """A method of Client that runs the operation."""

    @like_operation(operation, "{}")
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self._session.check()
        return self._run(operation(self, *args, **kwargs))

    return method


class Client(Connection):
    """A connection to gemmd; made by connect(). A context manager that closes it.

    Arrays are numpy arrays, torch tensors, or anything on a GPU with __cuda_array_interface__. Every error is a
    GemmdError (TypeError for what is no array); the daemon checks requests. Thread-safe. Cannot be pickled or used
    after a fork: connect again there.
    """

    def __init__(self, options: ConnectOptions, session: Session, channel: grpc.Channel, info: Any) -> None:
        super().__init__(options, session, info)
        self._channel = channel
        self._gemm = gemm_pb2_grpc.GemmStub(channel)
        self._tensors = tensors_pb2_grpc.TensorsStub(channel)
        self._admin = admin_pb2_grpc.AdminStub(channel)
        self._health = channel.unary_unary(connection.HEALTH_METHOD)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Unless __init__ did not get to the end.
        if hasattr(self, "_health"):
            self._session.close()
            self._regions.close()

    def close(self) -> None:
        """Ends the session: the daemon frees its regions and private tensors. Calls in flight are cancelled.

        Arrays in regions stay valid as ordinary memory. May be called again.
        """
        if not self.closed:
            self._session.close()
            self._regions.close()
            self._channel.close()

    # Operations.

    gemm = _blocking(operations.gemm)
    grouped_gemm = _blocking(operations.grouped_gemm)
    k_grouped_gemm = _blocking(operations.k_grouped_gemm)
    quantize = _blocking(operations.quantize)

    def run(self, request: Any, *, timeout: float | None = None) -> Any:
        """A gemmd.v1.RunRequest made by hand; gives the gemmd.v1.RunResponse, with times and batch size."""
        return self._call(self._gemm.Run, request, timeout)

    def stream(self, *, max_in_flight: int = 64) -> Stream:
        """Operations pipelined from one thread, see Stream.

        Args:
            max_in_flight: operations that are with the daemon at a time; submitting one more waits.
        """
        self._session.check()
        return Stream(self, max_in_flight)

    def _open_stream(self, requests: Iterator[Any]) -> Iterator[Any]:
        responses: Iterator[Any] = self._gemm.Stream(requests, metadata=self._session.metadata)
        return responses

    # Memory.

    def region(self, byte_size: int, *, writable: bool = True) -> HostRegion:
        """New memory shared with gemmd, zeros at first; a context manager that closes it.

        Args:
            byte_size: at least 1.
            writable: whether results may go there.

        Raises:
            FailedPreconditionError: memory cannot be shared over this connection.
            ResourceExhaustedError: no memory, or a quota of the daemon (256 regions of one session by default).
        """
        return self._create_region(byte_size, writable)

    def empty(self, shape: int | Sequence[int], dtype: object = "float32") -> Array:
        """An array in a region of its own, zeros at first; the region is closed when the last view of it is gone.

        Operations use it where it lies, as an operand and as `out`. For many small arrays take one region().

        Args:
            shape, dtype: as for HostRegion.empty.

        Raises:
            As region.
        """
        return self._create_empty(shape, dtype)

    def pool(self, byte_size: int, device: object = "") -> DeviceRegion:
        """New memory of gemmd, mapped here, zeros at first; a context manager that closes it.

        Survives the daemon's worker and needs no special allocator here; the daemon's quotas count it.

        Args:
            byte_size: at least 1.
            device: UUID of a GPU that gemmd serves, "cuda:0" (as this process numbers them), a torch.device, or "cpu";
                "": where gemmd has most room.

        Raises:
            FailedPreconditionError: memory cannot be shared over this connection, or no CUDA driver here for a GPU.
            InvalidArgumentError: gemmd does not serve the device.
            NotFoundError: this process does not see the GPU.
            ResourceExhaustedError: no memory, or a quota of the daemon.
        """
        return create_pool(self._regions, byte_size, device)

    def device_region(self, byte_size: int, device: object = "", *, writable: bool = True) -> DeviceRegion:
        """New memory of this process on a GPU, shared with gemmd, zeros at first; a context manager that closes it.

        Args:
            byte_size: at least 1; whole granules of 2 MiB are taken.
            device: as for pool; "": the first GPU that this process sees.
            writable: whether results may go there.

        Raises:
            As pool.
        """
        return create_device_region(self._regions, byte_size, device, writable)

    def share(self, x: Any) -> Any:
        """A copy of an array or a Quantized in a region of its own (see empty)."""
        return self._create_shared(x)

    # Resident tensors.

    def put(
        self,
        x: Any,
        name: str = "",
        *,
        shared: bool = False,
        dtype: object = None,
        transpose: bool = False,
        quantize: Sequence[int] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Stores an array as a resident tensor, which then stands for it as an operand.

        Args:
            x: an array of rank 1 to 3, or a Quantized, whose scales get the name with ".scales" added; to transpose or
                to quantize also a Tensor.
            name: up to 256 printable characters; needed if shared.
            shared: found by name by all sessions of this user; stays until it is deleted. Otherwise the tensor goes
                with the session.
            dtype: "e4m3" for the bits of FP8 in uint8.
            transpose: store each matrix transposed, once: B is [N, K] or [G, N, K], and given as [K, N] or [G, K, N].
                Of float8_e4m3fn, bfloat16 or float32. gemmd does it, beside the array as it is, for a moment.
            quantize: (1, 128) or (128, 128): store bfloat16 or float32 as FP8 with scales per block, as Client.quantize
                makes them, after transposing. The scales get the name with ".sf" added.
            timeout: seconds for each of its calls.

        Returns:
            Tensor, or Quantized of two Tensors.

        Raises:
            AlreadyExistsError: the shared name is taken.
            InvalidArgumentError: a type or shape that cannot be transposed or quantized.
            ResourceExhaustedError: memory of the device, or a quota.
        """
        if transpose or quantize is not None:
            connection.check_changeable(x)
            request = connection.content_request(name, shared, transpose, quantize)
            made = not isinstance(x, Tensor)
            raw = self.put(x, dtype=dtype, timeout=timeout) if made else x
            try:
                tensors.operand(request.data, raw)
                return self._create(request, quantize, timeout)
            finally:
                if made:
                    self._discard(raw)
        if isinstance(x, Quantized):
            scales_name = name + tensors.SCALES_SUFFIX if name else ""
            data = self.put(x.data, name, shared=shared, dtype="e4m3", timeout=timeout)
            try:
                scales = self.put(x.scales, scales_name, shared=shared, timeout=timeout)
            except BaseException:
                self._discard(data)
                raise
            return Quantized(data, scales, x.block)
        memory, kind = connection.stored(x, dtype)
        request = connection.create_request(self._context, memory, kind, name, shared)
        if isinstance(memory, GpuView):
            return tensors.from_message(self._call(self._tensors.Create, request, timeout))
        tensor = tensors.from_message(self._call(self._tensors.Create, request, timeout))
        try:
            self.write(tensor, x, timeout=timeout)
        except BaseException:
            self._discard(tensor)
            raise
        return tensor

    def load(
        self,
        path: str,
        tensor: str = "",
        name: str = "",
        *,
        shared: bool = False,
        transpose: bool = False,
        quantize: Sequence[int] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Stores a tensor of a .safetensors file on the daemon's machine, which never passes through this process.

        Args:
            path: relative to one of the daemon's --tensor_dirs.
            tensor: which of the file's; may be empty if there is only one.
            name, shared, transpose, quantize, timeout: as for put.

        Returns:
            As put.

        Raises:
            NotFoundError: no such file or tensor. And as put.
        """
        request = connection.content_request(name, shared, transpose, quantize)
        request.file.path, request.file.tensor = path, tensor
        return self._create(request, quantize, timeout)

    def _create(self, request: Any, quantize: Sequence[int] | None, timeout: float | None) -> Any:
        """A tensor of content; with its scales if it is quantized."""
        message = self._call(self._tensors.Create, request, timeout)
        data = tensors.from_message(message)
        if quantize is None:
            return data
        return tensors.as_quantized(data, self.tensor(message.sf_id), check_block(quantize))

    def write(self, tensor: Tensor, x: Array, *, offset: int = 0, timeout: float | None = None) -> None:
        """Copies an array of the tensor's type into it, from byte `offset` on.

        Raises OutOfRangeError if it does not fit, NotFoundError if the tensor is gone.
        """
        memory = connection.memory_to_write(tensor, x)
        if memory.nbytes == 0:
            return
        request = connection.slice_request(self._context, tensor, offset, memory)
        if request is not None:
            self._call(self._tensors.WriteFromSlice, request, timeout)
            return
        assert not isinstance(memory, GpuView)
        flat = connection.flat_bytes(memory)
        if not connection.write_through_scratch(self._regions, memory):
            self._call(self._tensors.Write, tensors.chunks(tensor.id, offset, flat), timeout)
            return
        region = self._regions.take_scratch(min(flat.nbytes, connection.WRITE_BYTES))
        try:
            for begin in range(0, flat.nbytes, region.nbytes):
                part = flat[begin : begin + region.nbytes]
                window = region.bytes[: part.nbytes]
                window[...] = part
                request = connection.slice_request(self._context, tensor, offset + begin, window)
                self._call(self._tensors.WriteFromSlice, request, timeout)
        except BaseException:
            region.close()
            raise
        self._regions.give_scratch(region)

    def read(self, tensor: Tensor, *, out: Array | None = None, timeout: float | None = None) -> Array:
        """The elements of a tensor: in `out` (contiguous, of the same shape and type), or a new numpy array."""
        bits = connection.read_target(tensor, out)
        flat = connection.flat_bytes(bits)
        request = tensors_pb2.ReadTensorRequest(tensor_id=tensor.id)
        self._session.check()
        try:
            for chunk in self._tensors.Read(request, timeout=self._deadline(timeout), metadata=self._session.metadata):
                flat[chunk.offset : chunk.offset + len(chunk.data)] = np.frombuffer(chunk.data, np.uint8)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return connection.read_value(tensor, bits, out, connection.gpu_target(out))

    def tensor(self, key: int | str) -> Tensor:
        """The tensor of this id or shared name. Raises NotFoundError."""
        return tensors.from_message(self._call(self._tensors.Get, connection.tensor_request(key)))

    def quantized(self, name: str, block: tuple[int, int] | None = None) -> Quantized:
        """The shared Quantized that was put under this name; `block` follows from the shapes. Raises NotFoundError."""
        message = self._call(self._tensors.Get, connection.tensor_request(name))
        scales = self.tensor(message.sf_id or name + tensors.SCALES_SUFFIX)
        return tensors.as_quantized(tensors.from_message(message), scales, block)

    def list_tensors(self) -> list[Tensor]:
        """The tensors that this session can name, by id: its own and the shared ones of its user."""
        response = self._call(self._tensors.List, tensors_pb2.ListTensorsRequest())
        return [tensors.from_message(message) for message in response.tensors]

    def delete(self, tensor: Tensor | Quantized) -> None:
        """Removes a tensor, or both of a Quantized. Operations in flight finish. Raises NotFoundError."""
        for part in connection.tensors_of(tensor):
            self._call(self._tensors.Delete, tensors_pb2.DeleteTensorRequest(id=part.id))

    def _discard(self, tensor: Tensor) -> None:
        """Half a tensor is of no use; the first error is told."""
        with contextlib.suppress(GemmdError):
            self.delete(tensor)

    # The daemon.

    def info(self) -> Any:
        """gemmd.v1.ServerInfo: version, workers, devices, sessions, memory."""
        return self._call(self._admin.GetInfo, admin_pb2.GetInfoRequest())

    def health(self, service: str = "") -> str:
        """SERVING, NOT_SERVING, SERVICE_UNKNOWN or UNKNOWN, of "", "gemmd.v1.Gemm" or "gemmd.v1.Gemm/DEVICE"."""
        return connection.health_status(self._call(self._health, connection.health_request(service)))

    def warm_up(self, shapes: Iterable[Any], *, timeout: float | None = None) -> Any:
        """Makes kernels for gemmd.v1.WarmUpShape messages ready; gives gemmd.v1.WarmUpResponse. Unix socket only."""
        return self._call(self._admin.WarmUp, admin_pb2.WarmUpRequest(shapes=shapes), timeout)

    # How calls are made.

    def _run(self, call: Call[R]) -> R:
        try:
            call.place()
            return call.finish(self._call(self._gemm.Run, call.request, call.timeout))
        except BaseException as error:
            call.abandon(error)
            raise

    def _call(self, method: Any, request: Any, timeout: float | None = None) -> Any:
        self._session.check()
        try:
            return method(request, timeout=self._deadline(timeout), metadata=self._session.metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except ValueError:
            # What gRPC raises for a channel that another thread has closed.
            self._session.check()
            raise
