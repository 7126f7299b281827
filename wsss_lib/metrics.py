"""Scores: confusion matrix and mIoU, threshold sweep, shares of CAM energy, average precision, seeds' spread.

One idea: an image is reduced to a small table of counts at once (`np.bincount`), so a split of any size is
scored in one pass and constant memory. Class 0 is background; 255 is ignored in the truth and counts as
background in a prediction (as in IRN's evaluation). A class absent from both truth and prediction has IoU nan
and leaves the mean; other scripts count it as 0 or 1, which matters on small sets.
Everything takes NumPy arrays and tensors alike.
"""

from __future__ import annotations

import numpy as np

from wsss_lib.data.classes import IGNORE
from wsss_lib.errors import WsssError

OVER = ("present", "all", "truth")
"""What an mIoU averages: see `ConfusionMatrix.miou`."""


class ConfusionMatrix:
    """Pixel counts `matrix[truth, prediction]`, int64, added up image by image.

    Parameters
    ----------
    n_classes : int
        Classes including background, at most 255.

    Examples
    --------
    >>> scores = ConfusionMatrix(2)
    >>> scores.update(np.array([[0, 1], [1, 255]]), np.array([[0, 1], [0, 1]]))
    >>> scores.matrix.tolist(), scores.miou()
    ([[1, 0], [1, 1]], 0.5)
    """

    def __init__(self, n_classes):
        self.n_classes = n_classes
        self.matrix = np.zeros((n_classes, n_classes), np.int64)

    def update(self, truth, prediction):
        """Add the pixels of one or more images; `truth` and `prediction` are class maps of one shape."""
        truth, prediction = _class_map(truth, "truth"), _class_map(prediction, "prediction")
        if truth.shape != prediction.shape:
            raise WsssError(f"prediction: shape {prediction.shape}, truth {truth.shape}; give equal sizes")
        pairs = (truth.astype(np.uint16) << 8) | prediction  # all 256 x 256 pairs: no pixel is masked out
        counts = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)[:IGNORE]
        counts[:, 0] += counts[:, IGNORE]
        counts = counts[:, :IGNORE]
        self._refuse(counts[self.n_classes :].any(axis=1), "truth")
        self._refuse(counts[:, self.n_classes :].any(axis=0), "prediction")
        self.matrix += counts[: self.n_classes, : self.n_classes]

    def _refuse(self, outside, name):
        if outside.any():
            value = self.n_classes + int(outside.argmax())
            raise WsssError(f"{name}: holds the value {value}; give 0..{self.n_classes - 1} or {IGNORE}")

    def __add__(self, other):
        """Merge the counts of two matrices (of two processes, or two halves of a split)."""
        merged = ConfusionMatrix(self.n_classes)
        merged.matrix = self.matrix + other.matrix
        return merged

    @property
    def present(self):
        """(C,) bool: classes that occur in truth or prediction, the ones that `miou` averages."""
        return (self.matrix.sum(0) + self.matrix.sum(1)) > 0

    def iou(self):
        """(C,) intersection over union, nan for classes absent from both truth and prediction."""
        hit = np.diag(self.matrix)
        union = self.matrix.sum(0) + self.matrix.sum(1) - hit
        return np.where(union > 0, hit / np.maximum(union, 1), np.nan)

    def miou(self, classes=None, over="present"):
        """Mean IoU over the class indices `classes` (default all); nan if none of them counts.

        `over` says which count: those "present" in truth or prediction (the kit, IRN), "all" of them, absent ones
        with 0 (PSA's heirs), or those in the "truth" (deeplab-pytorch).
        """
        if over not in OVER:
            raise WsssError(f"over={over!r}: choose one of {', '.join(OVER)}")
        chosen = np.arange(self.n_classes) if classes is None else np.asarray(classes, int)
        iou = self.iou()[chosen]
        if over == "all":
            iou = np.nan_to_num(iou)
        elif over == "truth":
            iou = np.where(self.matrix.sum(1)[chosen] > 0, iou, np.nan)
        return _nanmean(iou)

    def pixel_accuracy(self):
        """Share of the scored pixels whose class is right; nan before any update."""
        total = self.matrix.sum()
        return float(np.trace(self.matrix) / total) if total else float("nan")

    def report(self, names, classes=None):
        """Scores for a JSON file (nan as None); `names` of all or the foreground, `classes` as in `miou`."""
        names = list(names) if len(names) == self.n_classes else ["background", *names]
        if len(names) != self.n_classes:
            raise WsssError(f"names: {len(names)} with background; give {self.n_classes} names")
        iou, chosen = self.iou(), range(self.n_classes) if classes is None else classes
        return {
            "miou": json_number(self.miou(classes)),
            "miou_classes": [names[c] for c in chosen if self.present[c]],
            "iou": {name: json_number(value) for name, value in zip(names, iou, strict=True)},
            "pixel_accuracy": json_number(self.pixel_accuracy()),
        }


class ThresholdSweep:
    """Confusion matrices of the seeds at every background threshold, from one pass over the pixels.

    A pixel takes its strongest class where that value is *greater* than the threshold, else background:
    `argmax` over [threshold, cam...] with the first winning ties, exactly as `localize.seed`. So all that a
    pixel leaves behind is its truth, its winner, and how many thresholds its value exceeds: a histogram.

    Parameters
    ----------
    n_classes : int
        Classes including background.
    thresholds : sequence of float
        Increasing thresholds; default 0, 0.01 ... 0.99.

    Examples
    --------
    >>> sweep = ThresholdSweep(2, thresholds=[0.2, 0.6])
    >>> sweep.update(np.array([[0, 1]]), np.array([[[0.4, 0.9]]], np.float32))
    >>> sweep.curve().tolist(), sweep.best()
    ([0.25, 1.0], (0.6, 1.0))
    """

    def __init__(self, n_classes, thresholds=None):
        self.n_classes = n_classes
        self.thresholds = np.arange(100) / 100 if thresholds is None else np.asarray(thresholds, np.float64)
        if self.thresholds.ndim != 1 or not len(self.thresholds) or (np.diff(self.thresholds) <= 0).any():
            raise WsssError(f"thresholds: {thresholds}; give increasing numbers")
        self.counts = np.zeros((len(self.thresholds) + 1, n_classes, n_classes - 1), np.int64)

    def update(self, truth, cam):
        """Add one image: `truth` (H,W) class map, `cam` (K,H,W) in [0,1], normalised and at image size."""
        truth, cam = _class_map(truth, "truth"), _array(cam)
        if cam.shape != (self.n_classes - 1, *truth.shape):
            raise WsssError(f"cam: shape {cam.shape}; give {(self.n_classes - 1, *truth.shape)}, as the truth")
        winner, value = cam.argmax(0), cam.max(0)
        if np.isnan(value).any():
            raise WsssError("cam: holds nan; look for a division by zero in its normalisation")
        below = np.searchsorted(self.thresholds.astype(value.dtype), value)  # how many thresholds it exceeds
        scored = truth != IGNORE
        truth, winner, below = truth[scored].astype(np.int64), winner[scored], below[scored]
        if truth.size and truth.max() >= self.n_classes:
            raise WsssError(f"truth: holds the value {truth.max()}; give 0..{self.n_classes - 1} or {IGNORE}")
        cell = (below * self.n_classes + truth) * (self.n_classes - 1) + winner
        self.counts += np.bincount(cell, minlength=self.counts.size).reshape(self.counts.shape)

    def _matrices(self):
        """(T,C,C): foreground where more than i thresholds are exceeded, background elsewhere."""
        foreground = self.counts[::-1].cumsum(0)[::-1][1:]
        background = self.counts.sum(2).cumsum(0)[:-1]
        return np.concatenate([background[:, :, None], foreground], axis=2)

    def at(self, threshold):
        """Confusion matrix of the seeds at `threshold`, one of the sweep's; at 1 or more all is background."""
        if threshold >= 1 > self.thresholds[-1]:
            matrix = np.zeros((self.n_classes, self.n_classes), np.int64)
            matrix[:, 0] = self.counts.sum((0, 2))
            return self._scores(matrix)
        return self._scores(self._matrices()[self._index(threshold)])

    def only(self, thresholds):
        """The same sweep at some of its thresholds."""
        part = ThresholdSweep(self.n_classes, thresholds)
        kept = [self._index(threshold) for threshold in part.thresholds]
        # A pixel that exceeds the first n thresholds exceeds so many of those that are kept.
        np.add.at(part.counts, np.searchsorted(kept, np.arange(len(self.counts))), self.counts)
        return part

    def _index(self, threshold):
        index = int(np.abs(self.thresholds - threshold).argmin())
        if abs(self.thresholds[index] - threshold) > 1e-6:
            raise WsssError(f"threshold={threshold}: not swept; nearest is {self.thresholds[index]:g}")
        return index

    def _scores(self, matrix):
        scores = ConfusionMatrix(self.n_classes)
        scores.matrix = matrix
        return scores

    def curve(self, classes=None):
        """(T,) mIoU at each threshold, over `classes` as in `ConfusionMatrix.miou`."""
        return np.array([self._scores(matrix).miou(classes) for matrix in self._matrices()])

    def best(self, classes=None):
        """(threshold, mIoU) at the top of the curve over `classes`; choose it on train, never on val."""
        curve = self.curve(classes)
        if np.isnan(curve).all():
            raise WsssError("best: the sweep has seen no scored pixel of these classes; update it first")
        top = int(np.nanargmax(curve))
        return float(self.thresholds[top]), float(curve[top])


class GroupedConfusion:
    """One confusion matrix for each group of images, such as `agrees` and `disagrees` (object and context).

    Parameters
    ----------
    n_classes : int
        Classes including background.

    Examples
    --------
    >>> scores = GroupedConfusion(2)
    >>> scores.update("agrees", np.array([0, 1]), np.array([0, 1]))
    >>> scores.update("disagrees", np.array([0, 1]), np.array([0, 0]))
    >>> scores.worst_group()
    ('disagrees', 0.25)
    """

    def __init__(self, n_classes):
        self.n_classes = n_classes
        self.groups = {}

    def update(self, group, truth, prediction):
        """Add images to the matrix of `group`; `truth` and `prediction` as in `ConfusionMatrix.update`."""
        self.groups.setdefault(group, ConfusionMatrix(self.n_classes)).update(truth, prediction)

    def miou(self, classes=None):
        """Mean IoU of each group by name, over `classes` as in `ConfusionMatrix.miou`."""
        return {group: scores.miou(classes) for group, scores in self.groups.items()}

    def worst_group(self, classes=None):
        """(name, mIoU) of the lowest group; averages hide a model that fails wherever context misleads."""
        if not self.groups:
            raise WsssError("worst_group: no group yet; update it first")
        return min(self.miou(classes).items(), key=lambda pair: pair[1])


def cam_energy(cam, truth, label, own_context):
    """Where the energy of the present classes' maps lies: on the object, on others, on own or other context.

    Parameters
    ----------
    cam : (K,H,W) array
        Non-negative maps at image size.
    truth : (H,W) array
        True mask; 255 is left out.
    label : (K,) array
        1 for the classes present in the image.
    own_context : (K,) array of bool
        Whether the image's background is the class's own context (boat on water).

    Returns
    -------
    dict of str to float
        `object`, `other_object`, `own_context`, `other_context`: each class's shares sum to 1, averaged over
        the present classes with any energy; nan if there is none.

    Examples
    --------
    >>> cam_energy(np.array([[[3.0, 1.0]]]), np.array([[1, 0]]), [1], [True])
    {'object': 0.75, 'other_object': 0.0, 'own_context': 0.25, 'other_context': 0.0}
    """
    cam, truth, own = _array(cam), _class_map(truth, "truth"), _array(own_context).astype(bool)
    if cam.shape[1:] != truth.shape:
        raise WsssError(f"cam: size {cam.shape[1:]}, truth {truth.shape}: bring both to the image's size")
    shares = []
    for k in np.flatnonzero(_array(label)):
        energy = np.bincount(truth.ravel(), weights=cam[k].ravel(), minlength=256)[:IGNORE]
        if energy.sum() > 0:
            background, on_object, total = energy[0], energy[k + 1], energy.sum()
            other = total - background - on_object
            shares.append(np.array([on_object, other, background * own[k], background * ~own[k]]) / total)
    mean = np.mean(shares, axis=0) if shares else np.full(4, np.nan)
    return dict(zip(("object", "other_object", "own_context", "other_context"), mean.tolist(), strict=True))


def region_activation(features, truth):
    """Mean activation of an image's features on its objects and on its background.

    Averaged over images, these are the average foreground and background activation (AFA, ABA) of DEFT's toy
    experiment. Each image counts alike, however large its objects are.

    Parameters
    ----------
    features : (C,h,w) array
        A map of a network, such as that before its last BatchNorm.
    truth : (H,W) array
        True mask, H >= h and W >= w; each cell takes the value at its middle, 255 is left out.

    Returns
    -------
    tuple of float
        Mean over channels and cells of the foreground, and of the background; nan where there is no such cell.

    References
    ----------
    DEFT, section 3.1.

    Examples
    --------
    >>> region_activation(np.array([[[4.0, 1.0]], [[2.0, 0.0]]]), np.array([[1, 1, 0, 0], [1, 1, 0, 0]]))
    (3.0, 0.5)
    """
    features, truth = _array(features), _class_map(truth, "truth")
    if features.ndim != 3 or truth.ndim != 2 or np.less(truth.shape, features.shape[1:]).any():
        raise WsssError(f"features: shape {features.shape}, truth {truth.shape}: give (C, h, w) and a larger (H, W)")
    rows, columns = (
        (2 * np.arange(n) + 1) * size // (2 * n) for n, size in zip(features.shape[1:], truth.shape, strict=True)
    )
    cells, mean = truth[np.ix_(rows, columns)], features.mean(0, dtype=float)
    regions = (cells > 0) & (cells != IGNORE), cells == 0
    return tuple(float(mean[region].mean()) if region.any() else float("nan") for region in regions)


def average_precision(label, score):
    """Average precision of each class: the sum of precision times gain in recall over the distinct scores.

    Parameters
    ----------
    label : (N,K) array
        1 where the image holds the class.
    score : (N,K) array
        Any scores that rise with confidence; equal scores enter together.

    Returns
    -------
    (K,) array
        nan for classes without a positive image; their `np.nanmean` is the mAP.

    Examples
    --------
    >>> average_precision(np.array([[1], [0], [1]]), np.array([[0.9], [0.8], [0.7]])).round(3).tolist()
    [0.833]
    """
    label, score = _array(label), _array(score)
    if label.shape != score.shape or label.ndim != 2:
        raise WsssError(f"score: shape {score.shape}, label {label.shape}; give both as (images, classes)")
    return np.array([_average_precision(y > 0, s) for y, s in zip(label.T, score.T, strict=True)])


def mean_average_precision(label, score):
    """Mean of `average_precision` over the classes that have a positive image; nan if none has.

    Parameters
    ----------
    label, score : (N,K) array
        As in `average_precision`.

    Examples
    --------
    >>> mean_average_precision(np.array([[1, 0], [0, 0]]), np.array([[0.9, 0.1], [0.2, 0.3]]))
    1.0
    """
    return _nanmean(average_precision(label, score))


def mean_std(values, scale=100.0, digits=1):
    """Mean and sample standard deviation over seeds, as text; the mean alone for one seed.

    Parameters
    ----------
    values : sequence of float
        One score a seed, in [0,1] for the default scale.
    scale : float
        Factor before printing (100: per cent).
    digits : int
        Decimals.

    Examples
    --------
    >>> mean_std([0.449, 0.453, 0.457]), mean_std([0.45])
    ('45.3 ± 0.4', '45.0')
    """
    values = np.asarray(values, np.float64) * scale
    text = f"{values.mean():.{digits}f}"
    return text if values.size == 1 else f"{text} ± {values.std(ddof=1):.{digits}f}"


def paired_interval(a, b):
    """Mean of a - b over paired seeds with its 95 % t interval: is the gain more than the luck of the seeds?

    Parameters
    ----------
    a, b : sequence of float
        Scores of two methods, one a seed, the same seeds in the same order; at least two.

    Returns
    -------
    tuple of float
        (mean, low, high), in the unit of the scores.

    Examples
    --------
    >>> [round(v, 3) for v in paired_interval([0.46, 0.45, 0.47], [0.44, 0.44, 0.44])]
    [0.02, -0.005, 0.045]
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise WsssError(f"a, b: shapes {a.shape}, {b.shape}; give one score a seed for two or more seeds")
    gain, freedom = a - b, len(a) - 1
    half = _T95[min(freedom, len(_T95)) - 1] * gain.std(ddof=1) / np.sqrt(len(a))
    return float(gain.mean()), float(gain.mean() - half), float(gain.mean() + half)


# Two-sided 95 % points of Student's t for 1 to 10 degrees of freedom; more seeds take the last, a wider one.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def _average_precision(positive, score):
    if not positive.any():
        return np.nan
    order = np.argsort(-score, kind="stable")
    positive, score = positive[order], score[order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # end of each run of equal scores
    hits = positive.cumsum()[last]
    return float((hits / (last + 1) * np.diff(hits, prepend=0)).sum() / hits[-1])


def _array(values):
    """NumPy view of an array or tensor, without importing torch."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _class_map(values, name):
    values = _array(values)
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iub" or (values.size and (values.min() < 0 or values.max() > IGNORE)):
        raise WsssError(f"{name}: {values.dtype} values; give class indices as integers in 0..{IGNORE}")
    return values.astype(np.uint8)


def _nanmean(values):
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def json_number(value):
    """A score as JSON knows it: nan, which it does not know, becomes None.

    Parameters
    ----------
    value : float
        A score, or nan.

    Returns
    -------
    float or None

    Examples
    --------
    >>> json_number(np.float64(0.5)), json_number(float("nan"))
    (0.5, None)
    """
    return None if np.isnan(value) else float(value)
