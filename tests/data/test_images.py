"""Images: whatever they store comes out as 8-bit RGB in stored order; what is broken is named."""

import numpy as np
import pytest
from PIL import Image

from wsss_lib.data.folder import read_image
from wsss_lib.data.images import image_size, is_whole, read_pixels
from wsss_lib.errors import DataError


@pytest.fixture
def photo():
    ramp = np.linspace(0, 255, 40 * 30 * 3).reshape(30, 40, 3)
    return Image.fromarray(ramp.astype(np.uint8))


@pytest.mark.parametrize(
    ("mode", "ending"), [("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png"), ("1", "png")]
)
def test_every_mode_becomes_rgb(tmp_path, photo, mode, ending):
    path = tmp_path / f"a.{ending}"
    photo.convert(mode).save(path)
    image = read_image(path)
    assert tuple(image.shape) == (3, 30, 40)
    assert image.is_contiguous()
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(Image.open(path).convert("RGB")))


def test_transparency_is_dropped(tmp_path, photo):
    photo.putalpha(Image.new("L", photo.size, 7))
    photo.save(tmp_path / "a.png")
    assert np.array_equal(read_pixels(tmp_path / "a.png"), np.array(photo)[..., :3])


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_floating_point_images_are_refused(tmp_path):
    Image.new("F", (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="floating point pixels -> save it as 8-bit"):
        read_pixels(tmp_path / "a.tif")


def test_the_exif_orientation_is_not_applied_since_masks_lie_in_stored_order(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn off
    photo.save(tmp_path / "a.jpg", exif=exif)
    assert tuple(read_image(tmp_path / "a.jpg").shape) == (3, 30, 40)
    assert image_size(tmp_path / "a.jpg") == (30, 40)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_truncated_image_is_found_by_its_end_and_by_decoding(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)).save(path)
    assert is_whole(path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert not is_whole(path)
    assert image_size(path) == (90, 90)
    with pytest.raises(DataError, match=rf"a\.{ending}: truncated image -> copy or download it again"):
        read_pixels(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "empty file"), (b"<html>404</html>", "broken image"), (None, "no such image")],
)
def test_what_is_no_image_is_one_line_that_names_it(tmp_path, content, problem):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    for read in (read_pixels, image_size):
        with pytest.raises(DataError, match=rf"^\S*a\.jpg: {problem}.* -> \S.*$"):
            read(path)


def test_an_empty_file_has_no_end(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert not is_whole(tmp_path / "a.jpg")


def test_an_id_with_its_ending_is_recognised(tmp_path, photo):
    photo.save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg\.jpg: no such image -> write the id without its ending \(a\)"):
        read_pixels(tmp_path / "a.jpg.jpg")
