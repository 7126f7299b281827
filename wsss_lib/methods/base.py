"""What every method offers: a loss to learn from image-level labels, and class activation maps.

One idea: the training loop, the localisation and the notebooks know only these types, so that a new method is
one file. A method that wraps another takes it as an argument (its host).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.errors import SettingsError, WsssError

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


def _take_over(method: Method, trained: Method) -> None:
    weights, own = trained.state_dict(), method.state_dict()
    if without := [name for name, value in weights.items() if name not in own or own[name].shape != value.shape]:
        names = f"{type(method).__name__} has no place for {without[0]} of {type(trained).__name__}"
        raise WsssError(f"{names}: set init to backbone")
    method.load_state_dict(weights, strict=False)


def backbone_and_rest(
    model: nn.Module, rest: str, factor: float, **others: tuple[Iterable[nn.Module], float]
) -> list[dict]:
    """Split what learns into `model.backbone` at the base learning rate, and all else at `factor` times it.

    Parameters
    ----------
    model : nn.Module
        Has a `backbone`.
    rest : str
        Name of the group of all else.
    factor : float
        Factor on its learning rate.
    **others
        Further groups: a name, and the modules with the factor on their learning rate.

    Returns
    -------
    list of dict
        Keys `name`, `params`, `lr_factor`; frozen parameters are in none, all others in exactly one.

    Examples
    --------
    >>> model = nn.Sequential()
    >>> model.backbone, model.head, model.gate = nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(2, 2)
    >>> groups = backbone_and_rest(model, "rest", 10.0, gate=([model.gate], 0.1))
    >>> [(g["name"], len(g["params"]), g["lr_factor"]) for g in groups]
    [('backbone', 2, 1.0), ('gate', 2, 0.1), ('rest', 2, 10.0)]
    """
    parts = {"backbone": ([model.backbone], 1.0), **others}
    place = {id(p): name for name, (modules, _) in parts.items() for module in modules for p in module.parameters()}
    factors = {**{name: own for name, (_, own) in parts.items()}, rest: factor}
    groups = {name: {"name": name, "params": [], "lr_factor": own} for name, own in factors.items()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[place.get(id(parameter), rest)]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def check_range(low: float, high: float, **given: float) -> None:
    """Refuse numbers outside of [low, high], and NaN.

    Parameters
    ----------
    low, high : float
        The range, both ends in it.
    **given
        Numbers by their names.

    Raises
    ------
    SettingsError
        For the first that lies outside, naming it.

    Examples
    --------
    >>> check_range(0, 1, p_h=0.5, share=1.5)
    Traceback (most recent call last):
    wsss_lib.errors.SettingsError: share=1.5: give a number from 0 to 1
    """
    for name, value in given.items():
        if not low <= value <= high:
            raise SettingsError(f"{name}={value}: give a number from {low:g} to {high:g}")


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
