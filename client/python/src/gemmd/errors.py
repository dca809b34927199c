# SPDX-License-Identifier: Apache-2.0
"""Exceptions: one class for each gRPC code that gemmd gives, all of them GemmdError.

The message is the daemon's: it names the field, what was expected and what came, for example
``b.shape[1]: expected 7168, got 7000``. What this package refuses by itself has the same form and the same classes.
"""

from __future__ import annotations

import re
from typing import Any

import grpc

# "b.shape[1]: expected ..." and "row_groups.offsets: expected ...".
_FIELD = re.compile(r"([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*|\[\d+\])*): ")
_RETRY_METADATA = "grpc-retry-pushback-ms"


class GemmdError(Exception):
    """Base of everything that a call to gemmd raises.

    Attributes:
        code: the grpc.StatusCode.
        message: what was wrong.
        field: the field of the request that the message names, or None.
        retry_after: seconds after which it may work, or None if the daemon gave no hint.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, *, code: grpc.StatusCode | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.message = message
        self.retry_after = retry_after
        match = _FIELD.match(message)
        self.field = match.group(1) if match else None

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class InvalidArgumentError(GemmdError, ValueError):
    """The request is malformed or not allowed; the message names the field."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(GemmdError, LookupError):
    """No such region, tensor or session, or another client's."""

    code = grpc.StatusCode.NOT_FOUND


class OutOfRangeError(GemmdError, IndexError):
    """A slice outside its region or tensor."""

    code = grpc.StatusCode.OUT_OF_RANGE


class AlreadyExistsError(GemmdError):
    """A shared tensor of this name exists."""

    code = grpc.StatusCode.ALREADY_EXISTS


class ResourceExhaustedError(GemmdError):
    """A quota, a queue, memory or the size of a message; `retry_after` may say when to try again."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceededError(GemmdError, TimeoutError):
    """`timeout` passed. Where results go to shared memory, they may still be written there."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledError(GemmdError):
    """The call was cancelled, for example because the client was closed."""

    code = grpc.StatusCode.CANCELLED


class AbortedError(GemmdError):
    """The output overlaps another one in flight."""

    code = grpc.StatusCode.ABORTED


class FailedPreconditionError(GemmdError):
    """A region that is closed, a client that is closed, or memory sharing without a broker."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class UnavailableError(GemmdError, ConnectionError):
    """No gemmd there, no worker ready, the worker died, or the daemon drains."""

    code = grpc.StatusCode.UNAVAILABLE


class UnauthenticatedError(GemmdError, PermissionError):
    """No or wrong credentials; also the session of a daemon that was restarted."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(GemmdError, PermissionError):
    """Not allowed for this caller."""

    code = grpc.StatusCode.PERMISSION_DENIED


class UnimplementedError(GemmdError):
    """The daemon does not know this call: it is older than this package."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(GemmdError):
    """A fault of gemmd."""

    code = grpc.StatusCode.INTERNAL


_CLASSES: dict[int, type[GemmdError]] = {
    kind.code.value[0]: kind
    for kind in (
        InvalidArgumentError,
        NotFoundError,
        OutOfRangeError,
        AlreadyExistsError,
        ResourceExhaustedError,
        DeadlineExceededError,
        CancelledError,
        AbortedError,
        FailedPreconditionError,
        UnavailableError,
        UnauthenticatedError,
        PermissionDeniedError,
        UnimplementedError,
        InternalError,
    )
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_code(number: int, message: str, retry_after: float | None = None) -> GemmdError:
    """The exception for a status: `number` is a google.rpc.Code."""
    code = _CODES.get(number, grpc.StatusCode.UNKNOWN)
    return _CLASSES.get(number, GemmdError)(message, code=code, retry_after=retry_after)


def from_rpc_error(error: Any) -> GemmdError:
    """The exception for a grpc.RpcError, of the blocking API or of grpc.aio."""
    retry_after = None
    for key, value in error.trailing_metadata() or ():
        if key == _RETRY_METADATA:
            retry_after = int(value) / 1000
    return from_code(error.code().value[0], error.details() or "", retry_after)
