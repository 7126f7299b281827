"""Claim: multi-scale, mirrored CAM inference does at least 1.5 times the images per second of a plain loop.

The plain loop does what IRN's script does: one image at a time, a forward pass for each scale and each flip,
every map enlarged to the output's size and added. Ours is what `wsss_lib.localize.localize` runs: BatchNorms and
ReLU6 folded into convolutions, channels last, the maps of image and mirror added before they are enlarged. Both
compute the same maps; reading and writing files is in neither. They take turns image by image in one process,
and the ratio is that of the medians over several rounds.

    python benchmarks/cam_inference.py [--images 6] [--rounds 5] [--threads 0] [--photos DIR] [--weights FILE]
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

import torch
from _measure import machine, options_of, parse, spread, table, verdict
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from wsss_lib import backbones, methods
from wsss_lib.data import VOC_CLASSES, VOCFolder, normalize, resize_image
from wsss_lib.localize import SCALES, inference_copy, multi_scale_cam, normalize_cam

BAR = 1.5
TOLERANCE = 1e-4
STRIDE = 4
SHARED = Path(os.environ.get("WSSS_SHARED", Path(__file__).resolve().parents[2] / "shared"))
PHOTOS = SHARED / "data" / "voc12_animals"
WEIGHTS = SHARED / "data" / "weights" / "mobilenet_v1_0.75_224.pth"


def plain_maps(method: torch.nn.Module, image: Tensor, label: Tensor, scales=SCALES) -> Tensor:
    """The reference: normalised maps (1, K, h, w) of one image (1, 3, H, W), one pass after another."""
    height, width = image.shape[-2:]
    size = (math.ceil(height / STRIDE), math.ceil(width / STRIDE))
    total = torch.zeros(1, method.n_classes, *size)
    for scale in scales:
        scaled = resize_image(image, (round(height * scale), round(width * scale)))
        for mirrored in (False, True):
            cam = method.cam(scaled.flip(-1) if mirrored else scaled)
            cam = cam.flip(-1) if mirrored else cam
            total += interpolate(cam, size=size, mode="bilinear", align_corners=False)
    return normalize_cam(total, label)


def our_maps(network: torch.nn.Module, image: Tensor, label: Tensor, scales=SCALES) -> Tensor:
    """Ours: normalised maps (N, K, h, w) of images of one size (N, 3, H, W), as `localize` computes them."""
    image = image.contiguous(memory_format=torch.channels_last)
    return normalize_cam(multi_scale_cam(network, image, scales, stride=STRIDE), label)


def load_images(photos: Path, n: int) -> tuple[list[tuple[Tensor, Tensor]], str]:
    """n normalised images (1, 3, H, W) with their labels (1, K), and what they are."""
    if photos.is_dir():
        folder = VOCFolder(photos)
        ids = folder.split("train", n)
        return [(normalize(folder.image(i))[None], folder.label(i)[None]) for i in ids], "photographs"
    draw = torch.Generator().manual_seed(0)
    sizes = ((375, 500), (333, 500), (500, 375), (500, 333))
    label = torch.zeros(1, len(VOC_CLASSES)).index_fill_(1, torch.tensor([7, 14]), 1.0)
    return [(torch.randn(1, 3, *sizes[i % 4], generator=draw), label) for i in range(n)], "random images"


def build_method(weights: Path) -> tuple[torch.nn.Module, str]:
    """MobileNetV1 with a random classifier (the speed is that of any), and where its weights are from."""
    torch.manual_seed(0)
    known = weights.is_file()
    backbone = backbones.build("mobilenet_v1", weights if known else "")
    method = methods.build("cam", backbone, len(VOC_CLASSES)).eval()
    return method, "ImageNet weights" if known else "random weights"


def measure(method: torch.nn.Module, images: list[tuple[Tensor, Tensor]], rounds: int, scales=SCALES) -> dict:
    """Seconds of every round for the reference and ours, and the largest difference between their maps."""
    network = inference_copy(method)
    seconds: dict[str, list[float]] = {"reference": [], "ours": []}
    difference = 0.0
    with torch.inference_mode(), tqdm(total=(rounds + 1) * len(images), unit="image", mininterval=1.0) as bar:
        for round_ in range(rounds + 1):
            spent = dict.fromkeys(seconds, 0.0)
            for image, label in images:
                maps = {}
                for name, run, model in (("reference", plain_maps, method), ("ours", our_maps, network)):
                    start = time.perf_counter()
                    maps[name] = run(model, image, label, scales)
                    spent[name] += time.perf_counter() - start
                difference = max(difference, float((maps["ours"] - maps["reference"]).abs().max()))
                bar.update()
            for name in seconds if round_ else ():  # the first round warms up
                seconds[name].append(spent[name])
    return {**seconds, "max_difference": difference}


def report(measured: dict, n_images: int, what: str) -> dict:
    """The record of the last line: images per second, their ratio, and whether the claim holds."""
    speed = {name: n_images / spread(measured[name])[0] for name in ("ours", "reference")}
    ratio = speed["ours"] / speed["reference"]
    return {
        "claim": f"CAM inference, MobileNetV1, scales {SCALES} and flip: at least {BAR} times the images per "
        f"second of a plain loop, same maps to {TOLERANCE}",
        "ours": round(speed["ours"], 3),
        "reference": round(speed["reference"], 3),
        "unit": "images/s",
        "ratio": round(ratio, 3),
        "bar": BAR,
        "holds": ratio >= BAR and measured["max_difference"] <= TOLERANCE,
        "max_difference": measured["max_difference"],
        "images": n_images,
        "rounds": len(measured["ours"]),
        "what": what,
        **machine(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table and the record; 0 where the claim holds, else 1."""
    parser = options_of(__doc__, rounds=5)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="a folder in VOC layout")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="MobileNetV1 state dict")
    options = parse(parser, arguments)
    images, what = load_images(options.photos, options.images)
    method, weights = build_method(options.weights)
    measured = measure(method, images, options.rounds)
    record = report(measured, len(images), f"{what}, {weights}")
    print(f"{len(images)} {what}, {weights}, {record['threads']} thread(s), {options.rounds} rounds\n")
    speeds = {name: [len(images) / seconds for seconds in spread(measured[name])] for name in ("reference", "ours")}
    print(table("images/s", speeds))
    print(f"\nratio {record['ratio']:.2f} (bar {BAR}), largest difference {record['max_difference']:.1e}")
    return verdict(record)


if __name__ == "__main__":
    sys.exit(main())
