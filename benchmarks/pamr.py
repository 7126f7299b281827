"""Claim: PAMR is 3 times as fast as gathering all 48 neighbours, in a quarter of the memory, equal to 1e-5.

One image of 321 pixels, 21 masks that sum to 1, 10 iterations. The plain form writes the equations down: it gathers a
tensor (N, C, 48, H, W) of all neighbours' values, of the image for its standard deviation and its weights, and of the
masks in each iteration. Ours is `wsss_lib.nn.pamr.pamr`. Both take turns in one process, and the ratio is that of the
medians over several rounds. Memory is what is alive at most beyond the inputs, the result included: on a CPU from
every allocation and release of torch's allocator in the profiler's trace, on a GPU as torch counts it.

    python benchmarks/pamr.py [--side 321] [--classes 21] [--iterations 10] [--device cpu] [--rounds 3] [--threads 0]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _measure import machine, options_of, parse, peak, spread, table, take_turns, verdict
from torch import Tensor

from wsss_lib.nn.pamr import DILATIONS, pamr

SPEED_BAR = 3.0
MEMORY_BAR = 0.25
TOLERANCE = 1e-5


def gather(x: Tensor) -> Tensor:
    """The values of all neighbours (N, C, 48, H, W) of each pixel of x (N, C, H, W)."""
    height, width = x.shape[2:]
    values = []
    for d in DILATIONS:
        padded = F.pad(x, (d, d, d, d), mode="replicate")
        for row in (0, d, 2 * d):
            for column in (0, d, 2 * d):
                if (row, column) != (d, d):
                    values.append(padded[..., row : row + height, column : column + width])
    return torch.stack(values, 2)


def plain_pamr(image: Tensor, masks: Tensor, iterations: int) -> Tensor:
    """PAMR as its equations are written."""
    around, own = gather(image), image[:, :, None]
    window = torch.cat([around, own.expand(-1, -1, len(DILATIONS), -1, -1)], 2)
    sigma = window.std(2, keepdim=True)
    weights = (-(around - own).abs() / (1e-8 + 0.1 * sigma)).mean(1, keepdim=True).softmax(2)
    for _ in range(iterations):
        masks = (weights * gather(masks)).sum(2)
    return masks


@torch.inference_mode()
def measure(
    side: int, classes: int, iterations: int, rounds: int, device: str = "cpu"
) -> tuple[dict[str, list[float]], dict[str, float], float]:
    """Seconds of every round and peak MB of both forms, and how far their masks differ at most."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 20, 20, generator=draw), 3 * torch.randn(1, classes, 41, 41, generator=draw)
    image, scores = (F.interpolate(x.to(device), (side, side), mode="bicubic") for x in coarse)
    image, masks = image.clamp(0, 1), scores.softmax(1)
    forms = {
        "ours": lambda: pamr(image, masks, iterations),
        "reference": lambda: plain_pamr(image, masks, iterations),
    }

    def finished(run: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: run().sum().item()  # a GPU has to be waited for

    difference = float((forms["ours"]() - forms["reference"]()).abs().max())
    peaks = {name: peak(run, device) for name, run in forms.items()}
    return take_turns({name: finished(run) for name, run in forms.items()}, rounds), peaks, difference


def report(seconds: dict[str, list[float]], peaks: dict[str, float], difference: float, device: str) -> dict:
    """The record of the last line; `holds` needs all three parts of the claim."""
    middle = {name: spread(values)[0] for name, values in seconds.items()}
    ratio, memory = middle["reference"] / middle["ours"], peaks["ours"] / peaks["reference"]
    return {
        "claim": f"PAMR is {SPEED_BAR:.0f} times as fast as the plain form, in {MEMORY_BAR} of its extra memory,"
        f" equal to {TOLERANCE:.0e}",
        "ours": round(middle["ours"], 3),
        "reference": round(middle["reference"], 3),
        "unit": "s",
        "ratio": round(ratio, 2),
        "bar": SPEED_BAR,
        "holds": ratio >= SPEED_BAR and memory <= MEMORY_BAR and difference <= TOLERANCE,
        "peak_mb": {name: round(value, 2) for name, value in peaks.items()},
        "memory_ratio": round(memory, 4),
        "memory_bar": MEMORY_BAR,
        "max_difference": difference,
        "rounds": len(seconds["ours"]),
        **machine(),
        **({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table and the record; 0 where the claim holds, else 1."""
    parser = options_of(__doc__, rounds=3)
    parser.add_argument("--side", type=int, default=321, help="of the image, in pixels")
    parser.add_argument("--classes", type=int, default=21, help="masks, background among them")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parse(parser, arguments)
    seconds, peaks, difference = measure(
        options.side, options.classes, options.iterations, options.rounds, options.device
    )
    record = report(seconds, peaks, difference, options.device)
    size = f"{options.side} px, {options.classes} masks, {options.iterations} iterations, {options.device}"
    print(f"{size}, {record['threads']} thread(s), {options.rounds} rounds\n")
    print(table("median s", {"ours": spread(seconds["ours"]), "plain": spread(seconds["reference"])}))
    print(f"\npeak MB {record['peak_mb']}, {record['memory_ratio']:.3f} of the plain form (bar {MEMORY_BAR})")
    print(f"{record['ratio']:.1f} times as fast (bar {SPEED_BAR}), masks differ by {difference:.1e} (bar {TOLERANCE})")
    return verdict(record)


if __name__ == "__main__":
    sys.exit(main())
