"""Claim: CPN's pairs cost under 5 ms an image, its step under 3.3 plain CAM steps, PCM and PRCM one product each.

Three measurements with the settings of the profile `paper`, on smooth random images and random weights:

- a pair at 448 pixels: patches, the mask S, its share, and both halves, for a batch of 4. Squares are drawn; the maps
  of super-pixels are read from their 16-bit PNGs, which a step with a cache does only once. Beside it what it costs to
  scale, crop and mirror a map as its image, and SLIC, which makes it. The paper says 6 ms, and 1,450 ms with SLIC.
- a training step, forward and backward, of CPN and of plain CAM (ResNet-50, first three stages and statistics frozen,
  output stride 16), in the precision that `fast` trainings take here. Beside it CAM on three times the images: CPN's
  network sees as many, so its step can hardly cost less.
- PCM and PRCM on 56 x 56 cells, one image in float32: seconds; matrix products, counted in the profiler's trace; and
  peak memory beyond the inputs, from every allocation and release of torch's CPU allocator in the same trace. What
  libraries below torch take for themselves is not in it.

The record's `ours`, `reference`, `ratio` and `bar` are the two steps; `holds` needs all of the claim.

    python benchmarks/patch_pairs.py [--batch 4] [--step-batch 2] [--side 448] [--cells 56] [--rounds 5] [--threads 0]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _measure import machine, options_of, parse, peak_mb, spread, table, take_turns, trace, verdict
from PIL import Image
from torch import Tensor

from wsss_lib import backbones, methods
from wsss_lib.data import VOC_CLASSES
from wsss_lib.data.images import read_pixels
from wsss_lib.data.samples import Batch
from wsss_lib.data.superpixels import SuperpixelSettings, make_superpixels, read_superpixels, superpixels
from wsss_lib.data.transforms import Regions, train_transform
from wsss_lib.methods.base import Progress
from wsss_lib.methods.cpn import complementary_pair
from wsss_lib.nn.patches import draw_side, grid_patches, hide, visible_share
from wsss_lib.nn.pcm import pixel_correlation, pixel_region_correlation
from wsss_lib.settings import load
from wsss_lib.train import uses_bf16

PAIR_BAR = 5.0  # ms an image
STEP_BAR = 3.3  # CAM steps
SETTINGS = load("paper")
CPN = SETTINGS.cpn
SLIC = SuperpixelSettings(CPN.n_segments, CPN.compactness)
K = len(VOC_CLASSES)

Seconds = dict[str, list[float]]


def make_maps(root: Path, n: int, side: int) -> tuple[list[Path], list[Path]]:
    """n smooth random images, and the PNGs of their super-pixels."""
    draw = np.random.default_rng(0)
    images = [root / f"scene_{i}.png" for i in range(n)]
    for path in images:
        coarse = draw.integers(0, 256, (14, 14, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path)
    make_superpixels([(path.stem, path) for path in images], root / "maps", SLIC)
    return images, [root / "maps" / path.name for path in images]


def squares(image: Tensor) -> Tensor:
    """Patches (N, H, W) of images (N, 3, H, W): squares, their side drawn for each image."""
    return torch.stack([grid_patches(tuple(image.shape[2:]), draw_side(CPN.sides)) for _ in image])


def read(maps: list[Path]) -> Tensor:
    """Patches (N, H, W): the super-pixels in the files."""
    return torch.stack([torch.from_numpy(read_superpixels(path).astype(np.int64)) for path in maps])


def pairs(image: Tensor, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both halves of each image, and the first one's visible share (N,), as `CPN.loss` makes them."""
    shown = hide(patches, CPN.p_h)
    return *complementary_pair(image, shown), visible_share(shown, patches)


def measure_pairs(root: Path, n: int, side: int, rounds: int) -> tuple[Seconds, bool]:
    """Seconds an image; and whether the halves are halves of the image and the files hold what SLIC gives."""
    images, maps = make_maps(root, n, side)
    image, pixels = torch.randn(n, 3, side, side), read_pixels(images[0])
    move, regions = train_transform(CPN.long_side, side, CPN.jitter), Regions(read(maps[:1])[0].int())
    runs = {
        "squares": (lambda: pairs(image, squares(image)), n),
        "super-pixels": (lambda: pairs(image, read(maps)), n),
        "moving a map": (lambda: move(regions), 1),
        "SLIC": (lambda: superpixels(pixels, SLIC), 1),
    }
    right = np.array_equal(superpixels(pixels, SLIC), regions)
    for name in ("squares", "super-pixels"):
        hidden, other, share = runs[name][0]()
        right &= torch.equal(hidden + other, image) and not bool((hidden * other).any())
        right &= bool(((hidden != 0).flatten(1).float().mean(1) - share).abs().max() < 1e-3 and 0 < share.min() < 1)
    seconds = take_turns({name: run for name, (run, _) in runs.items()}, rounds, repeats=8)
    return {name: [s / size for s in seconds[name]] for name, (_, size) in runs.items()}, right


def measure_steps(backbone: str, n: int, side: int, rounds: int) -> tuple[Seconds, bool]:
    """Seconds of a step of CAM and of CPN on n images, and of CAM on 3 n; and whether all losses are numbers."""
    torch.manual_seed(0)
    image = torch.randn(3 * n, 3, side, side).contiguous(memory_format=torch.channels_last)
    label = torch.zeros(3 * n, K).index_fill_(1, torch.tensor([7, 14]), 1.0)
    network = backbones.build(backbone, "", SETTINGS.backbone.output_stride)
    network.freeze(SETTINGS.backbone.frozen_stages, SETTINGS.backbone.frozen_norm)
    cam, cpn = (methods.build(name, network, K, SETTINGS) for name in ("cam", "cpn"))
    totals = []

    def step(method: methods.base.Method, size: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=uses_bf16("fast", "cpu")):
            total = method.loss(Batch(image[:size], label[:size], ("",) * size), Progress()).total
        total.backward()
        method.zero_grad(set_to_none=True)
        totals.append(total.detach())

    for method in (cam, cpn):
        method.to(memory_format=torch.channels_last).train()
    runs = {"CAM": lambda: step(cam, n), "CPN": lambda: step(cpn, n), "CAM, 3 x images": lambda: step(cam, 3 * n)}
    return take_turns(runs, rounds, repeats=3), bool(torch.stack(totals).isfinite().all())


def peak_and_products(run: Callable[[], object]) -> tuple[float, list[list[int]]]:
    """Peak memory of `run` in MB beyond what was there, and the shape of each matrix product's result."""
    events = trace(run)
    products = [event["args"]["Input Dims"] for event in events if event.get("name") in ("aten::mm", "aten::bmm")]
    return peak_mb(events), [[left[-2], right[-1]] for left, right, *_ in products]


def measure_refinement(side: int, rounds: int) -> tuple[Seconds, dict[str, float], bool]:
    """Seconds and peak MB of PCM and PRCM without and with gradient; and whether there is one product of each kind."""
    cells, width = side * side, 192
    features, pixels = torch.randn(1, width + 3, side, side), torch.randn(1, width, side, side, requires_grad=True)
    maps, weight = torch.rand(1, 1 + K, side, side), torch.randn(width, width + 3, requires_grad=True)

    def pcm() -> Tensor:
        return pixel_correlation(pixels, maps)

    def prcm() -> Tensor:
        return pixel_region_correlation(maps, features, pixels, weight, CPN.softmax_axis)

    runs = {
        "PCM": torch.no_grad()(pcm),
        "PCM, gradient": lambda: torch.autograd.grad(pcm().square().sum(), pixels),
        "PRCM": torch.no_grad()(prcm),
        "PRCM, gradient": lambda: torch.autograd.grad(prcm().square().sum(), (pixels, weight)),
    }
    seconds = take_turns(runs, rounds)
    peaks, products = zip(*map(peak_and_products, runs.values()), strict=True)
    # PCM: cells with cells, then maps spread. PRCM: the regions' features, phi of them, then cells with regions.
    right = sorted(products[0]) == sorted([[cells, cells], [1 + K, cells]])
    right &= sorted(products[2]) == sorted([[1 + K, width + 3], [1 + K, width], [cells, 1 + K]])
    return seconds, dict(zip(runs, peaks, strict=True)), right


def report(pair: Seconds, step: Seconds, refinement: Seconds, peaks: dict[str, float], right: bool) -> dict:
    """The record of the last line; `right`: what was timed is what it should be."""
    middle = {name: spread(values)[0] for name, values in (pair | step | refinement).items()}
    ratio = middle["CPN"] / middle["CAM"]
    slowest_pair = 1000 * max(middle["squares"], middle["super-pixels"])
    return {
        "claim": f"CPN's pairs under {PAIR_BAR} ms an image, its step under {STEP_BAR} CAM steps,"
        " PCM and PRCM in one matrix product each",
        "ours": round(middle["CPN"], 3),
        "reference": round(middle["CAM"], 3),
        "unit": "s",
        "ratio": round(ratio, 3),
        "bar": STEP_BAR,
        "holds": right and ratio < STEP_BAR and slowest_pair < PAIR_BAR,
        "right": right,
        "cam_on_three_times_the_images": round(middle["CAM, 3 x images"], 3),
        "pair_bar_ms": PAIR_BAR,
        "ms": {name: round(1000 * middle[name], 3) for name in (*pair, *refinement)},
        "peak_mb": {name: round(value, 2) for name, value in peaks.items()},
        "bf16": uses_bf16("fast", "cpu"),
        "rounds": len(step["CPN"]),
        **machine(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables and the record; 0 where the claim holds, else 1."""
    parser = options_of(__doc__, rounds=5)
    parser.add_argument("--batch", type=int, default=CPN.batch_size, help="images that are split at a time")
    parser.add_argument("--step-batch", type=int, default=2, help="images in a training step")
    parser.add_argument("--side", type=int, default=448, help="of the images, in pixels; above 112, for two squares")
    parser.add_argument("--cells", type=int, default=56, help="side of the grid of cells that PCM and PRCM get")
    parser.add_argument("--backbone", default="resnet50", choices=backbones.BACKBONES)
    options = parse(parser, arguments)
    # Steps first: in a training too the allocator holds memory when a pair is made, and need not ask the system for it.
    step, finite = measure_steps(options.backbone, options.step_batch, options.side, options.rounds)
    with tempfile.TemporaryDirectory() as root:
        pair, halves = measure_pairs(Path(root), options.batch, options.side, options.rounds)
    refinement, peaks, products = measure_refinement(options.cells, options.rounds)
    record = report(pair, step, refinement, peaks, right=halves and products and finite)
    print(f"{options.side} px, {options.backbone}, {record['threads']} thread(s), {options.rounds} rounds\n")
    for unit, part, factor in (("ms / image", pair, 1000), ("s / step", step, 1), ("ms", refinement, 1000)):
        print(table(unit, {name: [factor * s for s in spread(part[name])] for name in part}, width=18) + "\n")
    print(f"peak MB {record['peak_mb']}; the affinity of all cells alone {4 * options.cells**4 / 1e6:.1f}")
    print(f"ratio {record['ratio']:.2f} (bar {STEP_BAR}), pairs' bar {PAIR_BAR} ms, right: {record['right']}")
    return verdict(record)


if __name__ == "__main__":
    sys.exit(main())
