"""Augmentations of a batch and its labels that CDA and DEFT compare themselves with: nothing is cut out or learnt.

One idea: they stand where pasting stands, so that all get the same images, steps and pairs. Torchvision's transforms
do the work; labels are image-level and may hold several classes, so a mixture's label is the mixture of the labels.
Draws come from torch's default CPU generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from wsss_lib.errors import SettingsError

DEGREES = 90.0  # of a rotation, either way, as CDA rotates its instances
SHIFT = 0.25  # of a translation, as a share of the image's side
HOLE = (0.25, 0.25)  # area of CutOut's square, as a share of the image's: half its side, its authors' for CIFAR-10


def none(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Nothing: the baseline that has the same steps.

    Parameters
    ----------
    image : Tensor
        (N, 3, H, W) float, normalised.
    label : Tensor
        (N, K) in [0, 1].

    Returns
    -------
    tuple of Tensor
        The same images and labels.

    Examples
    --------
    >>> none(torch.ones(1, 3, 2, 2), torch.ones(1, 1))[1]
    tensor([[1.]])
    """
    return image, label


def rotation(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each image by an angle of its own, up to `DEGREES`; what appears at the corners is 0, the mean colour.

    Parameters
    ----------
    image : Tensor
        (N, 3, H, W) float, normalised.
    label : Tensor
        (N, K) in [0, 1].

    Returns
    -------
    tuple of Tensor
        Images and labels.

    Examples
    --------
    >>> rotation(torch.zeros(2, 3, 8, 8), torch.ones(2, 1))[0].shape
    torch.Size([2, 3, 8, 8])
    """
    return _each(v2.RandomRotation(DEGREES, interpolation=InterpolationMode.BILINEAR), image), label


def translation(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Shift each image by up to `SHIFT` of its sides; what appears at the border is 0, the mean colour.

    Parameters
    ----------
    image : Tensor
        (N, 3, H, W) float, normalised.
    label : Tensor
        (N, K) in [0, 1].

    Returns
    -------
    tuple of Tensor
        Images and labels.

    Examples
    --------
    >>> translation(torch.zeros(2, 3, 8, 8), torch.ones(2, 1))[0].shape
    torch.Size([2, 3, 8, 8])
    """
    return _each(v2.RandomAffine(degrees=0, translate=(SHIFT, SHIFT)), image), label


def cutout(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Cover a square of each image by 0, the mean colour; the label stays (DeVries and Taylor, 2017).

    Parameters
    ----------
    image : Tensor
        (N, 3, H, W) float, normalised.
    label : Tensor
        (N, K) in [0, 1].

    Returns
    -------
    tuple of Tensor
        Images and labels.

    Examples
    --------
    >>> cutout(torch.ones(1, 3, 8, 8), torch.ones(1, 1))[0].mean()
    tensor(0.7500)
    """
    return _each(v2.RandomErasing(p=1.0, scale=HOLE, ratio=(1.0, 1.0), value=0), image), label


def mixup(image: Tensor, label: Tensor, alpha: float = 0.5) -> tuple[Tensor, Tensor]:
    r"""Blend neighbours in the batch, :math:`\lambda x_i + (1-\lambda) x_j`, and their labels alike.

    Parameters
    ----------
    image : Tensor
        (N, 3, H, W) float, normalised.
    label : Tensor
        (N, K) in [0, 1].
    alpha : float
        Of the Beta(alpha, alpha) distribution that lambda comes from, one lambda a batch.

    Returns
    -------
    tuple of Tensor
        Images and labels.

    References
    ----------
    Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.

    Examples
    --------
    >>> _, label = mixup(torch.zeros(2, 3, 4, 4), torch.eye(2))
    >>> label.sum(1)
    tensor([1., 1.])
    """
    return v2.MixUp(alpha=alpha, num_classes=label.shape[1])(image, label)


def cutmix(image: Tensor, label: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Put a rectangle of its neighbour in the batch into each image; labels mix by area.

    Parameters
    ----------
    image : Tensor
        (N, 3, H, W) float, normalised.
    label : Tensor
        (N, K) in [0, 1].
    alpha : float
        Of the Beta(alpha, alpha) distribution of the area; 1, uniform, as its authors take.

    Returns
    -------
    tuple of Tensor
        Images and labels.

    References
    ----------
    Yun et al., CutMix, ICCV 2019.

    Examples
    --------
    >>> _, label = cutmix(torch.zeros(2, 3, 4, 4), torch.eye(2))
    >>> label.sum(1)
    tensor([1., 1.])
    """
    return v2.CutMix(alpha=alpha, num_classes=label.shape[1])(image, label)


@contextmanager
def manifold_mixup(stages: list[nn.Module], label: Tensor, alpha: float = 0.5) -> Iterator[Tensor]:
    r"""Blend the features of neighbours after a random stage: the last N images of what goes through meanwhile.

    Parameters
    ----------
    stages : list of nn.Module
        The backbone's stages, in order; the mixture happens before the first, or after one of them but the last.
    label : Tensor
        (N, K) in [0, 1].
    alpha : float
        Of the Beta(alpha, alpha) distribution that lambda comes from.

    Yields
    ------
    Tensor
        The labels (N, K), mixed as the features are.

    References
    ----------
    Verma et al., Manifold Mixup, ICML 2019.

    Examples
    --------
    >>> net = nn.ModuleList([nn.Identity(), nn.Identity()])
    >>> with manifold_mixup(list(net), torch.eye(2)) as label:
    ...     features = net[1](net[0](torch.eye(2)))
    >>> torch.equal(features, label)
    True
    """
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    depth, n = int(torch.randint(len(stages), ())), len(label)

    def mixed(x: Tensor) -> Tensor:
        return torch.cat([x[:-n], weight * x[-n:] + (1 - weight) * x[-n:].roll(1, 0)])

    if depth == 0:
        handle = stages[0].register_forward_pre_hook(lambda module, inputs: (mixed(inputs[0]), *inputs[1:]))
    else:
        handle = stages[depth - 1].register_forward_hook(lambda module, inputs, output: mixed(output))
    try:
        yield mixed(label)
    finally:
        handle.remove()


COMPETITORS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "none": none,
    "rotation": rotation,
    "translation": translation,
    "cutout": cutout,
    "mixup": mixup,
    "cutmix": cutmix,
}


def competitor(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The augmentation of this name.

    Parameters
    ----------
    name : str
        A key of `COMPETITORS`.

    Returns
    -------
    callable
        From images and labels to images and labels.

    Raises
    ------
    SettingsError
        If there is none.

    Examples
    --------
    >>> competitor("cutout").__name__
    'cutout'
    """
    if name not in COMPETITORS:
        raise SettingsError(f"augmentation={name!r}: choose paste, manifold_mixup, {', '.join(COMPETITORS)}")
    return COMPETITORS[name]


def _each(transform: nn.Module, image: Tensor) -> Tensor:
    return torch.stack([transform(one) for one in image])
