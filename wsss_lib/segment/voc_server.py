"""Pack predicted masks for the PASCAL VOC evaluation server, the only place where test masks are scored.

One idea: the server takes few submissions a week and says little about a bad archive, so everything it could
refuse is checked here first. The layout is that of the VOC development kit; "comp6" is the segmentation
competition in which outside data (ImageNet weights) are allowed.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wsss_lib.data.masks import read_mask
from wsss_lib.errors import DataError, WsssError

LAST_CLASS = 20


def pack(
    mask_dir: str | Path,
    ids: Sequence[str],
    out_path: str | Path,
    split: str = "test",
    size: Callable[[str], tuple[int, int]] | None = None,
) -> Path:
    """Check the masks of a split and pack them as `results/VOC2012/Segmentation/comp6_<split>_cls/<id>.png`.

    Parameters
    ----------
    mask_dir : path
        Holds `<id>.png`, palette or grey PNGs of class indices 0..20 (no 255). Other files stay out.
    ids : sequence of str
        All image ids of the split.
    out_path : path
        The `.tgz` to write. The same masks always give the same bytes.
    split : str
        "test" or "val".
    size : callable or None
        Height and width of an image id, such as `VOCFolder.size`; None leaves the sizes unchecked.

    Returns
    -------
    Path
        `out_path`.

    Raises
    ------
    WsssError
        If `split` is unknown or `ids` is empty.
    DataError
        At the first mask that is missing, holds another value, or has another size than its image.

    Examples
    --------
    >>> pack("masks", [], "results.tgz")
    Traceback (most recent call last):
    wsss_lib.errors.WsssError: ids: empty; give the image ids of the split
    """
    if split not in ("test", "val"):
        raise WsssError(f'split={split!r}: give "test" or "val"')
    if not ids:
        raise WsssError("ids: empty; give the image ids of the split")
    mask_dir, out_path = Path(mask_dir), Path(out_path)
    missing = [image_id for image_id in ids if not (mask_dir / f"{image_id}.png").is_file()]
    if missing:
        raise DataError(f"{mask_dir / missing[0]}.png: missing, {len(missing)} in all; segment {split} first")
    for image_id in ids:
        _check(mask_dir / f"{image_id}.png", size(image_id) if size else None)
    part = out_path.with_name(f".{out_path.name}.{os.getpid()}.part")
    try:
        with (
            part.open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w") as archive,
        ):
            for image_id in sorted(ids):
                content = (mask_dir / f"{image_id}.png").read_bytes()
                member = tarfile.TarInfo(f"results/VOC2012/Segmentation/comp6_{split}_cls/{image_id}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        os.replace(part, out_path)
    finally:
        part.unlink(missing_ok=True)
    return out_path


def _check(path: Path, size: tuple[int, int] | None) -> None:
    mask = read_mask(path)
    outside = np.unique(mask[mask > LAST_CLASS])
    if outside.size:
        raise DataError(f"{path}: holds the value {outside[0]}; the server takes 0..{LAST_CLASS}")
    if size is not None and mask.shape != tuple(size):
        raise DataError(f"{path}: size {mask.shape}, image {tuple(size)}; predict at the image's size")
