"""Dense CRF: pull a soft mask to the edges of the image.

One idea: pixels that look alike and lie close should bear one label. The energy of a labelling x is
sum_i -log p_i(x_i) + sum_{i<j} [x_i != x_j] (w1 k_place(i,j) + w2 k_colour(i,j)), k Gaussian;
mean-field iterations turn it into marginals. pydensecrf filters on the permutohedral lattice, an
approximation of the exact sums.

Krahenbuhl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011,
equations 1-3. Keep torch out of this module: worker processes import it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydensecrf.densecrf import DenseCRF2D

from wsss_lib.errors import WsssError


@dataclass(frozen=True)
class DenseCRFSettings:
    """Numbers of a dense CRF; `PRESETS` holds those of the published pipelines.

    Parameters
    ----------
    iterations : int
        Mean-field iterations.
    gaussian_sxy, gaussian_compat : float
        Width in pixels and weight of the kernel in place alone.
    bilateral_sxy, bilateral_srgb, bilateral_compat : float
        Width in pixels, width in grey levels (0-255) and weight of the kernel in place and colour.

    Examples
    --------
    >>> PRESETS["psa"].bilateral_sxy
    80
    """

    iterations: int = 10
    gaussian_sxy: float = 3
    gaussian_compat: float = 3
    bilateral_sxy: float = 50
    bilateral_srgb: float = 5
    bilateral_compat: float = 10


_PSA = DenseCRFSettings(10, 3, 3, 80, 13, 10)  # which many took over
PRESETS = {
    # of maps, on the way to pseudo masks
    "irn": DenseCRFSettings(10, 3, 3, 50, 5, 10),  # of the labels that IRNet learns from; see HARD
    "psa": _PSA,
    "seam": _PSA,
    "mctformer": _PSA,
    "cpn": DenseCRFSettings(5, 3, 3, 50, 13, 10),  # its helper; its pipeline does not call it
    # of a single-stage method's masks
    "ssss": _PSA,
    "ws_fcn": DenseCRFSettings(10, 3, 3, 30, 13, 10),
    # of a segmentation network's masks
    "deeplab_v2": DenseCRFSettings(10, 1, 3, 67, 3, 4),
    "seam_segment": DenseCRFSettings(1, 3, 3, 32, 13, 10),  # CPN's, too
    "mctformer_segment": DenseCRFSettings(10, 4, 3, 83, 5, 3),
}
"""Dense CRFs of the published pipelines, as their released code has them."""

HARD = ("irn",)
"""Presets that refine the argmax of the scores, at confidence 0.7, in place of the scores; see `hard_probability`."""

LA_HA = {
    "power": {"psa": (4, 32), "seam": (4, 24), "mctformer": (1, 12)},
    "constant": {"irn": (0.3, 0.05), "advcam": (0.35, 0.15), "recam": (0.35, 0.1), "amn": (0.45, 0.15)},
}
"""What leaves the sure pixels only, by kind of background score: two exponents, or two thresholds; see `la_ha_mask`."""


def dense_crf(image: np.ndarray, probability: np.ndarray, settings: DenseCRFSettings = PRESETS["psa"]) -> np.ndarray:
    """Mean-field marginals of a dense CRF whose unary is -log of `probability`.

    Parameters
    ----------
    image : (H,W,3) uint8
        RGB picture.
    probability : (L,H,W) array
        Non-negative score of each label; values below 1e-5 are raised to it. A pixel's scores need not sum
        to 1 (mean field normalises them).
    settings : DenseCRFSettings
        Kernel widths and weights.

    Returns
    -------
    (L,H,W) float32
        Marginals, summing to 1 at each pixel.

    Raises
    ------
    WsssError
        If the picture is not uint8 RGB or the sizes differ.

    Examples
    --------
    >>> probability = np.full((2, 8, 8), 0.5)
    >>> dense_crf(np.zeros((8, 8, 3), np.uint8), probability).shape
    (2, 8, 8)
    """
    labels, height, width = probability.shape
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise WsssError(f"image: {image.dtype} {image.shape}; give uint8 {(height, width, 3)}, as probability")
    if labels == 1:
        return np.ones((1, height, width), np.float32)
    crf = DenseCRF2D(width, height, labels)
    unary = -np.log(np.maximum(probability, 1e-5)).astype(np.float32)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1)))
    crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=np.require(image, requirements=["C", "W"]),  # pydensecrf takes no read-only view of a file
        compat=settings.bilateral_compat,
    )
    return np.array(crf.inference(settings.iterations), np.float32).reshape(labels, height, width)


def hard_probability(mask: np.ndarray, n_labels: int, confidence: float = 0.7) -> np.ndarray:
    """Soft scores of a hard mask, as IRN's CRF gets them: `confidence` to its label, others share the rest.

    Parameters
    ----------
    mask : (H,W) int
        Labels 0..n_labels-1.
    n_labels : int
        Number of labels L.
    confidence : float
        Score of the given label, in (0,1).

    Returns
    -------
    (L,H,W) float32

    Examples
    --------
    >>> hard_probability(np.array([[0, 2]]), n_labels=3)[:, 0, 1].round(2)
    array([0.15, 0.15, 0.7 ], dtype=float32)
    """
    rest = (1 - confidence) / max(n_labels - 1, 1)
    chosen = np.arange(n_labels)[:, None, None] == mask
    return np.where(chosen, np.float32(confidence), np.float32(rest))


def refined_labels(
    image: np.ndarray, probability: np.ndarray, settings: DenseCRFSettings, floor: float = 0.01
) -> np.ndarray:
    """Refine a segmentation network's probabilities by dense CRF and take the strongest label.

    Parameters
    ----------
    image : (H,W,3) uint8
        RGB picture.
    probability : (C,H,W) array
        Probabilities of all classes.
    settings : DenseCRFSettings
        Kernel widths and weights.
    floor : float
        Classes below this probability at every pixel are left out, which saves their share of the time. A
        class that is the strongest anywhere has at least 1/C there, so none that the network predicts goes.

    Returns
    -------
    (H,W) uint8
        Class indices.

    Examples
    --------
    >>> probability = np.array([[[0.2]], [[0.0]], [[0.8]]])
    >>> refined_labels(np.zeros((1, 1, 3), np.uint8), probability, PRESETS["psa"]).tolist()
    [[2]]
    """
    kept = np.flatnonzero(probability.max(axis=(1, 2)) >= floor)
    return kept.astype(np.uint8)[dense_crf(image, probability[kept], settings).argmax(0)]
