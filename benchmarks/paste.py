"""Claim: on a CPU, pasting into a batch costs under 15 % of the training step that learns from it.

The batch has CDA's size on VOC, 16 images of 512 pixels; the step is that of IRN's classifier (ResNet-50, first three
stages frozen), forward and backward. Ours is `wsss_lib.methods.cda.paste` with the paper's best settings: instances
are read from JPEG and PNG files of VOC's size each time, scaled, turned and blended. Both take turns in one process,
and the ratio is that of the medians over several rounds.

    python benchmarks/paste.py [--batch 16] [--side 512] [--rounds 3] [--threads 0]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _measure import machine, options_of, parse, spread, table, verdict
from PIL import Image

from wsss_lib import backbones, methods
from wsss_lib.data import VOC_CLASSES, VOCFolder
from wsss_lib.data.instances import InstanceBank, collect_instances
from wsss_lib.data.samples import Batch
from wsss_lib.methods.base import Progress
from wsss_lib.methods.cda import PasteSettings, paste

BAR = 0.15
MICRO_BATCH = 4  # the step's gradient is accumulated, so that it fits into 4 GB


def make_bank(root: Path, n: int, side: int) -> InstanceBank:
    """A bank of n ellipses on noise, one a scene of 375 x 500 pixels, its classes in turn."""
    draw = np.random.default_rng(0)
    (root / "JPEGImages").mkdir(parents=True)
    ids = [f"scene_{i}" for i in range(n)]
    for image_id in ids:
        coarse = draw.integers(0, 256, (24, 32, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((500, 375)).save(root / "JPEGImages" / f"{image_id}.jpg")
    names = {image_id: VOC_CLASSES[i % len(VOC_CLASSES)] for i, image_id in enumerate(ids)}
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(ids))
    (root / "labels.csv").write_text("image_id,classes\n" + "\n".join(f"{i},{name}" for i, name in names.items()))
    y, x = np.mgrid[:375, :500]
    inside = ((y - 187) / 120) ** 2 + ((x - 250) / 180) ** 2 < 1
    folder = VOCFolder(root)
    collect_instances(folder, ids, lambda i: inside * (1 + VOC_CLASSES.index(names[i])), root / "bank")
    return InstanceBank(folder, root / "bank", long_side=side)


def measure(bank: InstanceBank, batch_size: int, side: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round for the pasting and the step."""
    draw = torch.Generator().manual_seed(0)
    backbone = backbones.build("resnet50", "", 16).freeze(stages=3, norm=True)
    method = methods.build("cam", backbone, len(VOC_CLASSES)).to(memory_format=torch.channels_last).train()
    image = torch.randn(batch_size, 3, side, side, generator=draw)
    label = torch.zeros(batch_size, len(VOC_CLASSES)).index_fill_(1, torch.tensor([14]), 1.0)
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    torch.manual_seed(0)
    for round_ in range(rounds + 1):
        start = time.perf_counter()
        pasted, pasted_label, _ = paste(image, label, bank, PasteSettings())
        middle = time.perf_counter()
        for x, y in zip(pasted.split(MICRO_BATCH), pasted_label.split(MICRO_BATCH), strict=True):
            x = x.contiguous(memory_format=torch.channels_last)
            method.loss(Batch(x, y, ("",) * len(y)), Progress()).total.backward()
        method.zero_grad(set_to_none=True)
        if round_:  # the first one warms up
            seconds["ours"].append(middle - start)
            seconds["reference"].append(time.perf_counter() - middle)
    return seconds


def report(seconds: dict[str, list[float]], batch_size: int, side: int) -> dict:
    """The record of the last line: seconds, their ratio, and whether the claim holds."""
    middle = {name: spread(values)[0] for name, values in seconds.items()}
    ratio = middle["ours"] / middle["reference"]
    return {
        "claim": f"pasting into {batch_size} images of {side} px costs under {BAR:.0%} of a ResNet-50 training step",
        "ours": round(middle["ours"], 3),
        "reference": round(middle["reference"], 3),
        "unit": "s",
        "ratio": round(ratio, 4),
        "bar": BAR,
        "holds": ratio < BAR,
        "rounds": len(seconds["ours"]),
        **machine(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table and the record; 0 where the claim holds, else 1."""
    parser = options_of(__doc__, rounds=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=512)
    options = parse(parser, arguments)
    with tempfile.TemporaryDirectory() as root:
        bank = make_bank(Path(root), 40, options.side)
        seconds = measure(bank, options.batch, options.side, options.rounds)
    record = report(seconds, options.batch, options.side)
    print(f"batch of {options.batch}, {options.side} px, {record['threads']} thread(s), {options.rounds} rounds\n")
    print(table("median s", {"pasting": spread(seconds["ours"]), "step": spread(seconds["reference"])}))
    print(f"\nratio {record['ratio']:.3f} (bar {BAR})")
    return verdict(record)


if __name__ == "__main__":
    sys.exit(main())
