"""What every method offers: a loss to learn from image-level labels, and class activation maps.

One idea: the training loop, the localisation and the notebooks know only these types, so that a new method is
one file. A method that wraps another takes it as an argument (its host).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.class_maps import min_pooling_loss, soft_masks
from wsss_lib.nn.norm import still_statistics
from wsss_lib.nn.pcm import SOFTMAX_AXES, PixelFeatures, pixel_correlation, pixel_region_correlation

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.data.samples import Batch


@dataclass(frozen=True)
class Progress:
    """Where the training stands, for what starts late or fades.

    Parameters
    ----------
    step, steps : int
        Optimiser steps done before this one, and in all.
    epoch, epochs : int
        Epochs done before this one, and in all.

    Examples
    --------
    >>> Progress(step=50, steps=200, epoch=1, epochs=4).fraction
    0.25
    """

    step: int = 0
    steps: int = 1
    epoch: int = 0
    epochs: int = 1

    @property
    def fraction(self) -> float:
        """Share of the steps done, 0 at the first."""
        return self.step / self.steps


@dataclass(frozen=True)
class Losses:
    """The scalar to minimise and its named terms; every term is logged.

    Parameters
    ----------
    total : Tensor
        Scalar with a gradient.
    terms : dict of str to Tensor
        The unweighted scalar terms.

    Examples
    --------
    >>> import torch
    >>> terms = {"classify": torch.tensor(2.0), "erase": torch.tensor(1.0)}
    >>> losses = Losses.weighted(terms, {"erase": 0.5})
    >>> float(losses.total)
    2.5
    """

    total: Tensor
    terms: dict[str, Tensor]

    @classmethod
    def weighted(cls, terms: dict[str, Tensor], weights: dict[str, float] | None = None) -> Losses:
        """Add up `terms`, each times its entry in `weights` (1 where there is none)."""
        weights = weights or {}
        if unknown := sorted(set(weights) - set(terms)):
            raise WsssError(f"weights name {unknown[0]!r}: the terms are {', '.join(terms)}")
        return cls(sum(weights.get(name, 1.0) * term for name, term in terms.items()), terms)


class Method(nn.Module):
    """A way to learn from image-level labels; a subclass has a `backbone` and writes `loss`, `maps`, `logits`.

    Parameters
    ----------
    n_classes : int
        K, the number of foreground classes.

    Examples
    --------
    >>> Method(n_classes=6).n_classes
    6
    """

    backbone: Backbone

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        if n_classes < 1:
            raise WsssError(f"n_classes={n_classes}: give the number of foreground classes, 1 or more")
        self.n_classes = n_classes

    def loss(self, batch: Batch, progress: Progress) -> Losses:
        """Return the loss of a `batch` of images and labels at this point of `progress`."""
        raise NotImplementedError

    def maps(self, image: Tensor) -> Tensor:
        """Return the class scores at every cell (N, K, h, w) of `image` (N, 3, H, W), of either sign."""
        raise NotImplementedError

    def cam(self, image: Tensor) -> Tensor:
        """Return class activation maps (N, K, h, w) of `image` (N, 3, H, W): non-negative, not normalised."""
        return self.maps(image).relu()

    def logits(self, image: Tensor) -> Tensor:
        """Return the class scores (N, K) before the sigmoid of `image` (N, 3, H, W)."""
        raise NotImplementedError

    def start_from(self, trained: Method) -> None:
        """Take over the weights of `trained`, a classifier whose weights all have a place here; the rest stays.

        Parameters
        ----------
        trained : Method
            As CAM for SEAM and CPN.

        Raises
        ------
        WsssError
            If one of its weights has no place here.
        """
        _take_over(self, trained)

    def parameter_groups(self, classifier_factor: float = 10.0) -> list[dict]:
        """Split what learns into the backbone (learning rate x1) and the rest, which starts from nothing.

        Parameters
        ----------
        classifier_factor : float
            Factor on the learning rate for everything outside `backbone`; 10 in IRN, PSA and their heirs.

        Returns
        -------
        list of dict
            Keys `name`, `params`, `lr_factor`; frozen parameters are in none, all others in exactly one.
        """
        return backbone_and_rest(self, "classifier", classifier_factor)


class Wrapper(Method):
    """A method around another one: it changes what the host learns from, and the host localises.

    Parameters
    ----------
    host : Method
        Any method.

    Examples
    --------
    >>> Wrapper(Method(n_classes=6)).n_classes
    6
    """

    def __init__(self, host: Method) -> None:
        super().__init__(host.n_classes)
        self.host = host

    @property
    def backbone(self) -> Backbone:
        """The host's backbone."""
        return self.host.backbone

    def logits(self, image: Tensor) -> Tensor:
        """Return the host's class scores (N, K) of `image` (N, 3, H, W)."""
        return self.host.logits(image)

    def maps(self, image: Tensor) -> Tensor:
        """Return the host's class scores at every cell (N, K, h, w) of `image` (N, 3, H, W)."""
        return self.host.maps(image)

    def cam(self, image: Tensor) -> Tensor:
        """Return the host's class activation maps (N, K, h, w) of `image` (N, 3, H, W)."""
        return self.host.cam(image)

    def start_from(self, trained: Method) -> None:
        """Take over the weights of `trained`, the host as trained alone."""
        _take_over(self.host, trained)

    def parameter_groups(self, classifier_factor: float = 10.0) -> list[dict]:
        """Return the host's groups."""
        return self.host.parameter_groups(classifier_factor)


class Refining(Method):
    """A plain CAM classifier whose maps are refined by what cells look like; a subclass writes the `loss`.

    The background is computed, not learnt, so the classifier is CAM's: a 1 x 1 convolution without bias. Maps are
    refined by PCM (`pixel_correlation`), and by PRCM (`pixel_region_correlation`), whose result is added.

    Parameters
    ----------
    backbone : Backbone
        Gives the features.
    n_classes : int
        K, the number of foreground classes.
    prcm : bool
        False: PCM alone.
    softmax_axis : str
        As in `pixel_region_correlation`.

    Raises
    ------
    SettingsError
        For another axis.

    Examples
    --------
    >>> import torch
    >>> from wsss_lib import backbones
    >>> maps, refined = Refining(backbones.build("tiny"), 6, prcm=True).both_maps(torch.zeros(1, 3, 64, 64))
    >>> maps.shape, refined.shape
    (torch.Size([1, 6, 16, 16]), torch.Size([1, 7, 16, 16]))
    """

    def __init__(self, backbone: Backbone, n_classes: int, prcm: bool, softmax_axis: str = "class") -> None:
        super().__init__(n_classes)
        if softmax_axis not in SOFTMAX_AXES:
            raise SettingsError(f"softmax_axis={softmax_axis!r}: choose one of {', '.join(SOFTMAX_AXES)}")
        self.backbone, self.prcm, self.softmax_axis = backbone, prcm, softmax_axis
        self.classifier = nn.Conv2d(backbone.out_channels, n_classes, 1, bias=False)
        self.features = PixelFeatures(backbone.channels)
        if prcm:
            self.phi = nn.Linear(self.features.out_channels, self.features.embed.out_channels, bias=False)

    def both_maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (N, K, h, w) and refined maps (N, 1 + K, h, w) with background of `image` (N, 3, H, W)."""
        stages = self.backbone.stages(image)
        maps = self.classifier(stages[-1])
        features, embedding = self.features(image, stages)
        masks = soft_masks(maps)
        refined = pixel_correlation(embedding, masks)
        if self.prcm:
            regional = pixel_region_correlation(masks, features, embedding, self.phi.weight, self.softmax_axis)
            refined = refined + regional
        return maps, refined

    def views(self, image: Tensor, *made: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return `both_maps` of `image` and of each that is `made` from it; their statistics do not reach BatchNorm's.

        What is tested is whole images of one size: running statistics that know small or half hidden ones, too,
        would be of neither.
        """
        whole = self.both_maps(image)
        with still_statistics(self.backbone):
            return [whole, *map(self.both_maps, made)]

    def classify(self, views: list[tuple[Tensor, Tensor]], label: Tensor) -> Tensor:
        """Return the mean classification loss of `views`, which all have the `label` (N, K)."""
        return sum(multi_label_soft_margin(scores.mean((2, 3)), label) for scores, _ in views) / len(views)

    def rvmin(self, views: list[tuple[Tensor, Tensor]], label: Tensor) -> Tensor:
        """Return the mean `min_pooling_loss` of the refined maps of `views`, over the classes of `label` (N, K)."""
        present = label[:, :, None, None]
        return sum(min_pooling_loss(refined[:, 1:] * present) for _, refined in views) / len(views)

    def maps(self, image: Tensor) -> Tensor:
        """Return the class scores at every cell (N, K, h, w) of `image` (N, 3, H, W), before the refinement."""
        return self.classifier(self.backbone(image))

    def logits(self, image: Tensor) -> Tensor:
        """Return the class scores (N, K) before the sigmoid of `image` (N, 3, H, W)."""
        return self.maps(image).mean((2, 3))

    def cam(self, image: Tensor) -> Tensor:
        """Return the refined maps (N, K, h, w) of `image` (N, 3, H, W), less their minimum (as released), 0 or more."""
        cam = self.both_maps(image)[1][:, 1:]
        return cam - cam.amin((2, 3), keepdim=True)


def _take_over(method: Method, trained: Method) -> None:
    weights, own = trained.state_dict(), method.state_dict()
    if without := [name for name, value in weights.items() if name not in own or own[name].shape != value.shape]:
        names = f"{type(method).__name__} has no place for {without[0]} of {type(trained).__name__}"
        raise WsssError(f"{names}: set init to backbone")
    method.load_state_dict(weights, strict=False)


def backbone_and_rest(model: nn.Module, rest: str, factor: float) -> list[dict]:
    """Split what learns into `model.backbone` at the base learning rate, and all else at `factor` times it.

    Parameters
    ----------
    model : nn.Module
        Has a `backbone`.
    rest : str
        Name of the second group.
    factor : float
        Factor on its learning rate.

    Returns
    -------
    list of dict
        Keys `name`, `params`, `lr_factor`; frozen parameters are in none, all others in exactly one.

    Examples
    --------
    >>> model = nn.Sequential()
    >>> model.backbone, model.head = nn.Linear(2, 2), nn.Linear(2, 1)
    >>> [(g["name"], len(g["params"]), g["lr_factor"]) for g in backbone_and_rest(model, "head", 10.0)]
    [('backbone', 2, 1.0), ('head', 2, 10.0)]
    """
    inside = {id(parameter) for parameter in model.backbone.parameters()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"name": "backbone", "params": [p for p in learning if id(p) in inside], "lr_factor": 1.0},
        {"name": rest, "params": [p for p in learning if id(p) not in inside], "lr_factor": factor},
    ]
    return [group for group in groups if group["params"]]


def multi_label_soft_margin(logits: Tensor, label: Tensor) -> Tensor:
    r"""Binary cross-entropy of every class, averaged over classes and images.

    .. math:: L = -\frac{1}{NK} \sum_{n,k} y_{nk} \log \sigma(s_{nk}) + (1 - y_{nk}) \log \sigma(-s_{nk})

    Parameters
    ----------
    logits : Tensor
        Scores s (N, K) before the sigmoid; computed in float32 whatever their precision.
    label : Tensor
        y (N, K) in [0, 1]; mixtures of labels are allowed.

    Returns
    -------
    Tensor
        Scalar, 0 or more.

    Raises
    ------
    WsssError
        If the shapes differ.

    References
    ----------
    `torch.nn.MultiLabelSoftMarginLoss`; the classification loss of IRN, CDA, CPN and DEFT.

    Examples
    --------
    >>> import torch
    >>> round(float(multi_label_soft_margin(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))), 4)
    0.6931
    """
    if logits.shape != label.shape:
        raise WsssError(
            f"label has shape {tuple(label.shape)}, logits {tuple(logits.shape)}: both need (images, classes)"
        )
    return F.binary_cross_entropy_with_logits(logits.float(), label.float())
