"""Maps that walk: what a threshold makes of them, grids that do not fit, folders that go on where they stopped."""

import numpy as np
import pytest
import torch

from wsss_lib.data import VOCFolder
from wsss_lib.errors import SettingsError
from wsss_lib.localize import load_cam, save_cam, seed
from wsss_lib.nn.pairs import offsets
from wsss_lib.refine.maps import background_score, read_maps
from wsss_lib.refine.random_walk import random_walk
from wsss_lib.refine.walk import WalkSettings, on_grid, walk_folder, walk_maps

RADIUS = 3


def random_pairs(h, w, draw):
    for dy, dx in offsets(RADIUS):
        yield (dy, dx), torch.rand(1, max(0, h - dy), max(0, w - abs(dx)), generator=draw, dtype=torch.float64)


@pytest.fixture
def pairs():
    return list(random_pairs(6, 7, torch.Generator().manual_seed(0)))


@pytest.fixture
def maps():
    return torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_class_exceeds_a_half_exactly_where_it_exceeds_the_background_that_walked_along(maps, pairs):
    maps = maps * torch.linspace(0, 1, 7)  # none on the left
    walked = walk_maps(maps, pairs, WalkSettings(beta=8, t=1, background="power", alpha=4))
    background = torch.from_numpy(background_score(maps.numpy(), 4))[None]
    plain = random_walk(torch.cat([background, maps]), pairs, beta=8, t=1)
    assert torch.equal(seed(walked, 0.5), plain.argmax(0).byte())
    assert 0 < (seed(walked, 0.5) == 0).float().mean() < 1, "else this says nothing"


def test_without_background_the_strongest_class_reaches_one_and_the_others_keep_their_ratio_to_it(maps, pairs):
    walked, plain = walk_maps(maps, pairs, WalkSettings(beta=2, t=1)), random_walk(maps, pairs, beta=2, t=1)
    assert walked.max() == 1
    torch.testing.assert_close(walked / walked.max(), plain / plain.max())


def test_what_is_not_kept_does_not_walk(maps, pairs):
    keep = torch.zeros(6, 7, dtype=torch.float64)
    keep[2, 3] = 0.5
    walked = walk_maps(maps, pairs, WalkSettings(beta=1, t=0), keep)
    alone = torch.zeros_like(maps)
    alone[:, 2, 3] = maps[:, 2, 3]
    torch.testing.assert_close(walked, walk_maps(alone, pairs, WalkSettings(beta=1, t=0)))


@pytest.mark.parametrize("background", ["power", "constant"])
def test_nothing_is_walked_to_where_there_is_nothing(pairs, background):
    settings = WalkSettings(beta=2, t=1, background=background)
    assert walk_maps(torch.zeros(0, 6, 7), pairs, settings).shape == (0, 6, 7)
    assert walk_maps(torch.zeros(1, 6, 7), pairs, settings).abs().max() == 0


def test_a_coarser_grid_takes_means_and_a_finer_one_stays_within_the_range(maps):
    coarse = on_grid(maps, (3, 7))
    torch.testing.assert_close(coarse, maps.view(2, 3, 2, 7).mean(2))
    fine = on_grid(maps, (9, 10))
    assert fine.shape == (2, 9, 10)
    assert maps.min() <= fine.min() and fine.max() <= maps.max()


class Connected:
    """A network for which everything is alike."""

    def to(self, *_, **__):
        return self

    def eval(self):
        return self

    def affinities(self, image):
        h, w = image.shape[2] // 16, image.shape[3] // 16
        pairs = [((dy, dx), torch.ones(1, max(0, h - dy), max(0, w - abs(dx)))) for dy, dx in offsets(RADIUS)]
        return pairs, torch.ones(1, h, w)


def test_files_are_those_of_the_cam_stage_and_those_that_exist_are_kept(toy_root, tmp_path):
    folder = VOCFolder(toy_root)
    ids = folder.split("val")[:3]
    for image_id in ids:
        spot = torch.zeros(folder.n_classes, 16, 16)
        spot[:, 3, 3] = 1
        (tmp_path / "cams").mkdir(exist_ok=True)
        save_cam(tmp_path / "cams" / f"{image_id}.npz", spot, folder.label(image_id), (64, 64))
    out, settings = tmp_path / "walked", WalkSettings(beta=1, t=8)
    assert walk_folder(Connected(), folder, ids[:1], tmp_path / "cams", out, settings) == 1
    before = (out / f"{ids[0]}.npz").stat().st_mtime_ns
    assert walk_folder(Connected(), folder, ids, tmp_path / "cams", out, settings) == 2
    assert (out / f"{ids[0]}.npz").stat().st_mtime_ns == before
    classes, walked, size = read_maps(out / f"{ids[0]}.npz")
    assert size == (64, 64) and walked.shape == (len(classes), 4, 4)
    assert np.array_equal(classes, np.flatnonzero(folder.label(ids[0])))
    assert walked.min() > 0.5, "256 steps over a small grid of equals leave no cell out"
    assert load_cam(out / f"{ids[0]}.npz", n_classes=folder.n_classes).shape == (folder.n_classes, 64, 64)


def test_maps_of_no_class_go_to_any_grid():
    assert on_grid(torch.zeros(0, 8, 8), (16, 16)).shape == (0, 16, 16)


@pytest.mark.parametrize("wrong", [{"background": "none"}, {"beta": 0.0}, {"t": -1}, {"alpha": -1.0}])
def test_what_would_fail_after_a_training_is_refused_before(wrong):
    name = next(iter(wrong))
    with pytest.raises(SettingsError, match=f"{name}={wrong[name]!r}.*: give"):
        WalkSettings(**wrong)
