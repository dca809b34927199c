# SPDX-License-Identifier: Apache-2.0
"""Resident tensors: operands that gemmd keeps in device memory, known by id, or by name if they are shared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gemmd.arrays import Bits, DType, parse_dtype
from gemmd.errors import InvalidArgumentError
from gemmd.quantized import SCALE_BLOCK, Quantized
from gemmd.v1 import tensors_pb2

# The scale factors of a Quantized that is put under a name have this name.
SCALES_SUFFIX = ".scales"
# Bytes in one message: large enough to amortize a message, small enough to pipeline.
CHUNK_BYTES = 2 << 20


@dataclass(frozen=True)
class Tensor:
    """A tensor that gemmd keeps; an operand for every operation. Made by Client.put, found by Client.tensor.

    Plain data: it may outlive the tensor, and belongs to the session of the client that made it unless it is shared.
    Cannot be pickled, since ids mean nothing to other sessions; share it by name instead.

    Attributes:
        id: unique while the daemon lives; 0 if known by name only.
        name: for lists; a shared tensor is found by it.
        shared: visible to all sessions of the same user, and outlives the session.
        dtype: element type.
        shape: extents; row-major, contiguous.
        nbytes: size.
        device: where it lives: UUID of a GPU, or "cpu".
    """

    id: int
    name: str
    shared: bool
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int
    device: str

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __reduce__(self) -> Any:
        raise TypeError("Tensor: cannot be pickled; put it with shared=True and find it by name with Client.tensor")


def named_tensor(name: str, shape: Sequence[int], dtype: object) -> Tensor:
    """A tensor of the daemons' manifest (--tensor_manifest), by name: an operand for clients without a session.

    Nobody is asked: the daemon that runs the operation finds it, and refuses what is not as it is said to be here. The
    scale factors of a quantized one are a tensor of their own, name + ".sf".

    Args:
        name: as the manifest has it.
        shape: extents, outermost first.
        dtype: "float8_e4m3fn", "bfloat16" or "float32", or as gemmd.DType.
    """
    kind = parse_dtype("dtype", dtype)
    extents = tuple(int(extent) for extent in shape)
    return Tensor(0, name, True, kind, extents, math.prod(extents) * kind.bits.itemsize, "")


def operand(ref: Any, tensor: Tensor) -> None:
    """Fills gemmd.v1.TensorRef."""
    if tensor.id:
        ref.tensor_id = tensor.id
        return
    ref.tensor_name = tensor.name
    ref.dtype = tensor.dtype.value
    ref.shape.extend(tensor.shape)


def from_message(message: Any) -> Tensor:
    """Tensor from gemmd.v1.Tensor."""
    return Tensor(
        id=message.id,
        name=message.name,
        shared=message.shared,
        dtype=DType(message.dtype),
        shape=tuple(message.shape),
        nbytes=message.byte_size,
        device=message.device,
    )


def chunks(tensor_id: int, offset: int, data: Bits) -> Iterator[Any]:
    """gemmd.v1.WriteTensorRequest messages for the uint8 `data` that begins at `offset` of the tensor."""
    for begin in range(0, data.nbytes, CHUNK_BYTES):
        yield tensors_pb2.WriteTensorRequest(
            tensor_id=tensor_id, offset=offset + begin, data=data[begin : begin + CHUNK_BYTES].tobytes()
        )


def as_quantized(data: Tensor, scales: Tensor, block: tuple[int, int] | None) -> Quantized:
    """A Quantized of two tensors; without `block`, what the shapes say (one row of scales: (128, 128))."""
    if block is None:
        per_row = data.shape[-2] > 1 and scales.shape[-2] == data.shape[-2]
        block = (1, SCALE_BLOCK) if per_row else (SCALE_BLOCK, SCALE_BLOCK)
    return Quantized(data, scales, block)


def check_read_out(tensor: Tensor, shape: Sequence[int], dtype: DType, contiguous: bool) -> None:
    """InvalidArgumentError unless a tensor can be read into an array of these."""
    same_type = dtype is tensor.dtype or (dtype is DType.U8 and tensor.dtype is DType.E4M3)
    if tuple(shape) != tensor.shape or not same_type:
        raise InvalidArgumentError(
            f"out: expected {tensor.dtype.name} {tensor.shape}, got {dtype.name} {tuple(shape)}"
        )
    if not contiguous:
        raise InvalidArgumentError("out: expected a contiguous array, got another")
