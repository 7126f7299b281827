"""How published code scores: which maps, which threshold, which mean, on which split, with which labels.

One idea: a protocol is data, and one function applies its rule to counts that are there already. So the same maps can
be scored as each repository would score them, and a difference between two papers can be told from a difference between
two scripts. What `score` cannot redo on finished maps, scales and normalisation, stands beside the rule.

Sources are the repositories' own files, each named in its protocol; `docs/evaluation.md` is the table to read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from wsss_lib.errors import SettingsError
from wsss_lib.metrics import OVER, ConfusionMatrix, ThresholdSweep

IRN_SCALES = (1.0, 0.5, 1.5, 2.0)
TRUTH = "SegmentationClass"


@dataclass(frozen=True)
class Protocol:
    """How one repository scores seeds (if it has thresholds) or the masks of a network.

    Parameters
    ----------
    repository : str
        Owner and name on GitHub.
    source : str
        Its files that say so.
    scales : tuple of float
        Factors on the image's sides; empty where the settings say.
    flip : bool
        Also looks at the mirror image.
    merged : str
        How the views become one map.
    normalised : str
        How a map gets into [0, 1], or what the background's score is.
    sweep : tuple of float
        Background thresholds that are tried, as the repository writes them; the best of several counts. Empty for
        masks.
    factor : float
        The repository multiplies its maps by this before it compares them with a threshold.
    first_drop : bool
        The sweep ends at the first threshold that is no better than the one before it.
    over : str
        What the mIoU averages: ``present``, ``all`` or ``truth``, as in `ConfusionMatrix.miou`.
    split : str
        Images that are scored.
    truth : str
        Folder of their true masks.
    crf : str
        Dense CRF that published scores of masks come with, one of `wsss_lib.refine.mean_field.PRESETS`; "" none.
    labels : str
        Image-level labels when maps or masks are made: ``given``, ``predicted`` or ``unused``.
    note : str
        What is easily overlooked.

    Raises
    ------
    SettingsError
        For another `over`.

    Examples
    --------
    >>> PROTOCOLS["irn"].sweep, PROTOCOLS["cpn"].thresholds[:2]
    ((0.15,), (0.4, 0.42))
    """

    repository: str
    source: str
    scales: tuple[float, ...] = IRN_SCALES
    flip: bool = True
    merged: str = "sum"
    normalised: str = "divided by the class's maximum + 1e-5"
    sweep: tuple[float, ...] = ()
    factor: float = 1.0
    first_drop: bool = False
    over: str = "all"
    split: str = "train"
    truth: str = TRUTH
    crf: str = ""
    labels: str = "given"
    note: str = ""

    def __post_init__(self):
        if self.over not in OVER:
            raise SettingsError(f"over={self.over!r}: choose one of {', '.join(OVER)}")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The sweep for maps in [0, 1]: what the repository compares with, undone by its factor."""
        return tuple(round(threshold / self.factor, 6) for threshold in self.sweep)


def hundredths(low: int, high: int) -> tuple[float, ...]:
    """Thresholds in steps of 0.01, both ends included.

    Parameters
    ----------
    low, high : int
        First and last, in hundredths.

    Returns
    -------
    tuple of float

    Examples
    --------
    >>> hundredths(15, 17)
    (0.15, 0.16, 0.17)
    """
    return tuple(k / 100 for k in range(low, high + 1))


_IRN = Protocol(
    "jiwoon-ahn/irn",
    "step/make_cam.py, step/eval_cam.py, run_sample.py",
    merged="sum of maps, at a quarter of the image for later steps and at its size for scores",
    sweep=(0.15,),
    over="present",
)
_SEAM = Protocol(
    "YudeWang/SEAM",
    "infer_SEAM.py, evaluation.py",
    scales=(0.5, 1.0, 1.5, 2.0),
    merged="sum of refined maps enlarged to the image",
    normalised="negative to 0, below minimum + 1e-5 to 0, (s - min - 1e-5) / (max - min + 1e-5)",
    sweep=hundredths(0, 59),
    note="prints the whole curve, whose top is read off",
)
_SSSS = Protocol(
    "visinf/1-stage-wseg",
    "infer_val.py, utils/inference_tools.py, utils/dcrf.py, eval_seg.py",
    merged="mean of soft masks, images padded with 0 to 1024 x 1024",
    normalised="background's own mask to the power of 3",
    split="val",
    crf="ssss",
    labels="predicted",
    note="a class is there if any of 8 views gives it more than 0.1; prints an mIoU without background first",
)
_WS_FCN = replace(
    _SSSS,
    repository="ChunyanWang1/ws-fcn",
    normalised='0.25 ("best for val"); with a CRF (1 - strongest)^5',
    crf="ws_fcn",
)

SEEDS = {
    "kit": Protocol(
        "this kit",
        "localize.threshold",
        scales=(),
        merged="sum of maps enlarged to 1 / localize.map_stride of the image",
        normalised=_IRN.normalised,
        sweep=(0.25,),
        over="present",
        split="data.seed_split",
        note="the threshold stands in the settings before the run: 0.25, in profile paper 0.15",
    ),
    "kit_best": Protocol(
        "this kit",
        "localize.sweep_step",
        scales=(),
        merged="sum of maps enlarged to 1 / localize.map_stride of the image",
        normalised=_IRN.normalised,
        sweep=hundredths(0, 99),
        over="present",
        split="data.seed_split",
        note="chosen WITH the masks that it is scored on, and printed under that name",
    ),
    "irn": _IRN,
    "cda": replace(_IRN, repository="suyukun666/CDA"),
    "sma": replace(
        _IRN,
        repository="herbwood/WSSS_SMA",
        source="step/make_cam_sma.py, step/eval_cam.py, run_sample.py",
        note="the published successor of DEFT, which has no code of its own",
    ),
    "psa": Protocol(
        "jiwoon-ahn/psa",
        "infer_cls.py",
        merged="sum of maps enlarged to the image",
        sweep=(0.2,),
        over="present",
        note="a preview: masks are written with 0.2, and no script scores them",
    ),
    "advcam": replace(
        _IRN, repository="jbeomlee93/AdvCAM", sweep=hundredths(15, 34), note="takes the maximum over 20 thresholds"
    ),
    "recam": replace(_IRN, repository="zhaozhengChen/ReCAM", sweep=(0.21,)),
    "amn": replace(
        _IRN,
        repository="gaviotas/AMN",
        source="step/make_amn_cam.py, step/eval_amn_cam.py, run_sample.py",
        merged="mean of (image + mirror image) / 2 over the scales, of logits",
        normalised="soft-max over all 21, then minimum 0 and maximum 1 where the refined seed has the class",
        sweep=(0.25,),
    ),
    "seam": _SEAM,
    "cpn": replace(
        _SEAM,
        repository="Ferenas/CPN",
        source="infer_cam.py, evaluation_cam.py",
        normalised=f"{_SEAM.normalised}, then halved",
        sweep=hundredths(20, 59),
        factor=0.5,
        note="its 0.20 to 0.59 are 0.40 to 1.18 of a map in [0, 1]; from 0.50 on all is background",
    ),
    "mctformer": Protocol(
        "xulianuwa/MCTformer",
        "engine.py (c5db727), evaluation.py, run.sh",
        scales=(1.0,),
        merged="sum",
        normalised="minimum to 0 and maximum to 1, eps 1e-8",
        sweep=hundredths(0, 59),
        first_drop=True,
        truth="SegmentationClassAug",
        note="ends at the first threshold that is no better: a local maximum",
    ),
    "psd_wsss": Protocol(
        "zaiquanyang/PSD_WSSS",
        "evaluation.py; maps as MCTformer's, on which it is built",
        scales=(1.0,),
        merged="sum",
        normalised="minimum to 0 and maximum to 1, eps 1e-8",
        sweep=(0.38,),
        note="a draft of CSD, built on MCTformer; scores only images that a second list has, too",
    ),
}
"""Protocols of seeds: `score` takes a sweep over maps in [0, 1]."""

MASKS = {
    "kit_masks": Protocol(
        "this kit",
        "segment.scales, segment.flip, segment.crf",
        scales=(),
        merged="mean of soft-max probabilities",
        normalised="a class of its own",
        over="present",
        split="data.val_split",
        labels="unused",
        note="with segment.crf = deeplab_v2 in profile paper, else without CRF",
    ),
    "kit_direct": Protocol(
        "this kit",
        "single_stage.*",
        scales=(),
        merged="mean of soft masks",
        normalised="single_stage.theta; with a CRF (1 - strongest)^single_stage.alpha",
        over="present",
        split="data.val_split",
        labels="predicted",
        note="masks from given labels are written and scored apart, under mask_with_labels",
    ),
    "irn_sem_seg": Protocol(
        "jiwoon-ahn/irn",
        "step/make_sem_seg_labels.py, step/eval_sem_seg.py",
        scales=(),
        flip=False,
        merged="random walk from the maps",
        normalised="0.25 after division by the maximum over all classes",
        over="present",
        note="pseudo masks; a predicted 255 becomes background before it is scored",
    ),
    "deeplab_v2": Protocol(
        "kazuto1011/deeplab-pytorch",
        "configs/voc12.yaml, libs/models/msc.py, libs/utils/metric.py, main.py",
        scales=(1.0, 0.5, 0.75),
        flip=False,
        merged="maximum of logits",
        normalised="a class of its own",
        over="truth",
        split="val",
        crf="deeplab_v2",
        labels="unused",
        note="starts from weights trained on COCO's masks",
    ),
    "seam_segment": Protocol(
        "YudeWang/semantic-segmentation-codebase",
        "experiment/seamv1-pseudovoc/test.py, lib/datasets/VOCDataset.py, lib/utils/DenseCRF.py",
        scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        merged="mean of logits",
        normalised="a class of its own",
        split="val",
        crf="seam_segment",
        labels="unused",
        note="segmentation of SEAM and of CPN; one CRF iteration",
    ),
    "mctformer_segment": Protocol(
        "xulianuwa/MCTformer",
        "seg/infer_seg.py, seg/tool/metrics.py, seg/tool/imutils.py",
        scales=(0.5, 0.75, 1.0, 1.25, 1.5),
        flip=False,
        merged="maximum of soft-max probabilities",
        normalised="a class of its own",
        over="present",
        split="val",
        crf="mctformer_segment",
        labels="unused",
    ),
    "ssss": _SSSS,
    "ws_fcn": _WS_FCN,
    "ws_fcn_labels": replace(
        _WS_FCN, labels="given", note="the 65.02 of its abstract: true labels of the val images at test time"
    ),
}
"""Protocols of masks: `score` takes the counts of masks that are there."""

PROTOCOLS = {**SEEDS, **MASKS}
"""All protocols by name."""


def score(
    counts: ThresholdSweep | ConfusionMatrix, protocol: Protocol, classes: list[int] | None = None
) -> tuple[float | None, float]:
    """Score counts as a repository does.

    Parameters
    ----------
    counts : ThresholdSweep or ConfusionMatrix
        Of maps in [0, 1], swept at the protocol's thresholds below 1; or of masks.
    protocol : Protocol
        Whose rule.
    classes : list of int, optional
        Mask values that are scored; all by default. Which of them count if absent, the protocol says.

    Returns
    -------
    threshold : float or None
        That the rule picks, for maps in [0, 1]; None for masks.
    miou : float
        In [0, 1].

    Raises
    ------
    WsssError
        If the sweep lacks one of the protocol's thresholds.

    Examples
    --------
    >>> sweep = ThresholdSweep(3)
    >>> maps = np.array([[[0.1, 0.3, 0.9]], [[0.0, 0.0, 0.0]]])  # of two classes, one of them nowhere
    >>> sweep.update(np.array([[0, 1, 1]]), maps)
    >>> score(sweep, PROTOCOLS["irn"])
    (0.15, 1.0)
    >>> threshold, miou = score(sweep, PROTOCOLS["seam"])
    >>> threshold, round(miou, 2)
    (0.1, 0.67)
    """
    if isinstance(counts, ConfusionMatrix):
        return None, counts.miou(classes, protocol.over)
    curve = [counts.at(threshold).miou(classes, protocol.over) for threshold in protocol.thresholds]
    if protocol.first_drop:
        better = np.greater(curve, [0.0, *curve[:-1]])
        curve = curve[: max(1, len(curve) if better.all() else better.argmin())]
    top = int(np.nan_to_num(curve, nan=-1.0).argmax())
    return protocol.thresholds[top], curve[top]
