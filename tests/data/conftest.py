"""A factory of tiny folders in VOC layout."""

import numpy as np
import pytest
from PIL import Image

from wsss_lib.data.masks import write_mask

SPLITS = {"train": ("a", "b", "c"), "val": ("d",)}
LABELS = {"a": "cat", "b": "cat dog", "c": "", "d": "dog"}


@pytest.fixture
def make_voc(tmp_path):
    """Write images, splits, labels.csv, classes.txt and masks; everything can be spoilt afterwards."""

    def make(root=None, splits=SPLITS, labels=LABELS, classes=("cat", "dog"), size=(20, 16), masks=True):
        root = tmp_path / "voc" if root is None else root
        random = np.random.default_rng(0)
        for folder in ("JPEGImages", "ImageSets/Segmentation", "SegmentationClass"):
            (root / folder).mkdir(parents=True)
        for split, ids in splits.items():
            (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(ids), encoding="utf-8")
            for image_id in ids:
                pixels = random.integers(0, 256, (size[1], size[0], 3), np.uint8)
                Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95)
                if masks:
                    mask = random.integers(0, len(classes or range(20)) + 1, size[::-1])
                    mask[0] = 255
                    write_mask(root / "SegmentationClass" / f"{image_id}.png", mask)
        if labels is not None:
            rows = "".join(f"{image_id},{names}\n" for image_id, names in labels.items())
            (root / "labels.csv").write_text("image_id,classes\n" + rows, encoding="utf-8")
        if classes is not None:
            (root / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
        return root

    return make


@pytest.fixture
def voc(make_voc):
    """Three training images and one for validation, of 20 x 16 pixels, with the classes cat and dog."""
    return make_voc()
