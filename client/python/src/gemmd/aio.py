# SPDX-License-Identifier: Apache-2.0
"""The same client for asyncio, on grpc.aio: every method that calls the daemon is awaitable.

    async with gemmd.aio.connect("unix:/run/gemmd/gemmd.sock") as client:
        d = await client.gemm(a, b)
        results = await asyncio.gather(*(client.gemm(a, b) for a in batches))

A client belongs to the event loop that it was made on. Copies of more than a MiB and calls of the broker run on a
thread, so that the loop goes on. So does waiting for a GPU, for the stream that is current when the call's task starts;
only groups on a GPU are copied on the loop's thread. There is no stream: gathered calls are already pipelined, and
faster.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc
import numpy as np

from gemmd import connection, operations, tensors
from gemmd.arrays import Array, is_gpu_array
from gemmd.connection import Connection, ConnectOptions, like_operation
from gemmd.device_arrays import GpuView
from gemmd.device_regions import DeviceRegion, create_device_region, create_pool
from gemmd.errors import GemmdError, UnavailableError, from_rpc_error
from gemmd.linear import LinearLayer, is_resident, quantized_weight
from gemmd.quantized import Quantized, check_block
from gemmd.regions import HostRegion
from gemmd.request import Call, HasContext
from gemmd.session import BROKER_SUFFIX, Session
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

# What is copied on the event loop's own thread: 0.1 ms.
_LOOP_COPY_BYTES = 1 << 20

P = ParamSpec("P")
R = TypeVar("R")


class _Connecting:
    """What connect() gives: to be awaited, or to be entered."""

    def __init__(self, options: ConnectOptions, max_in_flight: int) -> None:
        self._options = options
        self._max_in_flight = max_in_flight
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return _connect(self._options, self._max_in_flight).__await__()

    async def __aenter__(self) -> Client:
        self._client = await self
        return self._client

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()


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
    max_in_flight: int = 64,
) -> _Connecting:
    """Connects to gemmd and opens a session: ``client = await connect(...)``, or ``async with connect(...) as client``.

    Args:
        max_in_flight: operations that are with the daemon at a time; others wait here. A session may have 256.
        Others: as for gemmd.connect.

    Raises:
        As gemmd.connect.
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
    return _Connecting(options, max_in_flight)


async def _connect(options: ConnectOptions, max_in_flight: int) -> Client:
    credentials = options.credentials()
    if credentials is None:
        channel = grpc.aio.insecure_channel(options.address, options.channel_options)
    else:
        channel = grpc.aio.secure_channel(options.address, credentials, options.channel_options)
    try:
        opened = Session(options.token)
        info = await _wait_for_daemon(channel, options, opened)
        if options.session:
            await _open_session(channel, options, opened)
    except BaseException:
        await channel.close()
        raise
    return Client(options, opened, channel, info, max_in_flight)


async def _wait_for_daemon(channel: grpc.aio.Channel, options: ConnectOptions, session: Session) -> Any:
    """ServerInfo, as soon as the daemon is there; see gemmd.client."""
    get_info = admin_pb2_grpc.AdminStub(channel).GetInfo
    request = admin_pb2.GetInfoRequest()
    try:
        return await get_info(request, timeout=options.connect_timeout, metadata=session.metadata, wait_for_ready=True)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise from_rpc_error(error) from None
    try:
        await get_info(request, timeout=1, metadata=session.metadata)
        reason = "connected too late"
    except grpc.RpcError as error:
        reason = error.details()
    raise UnavailableError(
        f"no gemmd at {options.address}: not connected within {options.connect_timeout:g} s: {reason}"
    )


async def _open_session(channel: grpc.aio.Channel, options: ConnectOptions, session: Session) -> None:
    if options.unix_path is not None:
        path = options.unix_path + BROKER_SUFFIX
        await asyncio.to_thread(
            session.open_at_broker, path, options.client_name, options.connect_timeout, options.call_timeout
        )
        return
    request = sessions_pb2.OpenSessionRequest(client_name=options.client_name)
    call = sessions_pb2_grpc.SessionsStub(channel).Open(request, metadata=session.metadata)
    try:
        event = await call.read()
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    session.opened_by_call(call, event.session_id, event.secret)


def _awaitable(
    operation: Callable[Concatenate[HasContext, P], Call[R]],
) -> Callable[Concatenate[Client, P], Awaitable[R]]:
    """A method of Client that runs the operation."""

    @like_operation(operation, "Awaitable[{}]")
    async def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self._session.check()
        return await self._run(operation(self, *args, **kwargs))

    return method


class Client(Connection):
    """gemmd.Client for asyncio; made by connect(). An asynchronous context manager that closes it.

    Any number of tasks of one event loop may use it. A task that is cancelled cancels its operation, but where results
    go to shared memory, they may still be written there.
    """

    def __init__(
        self,
        options: ConnectOptions,
        session: Session,
        channel: grpc.aio.Channel,
        info: Any,
        max_in_flight: int,
    ) -> None:
        super().__init__(options, session, info)
        self._channel = channel
        self._in_flight = asyncio.Semaphore(max_in_flight)
        self._gemm = gemm_pb2_grpc.GemmStub(channel)
        self._tensors = tensors_pb2_grpc.TensorsStub(channel)
        self._admin = admin_pb2_grpc.AdminStub(channel)
        self._health = channel.unary_unary(connection.HEALTH_METHOD)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if hasattr(self, "_health"):
            self._session.close()
            self._regions.close()

    async def close(self) -> None:
        """As gemmd.Client.close."""
        if not self.closed:
            self._session.close()
            self._regions.close()
            await self._channel.close()

    # Operations.

    gemm = _awaitable(operations.gemm)
    grouped_gemm = _awaitable(operations.grouped_gemm)
    k_grouped_gemm = _awaitable(operations.k_grouped_gemm)
    quantize = _awaitable(operations.quantize)

    async def run(self, request: Any, *, timeout: float | None = None) -> Any:
        """As gemmd.Client.run."""
        return await self._call(self._gemm.Run, request, timeout)

    # Memory.

    async def region(self, byte_size: int, *, writable: bool = True) -> HostRegion:
        """As gemmd.Client.region."""
        return await asyncio.to_thread(self._create_region, byte_size, writable)

    async def empty(self, shape: int | Sequence[int], dtype: object = "float32") -> Array:
        """As gemmd.Client.empty."""
        return await asyncio.to_thread(self._create_empty, shape, dtype)

    async def pool(self, byte_size: int, device: object = "") -> DeviceRegion:
        """As gemmd.Client.pool."""
        return await asyncio.to_thread(create_pool, self._regions, byte_size, device)

    async def device_region(self, byte_size: int, device: object = "", *, writable: bool = True) -> DeviceRegion:
        """As gemmd.Client.device_region."""
        return await asyncio.to_thread(create_device_region, self._regions, byte_size, device, writable)

    async def share(self, x: Any) -> Any:
        """As gemmd.Client.share."""
        return await asyncio.to_thread(self._create_shared, x)

    # Resident tensors.

    async def put(
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
        """As gemmd.Client.put."""
        if transpose or quantize is not None:
            connection.check_changeable(x)
            request = connection.content_request(name, shared, transpose, quantize)
            made = not isinstance(x, Tensor)
            raw = await self.put(x, dtype=dtype, timeout=timeout) if made else x
            try:
                tensors.operand(request.data, raw)
                return await self._create(request, quantize, timeout)
            finally:
                if made:
                    await self._discard(raw)
        if isinstance(x, Quantized):
            scales_name = name + tensors.SCALES_SUFFIX if name else ""
            data = await self.put(x.data, name, shared=shared, dtype="e4m3", timeout=timeout)
            try:
                scales = await self.put(x.scales, scales_name, shared=shared, timeout=timeout)
            except BaseException:
                await self._discard(data)
                raise
            return Quantized(data, scales, x.block)
        memory, kind = connection.stored(x, dtype)
        if isinstance(memory, GpuView):
            create, view = connection.create_request, memory.ordered_here()
            request = await asyncio.to_thread(create, self._context, view, kind, name, shared)
            return tensors.from_message(await self._call(self._tensors.Create, request, timeout))
        request = connection.create_request(self._context, memory, kind, name, shared)
        tensor = tensors.from_message(await self._call(self._tensors.Create, request, timeout))
        try:
            await self.write(tensor, x, timeout=timeout)
        except BaseException:
            await self._discard(tensor)
            raise
        return tensor

    async def load(
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
        """As gemmd.Client.load."""
        request = connection.content_request(name, shared, transpose, quantize)
        request.file.path, request.file.tensor = path, tensor
        return await self._create(request, quantize, timeout)

    async def _create(self, request: Any, quantize: Sequence[int] | None, timeout: float | None) -> Any:
        message = await self._call(self._tensors.Create, request, timeout)
        data = tensors.from_message(message)
        if quantize is None:
            return data
        return tensors.as_quantized(data, await self.tensor(message.sf_id), check_block(quantize))

    async def write(self, tensor: Tensor, x: Array, *, offset: int = 0, timeout: float | None = None) -> None:
        """As gemmd.Client.write."""
        memory = connection.memory_to_write(tensor, x)
        if memory.nbytes == 0:
            return
        if isinstance(memory, GpuView):
            view = memory.ordered_here()
            request = await asyncio.to_thread(connection.slice_request, self._context, tensor, offset, view)
        else:
            request = connection.slice_request(self._context, tensor, offset, memory)
        if request is not None:
            await self._call(self._tensors.WriteFromSlice, request, timeout)
            return
        assert not isinstance(memory, GpuView)
        flat = connection.flat_bytes(memory)
        if not connection.write_through_scratch(self._regions, memory):
            await self._call(self._tensors.Write, tensors.chunks(tensor.id, offset, flat), timeout)
            return
        region = await asyncio.to_thread(self._regions.take_scratch, min(flat.nbytes, connection.WRITE_BYTES))
        try:
            for begin in range(0, flat.nbytes, region.nbytes):
                part = flat[begin : begin + region.nbytes]
                window = region.bytes[: part.nbytes]
                await asyncio.to_thread(np.copyto, window, part)
                request = connection.slice_request(self._context, tensor, offset + begin, window)
                await self._call(self._tensors.WriteFromSlice, request, timeout)
        except BaseException:
            region.close()
            raise
        self._regions.give_scratch(region)

    async def read(self, tensor: Tensor, *, out: Array | None = None, timeout: float | None = None) -> Array:
        """As gemmd.Client.read."""
        bits, view = connection.read_target(tensor, out), connection.gpu_target(out)
        flat = connection.flat_bytes(bits)
        request = tensors_pb2.ReadTensorRequest(tensor_id=tensor.id)
        self._session.check()
        try:
            async for chunk in self._tensors.Read(
                request, timeout=self._deadline(timeout), metadata=self._session.metadata
            ):
                flat[chunk.offset : chunk.offset + len(chunk.data)] = np.frombuffer(chunk.data, np.uint8)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        if view is None:
            return connection.read_value(tensor, bits, out, None)
        return await asyncio.to_thread(connection.read_value, tensor, bits, out, view)

    async def tensor(self, key: int | str) -> Tensor:
        """As gemmd.Client.tensor."""
        return tensors.from_message(await self._call(self._tensors.Get, connection.tensor_request(key)))

    async def quantized(self, name: str, block: tuple[int, int] | None = None) -> Quantized:
        """As gemmd.Client.quantized."""
        message = await self._call(self._tensors.Get, connection.tensor_request(name))
        scales = await self.tensor(message.sf_id or name + tensors.SCALES_SUFFIX)
        return tensors.as_quantized(tensors.from_message(message), scales, block)

    async def list_tensors(self) -> list[Tensor]:
        """As gemmd.Client.list_tensors."""
        response = await self._call(self._tensors.List, tensors_pb2.ListTensorsRequest())
        return [tensors.from_message(message) for message in response.tensors]

    async def delete(self, tensor: Tensor | Quantized) -> None:
        """As gemmd.Client.delete."""
        for part in connection.tensors_of(tensor):
            await self._call(self._tensors.Delete, tensors_pb2.DeleteTensorRequest(id=part.id))

    async def _discard(self, tensor: Tensor) -> None:
        with contextlib.suppress(GemmdError):
            await self.delete(tensor)

    # The daemon.

    async def info(self) -> Any:
        """As gemmd.Client.info."""
        return await self._call(self._admin.GetInfo, admin_pb2.GetInfoRequest())

    async def health(self, service: str = "") -> str:
        """As gemmd.Client.health."""
        return connection.health_status(await self._call(self._health, connection.health_request(service)))

    async def warm_up(self, shapes: Iterable[Any], *, timeout: float | None = None) -> Any:
        """As gemmd.Client.warm_up."""
        return await self._call(self._admin.WarmUp, admin_pb2.WarmUpRequest(shapes=shapes), timeout)

    # How calls are made.

    async def _run(self, call: Call[R]) -> R:
        async with self._in_flight:
            try:
                on_thread = call.bytes_to_copy > _LOOP_COPY_BYTES
                if on_thread or call.may_wait:
                    await asyncio.to_thread(call.place)
                else:
                    call.place()
                response = await self._call(self._gemm.Run, call.request, call.timeout)
                return await asyncio.to_thread(call.finish, response) if on_thread else call.finish(response)
            except BaseException as error:
                call.abandon(error)
                raise

    async def _call(self, method: Any, request: Any, timeout: float | None = None) -> Any:
        self._session.check()
        try:
            return await method(request, timeout=self._deadline(timeout), metadata=self._session.metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except grpc.aio.UsageError:
            # What gRPC raises for a channel that was closed meanwhile.
            self._session.check()
            raise


async def _off_loop(compute: Callable[[Any], Any], x: Any) -> Any:
    """`compute` of an array, which takes a while on the host; on a GPU it only starts, on the stream of this thread."""
    return compute(x) if is_gpu_array(x) else await asyncio.to_thread(compute, x)


class Linear(LinearLayer):
    """gemmd.Linear for asyncio: ``layer = await Linear.create(client, weight)``, then ``y = await layer(x)``."""

    def __init__(self, client: Client, weight: Quantized, bias: Array | None, owned: bool) -> None:
        super().__init__(weight, bias)
        self._client = client
        self._owned = owned

    @staticmethod
    async def create(
        client: Client, weight: Any, bias: Array | None = None, *, name: str = "", shared: bool = False
    ) -> Linear:
        """Stores the weight; arguments and errors as for gemmd.Linear."""
        quantized = await _off_loop(quantized_weight, weight)
        LinearLayer(quantized, bias)  # Checks before anything is stored.
        owned = not is_resident(quantized)
        if owned:
            quantized = await client.put(quantized, name, shared=shared)
        return Linear(client, quantized, bias, owned and not shared)

    async def __call__(self, x: Array, *, timeout: float | None = None, priority: int = 0) -> Array:
        """As gemmd.Linear."""
        rows = await _off_loop(self._rows, x)
        d = await self._client.gemm(rows, self._weight, dtype="float32", timeout=timeout, priority=priority)
        return self._result(d, x)

    async def close(self) -> None:
        """As gemmd.Linear.close."""
        if self._owned and not self._client.closed:
            self._owned = False
            await self._client.delete(self._weight)
