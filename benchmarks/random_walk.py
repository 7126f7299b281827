"""Claim: a random walk of 256 steps is 1,000 times as fast as its dense form, in 5 % of its memory, equal to 1e-9.

Three maps on a grid of 94 x 125 cells (an image of 375 x 500, 4 pixels a cell), radius 5, beta 10. The dense form is
the released code's: it fills the (h w)^2 matrix, squares it 8 times and multiplies the maps with it. Ours is
`wsss_lib.refine.random_walk`. Both begin with the affinities, smooth random ones. The dense form takes minutes: so it
takes no turns, but is measured after ours, once if not told otherwise. Memory is what is alive at most beyond the
inputs, the result included: on a CPU from every allocation and release of torch's allocator in the profiler's trace, on
a GPU as torch counts it.

    python benchmarks/random_walk.py [--height 94] [--width 125] [--maps 3] [--t 8] [--dtype float64] [--device cpu]
                                     [--dense-rounds 1] [--rounds 5] [--threads 0]
"""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as F
from _measure import machine, options_of, parse, peak, spread, table, take_turns, verdict
from torch import Tensor

from wsss_lib.nn.pairs import Offset, ends, offsets
from wsss_lib.refine.random_walk import random_walk

SPEED_BAR = 1000.0
MEMORY_BAR = 0.05
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}  # what the dense form itself is good for
RADIUS, BETA = 5, 10

Affinities = list[tuple[Offset, Tensor]]


def dense_walk(maps: Tensor, pairs: Affinities, beta: float, t: int) -> Tensor:
    """The walk by squaring the matrix of one step t times; at most two such matrices are in memory."""
    height, width = maps.shape[1:]
    cells = torch.arange(height * width, device=maps.device).view(height, width)
    matrix = torch.eye(height * width, dtype=maps.dtype, device=maps.device)
    for offset, affinity in pairs:
        first, second = (end.flatten() for end in ends(cells, offset))
        matrix[first, second] = matrix[second, first] = affinity.flatten()
    matrix.pow_(beta)
    matrix /= matrix.sum(0)
    for _ in range(t):
        matrix = matrix @ matrix
    return (maps.flatten(1) @ matrix).view_as(maps)


def smooth(height: int, width: int, maps: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Affinities]:
    """Random maps in [0, 1], and affinities as AffinityNet's: they fall with the distance of smooth features."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 16 + maps, height // 8 + 2, width // 8 + 2, generator=draw)
    fine = F.interpolate(coarse, (height, width), mode="bicubic").to(device, dtype)
    features, scores = fine.split((16, maps), 1)
    apart = ((offset, ends(features, offset)) for offset in offsets(RADIUS))
    return scores[0].sigmoid(), [(offset, (-(a - b).abs().mean(1)).exp()) for offset, (a, b) in apart]


@torch.inference_mode()
def measure(
    height: int, width: int, maps: int, t: int, rounds: int, dense_rounds: int, device: str = "cpu", dtype="float64"
) -> tuple[dict[str, list[float]], dict[str, float], float]:
    """Seconds of every round and peak MB of both forms, and how far their maps differ at most."""
    given, pairs = smooth(height, width, maps, device, getattr(torch, dtype))
    results = {}
    seconds = {"ours": [], "reference": []}

    def ours() -> None:
        results["ours"] = random_walk(given, pairs, BETA, t)
        results["ours"].sum().item()  # a GPU has to be waited for

    def dense() -> None:
        start = time.perf_counter()
        results["reference"] = dense_walk(given, pairs, BETA, t)
        results["reference"].sum().item()
        seconds["reference"].append(time.perf_counter() - start)

    peaks = {"ours": peak(ours, device)}
    seconds |= take_turns({"ours": ours}, rounds)
    for _ in range(dense_rounds):
        peaks["reference"] = peak(dense, device)
    return seconds, peaks, float((results["ours"] - results["reference"]).abs().max())


def report(
    seconds: dict[str, list[float]], peaks: dict[str, float], difference: float, device: str, dtype: str
) -> dict:
    """The record of the last line; `holds` needs all three parts of the claim."""
    middle = {name: spread(values)[0] for name, values in seconds.items()}
    ratio, memory = middle["reference"] / middle["ours"], peaks["ours"] / peaks["reference"]
    return {
        "claim": f"the random walk is {SPEED_BAR:.0f} times as fast as its dense form, in {MEMORY_BAR} of its memory,"
        f" equal to {TOLERANCE[dtype]:.0e} in {dtype}",
        "ours": round(middle["ours"], 3),
        "reference": round(middle["reference"], 3),
        "unit": "s",
        "ratio": round(ratio, 1),
        "bar": SPEED_BAR,
        "holds": ratio >= SPEED_BAR and memory < MEMORY_BAR and difference <= TOLERANCE[dtype],
        "peak_mb": {name: round(value, 2) for name, value in peaks.items()},
        "memory_ratio": round(memory, 4),
        "memory_bar": MEMORY_BAR,
        "max_difference": difference,
        "rounds": len(seconds["ours"]),
        "dense_rounds": len(seconds["reference"]),
        **machine(),
        **({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table and the record; 0 where the claim holds, else 1."""
    parser = options_of(__doc__, rounds=5)
    parser.add_argument("--height", type=int, default=94, help="of the grid, in cells")
    parser.add_argument("--width", type=int, default=125, help="of the grid, in cells")
    parser.add_argument("--maps", type=int, default=3)
    parser.add_argument("--t", type=int, default=8, help="2^t steps")
    parser.add_argument("--dtype", default="float64", choices=TOLERANCE, help="of the dense form; ours is in float64")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dense-rounds", type=int, default=1, help="of the dense form, minutes each at full size")
    o = parse(parser, arguments)
    seconds, peaks, difference = measure(o.height, o.width, o.maps, o.t, o.rounds, o.dense_rounds, o.device, o.dtype)
    record = report(seconds, peaks, difference, o.device, o.dtype)
    size = f"{o.height} x {o.width} cells, {o.maps} maps, {2**o.t} steps, {o.dtype}, {o.device}"
    print(f"{size}, {record['threads']} thread(s), {o.rounds} rounds, {o.dense_rounds} of the dense form\n")
    print(table("median s", {"ours": spread(seconds["ours"]), "dense": spread(seconds["reference"])}))
    print(f"\npeak MB {record['peak_mb']}, {record['memory_ratio']:.4f} of the dense form (bar {MEMORY_BAR})")
    print(
        f"{record['ratio']:.0f} times as fast (bar {SPEED_BAR:.0f}), maps differ by {difference:.1e}"
        f" (bar {TOLERANCE[o.dtype]})"
    )
    return verdict(record)


if __name__ == "__main__":
    sys.exit(main())
