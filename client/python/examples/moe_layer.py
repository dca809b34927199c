#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A mixture-of-experts layer of the shape of DeepSeek-V3 through gemmd, checked against a reference.

Each token goes to `top_k` of the experts; an expert is gate and up projection, SwiGLU, down projection. The weights are
resident in gemmd, FP8 per 128x128; activations are quantized per 1x128. The layer is computed twice: with the rows of
all experts one after another (grouped contiguous, as in prefill), and with a fixed number of rows for each (masked, as
in decode). With --torch everything but the products is torch, in host memory; moe_torch.py has it on a GPU.

Example: moe_layer.py --server=unix:/run/gemmd/gemmd.sock --tokens=64 --experts=8
"""

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import gemmd
import numpy as np


@dataclass
class Routing:
    """Which expert gets which token: entry i of the sorted list is token rows[i], for expert experts[i]."""

    rows: np.ndarray  # [T * top_k]
    experts: np.ndarray  # [T * top_k], ascending
    offsets: np.ndarray  # [E + 1]
    position: np.ndarray  # [T * top_k]: which row of its expert
    inverse: np.ndarray  # [T * top_k]: where (token, choice) is in the sorted list
    weights: np.ndarray  # [T, top_k]


def route(scores: np.ndarray, top_k: int) -> Routing:
    """Sends each token to the experts with its highest scores [T, E]; weights are sigmoids that add up to 1."""
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    weights = 1 / (1 + np.exp(-np.take_along_axis(scores, chosen, axis=1)))
    order = np.argsort(chosen.reshape(-1), kind="stable")
    experts = chosen.reshape(-1)[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(experts, minlength=scores.shape[1]))])
    return Routing(
        rows=order // top_k,
        experts=experts,
        offsets=offsets,
        position=np.arange(len(order)) - offsets[experts],
        inverse=np.argsort(order, kind="stable"),
        weights=(weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
    )


class MoeLayer:
    """The experts, with their weights in gemmd. `xp` is numpy or torch."""

    def __init__(self, client: gemmd.Client, gate_up: gemmd.Quantized, down: gemmd.Quantized, xp: Any):
        self.client, self.xp = client, xp
        self.gate_up = client.put(gate_up)  # [E, 2 * I, H]: gate, then up
        self.down = client.put(down)  # [E, H, I]

    def contiguous(self, x: Any, routing: Routing) -> Any:
        """y [T, H] of x [T, H]."""
        hidden = self.product(x[routing.rows], self.gate_up, offsets=routing.offsets)  # [T * top_k, 2 * I]
        out = self.product(self.swiglu(hidden), self.down, offsets=routing.offsets)  # [T * top_k, H]
        return self.combine(out, routing)

    def masked(self, x: Any, routing: Routing) -> Any:
        """The same with room for as many rows as the busiest expert has, for each."""
        masked_m = np.diff(routing.offsets)
        slots = (routing.experts, routing.position)
        padded = self.zeros(len(masked_m), int(masked_m.max()), x.shape[1])  # [E, M_max, H]
        padded[slots] = x[routing.rows]
        hidden = self.product(padded, self.gate_up, masked_m=masked_m)  # [E, M_max, 2 * I]
        out = self.product(self.swiglu(hidden), self.down, masked_m=masked_m)  # [E, M_max, H]
        return self.combine(out[slots], routing)

    def product(self, x: Any, weights: gemmd.Quantized, **groups: np.ndarray) -> Any:
        return self.client.grouped_gemm(gemmd.quantize(x), weights, dtype="float32", **groups)

    def swiglu(self, hidden: Any) -> Any:
        size = hidden.shape[-1] // 2
        gate, up = hidden[..., :size], hidden[..., size:]
        return gate / (1 + self.xp.exp(-gate)) * up

    def combine(self, out: Any, routing: Routing) -> Any:
        tokens, top_k = routing.weights.shape
        weights = self.xp.asarray(routing.weights)[:, :, None]
        return (out[routing.inverse].reshape(tokens, top_k, -1) * weights).sum(1)

    def zeros(self, *shape: int) -> Any:
        return self.xp.zeros(shape, dtype=self.xp.float32)


def reference(x: np.ndarray, gate_up: gemmd.Quantized, down: gemmd.Quantized, routing: Routing) -> np.ndarray:
    """The layer in numpy on the dequantized weights: products in float64, rounded where gemmd rounds."""
    y = np.zeros(x.shape)
    weights = routing.weights.reshape(-1)[np.argsort(routing.inverse, kind="stable")]
    for expert, (begin, end) in enumerate(zip(routing.offsets, routing.offsets[1:], strict=False)):
        if begin == end:
            continue
        rows = routing.rows[begin:end]
        hidden = dequantized(x[rows]) @ gate_up[expert].dequantize().astype(np.float64).T
        hidden = gemmd.to_float32(gemmd.to_bfloat16(hidden.astype(np.float32)))
        gate, up = np.split(hidden, 2, axis=1)
        activations = gate / (1 + np.exp(-gate)) * up
        out = dequantized(activations) @ down[expert].dequantize().astype(np.float64).T
        np.add.at(y, rows, out * weights[begin:end, None])
    return y


def dequantized(x: np.ndarray) -> np.ndarray:
    return gemmd.quantize(x).dequantize().astype(np.float64)


def random_weights(rng: np.random.Generator, experts: int, rows: int, columns: int) -> gemmd.Quantized:
    """FP8 [E, rows, columns], an expert at a time, so that the float32 weights never exist all at once."""
    parts = [
        gemmd.quantize(rng.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5), (128, 128))
        for _ in range(experts)
    ]
    data, scales = np.stack([part.data for part in parts]), np.stack([part.scales for part in parts])
    return gemmd.Quantized(data, scales, (128, 128))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="unix:/run/gemmd/gemmd.sock", help="address of gemmd")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--intermediate", type=int, default=2048)
    parser.add_argument("--experts", type=int, default=8, help="DeepSeek-V3 has 256; fewer are made sooner")
    parser.add_argument("--top_k", type=int, default=8, help="experts of a token, at most --experts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--torch", action="store_true", help="use torch for everything but the products")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    xp: Any = np
    if arguments.torch:
        import torch

        xp = torch
    rng = np.random.default_rng(arguments.seed)
    gate_up = random_weights(rng, arguments.experts, 2 * arguments.intermediate, arguments.hidden)
    down = random_weights(rng, arguments.experts, arguments.hidden, arguments.intermediate)
    x = rng.standard_normal((arguments.tokens, arguments.hidden), np.float32)
    scores = rng.standard_normal((arguments.tokens, arguments.experts))
    routing = route(scores, min(arguments.top_k, arguments.experts))
    expected = reference(x, gate_up, down, routing)

    failed = False
    with gemmd.connect(arguments.server, client_name="moe_layer") as client:
        layer = MoeLayer(client, gate_up, down, xp)
        values = x if xp is np else xp.from_numpy(x)
        for run in (layer.contiguous, layer.masked):
            begin = time.perf_counter()
            y = run(values, routing)
            seconds = time.perf_counter() - begin
            error = np.linalg.norm(np.asarray(y) - expected) / np.linalg.norm(expected)
            # `out` is rounded to bfloat16, and where a sum in another order rounds `hidden` to its neighbour, an
            # activation may become the neighbouring FP8 number.
            verdict = "ok" if error < 5e-3 else "WRONG"
            failed = failed or verdict != "ok"
            print(f"{run.__name__:<10}  relative error {error:.2e}  {seconds * 1e3:8.1f} ms  {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
