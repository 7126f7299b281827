"""What SEAM and CPN share: CAM's classifier, and beside it maps that are refined by what cells look like.

One idea: the refinement has weights of its own, small convolutions over early features, and no loss of refined maps
reaches the backbone. Which maps have to agree with which is what the methods differ in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from wsss_lib.errors import SettingsError
from wsss_lib.methods.base import Method, multi_label_soft_margin
from wsss_lib.nn.class_maps import min_pooling_loss, soft_masks
from wsss_lib.nn.norm import still_statistics
from wsss_lib.nn.pcm import SOFTMAX_AXES, PixelFeatures, pixel_correlation, pixel_region_correlation

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone


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
