"""Maps that walked: a trained affinity network says how cells belong together, a random walk spreads the maps so.

One idea: a CAM marks part of an object, and its activation walks to the rest of it along cells of high affinity.
Written as the CAM stage writes its maps, so that whoever reads, scores or thresholds CAMs does so with walked ones.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision" (PSA), CVPR 2018; Ahn, Cho and Kwak,
"Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (IRNet), CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from tqdm import tqdm

from wsss_lib.data.transforms import normalize
from wsss_lib.errors import SettingsError
from wsss_lib.localize import save_cam
from wsss_lib.refine.maps import read_maps
from wsss_lib.refine.random_walk import random_walk

if TYPE_CHECKING:
    from wsss_lib.data import VOCFolder
    from wsss_lib.refine.affinity_net import AffinityNet
    from wsss_lib.refine.irnet import IRNet

EPS = 1e-5


@dataclass(frozen=True)
class WalkSettings:
    """How maps walk, and what the background is.

    Parameters
    ----------
    beta : float
        Exponent of the affinities, above 0: the larger, the fewer cells are walked to.
    t : int
        The walk has 2^t steps.
    background : str
        "power": the score (1 - max)^alpha walks along, as in PSA. "constant": classes walk alone, as in IRNet.
    alpha : float
        Exponent for "power".

    Raises
    ------
    SettingsError
        If `background` is unknown, or a number out of its range: here, before a network is trained.

    Examples
    --------
    >>> WalkSettings(background="none")
    Traceback (most recent call last):
    wsss_lib.errors.SettingsError: background='none': give "power" or "constant"
    """

    beta: float = 10.0
    t: int = 8
    background: str = "constant"
    alpha: float = 16.0

    def __post_init__(self):
        if self.background not in ("power", "constant"):
            raise SettingsError(f'background={self.background!r}: give "power" or "constant"')
        if not (self.beta > 0 and self.alpha >= 0 and self.t >= 0):
            given = f"beta={self.beta}, t={self.t}, alpha={self.alpha}"
            raise SettingsError(f"{given}: give beta above 0, t and alpha of 0 or more")


def on_grid(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps to a coarser grid by averaging, as PSA does, or to a finer one bilinearly.

    Parameters
    ----------
    maps : (n,h,w) Tensor
        Activation maps.
    size : tuple of int
        Rows and columns of the grid.

    Returns
    -------
    (n, *size) Tensor

    Examples
    --------
    >>> on_grid(torch.tensor([[[0.0, 1.0, 0.5, 0.5]]]), (1, 2))
    tensor([[[0.5000, 0.5000]]])
    """
    if not len(maps):
        return maps.new_zeros(0, *size)
    if maps.shape[1] >= size[0] and maps.shape[2] >= size[1]:
        return adaptive_avg_pool2d(maps, size)
    return interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def walk_maps(maps: Tensor, pairs, settings: WalkSettings, keep: Tensor | None = None) -> Tensor:
    r"""Let the maps of one image walk, and bring them to [0, 1] so that a constant threshold makes the mask.

    The background's score is taken of the maps on the grid (PSA takes it of the whole image, and averages then).
    With a background that walks along, the result is :math:`m_c / (m_c + m_0)`: a class exceeds 0.5 where it exceeds
    the background. Without, it is :math:`m_c / \max m`, one maximum for all classes.

    Parameters
    ----------
    maps : (n,h,w) Tensor
        Normalised activation maps of the classes present, in [0, 1], on the grid of the affinities.
    pairs : iterable of (offset, Tensor)
        Affinities of the image, see `wsss_lib.nn.pairs`.
    settings : WalkSettings
        Steps and background.
    keep : (h,w) Tensor, optional
        Factor on the maps before the walk; IRNet's is 1 - boundary.

    Returns
    -------
    (n,h,w) Tensor
        In [0, 1].

    Examples
    --------
    >>> alike = [((0, 1), torch.ones(1, 1, 1))]
    >>> walk_maps(torch.tensor([[[1.0, 0.0]]]), alike, WalkSettings())
    tensor([[[1., 1.]]])
    >>> walk_maps(torch.tensor([[[1.0, 0.0]]]), alike, WalkSettings(background="power")).round(decimals=4)
    tensor([[[0.5000, 0.5000]]])
    """
    if len(maps) == 0:
        return maps
    given = maps if keep is None else maps * keep
    if settings.background == "constant":
        walked = random_walk(given, pairs, settings.beta, settings.t)
        return walked / walked.max().clamp(min=EPS)
    background = (1 - maps.amax(0, keepdim=True)) ** settings.alpha
    none, *walked = random_walk(torch.cat([background, given]), pairs, settings.beta, settings.t)
    walked = torch.stack(walked)
    return walked / (walked + none).clamp(min=EPS)


@torch.inference_mode()
def walk_folder(
    network: AffinityNet | IRNet,
    folder: VOCFolder,
    ids: Sequence[str],
    cam_dir: str | Path,
    out: str | Path,
    settings: WalkSettings,
    device: torch.device | str = "cpu",
) -> int:
    """Write the walked maps of many images; those that exist are kept, so a broken run goes on.

    Parameters
    ----------
    network : AffinityNet or IRNet
        Trained; is moved to `device` and put in evaluation mode.
    folder : VOCFolder
        Where the images are.
    ids : sequence of str
        Image ids.
    cam_dir : path
        Holds `<id>.npz` as `localize` wrote them.
    out : path
        Receives `<id>.npz` of the same kind, on the network's grid.
    settings : WalkSettings
        Steps and background.
    device : device
        Where to compute.

    Returns
    -------
    int
        Number of files written now.

    Examples
    --------
    >>> import tempfile
    >>> from wsss_lib import backbones
    >>> from wsss_lib.refine.irnet import IRNet
    >>> with tempfile.TemporaryDirectory() as empty:
    ...     walk_folder(IRNet(backbones.build("tiny")), None, [], empty, empty, WalkSettings())
    0
    """
    out = Path(out)
    missing = [image_id for image_id in ids if not (out / f"{image_id}.npz").is_file()]
    out.mkdir(parents=True, exist_ok=True)
    network = network.to(device, memory_format=torch.channels_last).eval()
    bar = tqdm(total=len(ids), initial=len(ids) - len(missing), desc="random walk", unit="image", mininterval=1.0)
    with bar:
        for image_id in missing:
            classes, maps, size = read_maps(Path(cam_dir) / f"{image_id}.npz")
            pairs, keep = network.affinities(normalize(folder.image(image_id))[None].to(device))
            maps = on_grid(torch.from_numpy(maps).to(device), keep.shape[-2:])
            present = torch.zeros(folder.n_classes)
            present[torch.from_numpy(classes)] = 1
            walked = torch.zeros(folder.n_classes, *maps.shape[1:])
            walked[torch.from_numpy(classes)] = walk_maps(maps, pairs, settings, keep[0]).float().cpu()
            save_cam(out / f"{image_id}.npz", walked, present, size)
            bar.update()
    return len(missing)
