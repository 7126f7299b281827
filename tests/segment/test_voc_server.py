"""The archive for the VOC server: its layout, and what it refuses."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from wsss_lib.data.masks import palette, write_mask
from wsss_lib.errors import DataError, WsssError
from wsss_lib.segment import pack


@pytest.fixture
def masks():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 21, (6, 8)).astype(np.uint8) for name in ("2008_000006", "2008_000011")}


@pytest.fixture
def mask_dir(masks, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for name, mask in masks.items():
        write_mask(folder / f"{name}.png", mask)
    write_mask(folder / "stray.png", np.zeros((2, 2), np.uint8))
    return folder


def test_layout_is_the_servers_and_values_survive(mask_dir, masks, tmp_path):
    path = pack(mask_dir, tuple(masks), tmp_path / "results.tgz", size=lambda _: (6, 8))
    with tarfile.open(path, "r:gz") as archive:
        assert archive.getnames() == [f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in masks]
        for name, member in zip(masks, archive.getmembers(), strict=True):
            with Image.open(io.BytesIO(archive.extractfile(member).read())) as image:
                assert image.mode == "P" and (np.asarray(image) == masks[name]).all()
                colours = np.asarray(image.convert("RGB"))
            assert (colours == palette()[masks[name]]).all()


def test_the_split_names_the_folder(mask_dir, masks, tmp_path):
    with tarfile.open(pack(mask_dir, tuple(masks), tmp_path / "a.tgz", split="val")) as archive:
        assert all("/comp6_val_cls/" in name for name in archive.getnames())


def test_equal_masks_give_equal_bytes(mask_dir, masks, tmp_path):
    one = pack(mask_dir, tuple(masks), tmp_path / "one.tgz").read_bytes()
    assert pack(mask_dir, tuple(reversed(masks)), tmp_path / "two.tgz").read_bytes() == one


def refusal(mask_dir, ids, tmp_path, **options):
    with pytest.raises(WsssError) as caught:
        pack(mask_dir, ids, tmp_path / "results.tgz", **options)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["masks"], "a refused archive leaves no file behind"
    return caught


def test_a_missing_mask_is_refused(mask_dir, masks, tmp_path):
    caught = refusal(mask_dir, (*masks, "2008_999999"), tmp_path)
    assert caught.type is DataError and "2008_999999.png: missing, 1 in all" in str(caught.value)


@pytest.mark.parametrize("value", [21, 255])
def test_a_value_above_20_is_refused(mask_dir, masks, tmp_path, value):
    mask = masks["2008_000011"]
    mask[2, 3] = value
    write_mask(mask_dir / "2008_000011.png", mask)
    caught = refusal(mask_dir, tuple(masks), tmp_path)
    assert f"2008_000011.png: holds the value {value}" in str(caught.value)


def test_another_size_than_the_images_is_refused(mask_dir, masks, tmp_path):
    caught = refusal(mask_dir, tuple(masks), tmp_path, size=lambda name: (6, 8 + name.endswith("11")))
    assert "2008_000011.png: size (6, 8), image (6, 9)" in str(caught.value)


def test_an_unknown_split_and_an_empty_list_are_refused(mask_dir, masks, tmp_path):
    assert 'give "test" or "val"' in str(refusal(mask_dir, tuple(masks), tmp_path, split="train").value)
    assert "ids: empty" in str(refusal(mask_dir, (), tmp_path).value)
