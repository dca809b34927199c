# SPDX-License-Identifier: Apache-2.0
"""The client's side of a session: credentials for calls, and the connection whose end closes the session.

A process on the daemon's machine opens its session at the broker, a Unix socket that also takes descriptors of memory
(layout of its messages: proto/broker.h). Any other opens one over gRPC (gemmd.v1.Sessions).
"""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
import weakref
from dataclasses import dataclass
from typing import Any

from gemmd.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
    from_code,
)

Metadata = tuple[tuple[str, str], ...]

BROKER_SUFFIX = ".broker"
_BROKER_VERSION = 2
_HELLO, _REGISTER_HOST, _CLOSE_REGION, _REGISTER_DEVICE, _REGISTER_DEVICE_IPC, _CREATE_POOL = 1, 2, 3, 4, 5, 6
# type, version, byte_size, region_id, writable, reserved, client_name, gpu, ipc
_REQUEST = struct.Struct("<IIQQII64s48s96s")
_REPLY = struct.Struct("<IIQQ16s256s48s")  # code, version, session_id, region_id, secret, message, gpu
# handle, allocation_bytes, offset, pid_namespace, pid, reserved
_GPU_BYTES = 48
# A reply has one at most.
_MAX_DESCRIPTORS = 4
_IPC = struct.Struct("<64sQQQiI")

# A child of fork() must not hold the parent's connections: the daemon would not see the parent's end.
_connections: weakref.WeakSet[BrokerConnection] = weakref.WeakSet()


@dataclass(frozen=True)
class _Reply:
    session_id: int
    region_id: int
    secret: bytes
    gpu: str
    fd: int  # To be closed by who asked for one; otherwise -1.


@dataclass(frozen=True)
class Pool:
    """Memory of gemmd: the region, where it is ("cpu", or the UUID of a GPU), and its descriptor, the caller's own."""

    region_id: int
    device: str
    fd: int


class BrokerConnection:
    """A session at the broker. Thread-safe; waits for each reply, some 50 us."""

    def __init__(self, path: str, client_name: str, timeout: float, call_timeout: float) -> None:
        """Errors: UnavailableError (nobody there), DeadlineExceededError, and what the broker says."""
        self._lock = threading.Lock()
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise UnavailableError(f"broker: cannot connect to {path}: {error.strerror or error}") from None
        _connections.add(self)
        name = client_name.encode("ascii", "replace")[:63]
        reply = self._ask(_HELLO, client_name=name)
        self.session_id, self.secret = reply.session_id, reply.secret
        # The daemon may page-lock a region before it replies, which takes a second for some GiB.
        self._socket.settimeout(call_timeout)

    def register(self, fd: int, byte_size: int, writable: bool) -> int:
        """Registers a sealed memfd; gives the region's id. Errors: what the broker says."""
        return self._ask(_REGISTER_HOST, byte_size=byte_size, writable=int(writable), fd=fd).region_id

    def register_device(self, fd: int, byte_size: int, writable: bool, gpu: str) -> int:
        """Registers memory of the GPU with this UUID by its descriptor, as register()."""
        reply = self._ask(_REGISTER_DEVICE, byte_size=byte_size, writable=int(writable), gpu=gpu.encode(), fd=fd)
        return reply.region_id

    def register_device_ipc(self, handle: bytes, byte_size: int, gpu: str, pid_namespace: int) -> int:
        """Registers a whole allocation of cudaMalloc of this process by its legacy handle, for reading and writing."""
        ipc = _IPC.pack(handle, byte_size, 0, pid_namespace, os.getpid(), 0)
        return self._ask(_REGISTER_DEVICE_IPC, byte_size=byte_size, writable=1, gpu=gpu.encode(), ipc=ipc).region_id

    def create_pool(self, byte_size: int, device: str) -> Pool:
        """New memory of gemmd on this device ("": where it has most room). Errors: what the broker says."""
        if len(device) >= _GPU_BYTES:
            raise InvalidArgumentError(f"device: expected at most {_GPU_BYTES - 1} characters, got {len(device)}")
        reply = self._ask(_CREATE_POOL, byte_size=byte_size, gpu=device.encode("ascii", "replace"), wants_fd=True)
        return Pool(reply.region_id, reply.gpu, reply.fd)

    def close_region(self, region_id: int) -> None:
        """Errors: what the broker says."""
        self._ask(_CLOSE_REGION, region_id=region_id)

    def close(self) -> None:
        """Ends the session: the daemon frees everything that it owned."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(
        self,
        kind: int,
        *,
        byte_size: int = 0,
        region_id: int = 0,
        writable: int = 0,
        client_name: bytes = b"",
        gpu: bytes = b"",
        ipc: bytes = b"",
        fd: int | None = None,
        wants_fd: bool = False,
    ) -> _Reply:
        request = _REQUEST.pack(kind, _BROKER_VERSION, byte_size, region_id, writable, 0, client_name, gpu, ipc)
        with self._lock:
            data, fds = self._converse(request, fd)
        code, _, session_id, new_region_id, secret, message, device = _REPLY.unpack(data)
        if code == 0 and wants_fd and len(fds) == 1:
            return _Reply(session_id, new_region_id, secret, _text(device), fds[0])
        for unwanted in fds:
            os.close(unwanted)
        if code != 0:
            raise from_code(code, _text(message))
        if wants_fd:
            raise InternalError(f"broker: expected a descriptor, got {len(fds)}")
        return _Reply(session_id, new_region_id, secret, _text(device), -1)

    def _converse(self, request: bytes, fd: int | None) -> tuple[bytes, list[int]]:
        """One request, its reply and the reply's descriptors. A broken conversation closes the socket, since replies
        would no longer match."""
        if self._socket is None:
            raise UnavailableError("broker: the connection of this session was lost; connect again")
        try:
            try:
                socket.send_fds(self._socket, [request], [] if fd is None else [fd])
            except (BrokenPipeError, ConnectionResetError):
                pass  # A broker that refuses says why before it closes the socket.
            reply, fds = _receive(self._socket)
        except TimeoutError:
            self._close()
            raise DeadlineExceededError("broker: no reply in time") from None
        except OSError as error:
            self._close()
            raise UnavailableError(f"broker: {error.strerror or error}") from None
        if len(reply) == _REPLY.size:
            return reply, fds
        for unwanted in fds:
            os.close(unwanted)
        self._close()
        if not reply:
            raise UnavailableError("broker: closed the connection")
        raise InternalError(f"broker: expected a reply of {_REPLY.size} bytes, got {len(reply)}")


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """One message and its descriptors, which children do not inherit."""
    fds = array.array("i")
    room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * fds.itemsize)
    data, ancillary, _, _ = connection.recvmsg(_REPLY.size + 1, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    return data, list(fds)


def _close_inherited_connections() -> None:
    for connection in list(_connections):
        connection._lock = threading.Lock()  # Another thread of the parent may have held it.
        connection._close()


os.register_at_fork(after_in_child=_close_inherited_connections)


class Session:
    """Credentials of a client, and what keeps its session open: a broker's connection, an open call, or nothing."""

    def __init__(self, token: str | None) -> None:
        self._token: Metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._process = os.getpid()
        self._open_call: Any = None
        self.broker: BrokerConnection | None = None
        self.metadata: Metadata = self._token
        self.closed = False

    def open_at_broker(self, path: str, client_name: str, timeout: float, call_timeout: float) -> None:
        """`timeout` for opening, `call_timeout` for what comes later. Errors: those of BrokerConnection."""
        self.broker = BrokerConnection(path, client_name, timeout, call_timeout)
        self._identify(self.broker.session_id, self.broker.secret.hex())

    def opened_by_call(self, call: Any, session_id: int, secret: str) -> None:
        """Takes over a call of Sessions.Open after its first event."""
        self._open_call = call
        self._identify(session_id, secret)

    def _identify(self, session_id: int, secret: str) -> None:
        self.metadata = (*self._token, ("gemmd-session", str(session_id)), ("gemmd-secret", secret))

    def check(self) -> None:
        """Errors: FailedPreconditionError if it is closed or belongs to the parent of this process."""
        if self.closed:
            raise FailedPreconditionError("client: closed")
        if os.getpid() != self._process:
            raise FailedPreconditionError(
                f"client: connected by process {self._process}, which this process was forked from; connect again here"
            )

    def close(self) -> None:
        """Ends the session. May be called again."""
        self.closed = True
        if self.broker is not None:
            self.broker.close()
        if self._open_call is not None:
            self._open_call.cancel()
            self._open_call = None
