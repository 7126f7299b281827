r"""CSD: a scene with one class teaches the network what the same object is worth among others.

One idea: where an image shows one class, its map is easy to trust. Its object is pasted into an image of several
classes, its background into another copy; in both, the scores on what was pasted should stay as they were alone.
Which class is pasted follows from how often classes come together. Yang et al., Cross-domain Semantic Decoupling
for Weakly-Supervised Semantic Segmentation, BMVC 2023, equations 1 to 6; equation 4 is missing in the text
that this was written from and the symbols of 5 do not fit it, so they are read as two-way distributions {foreground,
background}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.data.classes import IGNORE
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Losses, Method, Progress, Wrapper

if TYPE_CHECKING:
    from wsss_lib.data.instances import InstanceBank
    from wsss_lib.data.samples import Batch

REFERENCE_CELLS = 196  # 14 x 14, the paper's grid: its loss weights hold for sums over so many cells


def co_occurrence(labels: Tensor) -> Tensor:
    r"""Count how often classes come together: :math:`\mathcal N_{ij}`, and on the diagonal how often class i is alone.

    Parameters
    ----------
    labels : Tensor
        (M, K) in {0, 1}: the labels of all training images.

    Returns
    -------
    Tensor
        N (K, K), symmetric.

    References
    ----------
    Yang et al. 2023, equation 1; the diagonal as in the released code.

    Examples
    --------
    >>> co_occurrence(torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
    tensor([[2., 1.],
            [1., 0.]])
    """
    labels = (labels > 0).float()
    counts = labels.T @ labels
    return counts - counts.diag().diag() + labels[labels.sum(1) == 1].sum(0).diag()


def resampling_matrix(counts: Tensor) -> Tensor:
    r"""How likely class j is where i is present: :math:`\mathcal P_{ij} = \mathcal N_{ij} / \sum_k \mathcal N_{ik}`.

    Parameters
    ----------
    counts : Tensor
        N (K, K), from `co_occurrence`.

    Returns
    -------
    Tensor
        P (K, K), rows sum to 1; a class that never occurs points at itself.

    References
    ----------
    Yang et al. 2023, equation 1.

    Examples
    --------
    >>> resampling_matrix(torch.tensor([[2.0, 2.0], [0.0, 0.0]]))
    tensor([[0.5000, 0.5000],
            [0.0000, 1.0000]])
    """
    never = counts.sum(1) == 0
    counts = counts + never.to(counts).diag()
    return counts / counts.sum(1, keepdim=True)


def source_probability(matrix: Tensor, label: Tensor, available: Tensor | None = None) -> Tensor:
    r"""Which class to paste into an image: :math:`\mathcal P_j \propto \sum_k \mathcal P_{c_k j}` over its classes.

    The paper's sum is as large as the number of classes in the image, so it is normalised.

    Parameters
    ----------
    matrix : Tensor
        P (K, K), from `resampling_matrix`.
    label : Tensor
        y (K,) of the target, at least one class.
    available : Tensor, optional
        (K,) bool: classes that have a source; if none of the likely ones has, all that have are equally likely.

    Returns
    -------
    Tensor
        (K,), sums to 1.

    Raises
    ------
    WsssError
        If no class has a source.

    References
    ----------
    Yang et al. 2023, section 3.2.

    Examples
    --------
    >>> source_probability(torch.eye(2), torch.tensor([1.0, 1.0]))
    tensor([0.5000, 0.5000])
    """
    available = torch.ones_like(label) if available is None else available.to(label)
    if not available.any():
        raise WsssError("available: no class has a source; collect instances first")
    likely = (label[:, None] * matrix).sum(0) * available  # no matrix product: bfloat16 would round the chances
    likely = likely if likely.sum() > 0 else available
    return likely / likely.sum()


def compose(source: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Paste a region of one image into another, at the same place.

    Parameters
    ----------
    source : Tensor
        x_s (N, 3, H, W).
    target : Tensor
        x_m (N, 3, H, W).
    where : Tensor
        (N, 1, H, W) bool: the region that comes from the source.

    Returns
    -------
    Tensor
        (N, 3, H, W).

    References
    ----------
    Yang et al. 2023, section 3.3.

    Examples
    --------
    >>> compose(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.tensor([[[[True, False]]]])).flatten()
    tensor([1., 0.])
    """
    return torch.where(where, source, target)


def cells_inside(where: Tensor, size: tuple[int, int]) -> Tensor:
    """The cells of a map that lie entirely in a region of the image.

    Parameters
    ----------
    where : Tensor
        (N, 1, H, W) bool.
    size : tuple of int
        (height, width) of the map.

    Returns
    -------
    Tensor
        (N, height, width) bool.

    Examples
    --------
    >>> cells_inside(torch.tensor([[[[True, True, True, False]]]]), (1, 2))
    tensor([[[ True, False]]])
    """
    return ~F.adaptive_max_pool2d((~where).float(), size)[:, 0].bool()


def foreground_consistency(teacher: Tensor, student: Tensor, cells: Tensor) -> Tensor:
    r"""How far the pasted object's class distribution has moved:
    :math:`\sum_{p \in M_{fg}} \mathrm{KL}(\mathrm{sg}[p_s(p)] \| p_{sm}(p))`, a mean over images.

    Parameters
    ----------
    teacher : Tensor
        M_s (N, K, h, w): scores of the source alone; no gradient flows here.
    student : Tensor
        M_sm (N, K, h, w): scores of the composite.
    cells : Tensor
        (N, h, w) bool: the cells of the object.

    Returns
    -------
    Tensor
        Scalar, 0 or more; sums are scaled to a map of 14 x 14 cells.

    References
    ----------
    Yang et al. 2023, equation 3; no min-max normalisation before the soft-max.

    Examples
    --------
    >>> maps = torch.rand(1, 3, 2, 2)
    >>> float(foreground_consistency(maps, maps, torch.ones(1, 2, 2, dtype=torch.bool)).abs() < 1e-4)
    1.0
    """
    return _divergence(teacher.detach(), student, cells)


def background_consistency(teacher: Tensor, student: Tensor, cells: Tensor, dummy: float = 0.1) -> Tensor:
    r"""How far the pasted background's saliency has moved: the same over the two-way scores
    :math:`[\sigma(M); M']`, the sum of the classes' positive scores against a constant.

    Parameters
    ----------
    teacher : Tensor
        M_s (N, K, h, w): scores of the source alone; no gradient flows here.
    student : Tensor
        M_sm (N, K, h, w): scores of the composite.
    cells : Tensor
        (N, h, w) bool: the cells of the background.
    dummy : float
        M', the score of background, which no classifier gives.

    Returns
    -------
    Tensor
        Scalar, 0 or more; sums are scaled to a map of 14 x 14 cells.

    References
    ----------
    Yang et al. 2023, equations 4 and 5, as read from the text around them.

    Examples
    --------
    >>> maps = torch.rand(1, 3, 2, 2)
    >>> everywhere = torch.ones(1, 2, 2, dtype=torch.bool)
    >>> bool(background_consistency(maps, maps.flip(1), everywhere).abs() < 1e-4)
    True
    """

    def two_way(maps: Tensor) -> Tensor:
        saliency = maps.float().relu().sum(1, keepdim=True)
        return torch.cat([saliency, torch.full_like(saliency, dummy)], 1)

    return _divergence(two_way(teacher.detach()), two_way(student), cells)


def _divergence(teacher: Tensor, student: Tensor, cells: Tensor) -> Tensor:
    log_teacher, log_student = (maps.float().log_softmax(1) for maps in (teacher, student))
    each = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    return (each * cells).sum() * REFERENCE_CELLS / (cells[0].numel() * len(cells))


class CSD(Wrapper):
    r"""A host with two consistency terms: :math:`L = L_{cls} + \lambda_1 L_{fg} + \lambda_2 L_{bg}`.

    Targets are the images of a batch with two classes or more; for the others both terms are 0. The teacher
    is the host itself on the source.

    Parameters
    ----------
    host : Method
        Learns and localises; its `maps` are compared.
    bank : InstanceBank
        Gives the sources: images of one class with their masks, augmented like the batch.
    labels : Tensor, optional
        (M, K): labels of the training images, for the co-occurrence matrix; None: no resampling, any source is as
        likely as any other.
    lambda_fg, lambda_bg : float
        Weights of the terms.
    dummy : float
        Score of background.
    temperature : float
        The maps are divided by it before they are compared: 1 for the maps of MCTformer, which the weights and the
        score of background are made for; a plain classifier's logits are some twenty times larger.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from wsss_lib import backbones
    >>> from wsss_lib.methods.cam import CAM
    >>> bank = SimpleNamespace(available=torch.ones(6, dtype=torch.bool))
    >>> CSD(CAM(backbones.build("tiny"), 6), bank).cam(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 6, 8, 8])
    """

    def __init__(
        self,
        host: Method,
        bank: InstanceBank,
        labels: Tensor | None = None,
        lambda_fg: float = 0.01,
        lambda_bg: float = 0.1,
        dummy: float = 0.1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(host)
        if min(lambda_fg, lambda_bg) < 0 or temperature <= 0:
            given = f"lambda_fg={lambda_fg}, lambda_bg={lambda_bg}, temperature={temperature}"
            raise SettingsError(f"{given}: give weights of 0 or more, and a temperature above 0")
        self.bank, self.dummy, self.temperature = bank, dummy, temperature
        self.weights = {"fg": lambda_fg, "bg": lambda_bg}
        self.matrix = None if labels is None else resampling_matrix(co_occurrence(labels))

    def draw_source(self, label: Tensor) -> int:
        """Return the bank's index of a source for a target with this `label` (K,)."""
        if self.matrix is None:
            return int(torch.randint(len(self.bank), ()))
        chances = source_probability(self.matrix, label.cpu(), self.bank.available)
        indices = self.bank.of_class[int(torch.multinomial(chances, 1))]
        return indices[int(torch.randint(len(indices), ()))]

    def sources(self, labels: Sequence[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a source for each target's label: images (T, 3, H, W), masks (T, 1, H, W) on the device of `like`."""
        seeds = torch.randint(2**62, (len(labels),)).tolist()
        drawn = [self.bank.scene(self.draw_source(label), seed) for label, seed in zip(labels, seeds, strict=True)]
        image, mask = torch.stack([one.image for one in drawn]), torch.stack([one.mask for one in drawn])[:, None]
        return image.to(like.device), mask.to(like.device)

    def loss(self, batch: Batch, progress: Progress) -> Losses:
        """Return the host's loss on the batch as it is, and the consistency terms of its targets."""
        losses = self.host.loss(batch, progress)
        targets = (batch.label > 0).sum(1) > 1
        fg = bg = losses.total.new_zeros(())
        if targets.any() and any(self.weights.values()):
            target = batch.image[targets]
            source, mask = self.sources(list(batch.label[targets]), like=target)
            share = targets.float().mean()  # a mean over the batch: the other images have a term of 0
            fg, bg = (share * term for term in self.consistency(source, target, mask))
        total = losses.total + self.weights["fg"] * fg + self.weights["bg"] * bg
        return Losses(total, {**losses.terms, "fg": fg, "bg": bg})

    def consistency(self, source: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return L_fg and L_bg of sources and targets (T, 3, H, W) with the sources' masks (T, 1, H, W).

        Teacher and student go through the host as one batch: so BatchNorm treats them alike, and equal views differ
        by nothing. (The released code runs its teacher in evaluation mode, which for its transformer is the same but
        for dropped paths.)
        """
        fg, bg = (mask > 0) & (mask != IGNORE), mask == 0
        views = torch.cat([source, compose(source, target, fg), compose(source, target, bg)])
        alone, with_fg, with_bg = (self.host.maps(views) / self.temperature).chunk(3)
        size = tuple(alone.shape[2:])
        return (
            foreground_consistency(alone, with_fg, cells_inside(fg, size)),
            background_consistency(alone, with_bg, cells_inside(bg, size), self.dummy),
        )


def build(host: Method, bank: InstanceBank, settings: Mapping[str, Any]) -> CSD:
    """Make a `CSD` for the registry.

    Parameters
    ----------
    host : Method
        Learns and localises.
    bank : InstanceBank
        Gives the sources and, with ``resampling``, the labels of all training images.
    settings : mapping
        The section ``[csd]``.

    Returns
    -------
    CSD
        The method.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from wsss_lib import backbones
    >>> from wsss_lib.methods.cam import CAM
    >>> from wsss_lib.settings import load
    >>> bank = SimpleNamespace(available=torch.ones(6, dtype=torch.bool), labels=torch.eye(6))
    >>> build(CAM(backbones.build("tiny"), 6), bank, load("demo").csd).matrix.diag()
    tensor([1., 1., 1., 1., 1., 1.])
    """
    return CSD(
        host,
        bank,
        labels=bank.labels if settings["resampling"] else None,
        lambda_fg=settings["lambda_fg"],
        lambda_bg=settings["lambda_bg"],
        dummy=settings["dummy"],
        temperature=settings["temperature"],
    )
