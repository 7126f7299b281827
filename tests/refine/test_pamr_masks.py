"""PAMR in place of the CRF: pseudo masks that move to the edges, from the background's score to the argmax."""

import subprocess
import sys
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.pamr import DILATIONS, pamr
from wsss_lib.refine import pamr as refine_pamr
from wsss_lib.refine.dense_crf import MaskSettings, la_ha_mask, pseudo_mask
from wsss_lib.refine.maps import background_score
from wsss_lib.refine.mean_field import hard_probability
from wsss_lib.refine.pamr import PAMRSettings

NEAR = PAMRSettings(iterations=4, dilations=(1, 2))
SOFT = MaskSettings("power", alpha=2.0, pamr=NEAR)


def scene(height=20, width=26, seed=0, n=3):
    """A picture of blocks in two colours, and random maps that know nothing of them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 2, (-(-height // 5), -(-width // 5))).repeat(5, 0).repeat(5, 1)[:height, :width]
    image = np.where(blocks[..., None], [200, 60, 40], [40, 80, 210]).astype(np.uint8)
    return image + rng.integers(0, 20, image.shape, dtype=np.uint8), rng.random((n, height, width), np.float32)


def refined(image, score, iterations=4, dilations=(1, 2)):
    """By `wsss_lib.nn.pamr` alone."""
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return pamr(picture, torch.from_numpy(score)[None], iterations, dilations)[0].numpy()


def test_the_scores_of_one_image_are_refined_by_the_formula_whatever_their_layout():
    image, score = scene()
    want = refined(image, score)
    got = NEAR.refine(image, score)
    assert got.dtype == np.float32 and got.shape == score.shape
    np.testing.assert_allclose(got, want, atol=1e-6)
    layouts = np.asfortranarray(image), np.ascontiguousarray(score[:, ::-1])[:, ::-1].astype(np.float64)
    np.testing.assert_allclose(NEAR.refine(*layouts), want, atol=1e-6)
    assert np.abs(want - score).max() > 0.1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("writeable", [True, False])
def test_what_is_given_is_left_alone_and_may_be_read_only(writeable):
    image, score = scene()
    before = image.copy(), score.copy()
    image.flags.writeable = score.flags.writeable = writeable
    for options in (NEAR, PAMRSettings(iterations=0)):
        options.refine(image, score)
    assert (image == before[0]).all() and (score == before[1]).all()


@given(seed=st.integers(0, 999), height=st.integers(1, 12), width=st.integers(1, 12), n=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_each_score_keeps_within_the_range_that_it_had(seed, height, width, n):
    image, score = scene(height, width, seed, n)
    got = NEAR.refine(image, score)
    low, high = score.min((1, 2), keepdims=True), score.max((1, 2), keepdims=True)
    assert (got >= low - 1e-5).all() and (got <= high + 1e-5).all()


@pytest.mark.parametrize(
    "background",
    [{"background": "power", "alpha": 2.0}, {"background": "constant", "threshold": 0.6}],
    ids=["power", "constant"],
)
@pytest.mark.parametrize("hard", [False, True])
def test_a_pseudo_mask_is_the_argmax_of_refined_scores_of_background_and_classes(background, hard):
    image, maps = scene()
    own = background_score(maps, 2.0) if background["background"] == "power" else np.full((20, 26), 0.6, np.float32)
    score = np.stack([own, *maps])
    score = hard_probability(score.argmax(0), 4) if hard else score
    want = np.array([0, 5, 1, 20])[refined(image, score).argmax(0)]
    got = pseudo_mask(image, maps, np.array([4, 0, 19]), MaskSettings(**background, hard=hard, pamr=NEAR))
    assert got.dtype == np.uint8 and (got == want).all()
    assert (got != pseudo_mask(image, maps, np.array([4, 0, 19]), MaskSettings(**background, hard=hard))).any()


def test_a_coarse_mask_moves_to_the_edge():
    y, x = np.mgrid[:64, :64]
    inside = (y - 30) ** 2 + (x - 34) ** 2 < 18**2
    image = np.where(inside[..., None], [200, 40, 40], [40, 40, 200]).astype(np.uint8)
    shifted = np.roll(inside, 5, 1).astype(np.float32)
    maps = shifted.reshape(8, 8, 8, 8).mean((1, 3)).repeat(8, 0).repeat(8, 1)[None]
    options = MaskSettings("constant", threshold=0.5, crf=None)
    raw = pseudo_mask(image, maps, [3], options) == 4
    averaged = pseudo_mask(image, maps, [3], replace(options, pamr=PAMRSettings(dilations=(1, 2, 4, 8)))) == 4
    assert (averaged != inside).mean() < 0.3 * (raw != inside).mean()


def test_it_takes_the_place_of_the_crf_and_without_an_iteration_changes_nothing():
    image, maps = scene()
    classes = np.arange(3)
    assert (pseudo_mask(image, maps, classes, SOFT) == pseudo_mask(image, maps, classes, replace(SOFT, crf=None))).all()
    plain = replace(SOFT, crf=None, pamr=None)
    none = replace(SOFT, pamr=PAMRSettings(iterations=0))
    assert (pseudo_mask(image, maps, classes, none) == pseudo_mask(image, maps, classes, plain)).all()
    assert (pseudo_mask(image, maps, classes, SOFT) != pseudo_mask(image, maps, classes, plain)).any()


@pytest.mark.parametrize("options", [SOFT, MaskSettings("constant", pamr=NEAR), replace(SOFT, hard=True)])
def test_an_image_without_a_class_is_all_background(options):
    image, maps = scene(n=0)
    found = pseudo_mask(image, maps, [], options)
    assert found.dtype == np.uint8 and found.shape == (20, 26) and not found.any()


def test_two_exponents_leave_what_is_unsure_open():
    image, maps = scene(n=1)
    low, high = (pseudo_mask(image, maps, [3], replace(SOFT, alpha=alpha)) for alpha in (1.0, 8.0))
    both = pseudo_mask(image, maps, [3], replace(SOFT, la_ha=(1.0, 8.0)))
    assert (both == la_ha_mask(low, high)).all() and 255 in both


def test_the_published_numbers_are_what_it_starts_with():
    assert (PAMRSettings().iterations, PAMRSettings().dilations) == (10, DILATIONS)
    image, score = scene()
    np.testing.assert_allclose(PAMRSettings().refine(image, score), refined(image, score, 10, DILATIONS), atol=1e-6)


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ({"iterations": -1}, "iterations=-1: give 0 or more"),
        ({"dilations": ()}, r"dilations=\[\]: give one distance or more"),
        ({"dilations": (1, 0)}, r"dilations=\[1, 0\]: give one distance or more"),
    ],
)
def test_wrong_numbers_are_refused_before_there_is_an_image(given_, told):
    with pytest.raises(SettingsError, match=told) as error:
        PAMRSettings(**given_)
    assert "\n" not in str(error.value)


def test_maps_of_another_size_are_refused():
    image, maps = scene()
    with pytest.raises(WsssError, match=r"image \(19, 26\), score \(20, 26\): bring the score to the image's size"):
        pseudo_mask(image[1:], maps, np.arange(3), SOFT)


def test_it_is_computed_where_the_settings_say():
    seen = []

    def recording(image, masks, *_):
        seen.extend((image.device.type, masks.device.type))
        return torch.zeros(masks.shape)

    with patch.object(refine_pamr, "pamr", recording):
        for device in ("cpu", "meta"):
            replace(NEAR, device=device).refine(*scene())
    assert seen == ["cpu", "cpu", "meta", "meta"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand")
def test_a_gpu_gives_the_same_scores():
    image, score = scene()
    np.testing.assert_allclose(replace(NEAR, device="cuda").refine(image, score), NEAR.refine(image, score), atol=1e-5)


def test_masks_by_crf_or_without_refinement_need_no_torch():
    code = (
        "import sys, numpy as np\n"
        "from wsss_lib.refine.dense_crf import MaskSettings, pseudo_mask\n"
        "pseudo_mask(np.zeros((4, 4, 3), np.uint8), np.ones((1, 4, 4)), [0], MaskSettings())\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
