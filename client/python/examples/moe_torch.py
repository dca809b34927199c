#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A mixture-of-experts layer of the shape of DeepSeek-V3 on a GPU, through gemmd from torch CUDA tensors.

Each token goes to `top_k` of the experts; an expert is gate and up projection, SwiGLU, down projection. Weights and
activations are torch CUDA tensors that gemmd uses where they are; the products are gemmd's, which quantizes their rows
on the way, the rest is torch. The layer is computed twice, with the rows of all experts one after another (offsets, as
in prefill) and with room for the busiest expert's rows for each (masked, as in decode), and compared with torch: the
error against the same layer in float32 on the same FP8 numbers, the time beside that of torch in bfloat16, an expert at
a time.

Needs torch with CUDA, and a gemmd on the same GPU of this machine.
Example: moe_torch.py --server=unix:/run/gemmd/gemmd.sock --tokens=128 --experts=32
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gemmd

try:
    import torch
except ImportError:
    torch = None

# Where a sum in another order rounds `hidden` to its neighbour, an activation may become the neighbouring FP8 number.
ERROR_LIMIT = 1e-2


@dataclass
class Routing:
    """Which expert gets which token: entry i of the sorted list is token rows[i], for expert experts[i]."""

    rows: Any  # [T * top_k] int64
    experts: Any  # [T * top_k] int64, ascending
    position: Any  # [T * top_k] int64: which row of its expert
    offsets: Any  # [E + 1] int64
    masked_m: Any  # [E] int32
    most: int  # Rows of the busiest expert.
    inverse: Any  # [T * top_k] int64: where (token, choice) is in the sorted list
    weights: Any  # [T, top_k, 1] float32


def route(scores: Any, top_k: int) -> Routing:
    """Sends each token to the experts with its highest scores [T, E]; weights are sigmoids that add up to 1."""
    best, chosen = scores.topk(top_k, dim=1)
    weights = best.sigmoid()
    experts, order = chosen.reshape(-1).sort(stable=True)
    counts = torch.bincount(experts, minlength=scores.shape[1])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Routing(
        rows=order // top_k,
        experts=experts,
        position=torch.arange(len(order), device=scores.device) - offsets[experts],
        offsets=offsets,
        masked_m=counts.to(torch.int32),
        most=int(counts.max()),
        inverse=order.argsort(),
        weights=(weights / weights.sum(dim=1, keepdim=True))[:, :, None],
    )


def swiglu(hidden: Any) -> Any:
    """bfloat16 [..., I] of [..., 2 * I]: gate, then up."""
    gate, up = hidden.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(torch.bfloat16)


def combine(out: Any, routing: Routing) -> Any:
    """y [T, H] of the experts' rows [T * top_k, H]."""
    tokens, top_k, _ = routing.weights.shape
    return (out[routing.inverse].float().reshape(tokens, top_k, -1) * routing.weights).sum(1)


@dataclass
class Layer:
    """The experts: gate_up [E, 2 * I, H] and down [E, H, I], FP8 per 128x128, on the GPU."""

    client: gemmd.Client
    gate_up: gemmd.Quantized
    down: gemmd.Quantized

    def by_offsets(self, x: Any, routing: Routing) -> Any:
        """y [T, H] of x [T, H] bfloat16."""
        hidden = self.product(x[routing.rows], self.gate_up, offsets=routing.offsets)  # [T * top_k, 2 * I]
        out = self.product(swiglu(hidden), self.down, offsets=routing.offsets)  # [T * top_k, H]
        return combine(out, routing)

    def masked(self, x: Any, routing: Routing) -> Any:
        slots = (routing.experts, routing.position)
        padded = x.new_zeros(len(routing.masked_m), routing.most, x.shape[1])  # [E, M_max, H]
        padded[slots] = x[routing.rows]
        hidden = self.product(padded, self.gate_up, masked_m=routing.masked_m)  # [E, M_max, 2 * I]
        out = self.product(swiglu(hidden), self.down, masked_m=routing.masked_m)  # [E, M_max, H]
        return combine(out[slots], routing)

    def product(self, x: Any, weights: gemmd.Quantized, **groups: Any) -> Any:
        return self.client.grouped_gemm(x, weights, **groups)


def per_expert(x: Any, routing: Routing, expert_layer: Callable[[Any, int], Any]) -> Any:
    """y [T, H], by torch: `expert_layer` gives the rows [M, H] of one expert."""
    out = x.new_empty(len(routing.rows), x.shape[1])
    bounds = routing.offsets.tolist()
    for expert, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if begin < end:
            out[begin:end] = expert_layer(x[routing.rows[begin:end]], expert)
    return combine(out, routing)


def dequantized(q: gemmd.Quantized) -> Any:
    """float32 [M, K]."""
    rows, columns = q.shape
    scales = q.scales.repeat_interleave(q.block[0], 0).repeat_interleave(q.block[1], 1)
    return q.data.float() * scales[:rows, :columns]


def reference_expert(layer: Layer, x: Any, expert: int) -> Any:
    """In float32 on the dequantized weights, rounded where gemmd rounds."""
    hidden = (dequantized(gemmd.quantize(x)) @ dequantized(layer.gate_up[expert]).T).to(torch.bfloat16)
    return (dequantized(gemmd.quantize(swiglu(hidden))) @ dequantized(layer.down[expert]).T).to(torch.bfloat16)


def random_weights(generator: Any, experts: int, rows: int, columns: int) -> gemmd.Quantized:
    """FP8 [E, rows, columns], an expert at a time, so that the float32 weights never exist all at once."""
    data = torch.empty((experts, rows, columns), dtype=torch.float8_e4m3fn, device="cuda")
    scales = torch.empty((experts, -(-rows // 128), -(-columns // 128)), device="cuda")
    for expert in range(experts):
        part = torch.randn((rows, columns), generator=generator, device="cuda") / columns**0.5
        quantized = gemmd.quantize(part, (128, 128))
        data[expert], scales[expert] = quantized.data, quantized.scales
    return gemmd.Quantized(data, scales, (128, 128))


def milliseconds(run: Callable[[], Any], repeats: int) -> float:
    """The median, after one run that is not counted."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[1:])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="unix:/run/gemmd/gemmd.sock", help="address of gemmd")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--intermediate", type=int, default=2048)
    parser.add_argument("--experts", type=int, default=32, help="DeepSeek-V3 has 256, which take 11 GiB")
    parser.add_argument("--top_k", type=int, default=8, help="experts of a token, at most --experts")
    parser.add_argument("--repeats", type=int, default=20, help="runs that are timed")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def compare(layer: Layer, x: Any, routing: Routing, repeats: int) -> bool:
    """Prints errors and times; False if an error is too large."""
    expected = per_expert(x, routing, lambda rows, expert: reference_expert(layer, rows, expert))
    right = True
    for name, run in (("offsets", layer.by_offsets), ("masked", layer.masked)):
        error = float((run(x, routing) - expected).norm() / expected.norm())
        verdict = "ok" if error < ERROR_LIMIT else "WRONG"
        right = right and verdict == "ok"
        took = milliseconds(lambda run=run: run(x, routing), repeats)
        print(f"gemmd {name:<8}  relative error {error:.2e}  {took:8.3f} ms  {verdict}")
    experts = range(layer.gate_up.shape[0])
    gate_up = [dequantized(layer.gate_up[expert]).to(torch.bfloat16) for expert in experts]
    down = [dequantized(layer.down[expert]).to(torch.bfloat16) for expert in experts]
    took = milliseconds(
        lambda: per_expert(x, routing, lambda rows, expert: swiglu(rows @ gate_up[expert].T) @ down[expert].T), repeats
    )
    print(f"torch bfloat16  {took:33.3f} ms")
    return right


def main() -> int:
    arguments = parse_arguments()
    if torch is None or not torch.cuda.is_available():
        found = "no torch" if torch is None else f"torch {torch.__version__} without it"
        print(f"moe_torch: expected torch with CUDA, got {found}", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator(device="cuda").manual_seed(arguments.seed)
    gate_up = random_weights(generator, arguments.experts, 2 * arguments.intermediate, arguments.hidden)
    down = random_weights(generator, arguments.experts, arguments.hidden, arguments.intermediate)
    x = torch.randn((arguments.tokens, arguments.hidden), generator=generator, device="cuda").to(torch.bfloat16)
    scores = torch.randn((arguments.tokens, arguments.experts), generator=generator, device="cuda")
    routing = route(scores, min(arguments.top_k, arguments.experts))
    with gemmd.connect(arguments.server, client_name="moe_torch") as client:
        return 0 if compare(Layer(client, gate_up, down), x, routing, arguments.repeats) else 1


if __name__ == "__main__":
    sys.exit(main())
