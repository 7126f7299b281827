r"""DEFT: an image's object and its background become two features, and backgrounds are swapped within the batch.

One idea: what CDA does with scissors happens here on features. One aggregator gathers the foreground, one the
background; each of two classifiers is told what it has to say to either. Then a third one sees an object with the
background of another image and must name the object. Disentangled Feature Swapping Augmentation for Weakly Supervised
Semantic Segmentation (anonymous submission), equations 1 to 7. Equation 3 contradicts the paper's own text twice; the
text has the reasons, so its labels are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from wsss_lib.errors import SettingsError
from wsss_lib.methods.base import Losses, Method, Progress, backbone_and_rest, check_range, multi_label_soft_margin
from wsss_lib.nn.class_maps import class_maps

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.data.samples import Batch

# Which ways are learnt from: a new background for each object, a new object for each background.
SWAPS = {"both": ("bg", "fg"), "background": ("bg",), "foreground": ("fg",), "none": ()}
MAPS = ("fg", "max")
EPS = 1e-5


class Disentangled(NamedTuple):
    """What DEFT makes of images.

    Parameters
    ----------
    features : Tensor
        z (N, C, h, w), the backbone's last map.
    attention_fg, attention_bg : Tensor
        A (N, M, h, w), non-negative; each of the M maps sums to 1 over space.
    z_fg, z_bg : Tensor
        (N, C): the features gathered by either attention.

    Examples
    --------
    >>> Disentangled._fields
    ('features', 'attention_fg', 'attention_bg', 'z_fg', 'z_bg')
    """

    features: Tensor
    attention_fg: Tensor
    attention_bg: Tensor
    z_fg: Tensor
    z_bg: Tensor


def attention(scores: Tensor) -> Tensor:
    r"""Attention maps: a soft-max over space, :math:`A_m = \mathrm{softmax}_{hw}(W_m z)`.

    Parameters
    ----------
    scores : Tensor
        W z (N, M, h, w).

    Returns
    -------
    Tensor
        A (N, M, h, w), non-negative; each map sums to 1.

    References
    ----------
    DEFT, equation 1.

    Examples
    --------
    >>> attention(torch.zeros(1, 1, 2, 2)).flatten()
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    return scores.flatten(2).softmax(2).view_as(scores)


def aggregate(features: Tensor, maps: Tensor) -> Tensor:
    r"""One feature an image, gathered where attention is: :math:`\frac{1}{M} \sum_m \sum_p A_{m,p} z_p`.

    The mean over the M maps is taken first, which is the same and M times cheaper.

    Parameters
    ----------
    features : Tensor
        z (N, C, h, w).
    maps : Tensor
        A (N, M, h, w), from `attention`.

    Returns
    -------
    Tensor
        (N, C); with equal weights everywhere, the global average.

    References
    ----------
    DEFT, equation 2.

    Examples
    --------
    >>> features = torch.tensor([[[[1.0, 3.0]]]])
    >>> aggregate(features, torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]]))
    tensor([[1.5000]])
    """
    return torch.einsum("nchw,nhw->nc", features, maps.mean(1).to(features))


def disentangling_loss(fg: Tensor, fg_of_bg: Tensor, bg_of_fg: Tensor, bg: Tensor, label: Tensor) -> dict[str, Tensor]:
    r"""What either classifier has to say to either feature: four binary cross-entropies.

    :math:`f_{fg}(z_{fg}) \to y` and :math:`f_{fg}(z_{bg}) \to \mathbf 0`: no object is in the background.
    :math:`f_{bg}(z_{fg}) \to 1 - y` and :math:`f_{bg}(z_{bg}) \to \mathbf 1`: the second classifier says of each class
    that this is not it.

    Parameters
    ----------
    fg, fg_of_bg : Tensor
        Logits (N, K) of f_fg, the foreground's classifier, for z_fg and for z_bg.
    bg_of_fg, bg : Tensor
        Logits (N, K) of f_bg, the background's, for z_fg and for z_bg.
    label : Tensor
        y (N, K) in [0, 1].

    Returns
    -------
    dict of str to Tensor
        Unweighted scalars under the arguments' names; the paper weighs the first by 1, the others by lambda.

    References
    ----------
    DEFT, equation 3, with the labels of the text around it: as printed it changes fg_of_bg's with bg_of_fg's, and
    would reward f_fg for seeing, in the background, the objects that the image does not hold.

    Examples
    --------
    >>> sure, y = 20 * torch.ones(1, 2), torch.tensor([[1.0, 0.0]])
    >>> terms = disentangling_loss(40 * y - 20, -sure, 20 - 40 * y, sure, y)
    >>> [round(float(term), 4) for term in terms.values()]
    [0.0, 0.0, 0.0, 0.0]
    """
    return {
        "fg": multi_label_soft_margin(fg, label),
        "fg_of_bg": multi_label_soft_margin(fg_of_bg, torch.zeros_like(label)),
        "bg_of_fg": multi_label_soft_margin(bg_of_fg, 1 - label),
        "bg": multi_label_soft_margin(bg, torch.ones_like(label)),
    }


def swap_loss(
    classify: Callable[[Tensor], Tensor], z_fg: Tensor, z_bg: Tensor, label: Tensor, order: Tensor
) -> dict[str, Tensor]:
    r"""An object is named whatever is behind it: features are swapped in the batch, both ways, by one permutation.

    .. math:: \ell(f_{swap}[z_{fg}, \bar z_{bg}], y) + \ell(f_{swap}[\bar z_{fg}, z_{bg}], \bar y)

    The background's feature is a given here: it gets no gradient, else it would learn to tell the class. The second
    way is the first with the inverse permutation, so each object meets two other backgrounds.

    Parameters
    ----------
    classify : callable
        f_swap: (N, 2 C), an object's feature and a background's, to logits (N, K).
    z_fg, z_bg : Tensor
        (N, C).
    label : Tensor
        y (N, K) in [0, 1].
    order : Tensor
        (N,) int64, a permutation: the bar takes row order[i] to place i.

    Returns
    -------
    dict of str to Tensor
        Scalars: swap_bg, where the backgrounds have moved, and swap_fg, where objects and labels have.

    References
    ----------
    DEFT, equation 5; that both ways share the permutation is a reading.

    Examples
    --------
    >>> same = torch.zeros(2, 3)
    >>> swap_loss(lambda pair: pair[:, :2], same, same, torch.zeros(2, 2), torch.tensor([1, 0]))
    {'swap_bg': tensor(0.6931), 'swap_fg': tensor(0.6931)}
    """
    z_bg = z_bg.detach()
    other_bg, other_fg = torch.cat([z_fg, z_bg[order]], 1), torch.cat([z_fg[order], z_bg], 1)
    return {
        "swap_bg": multi_label_soft_margin(classify(other_bg), label),
        "swap_fg": multi_label_soft_margin(classify(other_fg), label[order]),
    }


def localisation_map(fg: Tensor, bg: Tensor) -> Tensor:
    r"""Where either classifier sees an object:
    :math:`\mathcal P_k = \max(\hat M^{fg}_k, 1 - \hat M^{bg}_k)` with :math:`\hat M = M^+ / \max_p M^+`.

    Each map is divided by its own maximum over space, so no label is needed: which classes are present is asked
    where maps become seeds. Where the background's map of a class is low everywhere, the second part is high
    everywhere and floods the image.

    Parameters
    ----------
    fg, bg : Tensor
        Class scores at every cell (N, K, h, w), of either sign: w_fg z and w_bg z.

    Returns
    -------
    Tensor
        (N, K, h, w) in [0, 1].

    References
    ----------
    DEFT, equation 7. It takes the maximum of an unbounded score and of 1 minus one; here both are brought to [0, 1]
    first.

    Examples
    --------
    >>> localisation_map(torch.tensor([[[[4.0, 1.0, -1.0]]]]), torch.tensor([[[[0.0, 1.0, 2.0]]]])).round(decimals=2)
    tensor([[[[1.0000, 0.5000, 0.0000]]]])
    """

    def share_of_maximum(maps: Tensor) -> Tensor:
        maps = maps.relu()
        return maps / (maps.amax((2, 3), keepdim=True) + EPS)

    return torch.maximum(share_of_maximum(fg), 1 - share_of_maximum(bg))


class DEFT(Method):
    r"""A backbone, two aggregators of M attention maps each, and three linear classifiers without bias.

    The loss is that of equation 6: the disentangling terms, and from ``start`` on the swap's.

    Parameters
    ----------
    backbone : Backbone
        Gives the features z.
    n_classes : int
        K, the number of foreground classes.
    attention_maps : int
        M of each aggregator. The paper gives none; 256 is that of its authors' later work (SMA).
    weight : float
        lambda, of all disentangling terms but the first.
    start : float
        t_aug: the share of the training's steps that are done before the swap begins. The paper's sixth epoch of ten
        is 0.5; as a share it means the same in trainings of other lengths.
    swap : str
        Which ways are learnt from: ``both``, ``background`` (new backgrounds only), ``foreground``, ``none``.
    map : str
        What `cam` returns: ``fg``, the positive scores of f_fg alone, or ``max``, equation 7.
    attention_factor : float
        Factor on the learning rate of the aggregators. The faster they learn, the sooner each looks at one point only,
        and a map that is told by one point need not cover the object.

    Raises
    ------
    SettingsError
        For a value out of its range.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> deft = DEFT(backbones.build("tiny"), n_classes=6, attention_maps=8)
    >>> deft.cam(torch.zeros(1, 3, 64, 64)).shape, deft.disentangle(torch.zeros(1, 3, 64, 64)).z_bg.shape
    (torch.Size([1, 6, 16, 16]), torch.Size([1, 64]))
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        attention_maps: int = 256,
        weight: float = 0.3,
        start: float = 0.5,
        swap: str = "both",
        map: str = "fg",
        attention_factor: float = 10.0,
    ) -> None:
        super().__init__(n_classes)
        check_range(1, inf, attention_maps=attention_maps)
        check_range(0, inf, weight=weight, attention_factor=attention_factor)
        check_range(0, 1, start=start)
        if swap not in SWAPS:
            raise SettingsError(f"swap={swap!r}: choose one of {', '.join(SWAPS)}")
        if map not in MAPS:
            raise SettingsError(f"map={map!r}: choose one of {', '.join(MAPS)}")
        self.backbone, self.weight, self.start, self.ways, self.map = backbone, weight, start, SWAPS[swap], map
        self.attention_factor = attention_factor
        channels = backbone.out_channels
        self.attend_fg = nn.Conv2d(channels, attention_maps, 1, bias=False)  # a bias would not outlive the soft-max
        self.attend_bg = nn.Conv2d(channels, attention_maps, 1, bias=False)
        self.classify_fg = nn.Linear(channels, n_classes, bias=False)
        self.classify_bg = nn.Linear(channels, n_classes, bias=False)
        self.classify_swap = nn.Linear(2 * channels, n_classes, bias=False)

    def disentangle(self, image: Tensor) -> Disentangled:
        """Return features, attention maps and the two gathered features of `image` (N, 3, H, W)."""
        z = self.backbone(image)
        attention_fg, attention_bg = attention(self.attend_fg(z)), attention(self.attend_bg(z))
        return Disentangled(z, attention_fg, attention_bg, aggregate(z, attention_fg), aggregate(z, attention_bg))

    def logits(self, image: Tensor) -> Tensor:
        """Return the class scores f_fg(z_fg) (N, K) before the sigmoid of `image` (N, 3, H, W)."""
        return self.classify_fg(self.disentangle(image).z_fg)

    def maps(self, image: Tensor) -> Tensor:
        """Return f_fg's scores at every cell (N, K, h, w) of `image` (N, 3, H, W), of either sign."""
        return class_maps(self.backbone(image), self.classify_fg.weight)

    def cam(self, image: Tensor) -> Tensor:
        """Return the map of the setting ``map`` (N, K, h, w) of `image` (N, 3, H, W), non-negative."""
        z = self.backbone(image)
        fg = class_maps(z, self.classify_fg.weight)
        return fg.relu() if self.map == "fg" else localisation_map(fg, class_maps(z, self.classify_bg.weight))

    def parameter_groups(self, classifier_factor: float = 10.0) -> list[dict]:
        """Split what learns into the backbone (x1), the attention (x `attention_factor`) and the classifiers."""
        attention = ([self.attend_fg, self.attend_bg], self.attention_factor)
        return backbone_and_rest(self, "classifier", classifier_factor, attention=attention)

    def loss(self, batch: Batch, progress: Progress) -> Losses:
        """Return the loss of a `batch`; before ``start`` the swap terms are 0 and their classifier learns nothing.

        Features are swapped within what comes in one call: micro-batches of one image have nothing to swap.
        """
        *_, z_fg, z_bg = self.disentangle(batch.image)
        terms = disentangling_loss(
            self.classify_fg(z_fg), self.classify_fg(z_bg), self.classify_bg(z_fg), self.classify_bg(z_bg), batch.label
        )
        weights = {name: self.weight for name in terms if name != "fg"}
        swaps = {"swap_bg": z_fg.new_zeros(()), "swap_fg": z_fg.new_zeros(())}
        if self.ways and progress.fraction >= self.start:
            order = torch.randperm(len(z_fg)).to(z_fg.device)
            swapped = swap_loss(self.classify_swap, z_fg, z_bg, batch.label, order)
            swaps |= {f"swap_{way}": swapped[f"swap_{way}"] for way in self.ways}
        return Losses.weighted({**terms, **swaps}, weights)


def build(backbone: Backbone, n_classes: int, settings: Mapping[str, Any]) -> DEFT:
    """Make a `DEFT` for the registry.

    Parameters
    ----------
    backbone : Backbone
        Gives the features.
    n_classes : int
        K, the number of foreground classes.
    settings : mapping
        The section ``[deft]``.

    Returns
    -------
    DEFT
        The method.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> from wsss_lib.settings import load
    >>> build(backbones.build("tiny"), 6, load("demo").deft).start
    0.5
    """
    return DEFT(
        backbone,
        n_classes,
        attention_maps=settings["attention_maps"],
        weight=settings["lambda_dis"],
        start=settings["start"],
        swap=settings["swap"],
        map=settings["map"],
        attention_factor=settings["attention_factor"],
    )
