"""Class maps, and what SEAM and CPN need to compare them: one scale, a background, one class a cell, hard cells first.

One idea: two maps of one scene can be subtracted only if both are on one scale and say the same of absent classes
and of background. Wang et al., Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic
Segmentation (SEAM), CVPR 2020, which CPN (Zhang et al., ICCV 2021) takes over.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.errors import SettingsError, WsssError

EPS = 1e-5


def class_maps(features: Tensor, weight: Tensor) -> Tensor:
    r"""Class scores at every cell: :math:`M_k(p) = \theta_k^\top f_p`; their spatial mean is the logits.

    Parameters
    ----------
    features : Tensor
        f (N, C, h, w).
    weight : Tensor
        theta (K, C).

    Returns
    -------
    Tensor
        M (N, K, h, w), of either sign; the CAM is its positive part.

    References
    ----------
    Zhou et al. 2016, equation 2.

    Examples
    --------
    >>> import torch
    >>> class_maps(torch.ones(1, 4, 2, 2), torch.ones(3, 4)).shape
    torch.Size([1, 3, 2, 2])
    """
    return F.conv2d(features, weight[:, :, None, None])


def min_max(maps: Tensor, label: Tensor, eps: float = EPS) -> Tensor:
    r"""Scale the positive part of each present class to [0, 1] by its minimum and maximum over the image.

    .. math:: \hat M_k(p) = y_k \frac{M^+_k(p) - \min_q M^+_k(q)}{\max_q M^+_k(q) - \min_q M^+_k(q) + \epsilon}

    Parameters
    ----------
    maps : Tensor
        M (N, K, h, w), of either sign; computed in float32 at least.
    label : Tensor
        y (N, K) in {0, 1}; a background channel among the K has label 1.
    eps : float
        Bounds the gradient by 1 / eps, which counts where a present class has hardly a positive score: with 1e-5 one
        such image can throw a training that takes large steps. Above it, the class counts little until it has scores.

    Returns
    -------
    Tensor
        (N, K, h, w) in [0, 1); absent classes and flat maps are 0.

    Raises
    ------
    WsssError
        If the two do not have the same images and classes.

    References
    ----------
    SEAM's released code, with 1e-5. CPN's equation 16 divides by the maximum only, its released code does this.

    Examples
    --------
    >>> min_max(torch.tensor([[[[-1.0, 1.0, 3.0]]]]), torch.ones(1, 1)).round(decimals=2)
    tensor([[[[0.0000, 0.3300, 1.0000]]]])
    """
    if maps.ndim != 4 or maps.shape[:2] != label.shape:
        raise WsssError(f"label has shape {tuple(label.shape)}: give {tuple(maps.shape[:2])}, as the maps begin")
    positive = _at_least_float32(maps).relu()
    low, high = (end((2, 3), keepdim=True) for end in (positive.amin, positive.amax))
    return (positive - low) / (high - low + eps) * label.to(positive)[:, :, None, None]


def with_background(maps: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Put a background channel before the classes: :math:`M_0 = (1 - \max_k M_k)^\alpha`.

    Parameters
    ----------
    maps : Tensor
        M (N, K, h, w) in [0, 1].
    alpha : float
        Exponent; above 1 the background is less sure of itself.

    Returns
    -------
    Tensor
        (N, 1 + K, h, w) in [0, 1].

    References
    ----------
    CPN, equation 16; alpha = 1 in training.

    Examples
    --------
    >>> with_background(torch.tensor([[[[0.25]], [[0.5]]]])).flatten()
    tensor([0.5000, 0.2500, 0.5000])
    """
    return torch.cat([(1 - maps.amax(1, keepdim=True)) ** alpha, maps], 1)


def keep_strongest(maps: Tensor) -> Tensor:
    """Keep in each cell the largest class and the background, with their values; all else is 0.

    Parameters
    ----------
    maps : Tensor
        (N, 1 + K, h, w), 0 or more; channel 0 is background. Equal classes all stay.

    Returns
    -------
    Tensor
        (N, 1 + K, h, w).

    References
    ----------
    SEAM's released code, where it is called one-hot.

    Examples
    --------
    >>> keep_strongest(torch.tensor([[[[0.9]], [[0.2]], [[0.3]]]])).flatten()
    tensor([0.9000, 0.0000, 0.3000])
    """
    classes = maps[:, 1:]
    strongest = classes.amax(1, keepdim=True)
    return torch.cat([maps[:, :1], torch.where(classes == strongest, classes, 0)], 1)


def soft_masks(maps: Tensor) -> Tensor:
    r"""Class scores as soft masks, without a gradient: what pixel correlation spreads.

    Each class is divided by its maximum, in each cell only the largest class stays, and background is
    :math:`1 - \max_k`. No label is asked for, so it is the same in training and for new images.

    Parameters
    ----------
    maps : Tensor
        M (N, K, h, w), of either sign.

    Returns
    -------
    Tensor
        (N, 1 + K, h, w) in [0, 1], detached; channel 0 is background.

    References
    ----------
    SEAM's released code.

    Examples
    --------
    >>> soft_masks(torch.tensor([[[[-1.0, 2.0]], [[4.0, 1.0]]]])).round(decimals=2)[0, :, 0]
    tensor([[0., 0.],
            [0., 1.],
            [1., 0.]])
    """
    positive = _at_least_float32(maps.detach()).relu()
    return keep_strongest(with_background(positive / (positive.amax((2, 3), keepdim=True) + EPS)))


def hardest_mean(errors: Tensor, share: float = 0.2) -> Tensor:
    """Mean of each image's largest errors, over all its channels and cells (online hard example mining).

    Parameters
    ----------
    errors : Tensor
        (N, K, h, w).
    share : float
        How many of them count, more than 0 up to 1 (the plain mean); always at least one.

    Returns
    -------
    Tensor
        Scalar; never below the plain mean.

    Raises
    ------
    SettingsError
        For another share.

    References
    ----------
    SEAM's released code; CPN, section 4.1: the top 20 %.

    Examples
    --------
    >>> hardest_mean(torch.arange(10.0).view(1, 1, 2, 5), share=0.2)
    tensor(8.5000)
    """
    if not 0 < share <= 1:
        raise SettingsError(f"share={share}: give more than 0, up to 1")
    errors = errors.flatten(1)
    return errors.topk(max(1, round(share * errors.shape[1])), dim=1, sorted=False).values.mean()


def min_pooling_loss(maps: Tensor, share: float = 0.25) -> Tensor:
    r"""Mean over the lowest cells of the largest class: part of every image has to be background.

    Parameters
    ----------
    maps : Tensor
        (N, K, h, w), without background, absent classes set to 0.
    share : float
        How many of the cells count; a quarter.

    Returns
    -------
    Tensor
        Scalar, 0 or more.

    References
    ----------
    SEAM's released code, :math:`L_{rvmin}`; in no paper's equations.

    Examples
    --------
    >>> min_pooling_loss(torch.tensor([[[[0.1, 0.5], [0.7, 0.9]]]]))
    tensor(0.1000)
    """
    return -hardest_mean(-maps.amax(1, keepdim=True).relu(), share)


def _at_least_float32(maps: Tensor) -> Tensor:
    return maps if maps.dtype == torch.float64 else maps.float()
