"""Pseudo masks of one image and of a folder."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from wsss_lib.data.masks import read_mask
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.refine.dense_crf import PRESETS, MaskSettings, la_ha_mask, pseudo_mask, pseudo_masks

PLAIN = MaskSettings("constant", threshold=0.25, crf=None)
SOFT = MaskSettings(alpha=2)


def disc(size=32):
    """A red disc on blue; its map lies half beside it."""
    y, x = np.mgrid[:size, :size]
    inside = (y - size / 2) ** 2 + (x - size / 2) ** 2 < (size / 3) ** 2
    image = np.where(inside[..., None], [200, 40, 40], [40, 40, 200]).astype(np.uint8)
    blob = np.exp(-((y - size / 2) ** 2 + (x - size / 2 - 3) ** 2) / (size / 3) ** 2)
    return image, inside, (blob / blob.max())[None].astype(np.float32)


def test_without_crf_and_constant_background_it_is_the_seed():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 6, 7)).astype(np.float32).round(2)
    cam = np.zeros((6, 6, 7), np.float32)
    cam[[1, 2, 5]] = maps
    seed = np.concatenate([np.full((1, 6, 7), 0.25, np.float32), cam]).argmax(0)
    image = np.zeros((6, 7, 3), np.uint8)
    assert (pseudo_mask(image, maps, [1, 2, 5], PLAIN) == seed).all()


@pytest.mark.parametrize("hard", [False, True])
def test_the_crf_brings_the_mask_to_the_edge(hard):
    image, inside, maps = disc()
    crf, options = PRESETS["psa"], {"background": "constant", "threshold": 0.4, "hard": hard}
    raw = pseudo_mask(image, maps, [3], MaskSettings(**options, crf=None)) == 4
    refined = pseudo_mask(image, maps, [3], MaskSettings(**options, crf=crf)) == 4
    assert (refined != inside).mean() < 0.3 * (raw != inside).mean()


def test_only_present_labels_appear():
    image, _, maps = disc()
    mask = pseudo_mask(image, np.concatenate([maps, 1 - maps]), [19, 4])
    assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 5, 20}


@pytest.mark.parametrize("settings", [MaskSettings(), PLAIN, MaskSettings(la_ha=(4, 32)), MaskSettings(hard=True)])
def test_an_image_without_a_class_is_all_background(settings):
    mask = pseudo_mask(np.zeros((4, 5, 3), np.uint8), np.zeros((0, 4, 5), np.float32), [], settings)
    assert mask.dtype == np.uint8 and mask.shape == (4, 5) and not mask.any()


def test_la_ha_is_the_combination_of_two_masks():
    image, _, maps = disc()
    low, high = (pseudo_mask(image, maps, [3], MaskSettings(alpha=alpha, crf=None)) for alpha in (1, 8))
    both = pseudo_mask(image, maps, [3], MaskSettings(la_ha=(1, 8), crf=None))
    assert (both == la_ha_mask(low, high)).all() and set(np.unique(both)) == {0, 4, 255}


def test_two_thresholds_leave_the_middle_open():
    maps = np.float32([[[0.0, 0.1, 0.4]]])
    sure = MaskSettings("constant", crf=None, la_ha=(0.3, 0.05))
    assert pseudo_mask(np.zeros((1, 3, 3), np.uint8), maps, [0], sure).tolist() == [[0, 255, 1]]


def test_wrong_settings_and_sizes_are_refused():
    image, _, maps = disc()
    with pytest.raises(SettingsError, match="give two values"):
        MaskSettings(la_ha=(4,))
    with pytest.raises(WsssError, match="one class a map"):
        pseudo_mask(image, maps, [1, 2])
    with pytest.raises(WsssError, match="give uint8"):
        pseudo_mask(image[1:], maps, [1])


@pytest.fixture
def jobs(tmp_path):
    """Six images, their maps at a quarter of the size, as jobs."""
    image, _, maps = disc()
    jobs = []
    for index in range(6):
        paths = tmp_path / f"{index}.png", tmp_path / f"{index}.npz"
        Image.fromarray(np.roll(image, index, axis=1)).save(paths[0])
        quarter = np.roll(maps, index, axis=2)[:, 2::4, 2::4].astype(np.float16)
        np.savez(paths[1], classes=np.array([index]), maps=quarter, size=np.array([32, 32]))
        jobs.append((str(index), *paths))
    return jobs


def test_a_pool_writes_the_same_bytes_as_one_process(jobs, tmp_path):
    assert pseudo_masks(jobs, tmp_path / "one", SOFT) == 6
    assert pseudo_masks(iter(jobs), tmp_path / "two", SOFT, processes=2) == 6
    for name, *_ in jobs:
        one, two = (tmp_path / folder / f"{name}.png" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        assert set(np.unique(read_mask(one))) == {0, int(name) + 1}


def test_masks_that_exist_are_kept(jobs, tmp_path):
    assert pseudo_masks(jobs[:2], tmp_path / "masks", PLAIN) == 2
    before = (tmp_path / "masks" / "0.png").stat().st_mtime_ns
    assert pseudo_masks(jobs[:4], tmp_path / "masks", PLAIN) == 2
    assert (tmp_path / "masks" / "0.png").stat().st_mtime_ns == before
    assert pseudo_masks(jobs[:4], tmp_path / "masks", PLAIN) == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_names_the_image_and_the_rest_stays_resumable(jobs, tmp_path, processes):
    content = jobs[3][1].read_bytes()
    jobs[3][1].write_bytes(content[:100])
    with pytest.raises(WsssError, match=r"^3: .*3\.png.*copy or download it again") as caught:
        pseudo_masks(jobs, tmp_path / "masks", PLAIN, processes=processes)
    assert "\n" not in str(caught.value)
    jobs[3][1].write_bytes(content)
    pseudo_masks(jobs, tmp_path / "masks", PLAIN, processes=processes)
    assert len(list((tmp_path / "masks").iterdir())) == 6


def test_workers_import_no_torch():
    code = "import sys, wsss_lib.refine.dense_crf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
