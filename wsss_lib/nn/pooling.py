r"""From class scores at every cell to class scores of the image, through the masks that the scores make.

One idea: average pooling asks a class for score where it is not; here each cell counts by its share in the class's
mask. The background has a constant score, so that a class has to beat something. Such pooling is content with a
few sure cells; the focal penalty asks for larger masks. Araslanov and Roth, Single-Stage Semantic Segmentation from
Image Labels, CVPR 2020 (SSSS), which WS-FCN (Wang et al.) takes over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_lib.errors import SettingsError, WsssError

BACKGROUND = 1.0  # score of background at every cell


def with_background_score(scores: Tensor) -> Tensor:
    """Put the constant score of background, 1, before those of the classes.

    Parameters
    ----------
    scores : Tensor
        x (N, K, h, w), of either sign.

    Returns
    -------
    Tensor
        (N, 1 + K, h, w); in float32 at least, so that the masks are.

    Raises
    ------
    WsssError
        For another shape.

    Examples
    --------
    >>> with_background_score(torch.tensor([[[[-2.0, 3.0]]]]))[0, :, 0]
    tensor([[ 1.,  1.],
            [-2.,  3.]])
    """
    if scores.ndim != 4:
        raise WsssError(f"scores have shape {tuple(scores.shape)}: give (images, classes, height, width)")
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return torch.cat([torch.full_like(scores[:, :1], BACKGROUND), scores], 1)


def class_masks(scores: Tensor) -> Tensor:
    r"""Soft masks of background and classes: :math:`m = \mathrm{softmax}([1, x_1, \dots, x_K])` at every cell.

    Parameters
    ----------
    scores : Tensor
        x (N, K, h, w), of either sign.

    Returns
    -------
    Tensor
        m (N, 1 + K, h, w) in [0, 1], channel 0 is background; each cell sums to 1.

    Examples
    --------
    >>> class_masks(torch.tensor([[[[1.0, 9.0]]]])).round(decimals=2)[0, :, 0]
    tensor([[0.5000, 0.0000],
            [0.5000, 1.0000]])
    """
    return with_background_score(scores).softmax(1)


def present_only(masks: Tensor, label: Tensor) -> Tensor:
    """Set the masks of absent classes to 0 everywhere; what is left is not scaled up.

    Parameters
    ----------
    masks : Tensor
        m (N, 1 + K, h, w), channel 0 is background.
    label : Tensor
        y (N, K): 0 where the class is absent.

    Returns
    -------
    Tensor
        (N, 1 + K, h, w).

    Raises
    ------
    WsssError
        If the two do not have the same images and classes.

    Examples
    --------
    >>> present_only(torch.full((1, 3, 1, 1), 0.3), torch.tensor([[0.0, 1.0]])).flatten()
    tensor([0.3000, 0.0000, 0.3000])
    """
    check_label(masks, label)
    keep = torch.cat([torch.ones_like(label[:, :1]), label], 1) > 0
    return masks * keep[:, :, None, None].to(masks)


def check_label(masks: Tensor, label: Tensor) -> None:
    """Refuse labels that are not of these masks' images and classes.

    Parameters
    ----------
    masks : Tensor
        (N, 1 + K, h, w), channel 0 is background.
    label : Tensor
        (N, K).

    Raises
    ------
    WsssError
        If they do not fit.

    Examples
    --------
    >>> check_label(torch.zeros(2, 4, 8, 8), torch.zeros(2, 4))
    Traceback (most recent call last):
    wsss_lib.errors.WsssError: label has shape (2, 4), masks (2, 4, 8, 8): give (N, K) and (N, 1 + K, h, w)
    """
    if masks.ndim != 4 or label.ndim != 2 or masks.shape[:2] != (len(label), 1 + label.shape[1]):
        shapes = f"label has shape {tuple(label.shape)}, masks {tuple(masks.shape)}"
        raise WsssError(f"{shapes}: give (N, K) and (N, 1 + K, h, w)")


def weighted_pooling(scores: Tensor, masks: Tensor) -> Tensor:
    r"""Normalised global weighted pooling (nGWP): the mean score over a class's mask, nearly.

    .. math:: y^{gwp}_c = \frac{\sum_p m_c(p)\, x_c(p)}{1 + \sum_p m_c(p)}

    The 1 keeps a mask of nothing at the score 0.

    Parameters
    ----------
    scores : Tensor
        x (N, K, h, w), of either sign.
    masks : Tensor
        m (N, 1 + K, h, w), from `class_masks`.

    Returns
    -------
    Tensor
        (N, K).

    References
    ----------
    Araslanov and Roth 2020.

    Examples
    --------
    >>> scores, masks = torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])
    >>> weighted_pooling(scores, masks)
    tensor([[1.]])
    """
    classes = masks[:, 1:]
    return (classes * scores).sum((2, 3)) / (1 + classes.sum((2, 3)))


def focal_mask_penalty(masks: Tensor, p: float = 3.0, lam: float = 0.01) -> Tensor:
    r"""What a class's score loses for a small mask: :math:`(1 - \bar m_c)^p \log(\lambda + \bar m_c)`.

    Parameters
    ----------
    masks : Tensor
        m (N, 1 + K, h, w), from `class_masks`; :math:`\bar m_c` is a class's mean over the cells.
    p : float
        Exponent: how soon a mask is large enough.
    lam : float
        :math:`\lambda`, above 0: bounds the penalty by its logarithm. 0.01 for VOC, 0.1 for COCO.

    Returns
    -------
    Tensor
        (N, K), negative up to a mean of 1 - lambda, and there 0.

    Raises
    ------
    SettingsError
        For an exponent below 0 or a lambda that is not above 0.

    References
    ----------
    Araslanov and Roth 2020.

    Examples
    --------
    >>> masks = torch.tensor([0.0, 0.25, 0.99]).view(1, 3, 1, 1)
    >>> focal_mask_penalty(torch.cat([masks[:, :1], masks], 1)).round(decimals=3).abs()
    tensor([[4.6050, 0.5680, 0.0000]])
    """
    if p < 0 or not lam > 0:
        raise SettingsError(f"p={p}, lam={lam}: give an exponent of 0 or more, and a lambda above 0")
    mean = masks[:, 1:].mean((2, 3))
    return (1 - mean) ** p * (lam + mean).log()


def pool_scores(scores: Tensor, p: float = 3.0, lam: float = 0.01) -> tuple[Tensor, Tensor]:
    r"""The image's class scores, :math:`y_c = y^{gwp}_c + y^{focal}_c`, and the masks that they come from.

    Parameters
    ----------
    scores : Tensor
        x (N, K, h, w), of either sign.
    p, lam : float
        Of the focal penalty.

    Returns
    -------
    tuple of Tensor
        Scores (N, K) before the sigmoid, masks (N, 1 + K, h, w).

    References
    ----------
    Araslanov and Roth 2020.

    Examples
    --------
    >>> y, masks = pool_scores(torch.zeros(2, 5, 8, 8))
    >>> y.shape, masks.shape
    (torch.Size([2, 5]), torch.Size([2, 6, 8, 8]))
    """
    masks = class_masks(scores)
    return weighted_pooling(scores, masks) + focal_mask_penalty(masks, p, lam), masks
