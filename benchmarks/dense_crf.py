"""Claim: on 2 cores the dense CRF of pseudo masks has 2.5 times the throughput of plain 21-label calls, same masks.

Images of VOC's size, 375 x 500, each with one class: two labels with background. The plain way is that of scripts
which hand over all of VOC's labels: `pydensecrf` on 21 scores, those of absent classes at 1e-5, one image after the
other. Ours is `wsss_lib.refine.dense_crf.pseudo_mask` on the labels that are there, over `wsss_lib.pool.work`; starting
the pool and sending the pictures are in its time, reading files is in neither. Same means the same label at 99.9 % of
the pixels. Both take turns in one process, and the ratio is that of the medians over several rounds.

    python benchmarks/dense_crf.py [--images 12] [--processes 2] [--height 375] [--width 500] [--rounds 3]
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
from _measure import machine, options_of, parse, spread, table, take_turns, verdict
from PIL import Image
from pydensecrf.densecrf import DenseCRF2D

from wsss_lib.data.classes import VOC_CLASSES
from wsss_lib.pool import work
from wsss_lib.refine.dense_crf import MaskSettings, background_score, pseudo_mask

BAR = 2.5
SAME = 0.999
LABELS = 1 + len(VOC_CLASSES)
SETTINGS = MaskSettings("power", alpha=4.0)  # PSA's low exponent and PSA's CRF

Job = tuple[str, tuple[np.ndarray, np.ndarray, list[int]]]


def make_jobs(n: int, height: int, width: int) -> list[Job]:
    """n images of a bright ellipse on dark clouds, and a blurred map that lies beside it; their classes in turn."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    jobs = []
    for i in range(n):
        top, left = draw.uniform(0.35, 0.65, 2)
        inside = ((y - top) / 0.25) ** 2 + ((x - left) / 0.2) ** 2 < 1
        clouds = draw.integers(0, 80, (24, 32, 3)).astype(np.uint8)
        clouds = np.array(Image.fromarray(clouds).resize((width, height), Image.Resampling.BICUBIC))
        image = np.where(inside[..., None], clouds + np.uint8(120), clouds)
        blurred = np.exp(-(((y - top - 0.05) / 0.25) ** 2) - ((x - left + 0.05) / 0.2) ** 2)
        jobs.append((str(i), (image, blurred[None].astype(np.float32), [i % len(VOC_CLASSES)])))
    return jobs


def plain_mask(image: np.ndarray, maps: np.ndarray, classes: list[int]) -> np.ndarray:
    """The reference: labels (H, W) of one image by one call with a score for each of VOC's labels."""
    scores = np.full((LABELS, *image.shape[:2]), 1e-5, np.float32)
    scores[[0, *(k + 1 for k in classes)]] = np.maximum([background_score(maps, SETTINGS.alpha), *maps], 1e-5)
    crf, numbers = DenseCRF2D(image.shape[1], image.shape[0], LABELS), SETTINGS.crf
    crf.setUnaryEnergy(-np.log(scores).reshape(LABELS, -1))
    crf.addPairwiseGaussian(sxy=numbers.gaussian_sxy, compat=numbers.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=numbers.bilateral_sxy, srgb=numbers.bilateral_srgb, rgbim=image, compat=numbers.bilateral_compat
    )
    return np.reshape(crf.inference(numbers.iterations), scores.shape).argmax(0)


def plain_masks(jobs: list[Job]) -> dict[str, np.ndarray]:
    """The reference for all images."""
    return {name: plain_mask(*job) for name, job in jobs}


def our_masks(jobs: list[Job], processes: int) -> dict[str, np.ndarray]:
    """Ours for all images."""
    return dict(work(partial(pseudo_mask, settings=SETTINGS), jobs, processes))


def measure(jobs: list[Job], processes: int, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of every round for ours and the reference, and the share of pixels with the same label."""
    ours, plain = our_masks(jobs, processes), plain_masks(jobs)
    same = float(np.mean([ours[name] == plain[name] for name, _ in jobs]))
    runs = {"ours": lambda: our_masks(jobs, processes), "reference": lambda: plain_masks(jobs)}
    return take_turns(runs, rounds), same


def report(seconds: dict[str, list[float]], same: float, n: int, processes: int) -> dict:
    """The record of the last line: images per second, their ratio, and whether the claim holds."""
    speed = {name: n / spread(values)[0] for name, values in seconds.items()}
    ratio = speed["ours"] / speed["reference"]
    return {
        "claim": f"dense CRF of 2 labels over a pool: {BAR} times the images per second of plain {LABELS}-label calls,"
        f" same label at {SAME:.1%} of the pixels",
        "ours": round(speed["ours"], 3),
        "reference": round(speed["reference"], 3),
        "unit": "images/s",
        "ratio": round(ratio, 2),
        "bar": BAR,
        "holds": ratio >= BAR and same >= SAME,
        "same": round(same, 6),
        "images": n,
        "processes": processes,
        "rounds": len(seconds["ours"]),
        **machine(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table and the record; 0 where the claim holds, else 1."""
    parser = options_of(__doc__, rounds=3)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--width", type=int, default=500)
    options = parse(parser, arguments)
    jobs = make_jobs(options.images, options.height, options.width)
    seconds, same = measure(jobs, options.processes, options.rounds)
    record = report(seconds, same, len(jobs), options.processes)
    size = f"{len(jobs)} images of {options.height} x {options.width}"
    print(f"{size}, {options.processes} processes, {options.rounds} rounds\n")
    speeds = {name: [len(jobs) / s for s in spread(seconds[name])] for name in ("reference", "ours")}
    print(table("images/s", speeds))
    print(f"\nratio {record['ratio']:.2f} (bar {BAR}), same label at {same:.4%} of the pixels (bar {SAME:.1%})")
    return verdict(record)


if __name__ == "__main__":
    sys.exit(main())
