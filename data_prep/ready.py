"""The data of a notebook, ready to use: toy scenes are drawn on the spot, anything else must be there."""

from __future__ import annotations

from pathlib import Path

from data_prep import toy
from wsss_lib.data import VOCFolder
from wsss_lib.errors import DataError
from wsss_lib.project import data_root as default_data_root


def ready(settings, dataset: str = "", data_root: str | Path = "") -> VOCFolder:
    """Open a data set, and draw it first where it is made of toy scenes.

    Parameters
    ----------
    settings : Settings
        ``settings.data.dataset`` is the default name, ``settings.toy`` holds the dials of the toy scenes.
    dataset : str
        The data set's name, which names its runs; "" takes the profile's.
    data_root : path
        A folder in VOC layout; "" for toy scenes, which are kept under ``data/toy``.

    Returns
    -------
    VOCFolder

    Raises
    ------
    DataError
        If photographs are asked for without a folder.

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> ready(load("laptop"))
    Traceback (most recent call last):
    wsss_lib.errors.DataError: data_root is empty: profile 'laptop' reads photographs in VOC layout; \
give data_root=FOLDER
    """
    name = dataset or settings.data.dataset
    if not data_root:
        if name != "toy" or "toy" not in settings:
            raise DataError(
                f"data_root is empty: profile {settings.profile!r} reads photographs in VOC layout;"
                " give data_root=FOLDER"
            )
        scenes = toy.ToyScenes(**settings.toy)
        data_root = toy.generate(default_data_root() / "toy" / _folder_name(scenes), scenes, progress=True)
    elif name == "toy":
        name = Path(data_root).resolve().name  # a folder of one's own is not the toy scenes
    return VOCFolder(data_root, name=name)


def _folder_name(scenes: toy.ToyScenes) -> str:
    return (
        f"{scenes.n_train}+{scenes.n_val}-{scenes.size}px-context{scenes.context_bias:g}"
        f"-pair{scenes.pair_bias:g}-part{scenes.part_contrast:g}-seed{scenes.seed}-drawing{toy.DRAWING}"
    )
