"""Figures for the notebooks: colour-blind-safe, never jet, the VOC palette for masks, a caption under each.

Functions take NumPy arrays or tensors and give matplotlib figures; `show` puts a figure with its caption into a
notebook, small enough to be committed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from wsss_lib.data.classes import IGNORE
from wsss_lib.data.masks import palette

HEAT = "magma"  # perceptually uniform; dark is low
COLORS = sns.color_palette("colorblind")
DPI = 80


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """A figure as a small PNG of 256 colours; the figure is closed.

    Parameters
    ----------
    figure : Figure
        What to draw.
    dpi : int
        Pixels per inch.

    Returns
    -------
    bytes

    Examples
    --------
    >>> png(plt.figure(figsize=(1, 1)))[1:4]
    b'PNG'
    """
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=dpi, bbox_inches="tight")
    plt.close(figure)
    picture = Image.open(raw).convert("RGB")
    # The default method drops colours that are rare, such as a thin line's or a legend's.
    picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()


def show(figure: Figure, caption: str, dpi: int = DPI) -> None:
    """Put a figure and its caption into the notebook; the caption is the picture's alternative text too.

    Parameters
    ----------
    figure : Figure
        What to show; it is closed.
    caption : str
        One or two sentences: what is seen and what to look at.
    dpi : int
        Pixels per inch.

    Examples
    --------
    >>> show(plt.figure(figsize=(1, 1)), "An empty square.")  # doctest: +ELLIPSIS
    <IPython.core.display.Image object>...
    """
    from IPython.display import Image as Picture

    display(Picture(png(figure, dpi), format="png", alt=escape(caption)))
    display(Markdown(f"*Figure: {caption}*"))


def as_array(image) -> np.ndarray:
    """An image as (H, W, 3) uint8, whatever it comes as.

    Parameters
    ----------
    image : array or tensor
        (H, W, 3) or (3, H, W); uint8 in 0..255 or float in [0, 1].

    Returns
    -------
    ndarray
        (H, W, 3) uint8.

    Examples
    --------
    >>> as_array(np.ones((3, 4, 5), np.float32)).shape, as_array(np.ones((3, 4, 5), np.float32)).max()
    ((4, 5, 3), np.uint8(255))
    """
    image = np.asarray(image)
    if image.shape[0] == 3 and image.shape[-1] != 3:
        image = image.transpose(1, 2, 0)
    return image if image.dtype == np.uint8 else (image.clip(0, 1) * 255).round().astype(np.uint8)


def overlay_cam(image, cam, opacity: float = 0.6) -> np.ndarray:
    """An image under a heat map: the map's colours where it is high, the grey image where it is low.

    Parameters
    ----------
    image : array or tensor
        As for `as_array`.
    cam : array or tensor
        (H, W) in [0, 1].
    opacity : float
        Of the heat map, in [0, 1].

    Returns
    -------
    ndarray
        (H, W, 3) uint8.

    Examples
    --------
    >>> overlay_cam(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2))).shape
    (2, 2, 3)
    """
    grey = as_array(image).mean(-1, keepdims=True).repeat(3, -1) / 255
    heat = plt.get_cmap(HEAT)(np.asarray(cam).clip(0, 1))[..., :3]
    return as_array(((1 - opacity) * grey + opacity * heat).astype(np.float32))


def overlay_mask(image, mask, opacity: float = 0.65) -> np.ndarray:
    """An image under a mask in the VOC palette; background stays clear, ignored pixels are white.

    Parameters
    ----------
    image : array or tensor
        As for `as_array`.
    mask : array or tensor
        (H, W) of 0..K and 255.
    opacity : float
        Of the mask's colours, in [0, 1].

    Returns
    -------
    ndarray
        (H, W, 3) uint8.

    Examples
    --------
    >>> overlay_mask(np.zeros((1, 2, 3), np.uint8), np.array([[0, 1]]))[0, 0].tolist()
    [0, 0, 0]
    """
    image, mask = as_array(image) / 255, np.asarray(mask)
    colour = palette()[mask] / 255
    colour[mask == IGNORE] = 1.0
    alpha = np.where(mask == 0, 0.0, opacity)[..., None]
    return as_array((image * (1 - alpha) + colour * alpha).astype(np.float32))


def grid(rows: Sequence[Sequence], titles: Sequence[str] = (), names: Sequence[str] = (), size: float = 1.5):
    """Pictures in rows and columns.

    Parameters
    ----------
    rows : sequence of sequences
        Images (as for `as_array`), or maps (H, W) in [0, 1], drawn as heat; None leaves a place empty.
    titles : sequence of str
        Above the columns.
    names : sequence of str
        Beside the rows.
    size : float
        Inches of one picture.

    Returns
    -------
    Figure

    Examples
    --------
    >>> len(grid([[np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8)]], ["map", "image"]).axes)
    2
    """
    n_columns = max(len(row) for row in rows)
    figure, axes = plt.subplots(
        len(rows),
        n_columns,
        figsize=(size * n_columns, size * len(rows) * 1.04),
        squeeze=False,
        layout="compressed",
    )
    for i, row in enumerate(rows):
        for j, axis in enumerate(axes[i]):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            picture = row[j] if j < len(row) else None
            if picture is not None:
                picture = np.asarray(picture)
                if picture.ndim == 2:
                    axis.imshow(picture, cmap=HEAT, vmin=0, vmax=1)
                else:
                    axis.imshow(as_array(picture))
            if i == 0 and j < len(titles):
                axis.set_title(titles[j], fontsize=9)
            if j == 0 and i < len(names):
                axis.set_ylabel(names[i], fontsize=9)
    return figure


def legend(figure: Figure, names: Sequence[str], columns: int = 7) -> Figure:
    """Add the VOC palette's colours and class names below a figure.

    Parameters
    ----------
    figure : Figure
        A figure with masks.
    names : sequence of str
        Foreground classes; the colour of class i is that of mask value i + 1.
    columns : int
        Entries in a line.

    Returns
    -------
    Figure
        The same figure.

    Examples
    --------
    >>> len(legend(grid([[np.zeros((2, 2, 3), np.uint8)]]), ["cat", "dog"]).legends[0].get_texts())
    2
    """
    colours = palette()[1 : len(names) + 1] / 255
    handles = [Patch(color=c, label=n) for c, n in zip(colours, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def sweep(
    thresholds,
    curves: Mapping[str, Sequence[float]],
    fixed: float | None = None,
    ylabel: str = "seed mIoU (%)",
):
    """Scores over the background threshold, the best of each curve marked.

    Parameters
    ----------
    thresholds : sequence of float
        The x axis.
    curves : mapping
        Name to scores in percent, one a threshold.
    fixed : float, optional
        A threshold set beforehand, drawn as a vertical line.
    ylabel : str
        Of the y axis.

    Returns
    -------
    Figure

    Examples
    --------
    >>> len(sweep([0, 0.5], {"CAM": [10, 40]}, fixed=0.25).axes)
    1
    """
    figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    for colour, (name, scores) in zip(COLORS, curves.items(), strict=False):
        best = int(np.nanargmax(scores))
        axis.plot(thresholds, scores, color=colour, label=name)
        axis.plot(thresholds[best], scores[best], "o", color=colour)
    if fixed is not None:
        axis.axvline(fixed, color="grey", linestyle=":", label="fixed threshold")
    axis.set(xlabel="background threshold", ylabel=ylabel)
    axis.legend(frameon=False, fontsize=8)
    sns.despine(figure)
    return figure


def bars(values: Mapping[str, float], ylabel: str, errors: Mapping[str, float] | None = None, width: float = 5):
    """Named values as horizontal bars, each with its number.

    Parameters
    ----------
    values : mapping
        Name to value; nan leaves the bar empty.
    ylabel : str
        What the values are, with the unit.
    errors : mapping, optional
        Name to standard deviation, drawn as a whisker.
    width : float
        Inches.

    Returns
    -------
    Figure

    Examples
    --------
    >>> len(bars({"a": 1.0, "b": 2.0}, "IoU (%)").axes[0].patches)
    2
    """
    figure, axis = plt.subplots(figsize=(width, 0.32 * len(values) + 0.8), layout="constrained")
    numbers = [float(v) for v in values.values()]
    whiskers = [(errors or {}).get(name, 0.0) for name in values] if errors else None
    drawn = axis.barh(list(values), np.nan_to_num(numbers), xerr=whiskers, color=COLORS[0])
    axis.bar_label(drawn, [f"{v:.3g}" for v in numbers], padding=3, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel(ylabel)
    sns.despine(figure)
    return figure


def heatmap(values, names: Sequence[str], xlabel: str, ylabel: str, columns: Sequence[str] = (), decimals: int = 2):
    """A matrix as a heat map with its numbers in it.

    Parameters
    ----------
    values : array
        (rows, columns), finite.
    names : sequence of str
        Of the rows.
    xlabel, ylabel : str
        What columns and rows are.
    columns : sequence of str
        Names of the columns; by default those of the rows.
    decimals : int
        Of the numbers.

    Returns
    -------
    Figure

    Examples
    --------
    >>> len(heatmap([[0.5, 0.5], [0.0, 1.0]], ["a", "b"], "pasted", "present").axes)
    2
    """
    values, columns = np.asarray(values, float), columns or names
    size = (1.6 + 0.62 * len(columns), 1.1 + 0.42 * len(names))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    options = {"annot": True, "fmt": f".{decimals}f", "cmap": "viridis", "xticklabels": columns, "yticklabels": names}
    sns.heatmap(values, ax=axis, annot_kws={"size": 8}, **options)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def losses(log, terms: Sequence[str] = ("total",), smooth: int = 20):
    """Loss terms over the steps of a training, raw and smoothed.

    Parameters
    ----------
    log : DataFrame
        A stage's ``log.csv``.
    terms : sequence of str
        Columns to draw.
    smooth : int
        Steps of the running mean.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> len(losses(pd.DataFrame({"step": [0, 1], "total": [1.0, 0.5]})).axes)
    1
    """
    figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
    for colour, term in zip(COLORS, terms, strict=False):
        axis.plot(log["step"], log[term], color=colour, alpha=0.25, linewidth=0.7)
        axis.plot(log["step"], log[term].rolling(smooth, min_periods=1).mean(), color=colour, label=term)
    axis.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)
    sns.despine(figure)
    return figure
