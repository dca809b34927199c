# SPDX-License-Identifier: Apache-2.0
"""The operations, from arguments to a Call. Every client has them as methods, blocking or awaitable.

Operands have the names of the contract in errors: sfa and sfb are the scales of a and b, d is the result (`out`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gemmd.arrays import Array, DType, as_array, host_bits, is_gpu_array, is_torch, parse_dtype, torch_type, widen
from gemmd.device_arrays import gpu_to_host, locate
from gemmd.errors import InvalidArgumentError
from gemmd.quantized import SCALE_BLOCK, Quantized, ceil_div, check_block
from gemmd.request import Call, HasContext, Result, block_value
from gemmd.tensors import Tensor
from gemmd.v1 import gemm_pb2

# An array, a Tensor, or a Quantized of either.
Operand = Any
# A sequence of ints, an integer array, or a Tensor.
Groups = Any


def gemm(
    client: HasContext,
    a: Operand,
    b: Operand,
    *,
    out: Array | Tensor | None = None,
    dtype: object = None,
    accumulate: bool = False,
    timeout: float | None = None,
    priority: int = 0,
) -> Call[Array]:
    """D = A @ B.T, or D += A @ B.T.

    Args:
        a: [M, K] Quantized per (1, 128), or bfloat16; bfloat16 with a Quantized b is quantized by gemmd on the way.
        b: [N, K] Quantized per (128, 128) (weights) or (1, 128) (weight gradients), or bfloat16 if a is.
        out: [M, N] float32 or bfloat16, an array or a resident Tensor, to take the result; not copied if it lies in a
            region or on a GPU. Without it a new array is made, a torch tensor if `a` is one, on the GPU that `a` is on.
        dtype: of a new array: "float32" or "bfloat16". Default: bfloat16 for torch, float32 for numpy.
        accumulate: add to what `out` holds (float32).
        timeout: seconds for the call; default: the client's call_timeout.
        priority: 0 (normal) to 3 (most urgent).

    Returns:
        `out`, or the new array [M, N].

    Raises:
        InvalidArgumentError: shapes or types that do not fit; the message names the operand. Rows of operands must be
            multiples of 16 bytes: K % 16 for FP8, K % 8 for bfloat16, N % 8 for bfloat16 and N % 4 for float32 results.
        FailedPreconditionError: memory of a GPU that cannot be shared with gemmd; the message says why, and what can.
        GemmdError: what else the daemon says.
    """
    call: Call[Array] = Call(client.context, timeout)
    message = call.request.dense
    message.accumulate = accumulate
    _operands(call, message, a, b)
    shape = (_extent("a", a, 0, 2), _extent("b", b, 0, 2))
    if accumulate and out is None:
        raise InvalidArgumentError("out: expected an array or a Tensor to accumulate into, got None")
    _result(call, message, a, out, shape, _result_dtype(a, dtype), load=accumulate)
    call.request.priority = priority
    return call


def grouped_gemm(
    client: HasContext,
    a: Operand,
    b: Operand,
    *,
    offsets: Groups | None = None,
    row_index: Groups | None = None,
    aligned_ends: Groups | None = None,
    alignment: int = 128,
    masked_m: Groups | None = None,
    out: Array | Tensor | None = None,
    dtype: object = None,
    timeout: float | None = None,
    priority: int = 0,
) -> Call[Array]:
    """D[rows of g] = A[rows of g] @ B[g].T for each group g. Exactly one argument says which rows are whose.

    Args:
        a: [M, K], or [G, M_max, K] with masked_m: Quantized per (1, 128), or bfloat16, as for gemm.
        b: [G, N, K]: Quantized per (128, 128), or bfloat16 if a is.
        offsets: [G + 1]: group g owns rows offsets[g] to offsets[g + 1]; from 0 to M, no padding.
        row_index: [M]: the group of each row in ascending order, -1 for a padding row.
        aligned_ends: [G]: end row of each group; the next group starts at the next multiple of `alignment`.
        alignment: rows, for aligned_ends.
        masked_m: [G]: group g owns the first masked_m[g] rows of a[g]. Read on the GPU if it is int32 there and `a` is
            too; then values beyond M_max are taken for M_max. All other groups that are on a GPU are copied here first.
        out: [M, N], or [G, M_max, N] with masked_m; bfloat16 (with bfloat16 operands also float32).
        dtype: as for gemm. FP8 products are rounded to bfloat16 by gemmd; "float32" widens that.
        timeout, priority: as for gemm.

    Returns:
        `out`, or a new array. Rows that no group owns are zero in a new array; in `out` they may be zero or as before.

    Raises:
        As gemm; also InvalidArgumentError unless exactly one argument says which rows are whose.
    """
    given = {
        "offsets": offsets,
        "row_index": row_index,
        "aligned_ends": aligned_ends,
        "masked_m": masked_m,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise InvalidArgumentError(
            f"row_groups: expected one of {', '.join(given)}, got {', '.join(names) if names else 'none'}"
        )
    call: Call[Array] = Call(client.context, timeout)
    if masked_m is not None:
        message = call.request.m_grouped_masked
        if not (_is_on_gpu(a) and _is_int32_on_gpu(masked_m)):
            masked_m = _on_host("masked_m", masked_m)
            _groups(call, "masked_m", message.masked_m, masked_m, np.int32)
        else:
            call.input("masked_m", message.masked_m, masked_m)
    else:
        message = call.request.m_grouped_contiguous
        name = names[0]
        _groups(
            call,
            f"row_groups.{name}",
            getattr(message.row_groups, name),
            _on_host(f"row_groups.{name}", given[name]),
            np.int64 if name == "offsets" else np.int32,
        )
        if name == "aligned_ends":
            message.row_groups.alignment = alignment
    _operands(call, message, a, b)
    rank = 3 if masked_m is not None else 2
    shape = (*(_extent("a", a, axis, rank) for axis in range(rank - 1)), _extent("b", b, 1, 3))
    wanted = _result_dtype(a, dtype)
    rounded = out is None and wanted is DType.F32 and message.scaling != gemm_pb2.SCALING_NONE
    result = _result(call, message, a, out, shape, DType.BF16 if rounded else wanted, partial=offsets is None)
    if rounded and _is_torch_on_gpu(a):
        assert call.take is not None
        call.take = _widened_on_gpu(call.take, _new_on_gpu(a, shape, DType.F32))
    elif rounded:
        call.take = lambda response: as_array(widen(result.fetch(response.d)), DType.F32, torch=_like_torch(a))
    call.request.priority = priority
    return call


def k_grouped_gemm(
    client: HasContext,
    a: Operand,
    b: Operand,
    ks: Groups,
    *,
    out: Array | Tensor | None = None,
    accumulate: bool = False,
    timeout: float | None = None,
    priority: int = 0,
) -> Call[Array]:
    """D[g] = A_g @ B_g.T, or D[g] += A_g @ B_g.T, where group g owns ks[g] of the columns.

    Args:
        a: [M * sum(ks)] flat, the K-major [M, ks[g]] matrices one after another: Quantized (see quantize_k_groups), or
            bfloat16.
        b: [N * sum(ks)], likewise.
        ks: [G]: columns of each group, multiples of 16 (8 for bfloat16), 0 allowed.
        out: [G, M, N] float32. Needed for bfloat16 operands if ks adds up to 0.
        accumulate: add to what `out` holds.
        timeout, priority: as for gemm.

    Returns:
        `out`, or a new array [G, M, N] float32.

    Raises:
        As gemm.
    """
    call: Call[Array] = Call(client.context, timeout)
    message = call.request.k_grouped
    message.accumulate = accumulate
    if accumulate and out is None:
        raise InvalidArgumentError("out: expected an array or a Tensor to accumulate into, got None")
    ks = _on_host("ks", ks)
    sizes = _groups(call, "ks", message.ks, ks, np.int64)
    _operands(call, message, a, b)
    if out is not None:
        shape = tuple(out.shape)
    else:
        shape = (_extent("ks", ks, 0, 1), _flat_rows("a", a, sizes), _flat_rows("b", b, sizes))
    _result(call, message, a, out, shape, DType.F32, load=accumulate)
    call.request.priority = priority
    return call


def quantize(
    client: HasContext,
    x: Operand,
    block: Sequence[int] = (1, SCALE_BLOCK),
    *,
    out: Quantized | None = None,
    timeout: float | None = None,
    priority: int = 0,
) -> Call[Quantized]:
    """FP8 from a matrix, computed by gemmd; the same bits as gemmd.quantize gives.

    Args:
        x: [M, K] float32 or bfloat16, an array or a resident Tensor; or an array [G, M, K], for block (128, 128) with
            M a multiple of 128.
        block: (1, 128) for A and weight gradients, (128, 128) for weights.
        out: takes the result; shapes as below.
        timeout, priority: as for gemm.

    Returns:
        `out`, or Quantized with new arrays: data of the shape of x, and scales [..., M, ceil(K/128)] or
        [..., ceil(M/128), ceil(K/128)].

    Raises:
        As gemm.
    """
    rows = check_block(block)[0]
    call: Call[Quantized] = Call(client.context, timeout)
    message = call.request.quantize
    message.block = block_value(block)
    shape = tuple(x.shape)
    if len(shape) == 3 and (isinstance(x, Tensor) or shape[1] % rows != 0 or out is not None):
        raise InvalidArgumentError(
            "x.shape: expected 2 dimensions (3 only for an array without `out`, whose matrices are whole blocks of "
            f"rows), got {shape}"
        )
    call.input("x", message.x, x.reshape(-1, shape[2]) if len(shape) == 3 else x)
    m, k = (shape[0] * shape[1], shape[2]) if len(shape) == 3 else (_extent("x", x, 0, 2), shape[1])
    scales_shape = (ceil_div(m, rows), ceil_div(k, SCALE_BLOCK))
    stacked = shape[:-2]
    new: Quantized | None = None
    if out is None and _is_torch_on_gpu(x):
        new_data, new_scales = _new_on_gpu(x, (m, k), DType.E4M3), _new_on_gpu(x, scales_shape, DType.F32)
        out = Quantized(new_data, new_scales, (rows, SCALE_BLOCK))
        all_scales = new_scales.reshape((*stacked, ceil_div(shape[-2], rows), scales_shape[1]))
        new = Quantized(new_data.reshape(shape), all_scales, out.block)
    data = call.output("q", message.q, out.data if out else None, (m, k), DType.E4M3)
    scales = call.output("sf", message.sf, out.scales if out else None, scales_shape, DType.F32)
    torch = is_torch(x)

    def take(response: Any) -> Quantized:
        if new is not None:
            return new
        if out is not None:
            for result, inline in ((data, response.d), (scales, response.sf)):
                if not result.in_place:
                    result.fetch(inline)
            return out
        return Quantized(
            as_array(data.fetch(response.d).reshape(shape), DType.E4M3, torch=torch),
            as_array(
                scales.fetch(response.sf).reshape((*stacked, ceil_div(shape[-2], rows), scales_shape[1])),
                DType.F32,
                torch=torch,
            ),
            (rows, SCALE_BLOCK),
        )

    call.take = take
    call.request.priority = priority
    return call


def _operands(call: Call[Any], message: Any, a: Operand, b: Operand) -> None:
    """Sets a, sfa, b, sfb and how they are scaled."""
    if isinstance(a, Quantized):
        if a.block[0] != 1:
            raise InvalidArgumentError(f"a.block: expected (1, 128), got {a.block}")
        if not isinstance(b, Quantized):
            raise InvalidArgumentError("b: expected a Quantized, since a is one; got an operand without scales")
    if isinstance(b, Quantized):
        message.scaling = gemm_pb2.SCALING_1D1D if b.block[0] == 1 else gemm_pb2.SCALING_1D2D
    else:
        message.scaling = gemm_pb2.SCALING_NONE
    for name, operand in (("a", a), ("b", b)):
        if isinstance(operand, Quantized):
            call.input(name, getattr(message, name), operand.data, dtype=DType.E4M3)
            call.input(f"sf{name}", getattr(message, f"sf{name}"), operand.scales)
        else:
            ref = getattr(message, name)
            call.input(name, ref, operand)
            if not isinstance(operand, Tensor) and ref.dtype != DType.BF16.value:
                raise InvalidArgumentError(
                    f"{name}.dtype: expected a Quantized (gemmd.quantize) or bfloat16 (gemmd.to_bfloat16), got "
                    f"{DType(ref.dtype).name}"
                )


def _groups(call: Call[Any], name: str, ref: Any, value: Groups, integer: type[Any]) -> Any:
    """Adds an array of integers; gives it, or None if it is a Tensor."""
    if isinstance(value, Tensor):
        call.input(name, ref, value)
        return None
    if not isinstance(value, np.ndarray) and not is_torch(value):
        value = np.asarray(value, dtype=np.int64 if len(value) == 0 else None)
        if value.dtype.kind not in "iu":
            raise InvalidArgumentError(f"{name}: expected integers, got {value.dtype}")
    if isinstance(value, np.ndarray):
        bits = value
        if bits.dtype.kind not in "iu":
            raise InvalidArgumentError(f"{name}.dtype: expected int32 or int64, got {bits.dtype}")
    else:
        bits = host_bits(name, value)[0]
    accepted = (np.int32, np.int64) if integer is np.int64 else (np.int32,)
    if bits.dtype not in accepted:
        limits = np.iinfo(integer)
        if bits.size and (int(bits.min()) < limits.min or int(bits.max()) > limits.max):
            raise InvalidArgumentError(f"{name}: expected values of {integer.__name__}, got {bits.max()}")
        bits = bits.astype(integer)
    call.input(name, ref, bits)
    return bits


def _on_host(name: str, groups: Groups) -> Groups:
    """A copy of an array that is on a GPU, since the daemon reads it before it launches; all others as they are."""
    if not is_gpu_array(groups):
        return groups
    return groups.cpu() if is_torch(groups) else gpu_to_host(name, groups)


def _is_int32_on_gpu(groups: Groups) -> bool:
    if not is_gpu_array(groups):
        return False
    return locate("masked_m", groups)[1] is DType.I32


def _extent(name: str, operand: Operand, axis: int, rank: int) -> int:
    shape = operand.shape if hasattr(operand, "shape") else np.shape(operand)
    if len(shape) != rank:
        raise InvalidArgumentError(f"{name}.shape: expected {rank} dimensions, got {len(shape)}")
    return int(shape[axis])


def _flat_rows(name: str, operand: Operand, ks: Any) -> int:
    """M or N of a flat operand."""
    if isinstance(operand, Quantized):
        return _extent(f"sf{name}", operand.scales, 0, 2)
    total = 0 if ks is None else int(ks.sum())
    if total <= 0:
        raise InvalidArgumentError("out: expected an array, since the other operands do not say its shape; got None")
    return _extent(name, operand, 0, 1) // total


def _like_torch(a: Operand) -> bool:
    return is_torch(a.data if isinstance(a, Quantized) else a)


def _is_on_gpu(a: Operand) -> bool:
    return is_gpu_array(a.data if isinstance(a, Quantized) else a)


def _is_torch_on_gpu(a: Operand) -> bool:
    return _like_torch(a) and _is_on_gpu(a)


def _new_on_gpu(a: Operand, shape: tuple[int, ...], dtype: DType, *, zeros: bool = False) -> Array:
    """A torch tensor on the GPU of a torch operand."""
    torch = sys.modules["torch"]
    make = torch.zeros if zeros else torch.empty
    return make(shape, dtype=torch_type(dtype), device=(a.data if isinstance(a, Quantized) else a).device)


def _widened_on_gpu(rounded: Callable[[Any], Array], wide: Array) -> Callable[[Any], Array]:
    """How the float32 tensor `wide` is taken that has the elements of a bfloat16 result. It is made before the call,
    because results may be taken on another thread, where another stream is current."""

    def take(response: Any) -> Array:
        wide.copy_(rounded(response))
        sys.modules["torch"].cuda.current_stream(wide.device).synchronize()
        return wide

    return take


def _result_dtype(a: Operand, dtype: object) -> DType:
    if dtype is None:
        return DType.BF16 if _like_torch(a) else DType.F32
    return parse_dtype("dtype", dtype)


def _result(
    call: Call[Array],
    message: Any,
    a: Operand,
    out: Array | Tensor | None,
    shape: tuple[int, ...],
    dtype: DType,
    *,
    load: bool = False,
    partial: bool = False,
) -> Result:
    """Sets d, and how it is taken from the response. A new result is where `a` is, if torch can make it there."""
    if out is None and _is_torch_on_gpu(a):
        out = _new_on_gpu(a, shape, dtype, zeros=partial)
    result = call.output("d", message.d, out, shape, dtype, load=load, partial=partial)
    torch = _like_torch(a)

    def take(response: Any) -> Array:
        if result.in_place:
            return out
        bits = result.fetch(response.d)
        return as_array(bits, dtype, torch=torch) if out is None else out

    call.take = take
    return result
