r"""WS-FCN: from image labels to masks in one training; the network's own sure pixels are its teachers.

One idea: a classifier whose pooling goes through masks (`nn.pooling`) already segments. Refine those masks by the
image's colours (`nn.pamr`), keep what is sure (`nn.self_supervision`), and learn from it by cross-entropy. That is the
baseline, SSSS: Araslanov and Roth, Single-Stage Semantic Segmentation from Image Labels, CVPR 2020. Wang et al.,
Coupling Global Context and Local Contents for Weakly-Supervised Semantic Segmentation (WS-FCN), change two of its
blocks: the context of the deep features (`nn.context`) and how they meet the shallow ones (`nn.fusion`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from wsss_lib.errors import SettingsError
from wsss_lib.methods.base import Losses, Method, Progress, backbone_and_rest, check_range, multi_label_soft_margin
from wsss_lib.nn import context as contexts
from wsss_lib.nn import pamr as refinement
from wsss_lib.nn.embedding import embedding
from wsss_lib.nn.fusion import FUSIONS, upsample
from wsss_lib.nn.pooling import class_masks, pool_scores, with_background_score
from wsss_lib.nn.self_supervision import balanced_cross_entropy, pseudo_truth, share_supervised
from wsss_lib.nn.stochastic_gate import stochastic_gate

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.data.samples import Batch


class Sure(NamedTuple):
    """When a pixel is sure enough to teach: the numbers of `nn.self_supervision.pseudo_truth`.

    Parameters
    ----------
    background, foreground : float
        Share of the mask's maximum that a pixel needs, in [0, 1].
    floor : float
        What it needs however low the maximum is, in [0, 1].

    Examples
    --------
    >>> Sure().floor
    0.2
    """

    background: float = 0.7
    foreground: float = 0.6
    floor: float = 0.2


SURE = Sure()


class WSFCN(Method):
    r"""A backbone, context for its last map, fusion with an earlier one, the gate, and three convolutions.

    .. math:: L = L_{mlsm}(y^{gwp} + y^{focal}) + [\text{after the warm-up}]\; L_{ce}(x, t)

    Parameters
    ----------
    backbone : Backbone
        Gives the deep features, its last map, and the shallow ones.
    n_classes : int
        K, the number of foreground classes.
    context : str
        One of `nn.context.CONTEXTS`: ``fca`` is WS-FCN's, ``aspp`` the baseline's.
    fusion : str
        One of `nn.fusion.FUSIONS`: ``sf2`` is WS-FCN's, ``gci`` the baseline's.
    channels : int
        Of everything that is new.
    shallow_stage : int
        Which of the backbone's maps is shallow, counted from 1; masks come on its grid.
    dilations : sequence of int
        Of ``fca``, its variants and ``aspp``: in cells of the deep map, so a smaller grid wants smaller ones.
    dropout : sequence of float
        Share of elements dropped in training: after the context (if it takes `dilations`), and after the first and
        second convolution.
    psi : float
        The gate's share of shallow features.
    focal_p, focal_lambda : float
        Of the focal mask penalty.
    warm_up : float
        Share of the training's steps before self-supervision begins; the paper's 7 epochs of 30 are 0.23.
    sure : Sure
        Which pixels teach.
    pamr_iterations : int
        Of PAMR.
    pamr_dilations : sequence of int
        Distances of PAMR's neighbours, in cells of the masks.
    bias_factor : float
        Factor on the learning rate of biases, BatchNorm's among them, which get no weight decay then; 1: as weights.

    Raises
    ------
    SettingsError
        For a name that is unknown or a number out of its range.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> net = WSFCN(backbones.build("tiny"), 6, channels=16, shallow_stage=1, dilations=(1, 2, 3, 4)).eval()
    >>> image = torch.zeros(2, 3, 64, 64)
    >>> net.cam(image).shape, net.logits(image).shape
    (torch.Size([2, 6, 32, 32]), torch.Size([2, 6]))
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        context: str = "fca",
        fusion: str = "sf2",
        channels: int = 256,
        shallow_stage: int = 2,
        dilations: Sequence[int] = contexts.DILATIONS,
        dropout: Sequence[float] = (0.5, 0.5, 0.1),
        psi: float = 0.3,
        focal_p: float = 3.0,
        focal_lambda: float = 0.01,
        warm_up: float = 0.23,
        sure: Sure = SURE,
        pamr_iterations: int = 10,
        pamr_dilations: Sequence[int] = refinement.DILATIONS,
        bias_factor: float = 2.0,
    ) -> None:
        super().__init__(n_classes)
        if context not in contexts.CONTEXTS:
            raise SettingsError(f"context={context!r}: choose one of {', '.join(contexts.CONTEXTS)}")
        if fusion not in FUSIONS:
            raise SettingsError(f"fusion={fusion!r}: choose one of {', '.join(FUSIONS)}")
        if len(dropout) != 3:
            raise SettingsError(f"dropout={list(dropout)}: give three shares")
        for share in dropout:
            check_range(0, 1, dropout=share)
        check_range(1, len(backbone.channels), shallow_stage=shallow_stage)
        check_range(0, 1, warm_up=warm_up, **sure._asdict())
        check_range(0, inf, bias_factor=bias_factor, pamr_iterations=pamr_iterations, focal_p=focal_p)
        check_range(1, inf, channels=channels, pamr_dilations=min(pamr_dilations, default=0))
        if not 0 <= psi < 1:
            raise SettingsError(f"psi={psi}: give a share from 0 up to, but not, 1")
        if not focal_lambda > 0:
            raise SettingsError(f"focal_lambda={focal_lambda}: give a number above 0")
        self.backbone, self.shallow_stage = backbone, shallow_stage
        self.psi, self.warm_up, self.sure, self.bias_factor = psi, warm_up, sure, bias_factor
        self.focal_p, self.focal_lambda = focal_p, focal_lambda
        self.pamr_iterations, self.pamr_dilations = pamr_iterations, tuple(pamr_dilations)
        options = {"dilations": dilations, "dropout": dropout[0]} if context in contexts.DILATED else {}
        self.context = contexts.CONTEXTS[context](backbone.out_channels, channels, **options)
        self.fusion = FUSIONS[fusion](channels, backbone.channels[shallow_stage - 1], channels)
        self.classifier = nn.Sequential(
            embedding(channels, channels, 3),
            nn.Dropout(dropout[1]),
            embedding(channels, channels, 3),
            nn.Dropout(dropout[2]),
            nn.Conv2d(channels, n_classes, 1),
        )

    def streams(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the deep and the shallow features (N, channels, h, w) that the gate mixes, of `image` (N, 3, H, W)."""
        maps = self.backbone.stages(image)
        return self.fusion(self.context(maps[-1]), maps[self.shallow_stage - 1])

    def maps(self, image: Tensor) -> Tensor:
        """Return the class scores x (N, K, h, w) of `image` (N, 3, H, W), of either sign; background's score is 1."""
        return self.classifier(stochastic_gate(*self.streams(image), self.psi, self.training))

    def cam(self, image: Tensor) -> Tensor:
        """Return the soft masks of the classes (N, K, h, w), in [0, 1], of `image` (N, 3, H, W)."""
        return class_masks(self.maps(image))[:, 1:]

    def logits(self, image: Tensor) -> Tensor:
        """Return the class scores (N, K) before the sigmoid of `image` (N, 3, H, W)."""
        return self.segment(image)[0]

    def segment(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores (N, K) and soft masks (N, 1 + K, h, w) of `image` (N, 3, H, W)."""
        return pool_scores(self.maps(image), self.focal_p, self.focal_lambda)

    @torch.no_grad()
    def truth(self, image: Tensor, masks: Tensor, label: Tensor) -> Tensor:
        """Return what the refined `masks` (N, 1 + K, h, w) are sure of, (N, H, W) int64, on the grid of `image`.

        PAMR looks at the image on the masks' grid; then the masks grow to the image's size.
        """
        small = upsample(image, masks.shape[2:])
        refined = refinement.pamr(small, masks, self.pamr_iterations, self.pamr_dilations)
        return pseudo_truth(upsample(refined, image.shape[2:]), label, *self.sure)

    def loss(self, batch: Batch, progress: Progress) -> Losses:
        """Return the terms classify and self of a `batch`, and supervised: the share of pixels that taught."""
        scores = self.maps(batch.image)
        y, masks = pool_scores(scores, self.focal_p, self.focal_lambda)
        terms = {"classify": multi_label_soft_margin(y, batch.label)}
        terms |= {"self": y.new_zeros(()), "supervised": y.new_zeros(())}
        if progress.fraction >= self.warm_up:
            truth = self.truth(batch.image, masks, batch.label)
            logits = with_background_score(upsample(scores.float(), truth.shape[1:]))  # background stays exactly 1
            terms["self"] = balanced_cross_entropy(logits, truth, batch.label)
            terms["supervised"] = share_supervised(truth, batch.label)
        return Losses.weighted(terms, {"supervised": 0.0})

    def start_from(self, trained: Method) -> None:
        """Take over the backbone of `trained`; what comes after it is another network's."""
        self.backbone.load_state_dict(trained.backbone.state_dict())

    def parameter_groups(self, classifier_factor: float = 20.0) -> list[dict]:
        """Split what learns into the backbone (x1) and what is new, biases apart if they have a rate of their own."""
        groups = backbone_and_rest(self, "new", classifier_factor)
        if self.bias_factor == 1:
            return groups
        biases = {id(p) for name, p in self.named_parameters() if name.endswith("bias")}
        split = []
        for group in groups:
            own = [p for p in group["params"] if id(p) in biases]
            split.append({**group, "params": [p for p in group["params"] if id(p) not in biases]})
            factor = group["lr_factor"] * self.bias_factor
            split.append({"name": f"{group['name']} biases", "params": own, "lr_factor": factor, "weight_decay": 0.0})
        return [group for group in split if group["params"]]


def build(backbone: Backbone, n_classes: int, settings: Mapping[str, Any]) -> WSFCN:
    """Make a `WSFCN` for the registry.

    Parameters
    ----------
    backbone : Backbone
        Gives the features.
    n_classes : int
        K, the number of foreground classes.
    settings : mapping
        The section ``[ws_fcn]``.

    Returns
    -------
    WSFCN
        The method.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> from wsss_lib.settings import load
    >>> build(backbones.build("tiny"), 6, load("demo").ws_fcn).psi
    0.3
    """
    blocks = ("context", "fusion", "channels", "shallow_stage", "dilations", "dropout", "psi")
    training = ("focal_p", "focal_lambda", "warm_up", "pamr_iterations", "pamr_dilations", "bias_factor")
    sure = Sure(*(settings[name] for name in Sure._fields))
    return WSFCN(backbone, n_classes, **{name: settings[name] for name in blocks + training}, sure=sure)
