# SPDX-License-Identifier: Apache-2.0
"""Operations pipelined on one gRPC stream: many in flight from one thread.

For small operations from one thread this is about twice as fast as one call after another. asyncio needs none of it:
there gathered calls are faster than a stream.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import grpc

from gemmd import operations
from gemmd.connection import like_operation
from gemmd.errors import (
    FailedPreconditionError,
    GemmdError,
    InvalidArgumentError,
    UnavailableError,
    from_code,
    from_rpc_error,
)
from gemmd.request import Call, Context, HasContext

if TYPE_CHECKING:
    from gemmd.client import Client

P = ParamSpec("P")
R = TypeVar("R")


def _submitting(
    operation: Callable[Concatenate[HasContext, P], Call[R]],
) -> Callable[Concatenate[Stream, P], Future[R]]:
    """A method of Stream that submits the operation."""

    @like_operation(operation, "Future[{}]")
    def method(self: Stream, /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        return self._submit(operation(self, *args, **kwargs))

    return method


class Stream:
    """Made by Client.stream; a context manager that waits for everything that was submitted.

        with client.stream() as stream:
            futures = [stream.gemm(a, weights) for a in batches]
        results = [future.result() for future in futures]

    Its operations take the arguments of the client's and give concurrent.futures.Future, which gets the result or the
    error of its operation; the stream goes on after an error. Arguments that cannot be sent raise at once. `timeout` is
    the time until the operation starts on the device. Results are copied on the stream's thread; thread-safe.
    """

    def __init__(self, client: Client, max_in_flight: int) -> None:
        if max_in_flight < 1:
            raise InvalidArgumentError(f"max_in_flight: expected at least 1, got {max_in_flight}")
        self._client = client
        self._ids = itertools.count(1)
        self._room = threading.Semaphore(max_in_flight)
        self._lock = threading.Lock()
        self._pending: dict[int, tuple[Call[Any], Future[Any]]] = {}
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = False
        self._error: GemmdError | None = None
        self._responses = client._open_stream(self._outgoing())
        self._reader = threading.Thread(target=self._read, name="gemmd-stream", daemon=True)
        self._reader.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def context(self) -> Context:
        """For the operations."""
        return self._client.context

    gemm = _submitting(operations.gemm)
    grouped_gemm = _submitting(operations.grouped_gemm)
    k_grouped_gemm = _submitting(operations.k_grouped_gemm)
    quantize = _submitting(operations.quantize)

    def close(self) -> None:
        """Waits until everything that was submitted has its result or its error. May be called again."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._requests.put(None)
        self._reader.join()

    def _submit(self, call: Call[R]) -> Future[R]:
        self._room.acquire()
        future: Future[R] = Future()
        future.set_running_or_notify_cancel()  # What is submitted cannot be cancelled.
        try:
            call.place()
            if call.timeout is not None:
                call.request.timeout_us = max(int(call.timeout * 1e6), 1)
            with self._lock:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise FailedPreconditionError("stream: closed")
                call.request.request_id = next(self._ids)
                self._pending[call.request.request_id] = (call, future)
                self._requests.put(call.request)
        except BaseException as error:
            self._room.release()
            call.abandon(error)
            raise
        return future

    def _outgoing(self) -> Iterator[Any]:
        """Runs on a thread of gRPC."""
        while (request := self._requests.get()) is not None:
            yield request

    def _read(self) -> None:
        error: GemmdError = UnavailableError("stream: ended before the answer came")
        try:
            for response in self._responses:
                self._answer(response)
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error)
        with self._lock:
            unanswered, self._pending = self._pending, {}
            self._error = error if not self._closed or unanswered else None
            self._closed = True
            self._requests.put(None)
        for call, future in unanswered.values():
            call.abandon(error)
            self._room.release()
            future.set_exception(error)

    def _answer(self, response: Any) -> None:
        with self._lock:
            call, future = self._pending.pop(response.request_id, (None, None))
        if call is None or future is None:
            return
        self._room.release()
        if response.status.code != 0:
            refusal = from_code(response.status.code, response.status.message)
            call.abandon(refusal)
            future.set_exception(refusal)
            return
        try:
            value = call.finish(response)
        except BaseException as error:
            call.abandon(error)
            future.set_exception(error)
            return
        future.set_result(value)
