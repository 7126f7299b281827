"""Claim: 1,449 masks of VOC's size are scored at least 5 times as fast as by a loop over classes, with equal counts.

The loop does what SEAM's script and its heirs do for each image: for each of 21 classes it compares masks with the
class and adds up three counts, pixels that are right, of the truth, and predicted. Ours is
`wsss_lib.metrics.ConfusionMatrix`, one count of pairs an image. Masks are synthetic, of 375 x 500 pixels with outlines
of 255: a few distinct ones, in turn, as many times as val has images; reading files is in neither. Both take turns in
one process, and the ratio is that of the medians over several rounds.

    python benchmarks/evaluation.py [--masks 1449] [--distinct 16] [--height 375] [--width 500] [--rounds 3]
"""

from __future__ import annotations

import sys
from itertools import cycle, islice

import numpy as np
from _measure import machine, options_of, parse, spread, table, take_turns, verdict
from PIL import Image

from wsss_lib.data import VOC_CLASSES
from wsss_lib.data.classes import IGNORE
from wsss_lib.metrics import ConfusionMatrix

BAR = 5.0
CLASSES = 1 + len(VOC_CLASSES)

Pair = tuple[np.ndarray, np.ndarray]


def make_masks(distinct: int, height: int, width: int) -> list[Pair]:
    """Truths with blobs of one to three classes, outlined by 255, and predictions that are off by some pixels."""
    draw, pairs = np.random.default_rng(0), []
    for _ in range(distinct):
        present = np.append(0, draw.choice(np.arange(1, CLASSES), draw.integers(1, 4), replace=False)).astype(np.uint8)
        blobs = Image.fromarray(draw.choice(present, (6, 8))).resize((width, height), Image.Resampling.NEAREST)
        prediction = np.roll(np.array(blobs), draw.integers(-9, 10, 2), (0, 1))
        truth = np.array(blobs)
        for axis in (0, 1):
            truth[np.roll(blobs, 1, axis) != blobs] = IGNORE
        pairs.append((truth, prediction))
    return pairs


def counts_by_class(pairs: list[Pair], n: int) -> np.ndarray:
    """The reference: pixels that are right, of the truth, and predicted, (3, 21), of n masks."""
    counts = np.zeros((3, CLASSES), np.int64)
    for truth, prediction in islice(cycle(pairs), n):
        scored = truth != IGNORE
        right = (prediction == truth) & scored
        for c in range(CLASSES):
            counts[0, c] += np.sum((truth == c) & right)
            counts[1, c] += np.sum((truth == c) & scored)
            counts[2, c] += np.sum((prediction == c) & scored)
    return counts


def our_counts(pairs: list[Pair], n: int) -> np.ndarray:
    """Ours: the same three counts out of the confusion matrix of n masks."""
    scores = ConfusionMatrix(CLASSES)
    for truth, prediction in islice(cycle(pairs), n):
        scores.update(truth, prediction)
    return np.stack([np.diag(scores.matrix), scores.matrix.sum(1), scores.matrix.sum(0)])


def measure(pairs: list[Pair], n: int, rounds: int) -> tuple[dict[str, list[float]], bool]:
    """Seconds of every round for ours and the reference, and whether their counts are equal."""
    equal = np.array_equal(our_counts(pairs, n), counts_by_class(pairs, n))
    runs = {"ours": lambda: our_counts(pairs, n), "reference": lambda: counts_by_class(pairs, n)}
    return take_turns(runs, rounds), equal


def report(seconds: dict[str, list[float]], equal: bool, n: int, distinct: int) -> dict:
    """The record of the last line: masks per second, their ratio, and whether the claim holds."""
    speed = {name: n / spread(values)[0] for name, values in seconds.items()}
    ratio = speed["ours"] / speed["reference"]
    return {
        "claim": f"masks are scored {BAR:.0f} times as fast as by a loop over {CLASSES} classes, equal counts",
        "ours": round(speed["ours"], 1),
        "reference": round(speed["reference"], 1),
        "unit": "masks/s",
        "ratio": round(ratio, 2),
        "bar": BAR,
        "holds": ratio >= BAR and equal,
        "equal": equal,
        "masks": n,
        "distinct": distinct,
        "rounds": len(seconds["ours"]),
        **machine(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table and the record; 0 where the claim holds, else 1."""
    parser = options_of(__doc__, rounds=3)
    parser.add_argument("--masks", type=int, default=1449, help="how many are scored")
    parser.add_argument("--distinct", type=int, default=16, help="how many differ")
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--width", type=int, default=500)
    options = parse(parser, arguments)
    pairs = make_masks(options.distinct, options.height, options.width)
    seconds, equal = measure(pairs, options.masks, options.rounds)
    record = report(seconds, equal, options.masks, len(pairs))
    size = f"{options.masks} masks of {options.height} x {options.width}, {len(pairs)} distinct"
    print(f"{size}, {options.rounds} rounds\n")
    print(table("s", {name: spread(seconds[name]) for name in ("reference", "ours")}))
    print(f"\n{record['ratio']:.1f} times as fast (bar {BAR:.0f}), counts equal: {equal}")
    return verdict(record)


if __name__ == "__main__":
    sys.exit(main())
