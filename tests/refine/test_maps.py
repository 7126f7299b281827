"""Maps, background scores and sure pixels."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsss_lib import localize
from wsss_lib.errors import DataError, WsssError
from wsss_lib.refine.maps import background_score, la_ha_mask, read_maps, resize_maps


@pytest.mark.parametrize("size", [(37, 50), (5, 7), (3, 4), (1, 1), (10, 2)])
def test_resizing_equals_torchs_bilinear(size):
    maps = np.random.default_rng(0).random((3, 5, 7)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resize_maps(maps, size), expected.numpy(), atol=1e-5)
    assert resize_maps(maps, size).dtype == np.float32


def test_no_maps_resize_to_no_maps():
    assert resize_maps(np.zeros((0, 2, 3), np.float32), (8, 9)).shape == (0, 8, 9)


def test_a_file_of_localize_reads_as_load_cam_reads_it(tmp_path):
    cam = torch.rand(4, 6, 5)
    cam[[0, 2]] = 0
    label = torch.tensor([0.0, 1, 0, 1])
    localize.save_cam(tmp_path / "a.npz", cam, label, (23, 19))
    classes, maps, size = read_maps(tmp_path / "a.npz")
    assert size == (23, 19)
    full = np.zeros((4, *size), np.float32)
    full[classes] = resize_maps(maps, size)
    np.testing.assert_allclose(full, localize.load_cam(tmp_path / "a.npz", n_classes=4).numpy(), atol=1e-3)


@pytest.mark.parametrize("content", [None, b"", b"not a zip"])
def test_a_missing_or_broken_file_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz.*run the CAM stage") as caught:
        read_maps(path)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_not_opened(tmp_path):
    np.savez(tmp_path / "a.npz", classes=np.array([{}], object), maps=np.zeros((1, 2, 2)), size=[2, 2])
    with pytest.raises(DataError, match=r"a\.npz: damaged.*run the CAM stage again"):
        read_maps(tmp_path / "a.npz")


def test_a_higher_alpha_leaves_less_background():
    maps = np.random.default_rng(0).random((2, 4, 4))
    low, high = background_score(maps, 4), background_score(maps, 32)
    assert (high <= low).all() and low.min() >= 0 and low.max() <= 1


def test_without_classes_all_is_background():
    assert (background_score(np.zeros((0, 3, 4)), 4) == 1).all()


def test_sure_pixels_are_foreground_of_low_and_background_of_high():
    low = np.uint8([[0, 0, 2, 2]])
    high = np.uint8([[0, 2, 2, 0]])
    assert la_ha_mask(low, high).tolist() == [[0, 255, 2, 0]]  # where they contradict, background
    assert low.tolist() == [[0, 0, 2, 2]]
    with pytest.raises(WsssError, match="one image"):
        la_ha_mask(low, high.T)
