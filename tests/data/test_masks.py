"""Masks: the indices that are written are read back, in VOC's colours, and nothing else passes for a mask."""

import numpy as np
import pytest
from PIL import Image

from wsss_lib.data.classes import VOC_CLASSES
from wsss_lib.data.masks import mask_fault, palette, read_mask, write_mask
from wsss_lib.errors import DataError


def test_the_palette_is_the_one_of_the_development_kit():
    for value, colour in enumerate(palette().tolist()):
        red = green = blue = 0
        rest = value
        for shift in range(7, -1, -1):
            red, green, blue = (
                red | (rest & 1) << shift,
                green | (rest >> 1 & 1) << shift,
                blue | (rest >> 2 & 1) << shift,
            )
            rest >>= 3
        assert colour == [red, green, blue]


def test_there_are_the_twenty_classes_of_voc_in_alphabetical_order():
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int32, np.uint16])
def test_what_is_written_is_read_back(tmp_path, dtype):
    mask = np.arange(256).reshape(8, 32).astype(dtype)
    write_mask(tmp_path / "a.png", mask)
    read = read_mask(tmp_path / "a.png")
    assert read.dtype == np.uint8
    assert np.array_equal(read, mask)


def test_a_written_mask_shows_in_vocs_colours(tmp_path):
    mask = np.arange(256).reshape(16, 16)
    write_mask(tmp_path / "a.png", mask)
    assert np.array_equal(np.array(Image.open(tmp_path / "a.png").convert("RGB")), palette()[mask])


def test_transposed_and_boolean_arrays_are_written(tmp_path):
    mask = np.zeros((4, 7), bool)
    mask[1, 5] = True
    write_mask(tmp_path / "a.png", mask.T)
    assert np.array_equal(read_mask(tmp_path / "a.png"), mask.T)


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((2, 3), float),
        np.zeros((2, 3, 1), int),
        np.full((2, 2), 256),
        np.full((2, 2), -1),
        np.zeros((0, 3), int),
    ],
)
def test_what_is_no_matrix_of_indices_is_refused_and_leaves_no_file(tmp_path, mask):
    with pytest.raises(DataError, match="give "):
        write_mask(tmp_path / "a.png", mask)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_mask_and_no_rest(tmp_path, monkeypatch):
    write_mask(tmp_path / "a.png", np.ones((2, 2), int))

    def half(self, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        write_mask(tmp_path / "a.png", np.zeros((2, 2), int))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert read_mask(tmp_path / "a.png").all()


def test_grey_masks_and_short_palettes_are_read_as_indices(tmp_path):
    mask = np.array([[0, 1], [2, 3]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "grey.png")
    image = Image.fromarray(mask)
    image.putpalette([9, 9, 9] * 4)
    image.save(tmp_path / "short.png", bits=2)
    assert np.array_equal(read_mask(tmp_path / "grey.png"), mask)
    assert np.array_equal(read_mask(tmp_path / "short.png"), mask)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16", "1"])
def test_colours_are_no_class_indices(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a\.png: mask of mode {mode} .* -> save class indices"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "empty file"), (b"text", r"broken mask \(cannot identify image file\)"), (None, "truncated mask")],
)
def test_a_broken_mask_is_one_line_that_names_it(tmp_path, content, problem):
    path = tmp_path / "a.png"
    write_mask(path, np.random.default_rng(0).integers(0, 256, (50, 50)))
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    with pytest.raises(DataError, match=rf"^\S*a\.png: {problem} -> copy or download it again$"):
        read_mask(path)


def test_a_missing_mask_is_named(tmp_path):
    with pytest.raises(DataError, match=r"b\.png: no such mask -> add it"):
        read_mask(tmp_path / "b.png")


def test_faults_of_size_and_values_are_told_apart(tmp_path):
    mask = np.zeros((4, 6), np.uint8)
    mask[0, 0] = 255
    assert mask_fault(tmp_path, mask, (4, 6), n_classes=2) is None
    assert "6 x 4" in mask_fault(tmp_path, mask, (6, 4), n_classes=2).problem
    mask[1] = 3
    assert "value 3" in mask_fault(tmp_path, mask, (4, 6), n_classes=2).problem
