"""PAMR as a refinement of activation maps, in place of the dense CRF: torch alone, so a GPU may do it.

One idea: the scores of background and classes are averaged with neighbours of like colour (`wsss_lib.nn.pamr`); who is
highest then has the pixel. Unlike a CRF it has no sense of labels that differ, and reaches no further than its
neighbours' distances times its iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.pamr import DILATIONS, neighbours, pamr


@dataclass(frozen=True)
class PAMRSettings:
    """How far and how often pixels are averaged.

    Parameters
    ----------
    iterations : int
        0 or more.
    dilations : sequence of int
        Distances of the neighbours in pixels, each 1 or more.
    device : str
        Where to compute.

    Raises
    ------
    SettingsError
        Without a dilation, for one below 1, or for fewer than 0 iterations.

    References
    ----------
    Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels, CVPR 2020.

    Examples
    --------
    >>> PAMRSettings().iterations
    10
    """

    iterations: int = 10
    dilations: Sequence[int] = DILATIONS
    device: str = "cpu"

    def __post_init__(self):
        neighbours(self.dilations)
        if self.iterations < 0:
            raise SettingsError(f"iterations={self.iterations}: give 0 or more")

    def refine(self, image: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Average the scores of one image.

        Parameters
        ----------
        image : (H,W,3) uint8
            RGB picture.
        score : (n,H,W) float array
            Of background and classes.

        Returns
        -------
        (n,H,W) float32
            Each within the range that it had.

        Raises
        ------
        WsssError
            If the sizes differ.

        Examples
        --------
        >>> image, score = np.zeros((1, 3, 3), np.uint8), np.array([[[0.0, 0.0, 1.0]]])
        >>> image[:, 2] = 255
        >>> PAMRSettings(dilations=(1,)).refine(image, score).round(1).tolist()
        [[[0.0, 0.0, 1.0]]]
        """
        if image.shape[:2] != score.shape[1:]:
            raise WsssError(f"image {image.shape[:2]}, score {score.shape[1:]}: bring the score to the image's size")
        own = (np.require(x, requirements=["C", "W"]) for x in (image, score))  # torch warns of read-only ones
        picture, given = (torch.from_numpy(x).to(self.device) for x in own)
        picture = picture.permute(2, 0, 1)[None].float() / 255
        return pamr(picture, given[None].float(), self.iterations, self.dilations)[0].cpu().numpy()
