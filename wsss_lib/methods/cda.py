"""CDA: objects are cut out and pasted into other scenes, so that the context no longer tells the class.

One idea: a classifier that sees the boat on water only may learn the water. Cut-outs from the masks of an earlier
run (`wsss_lib.data.instances`) are pasted into the training images, turned and scaled, and each image is shown with
and without. Su et al., Context Decoupling Augmentation for Weakly Supervised Semantic Segmentation, ICCV 2021,
algorithm 1. Any method can be the host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from wsss_lib.data.samples import Batch
from wsss_lib.data.transforms import normalize
from wsss_lib.errors import SettingsError
from wsss_lib.methods.base import Losses, Method, Progress, Wrapper
from wsss_lib.nn.augment import competitor, manifold_mixup

if TYPE_CHECKING:
    from wsss_lib.data.instances import Instance, InstanceBank

POSITIONS = ("uniform", "off_centre")


@dataclass(frozen=True)
class PasteSettings:
    """How instances are pasted; the defaults are the paper's best (rescale and rotation, one new object).

    Parameters
    ----------
    rescale : tuple of float
        Range of the random factor on an instance's size; (1, 1): none.
    rotation : float
        Largest angle in degrees, either way; 0: none.
    smooth : bool
        Blend the border by a 3 x 3 Gaussian.
    max_side : float
        The pasted object's box is at most so much of each side of the image; larger ones are scaled down.
    position : str
        ``uniform`` over all places where the box fits, or ``off_centre``, which prefers the image's border.
    n_objects : int
        Instances pasted into each image, one after the other.
    same_class : bool
        Whether a class that the image holds already may be pasted.

    Raises
    ------
    SettingsError
        For a value out of its range.

    Examples
    --------
    >>> PasteSettings(rotation=0).rescale
    (0.8, 1.2)
    """

    rescale: tuple[float, float] = (0.8, 1.2)
    rotation: float = 90.0
    smooth: bool = False
    max_side: float = 0.7
    position: str = "uniform"
    n_objects: int = 1
    same_class: bool = False

    def __post_init__(self) -> None:
        if len(self.rescale) != 2 or not 0 < self.rescale[0] <= self.rescale[1]:
            raise SettingsError(f"rescale={list(self.rescale)}: give [low, high] with 0 < low <= high")
        if not 0 < self.max_side <= 1:
            raise SettingsError(f"max_side={self.max_side}: give a share of the image's side, above 0 and at most 1")
        if self.position not in POSITIONS:
            raise SettingsError(f"position={self.position!r}: choose one of {', '.join(POSITIONS)}")
        if self.n_objects < 1 or self.rotation < 0:
            raise SettingsError(f"n_objects={self.n_objects}, rotation={self.rotation}: give 1 or more, 0 or more")


def draw_instance(label: Tensor, of_class: Sequence[Sequence[int]], same_class: bool = False) -> int | None:
    """An instance for an image: a class drawn uniformly from those that the image lacks, then one of its instances.

    Algorithm 1 draws instances until the class is new, which favours frequent classes and may never end; the
    released code draws the class first, and so does this.

    Parameters
    ----------
    label : Tensor
        y (K,): the classes that the image holds.
    of_class : sequence of sequence of int
        The bank's instances of each class.
    same_class : bool
        Draw from all classes.

    Returns
    -------
    int or None
        Index into the bank; None where no class is left.

    Examples
    --------
    >>> draw_instance(torch.tensor([1.0, 0.0]), [[0, 1], [2]])
    2
    >>> draw_instance(torch.tensor([1.0, 1.0]), [[0, 1], [2]]) is None
    True
    """
    classes = [k for k, indices in enumerate(of_class) if indices and (same_class or not label[k])]
    if not classes:
        return None
    indices = of_class[classes[int(torch.randint(len(classes), ()))]]
    return indices[int(torch.randint(len(indices), ()))]


def draw_placement(box: tuple[int, int], size: tuple[int, int], settings: PasteSettings) -> tuple[float, ...]:
    """Draw where an instance goes: its scale, its angle, and the centre of its box in the image.

    The box of the turned and scaled instance is capped at ``max_side`` of the image's sides (whole pixels, as in the
    released code), then lies at whole pixels anywhere inside the image.

    Parameters
    ----------
    box : tuple of int
        (height, width) of the cut-out, in pixels.
    size : tuple of int
        (height, width) of the image.
    settings : PasteSettings
        The ranges.

    Returns
    -------
    tuple of float
        (scale, angle in radians, y, x): image pixels per cut-out pixel, anticlockwise, and the box's centre.

    Examples
    --------
    >>> still = PasteSettings(rescale=(1, 1), rotation=0)
    >>> scale, angle, y, x = draw_placement((4, 6), (100, 100), still)
    >>> scale, angle == 0, y % 1, x % 1
    (1.0, True, 0.0, 0.0)
    """
    low, high = settings.rescale
    stretch, turn, *place = torch.rand(4, dtype=torch.float64).tolist()
    scale, angle = low + (high - low) * stretch, math.radians(settings.rotation * (2 * turn - 1))
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    turned = (box[0] * cosine + box[1] * sine, box[0] * sine + box[1] * cosine)
    scale = min(scale, *(max(1, int(settings.max_side * n)) / length for n, length in zip(size, turned, strict=True)))
    centre = []
    for share, n, length in zip(place, size, turned, strict=True):
        if settings.position == "off_centre":
            share = math.sin(math.pi / 2 * share) ** 2  # the arcsine law: dense at both ends
        room = n - scale * length
        centre.append(min(int(share * (int(room) + 1)), int(room)) + scale * length / 2)
    return scale, angle, *centre


def warp(
    instances: Sequence[Instance], placements: Sequence[tuple[float, ...]], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Put each cut-out onto an empty canvas, scaled, turned and moved: all at once, by one sampling of a grid.

    Colours are interpolated; the mask takes the nearest pixel, so that it keeps its two values.

    Parameters
    ----------
    instances : sequence of Instance
        N cut-outs of any sizes.
    placements : sequence of tuple
        N results of `draw_placement`.
    size : tuple of int
        (height, width) of the canvas.

    Returns
    -------
    tuple of Tensor
        O (N, 3, H, W), normalised, of any value beyond the cut-out; A (N, 1, H, W) in {0, 1}.

    Examples
    --------
    >>> from wsss_lib.data.instances import Instance
    >>> one = Instance(torch.zeros(3, 2, 4, dtype=torch.uint8), torch.ones(2, 4, dtype=torch.bool), 0, "a")
    >>> objects, alpha = warp([one], [(1.0, 0.0, 3.0, 5.0)], (8, 8))
    >>> alpha[0, 0, :, 4].tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    height, width = (max(one.mask.shape[axis] for one in instances) for axis in (0, 1))
    images, masks, inverse = [], [], []
    for one, (scale, angle, y, x) in zip(instances, placements, strict=True):
        h, w = one.mask.shape
        beyond = (0, width - w, 0, height - h)
        images.append(F.pad(normalize(one.image), beyond, mode="replicate"))
        masks.append(F.pad(one.mask.float(), beyond))
        cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
        # From a place (x', y', 1) on the canvas back to one (x, y) in the cut-out.
        inverse.append([[cosine, -sine, w / 2 - cosine * x + sine * y], [sine, cosine, h / 2 - sine * x - cosine * y]])
    ys, xs = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    places = torch.stack([xs, ys, torch.ones_like(xs)], -1) @ torch.tensor(inverse).mT[:, None]
    grid = 2 * places / torch.tensor([width, height]) - 1
    objects = F.grid_sample(torch.stack(images), grid, padding_mode="border", align_corners=False)
    alpha = F.grid_sample(torch.stack(masks)[:, None], grid, mode="nearest", align_corners=False)
    return objects, alpha


def blend(image: Tensor, objects: Tensor, alpha: Tensor) -> Tensor:
    r"""Objects over images: :math:`I' = A \odot O + (1 - A) \odot I`; where A is 0, I stays bit by bit.

    Parameters
    ----------
    image : Tensor
        I (N, 3, H, W).
    objects : Tensor
        O (N, 3, H, W).
    alpha : Tensor
        A (N, 1, H, W) in [0, 1].

    Returns
    -------
    Tensor
        I' (N, 3, H, W).

    References
    ----------
    Su et al. 2021, algorithm 1, line 7.

    Examples
    --------
    >>> blend(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2), torch.tensor([[[[0.0, 0.5]]]])).flatten()
    tensor([0.0000, 0.5000])
    """
    return torch.where(alpha > 0, alpha * objects + (1 - alpha) * image, image)


def paste(image: Tensor, label: Tensor, bank: InstanceBank, settings: PasteSettings) -> tuple[Tensor, Tensor, Tensor]:
    r"""Paste new objects into every image of a batch: :math:`y' = y \vee e_T` with :math:`T \notin y`.

    An image that holds every class of the bank stays as it is. Draws come from torch's default CPU generator.

    Parameters
    ----------
    image : Tensor
        I (N, 3, H, W), normalised; not changed.
    label : Tensor
        y (N, K) in {0, 1}; not changed.
    bank : InstanceBank
        The instances (O, T).
    settings : PasteSettings
        How to paste.

    Returns
    -------
    tuple of Tensor
        I' (N, 3, H, W), y' (N, K), and where something was pasted (N, 1, H, W) in [0, 1].

    References
    ----------
    Su et al. 2021, algorithm 1, lines 3 to 8.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from wsss_lib.data.instances import Instance
    >>> one = Instance(torch.zeros(3, 2, 4, dtype=torch.uint8), torch.ones(2, 4, dtype=torch.bool), 1, "a")
    >>> class Bank(list):
    ...     of_class = [[], [0]]
    >>> label = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> _, more, where = paste(torch.zeros(2, 3, 8, 8), label, Bank([one]), PasteSettings())
    >>> more.tolist(), (where.amax((1, 2, 3)) > 0).tolist()
    ([[1.0, 1.0], [0.0, 1.0]], [True, False])
    """
    image, label = image.clone(), label.clone()
    covered = image.new_zeros(len(image), 1, *image.shape[2:])
    for _ in range(settings.n_objects):
        drawn = [draw_instance(one, bank.of_class, settings.same_class) for one in label.cpu()]
        rows = [row for row, index in enumerate(drawn) if index is not None]
        if not rows:
            break
        instances = [bank[drawn[row]] for row in rows]
        placements = [draw_placement(tuple(one.mask.shape), tuple(image.shape[2:]), settings) for one in instances]
        objects, alpha = (part.to(image.device) for part in warp(instances, placements, tuple(image.shape[2:])))
        if settings.smooth:
            alpha = v2.functional.gaussian_blur(alpha, [3, 3])
        image[rows] = blend(image[rows], objects, alpha)
        covered[rows] = torch.maximum(covered[rows], alpha)
        visible = alpha.amax((1, 2, 3)) > 0  # a few thin pixels may fall between those of the image
        classes = torch.tensor([one.class_index for one in instances], device=label.device)
        label[torch.tensor(rows, device=label.device)[visible], classes[visible]] = 1
    return image, label, covered


def occlusion(covered: Tensor, objects: Tensor) -> float:
    """How much of an image's own objects a paste hides: the paper's perfect, good and noise examples in one number.

    Parameters
    ----------
    covered : Tensor
        (H, W) in [0, 1]: where something was pasted.
    objects : Tensor
        (H, W) bool: where the image's own objects are, e.g. by its pseudo mask.

    Returns
    -------
    float
        Share of the objects' pixels that are covered; 0 without objects.

    References
    ----------
    Su et al. 2021, figure 4.

    Examples
    --------
    >>> occlusion(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, True]]))
    0.5
    """
    return float((covered > 0)[objects].float().mean()) if objects.any() else 0.0


class CDA(Wrapper):
    """A host that learns from each image with and without a pasted object, or another augmentation in its place.

    Parameters
    ----------
    host : Method
        Learns and localises.
    bank : InstanceBank
        What is pasted.
    settings : PasteSettings
        How it is pasted.
    augmentation : str
        ``paste``; for comparison ``none``, ``rotation``, ``translation``, ``cutout``, ``mixup``, ``cutmix``,
        ``manifold_mixup``.
    alpha : float
        Of the Beta distribution of ``mixup`` and ``manifold_mixup``.
    pairwise : bool
        Show each image with and without, as one batch of 2 N; else with only.
    shared_geometry : bool
        The pair shares scale, crop and mirror; else the second is mirrored and moved by a draw of its own, as in the
        released code, so that what was pasted may be lost while its label stays. (Not with ``manifold_mixup``.)

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> from wsss_lib.methods.cam import CAM
    >>> CDA(CAM(backbones.build("tiny"), 6), bank=None, augmentation="cutout").cam(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 6, 8, 8])
    """

    def __init__(
        self,
        host: Method,
        bank: InstanceBank | None,
        settings: PasteSettings | None = None,
        augmentation: str = "paste",
        alpha: float = 0.5,
        pairwise: bool = True,
        shared_geometry: bool = True,
    ) -> None:
        super().__init__(host)
        self.bank, self.settings = bank, settings or PasteSettings()
        self.augmentation, self.alpha = augmentation, alpha
        self.pairwise, self.shared_geometry = pairwise, shared_geometry
        if alpha <= 0:
            raise SettingsError(f"alpha={alpha}: give the Beta distribution of mixup a number above 0, e.g. 0.5")
        if augmentation == "paste" and bank is None:
            raise SettingsError("bank=None: give the instances to paste, or another augmentation")
        if augmentation not in ("paste", "manifold_mixup"):
            competitor(augmentation)  # refuses what it does not know

    def augment(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels with an object pasted, or otherwise augmented; the given ones stay."""
        if self.augmentation == "manifold_mixup":  # happens inside the network
            return image, label
        with torch.autocast(image.device.type, enabled=False):  # in bfloat16 a grid of places would lose pixels
            if self.augmentation == "paste":
                image, label, _ = paste(image, label, self.bank, self.settings)
            else:
                options = {"alpha": self.alpha} if self.augmentation == "mixup" else {}
                image, label = competitor(self.augmentation)(image, label, **options)
            return (image if self.shared_geometry else _moved(image)), label

    def loss(self, batch: Batch, progress: Progress) -> Losses:
        """Return the host's loss, a mean over images with and without, so that the learning rate keeps its sense."""
        image, label = self.augment(batch.image, batch.label)
        ids = batch.image_id
        if self.pairwise:
            image, label, ids = torch.cat([batch.image, image]), torch.cat([batch.label, label]), (*ids, *ids)
        if self.augmentation != "manifold_mixup":
            return self.host.loss(Batch(image, label, ids), progress)
        n = len(batch.label)
        with manifold_mixup(self.backbone.stage_modules(), label[-n:], self.alpha) as mixed:
            return self.host.loss(Batch(image, torch.cat([label[:-n], mixed]), ids), progress)


def _moved(image: Tensor) -> Tensor:
    """Mirror by chance, shift by up to a quarter and scale by 0.75 to 1.25, each image by itself."""
    move = v2.RandomAffine(0, translate=(0.25, 0.25), scale=(0.75, 1.25), interpolation=InterpolationMode.BILINEAR)
    move = v2.Compose([v2.RandomHorizontalFlip(), move])
    return torch.stack([move(one) for one in image])


def build(host: Method, bank: InstanceBank, settings: Mapping[str, Any]) -> CDA:
    """Make a `CDA` for the registry.

    Parameters
    ----------
    host : Method
        Learns and localises.
    bank : InstanceBank
        What is pasted.
    settings : mapping
        The section ``[cda]``.

    Returns
    -------
    CDA
        The method.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> from wsss_lib.methods.cam import CAM
    >>> from wsss_lib.settings import load
    >>> settings = load("demo", {"cda.augmentation": "cutmix"}).cda
    >>> build(CAM(backbones.build("tiny"), 6), None, settings).augmentation
    'cutmix'
    """
    values = {name: settings[name] for name in PasteSettings.__dataclass_fields__}
    return CDA(
        host,
        bank,
        PasteSettings(**{**values, "rescale": tuple(values["rescale"])}),
        augmentation=settings["augmentation"],
        alpha=settings["alpha"],
        pairwise=settings["pairwise"],
        shared_geometry=settings["shared_geometry"],
    )
