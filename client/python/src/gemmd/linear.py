# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose weights are resident in gemmd: y = x @ W.T + bias."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from gemmd.arrays import Array, DType, as_array, host_bits, is_torch, to_bfloat16, to_float32
from gemmd.client import Client
from gemmd.device_arrays import locate
from gemmd.errors import InvalidArgumentError
from gemmd.quantized import Quantized, quantize
from gemmd.tensors import Tensor


def quantized_weight(weight: Any) -> Quantized:
    """Quantized per (128, 128) of a weight [N, K], unless it is Quantized already."""
    return weight if isinstance(weight, Quantized) else quantize(weight, block=(128, 128))


def is_resident(weight: Quantized) -> bool:
    return isinstance(weight.data, Tensor)


class LinearLayer:
    """What Linear and gemmd.aio.Linear share: all but the calls."""

    def __init__(self, weight: Quantized, bias: Array | None) -> None:
        if len(weight.shape) != 2:
            raise InvalidArgumentError(f"weight.shape: expected 2 dimensions, got {len(weight.shape)}")
        if bias is not None and tuple(bias.shape) != weight.shape[:1]:
            raise InvalidArgumentError(f"bias.shape: expected {weight.shape[:1]}, got {tuple(bias.shape)}")
        self._weight = weight
        self._bias = bias

    @property
    def weight(self) -> Quantized:
        """Two resident Tensors, [N, K] and [ceil(N/128), ceil(K/128)]."""
        return self._weight

    @property
    def in_features(self) -> int:
        return self._weight.shape[1]

    @property
    def out_features(self) -> int:
        return self._weight.shape[0]

    def _rows(self, x: Array) -> Any:
        """The operand [M, K] of x [..., K]: bfloat16 as it is (gemmd quantizes it), float32 quantized here."""
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise InvalidArgumentError(f"x.shape: expected [..., {self.in_features}], got {list(x.shape)}")
        rows = x.reshape(-1, self.in_features)
        return rows if locate("x", x)[1] is DType.BF16 else quantize(rows)

    def _result(self, d: Array, x: Array) -> Array:
        """y [..., N] of the type of x, from the product [M, N] in float32."""
        dtype = locate("x", x)[1]
        bias = self._bias
        if is_torch(x):
            y = d if bias is None else d + sys.modules["torch"].as_tensor(bias, device=x.device).float()
            return y.reshape(*x.shape[:-1], self.out_features).to(x.dtype)
        y = d if bias is None else d + (to_float32(bias) if not is_torch(bias) else np.asarray(bias.float()))
        y = y.reshape(*x.shape[:-1], self.out_features)
        if dtype is not DType.BF16:
            return y
        bits, kind = host_bits("y", to_bfloat16(y))
        return as_array(bits, kind, torch=False)


class Linear(LinearLayer):
    """y = x @ W.T + bias, with W resident in gemmd as FP8 per 128x128.

        with gemmd.Linear(client, weight, bias) as layer:
            y = layer(x)

    A context manager that closes it.
    """

    def __init__(
        self, client: Client, weight: Any, bias: Array | None = None, *, name: str = "", shared: bool = False
    ) -> None:
        """Stores the weight.

        Args:
            client: makes the calls.
            weight: [N, K] float32 or bfloat16, or a Quantized per (128, 128) of arrays or of resident Tensors (for
                example of Client.quantized), which are used as they are.
            bias: [N] float32 or bfloat16, added here.
            name, shared: as for Client.put; a shared weight is not deleted by close().

        Raises:
            As Client.put.
        """
        weight = quantized_weight(weight)
        super().__init__(weight, bias)
        self._client = client
        self._owned = not is_resident(weight)
        if self._owned:
            self._weight = client.put(weight, name, shared=shared)
            self._owned = not shared

    def __call__(self, x: Array, *, timeout: float | None = None, priority: int = 0) -> Array:
        """y [..., N] of the type of x [..., K]: float32 (quantized here) or bfloat16 (quantized by gemmd).

        Raises as Client.gemm.
        """
        d = self._client.gemm(self._rows(x), self._weight, dtype="float32", timeout=timeout, priority=priority)
        return self._result(d, x)

    def __enter__(self) -> Linear:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Deletes the weight, if this layer stored it and it is not shared. May be called again."""
        if self._owned and not self._client.closed:
            self._owned = False
            self._client.delete(self._weight)
