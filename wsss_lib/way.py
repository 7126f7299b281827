"""The whole way without a lesson: a folder of images and their labels goes in, masks come out.

One idea: the last stage asks for those before it. No true mask is needed; where there are some, the masks
are scored.
"""

from __future__ import annotations

import numpy as np

from wsss_lib import methods, stages, viz
from wsss_lib.data import VOCFolder, read_image, read_mask
from wsss_lib.runs import Run, Stage, atomic_open

SHOWN = 6  # images of a kind in the overview


def make_masks(run: Run) -> list[tuple[str, Stage]]:
    """Masks of the val images, and the pseudo masks of the training images that taught them.

    A method that segments by itself (`methods.SINGLE_STAGE`) gives the first only. The last stage's folder
    gets ``overview.png``, some images beside their masks.

    Parameters
    ----------
    run : Run
        Which method, on which images, with which settings and seed.

    Returns
    -------
    list of (str, Stage)
        What the masks are of ("training images", "val images"), and the complete stage whose ``masks/<id>.png``
        they are.

    Raises
    ------
    WsssError
        For a wrong setting, an unknown method, or images without labels; most of it before anything is trained.

    Examples
    --------
    >>> [(of, stage.name, stage.complete) for of, stage in make_masks(getfixture("smoke_run"))]
    [('training images', 'pseudo_masks', True), ('val images', 'val_masks', True)]
    """
    if run.method in methods.SINGLE_STAGE:
        made = [("val images", run.ids("val"), stages.segment_directly(run))]
    else:
        last = stages.segment_val(run)  # asks for all stages before it
        pseudo = stages.make_pseudo_masks(run)
        made = [("training images", run.ids("train"), pseudo), ("val images", run.ids("val"), last)]
    rows, names = [], []
    for of, ids, stage in made:
        rows += _pictures(run.folder, ids, stage)
        names += [of, "masks"]
    figure = viz.legend(viz.grid(rows, names=names, size=2), run.folder.classes)
    with atomic_open(made[-1][2].path / "overview.png", "wb") as file:
        file.write(viz.png(figure))
    return [(of, stage) for of, _, stage in made]


def _pictures(folder: VOCFolder, ids: tuple[str, ...], stage: Stage) -> list[list[np.ndarray]]:
    """Two rows: images, evenly from `ids`, and the same under their masks."""
    shown = [ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, SHOWN).round().astype(int))]
    images = [read_image(folder.image_path(image_id)) for image_id in shown]
    masks = [read_mask(stage.path / "masks" / f"{image_id}.png") for image_id in shown]
    return [images, [viz.overlay_mask(image, mask) for image, mask in zip(images, masks, strict=True)]]
