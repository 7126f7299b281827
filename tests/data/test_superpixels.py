"""Super-pixels: connected regions that follow edges, made once, made again when anything changed, never half."""

import os
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from skimage.measure import label as connected_parts
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from tqdm import tqdm

from wsss_lib.data import DrawSampler, TrainingSet, VOCFolder, collate, train_transform
from wsss_lib.data.layout import MASK_FOLDERS
from wsss_lib.data.superpixels import (
    SuperpixelSettings,
    make_superpixels,
    read_superpixels,
    superpixel_fault,
    superpixels,
)
from wsss_lib.data.transforms import Regions, denormalize
from wsss_lib.errors import DataError, SettingsError, WsssError
from wsss_lib.methods.base import Losses
from wsss_lib.methods.cam import CAM
from wsss_lib.nn.patches import hide
from wsss_lib.settings import load
from wsss_lib.train import fit

FEW = SuperpixelSettings(n_segments=12)
TRANSFORM = train_transform((12, 24), 16, jitter=(0.3, 0.3, 0.3, 0.1), pad=2)
IMAGES = arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)))


@pytest.fixture
def jobs(voc):
    return [(image_id, voc / "JPEGImages" / f"{image_id}.jpg") for image_id in "abc"]


@pytest.fixture
def maps(jobs, tmp_path):
    """The maps of the three training images."""
    assert make_superpixels(jobs, tmp_path / "regions", FEW) == 3
    return tmp_path / "regions"


# The regions of an image


@given(image=IMAGES, n_segments=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_every_pixel_is_in_one_connected_region_labelled_from_one(image, n_segments):
    regions = superpixels(image, SuperpixelSettings(n_segments))
    assert regions.shape == image.shape[:2] and regions.dtype == np.uint16
    names = np.unique(regions)
    assert names.tolist() == list(range(1, len(names) + 1))
    for name in names:
        assert connected_parts(regions == name, connectivity=1).max() == 1


def test_regions_follow_edges_and_the_number_follows_the_setting():
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 33:] = 255
    counts = []
    for n_segments in (4, 20, 80):
        regions = superpixels(image, SuperpixelSettings(n_segments))
        assert not set(regions[:, :33].flat) & set(regions[:, 33:].flat)
        counts.append(regions.max())
        assert n_segments / 2 <= regions.max() <= 2 * n_segments
    assert counts == sorted(counts)


def test_the_same_image_gives_the_same_regions():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert np.array_equal(superpixels(image, FEW), superpixels(image.copy(), FEW))


@pytest.mark.parametrize(
    "given", [{"n_segments": 0}, {"n_segments": 65536}, {"compactness": 0.0}, {"compactness": float("nan")}]
)
def test_impossible_settings_are_one_line(given):
    name, value = next(iter(given.items()))
    with pytest.raises(SettingsError, match=f"{name}={value}.*: give 1 to 65535 segments") as error:
        SuperpixelSettings(**given)
    assert "\n" not in str(error.value)


def test_more_regions_than_16_bits_hold_are_refused():
    noise = np.random.default_rng(0).integers(0, 256, (257, 256, 3)).astype(np.uint8)
    with pytest.raises(SettingsError, match=r"n_segments=65535 gave [0-9]+ regions: ask for fewer") as error:
        superpixels(noise, SuperpixelSettings(65535, 1e6))
    assert "\n" not in str(error.value)


# The maps as files


def test_a_map_holds_the_regions_of_its_image_in_16_bits(jobs, maps):
    for image_id, path in jobs:
        pixels = np.array(Image.open(path))
        assert np.array_equal(read_superpixels(maps / f"{image_id}.png"), superpixels(pixels, FEW))
        assert superpixel_fault(maps / f"{image_id}.png", path) is None
    assert Image.open(maps / "a.png").mode.startswith("I")
    assert sorted(path.name for path in maps.iterdir()) == ["a.png", "b.png", "c.png"]


def test_labels_above_255_are_kept(voc, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)).save(tmp_path / "x.png")
    make_superpixels([("x", tmp_path / "x.png")], tmp_path / "out", SuperpixelSettings(900, compactness=1e5))
    assert read_superpixels(tmp_path / "out" / "x.png").max() > 700


def test_a_second_time_nothing_is_made_and_no_file_is_touched(jobs, maps, monkeypatch):
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in maps.iterdir()}
    monkeypatch.setattr("wsss_lib.data.superpixels.superpixels", None)
    assert make_superpixels(jobs, maps, FEW) == 0
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in maps.iterdir()} == before


def test_a_copied_or_touched_image_is_the_same_image(jobs, maps, tmp_path):
    for image_id, path in jobs:
        os.utime(path, (1, 1))
        shutil.copy(path, tmp_path / f"{image_id}.jpg")
    assert make_superpixels(jobs, maps, FEW) == 0
    assert make_superpixels([(i, tmp_path / f"{i}.jpg") for i, _ in jobs], maps, FEW) == 0


def test_only_what_is_missing_or_has_another_image_is_made_again(jobs, maps):
    old = {path.name: path.read_bytes() for path in maps.iterdir()}
    image = np.random.default_rng(9).integers(0, 256, (16, 20, 3), np.uint8)
    size = jobs[1][1].stat()
    Image.fromarray(image).save(jobs[1][1], quality=95)
    os.utime(jobs[1][1], ns=(size.st_atime_ns, size.st_mtime_ns))  # even if nothing but its bytes tells
    (maps / "c.png").unlink()
    assert make_superpixels(jobs, maps, FEW) == 2
    new = {path.name: path.read_bytes() for path in maps.iterdir()}
    assert [new[name] == old[name] for name in ("a.png", "b.png", "c.png")] == [True, False, True]


@pytest.mark.parametrize("other", [SuperpixelSettings(6), SuperpixelSettings(12, compactness=20.0)])
def test_other_settings_make_all_again(jobs, maps, other):
    assert make_superpixels(jobs, maps, other) == 3
    assert make_superpixels(jobs, maps, other) == 0
    assert make_superpixels(jobs, maps, FEW) == 3


def test_a_map_with_any_byte_changed_or_cut_off_anywhere_is_made_again(jobs, maps, monkeypatch):
    path, regions = maps / "a.png", read_superpixels(maps / "a.png")
    monkeypatch.setattr("wsss_lib.data.superpixels.superpixels", lambda *_: regions)
    monkeypatch.setattr("wsss_lib.data.superpixels.tqdm", partial(tqdm, disable=True))
    whole = path.read_bytes()
    for at in range(len(whole)):
        for spoilt in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]):
            path.write_bytes(spoilt)
            assert make_superpixels(jobs[:1], maps, FEW) == 1, (at, len(whole))
            assert path.read_bytes() == whole


def test_reading_a_damaged_map_gives_the_regions_or_one_line(maps):
    path, whole, refused = maps / "b.png", (maps / "a.png").read_bytes(), 0
    regions = read_superpixels(maps / "a.png")
    for at in range(len(whole)):
        for spoilt in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]):
            path.write_bytes(spoilt)
            try:
                assert np.array_equal(read_superpixels(path), regions)
            except DataError as error:
                refused += 1
                assert "python -m data_prep superpixels" in str(error) and "\n" not in str(error)
    assert refused > len(whole)


def test_an_interruption_while_writing_leaves_no_file(jobs, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        make_superpixels(jobs, tmp_path / "out", FEW)
    assert list((tmp_path / "out").iterdir()) == []
    assert make_superpixels(jobs, tmp_path / "out", FEW) == 3


def test_several_processes_make_the_same_files(jobs, maps, tmp_path):
    assert make_superpixels(jobs, tmp_path / "pool", FEW, processes=2) == 3
    for path in maps.iterdir():
        assert (tmp_path / "pool" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_broken_image_is_named_and_what_was_made_stays(jobs, tmp_path, processes):
    content = jobs[2][1].read_bytes()
    jobs[2][1].write_bytes(content[: len(content) // 2])
    with pytest.raises(WsssError, match=r"^c: .*c\.jpg: truncated image -> copy") as error:
        make_superpixels(jobs, tmp_path / "out", FEW, processes)
    assert "\n" not in str(error.value)
    jobs[2][1].unlink()
    with pytest.raises(DataError, match=r"c\.jpg: no such image -> add it"):
        make_superpixels(jobs, tmp_path / "out", FEW, processes)


@pytest.mark.parametrize("folder", ["SegmentationClass", "JPEGImages"])
def test_nothing_is_overwritten_but_maps(voc, jobs, folder):
    Image.open(jobs[0][1]).save(voc / "JPEGImages" / "a.png")
    before = {path: path.read_bytes() for path in (voc / folder).iterdir()}
    with pytest.raises(DataError, match=r"a\.png: an image that is no super-pixel map is in the way -> give another"):
        make_superpixels(jobs, voc / folder, FEW)
    assert {path: path.read_bytes() for path in (voc / folder).iterdir()} == before


def test_a_mask_is_no_map(voc, jobs):
    mask = voc / "SegmentationClass" / "a.png"
    for refuse in (
        lambda: read_superpixels(mask),
        lambda: TrainingSet(VOCFolder(voc), "a", TRANSFORM, regions=mask.parent),
    ):
        with pytest.raises(DataError, match=r"a\.png: no super-pixel map -> make it with") as error:
            refuse()
        assert "\n" not in str(error.value)


def test_the_module_that_workers_import_does_not_import_torch():
    code = "import sys, wsss_lib.data.superpixels; sys.exit('torch' in sys.modules or 'skimage' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# The maps in training


def batches(dataset, workers=0, steps=4):
    sampler = DrawSampler(len(dataset), seed=5, batch_size=2, steps=steps)
    return list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers))


def both(voc, maps, **given):
    folder = VOCFolder(voc)
    ids = folder.split("train")
    return TrainingSet(folder, ids, TRANSFORM), TrainingSet(folder, ids, TRANSFORM, regions=maps, **given)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("long_side", [None, (20, 80)])
def test_regions_move_with_their_image_and_lie_in_no_region_outside(seed, long_side):
    rows, columns = torch.meshgrid(torch.arange(40) // 10, torch.arange(60) // 10, indexing="ij")
    labels = (1 + rows * 6 + columns).int()  # 24 regions, each of one colour
    colour = (labels * 10).to(torch.uint8).expand(3, -1, -1).contiguous()
    torch.manual_seed(seed)
    image, regions = train_transform(long_side, 48, pad=6)(tv_tensors.Image(colour), Regions(100 * labels))
    inside = regions > 0
    assert torch.equal((image == 0).all(0), ~inside)
    assert set(regions.unique().tolist()) <= {0, *(100 * labels).unique().tolist()}
    error = (denormalize(image.as_subclass(torch.Tensor)).mean(0) * 255 - regions.as_subclass(torch.Tensor) / 10)[
        inside
    ]
    assert error.abs().median() < (0.5 if long_side is None else 2)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_labels_of_16_bits_survive_scaling_and_255_is_a_label(dtype):
    labels = torch.tensor([[255, 65535], [256, 54321]], dtype=dtype).repeat_interleave(8, 0).repeat_interleave(8, 1)
    image, transform = tv_tensors.Image(torch.ones(3, 16, 16, dtype=torch.uint8)), train_transform((37, 37), 48)
    torch.manual_seed(0)
    regions = transform(image, Regions(labels))[1]
    assert type(regions) is Regions and regions.dtype == dtype
    assert regions.unique().tolist() == [0, 255, 256, 54321, 65535]
    assert int((regions == 0).sum()) == 48 * 48 - 37 * 37


def test_images_are_augmented_as_without_regions(voc, maps):
    plain, cut = (batches(dataset) for dataset in both(voc, maps))
    for one, other in zip(plain, cut, strict=True):
        assert one.regions is None
        assert torch.equal(one.image, other.image) and torch.equal(one.label, other.label)
        assert type(other.image) is type(other.regions) is torch.Tensor
        assert other.regions.shape == (2, 16, 16) and other.regions.dtype == torch.int64
        assert torch.equal((other.image == 0).all(1), other.regions == 0)


def test_workers_and_a_cache_change_nothing_and_a_cache_reads_once(voc, maps):
    expected = batches(both(voc, maps)[1])
    cached = both(voc, maps, cache=True)[1]
    for other in (batches(both(voc, maps)[1], workers=2), batches(cached)):
        assert all(torch.equal(a.regions, b.regions) for a, b in zip(expected, other, strict=True))
    shutil.rmtree(maps)
    assert all(torch.equal(a.regions, b.regions) for a, b in zip(expected, batches(cached), strict=True))


def test_a_training_with_regions_opens_images_and_maps_alone(voc, maps, monkeypatch):
    opened, open_ = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, *rest: opened.append(str(file)) or open_(file, *rest))
    dataset = both(voc, maps)[1]
    batches(dataset)
    assert {os.path.basename(os.path.dirname(path)) for path in opened} == {"JPEGImages", "regions"}
    assert not [path for path in opened if any(name in path for name in MASK_FOLDERS)]


def test_batches_move_with_and_without_regions(voc, maps):
    plain, cut = (batches(dataset, steps=1)[0] for dataset in both(voc, maps))
    assert plain.to("meta").regions is None
    moved = cut.to("meta")
    assert moved.regions.device.type == "meta" and moved.image_id == cut.image_id


def test_what_a_batch_has_of_super_pixels_can_be_hidden(voc, maps):
    batch = batches(both(voc, maps)[1], steps=1)[0]
    visible = hide(batch.regions, 0.5)
    assert visible.shape == (2, 1, 16, 16) and (visible[:, 0][batch.regions == 0] == 1).all() and (visible == 0).any()


@pytest.mark.parametrize("with_regions", [False, True])
def test_micro_batches_get_their_own_regions_or_none(toy_root, tmp_path, with_regions):
    folder, seen = VOCFolder(toy_root), []
    ids = folder.split("train")[:4]
    if with_regions:
        make_superpixels([(i, folder.image_path(i)) for i in ids], tmp_path / "regions", FEW)

    class Looking(CAM):
        def loss(self, batch, progress):
            seen.append(batch)
            return Losses.weighted({"classify": super().loss(batch, progress).total})

    from wsss_lib import backbones

    transform, regions = train_transform(None, 64, pad=4), tmp_path / "regions" if with_regions else None
    dataset = TrainingSet(folder, ids, transform, regions=regions)
    recipe = {**load("smoke").cam, "epochs": 1, "batch_size": 4, "micro_batch_size": 3}
    model = Looking(backbones.build("tiny"), 6)
    fit(model, dataset, recipe, seed=0, checkpoint=tmp_path / "c.pt", log=tmp_path / "l.csv")
    whole = next(iter(DataLoader(dataset, batch_sampler=DrawSampler(4, 0, 4, steps=1), collate_fn=collate)))
    assert [len(batch.image_id) for batch in seen] == [3, 1]
    if with_regions:
        assert torch.equal(torch.cat([batch.regions for batch in seen]), whole.regions)
    else:
        assert [batch.regions for batch in seen] == [None, None]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "no such super-pixel map"),
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "truncated super-pixel map"),
        (lambda path: path.write_bytes(b"no image at all"), "broken super-pixel map"),
        (lambda path: Image.new("L", (20, 16)).save(path), "no super-pixel map"),
    ],
)
def test_maps_that_cannot_be_used_are_told_before_the_training(voc, maps, spoil, words):
    for name in ("a.png", "b.png"):
        spoil(maps / name)
    with pytest.raises(DataError, match=rf"a\.png: {words}.* -> make it with .* \(and 1 more\)") as error:
        both(voc, maps)
    assert "\n" not in str(error.value)


def test_a_map_of_another_size_is_told_before_the_training(voc, maps):
    Image.new("RGB", (10, 8)).save(voc / "JPEGImages" / "a.jpg")
    with pytest.raises(DataError, match=r"a\.png: super-pixels of 20 x 16, image of 10 x 8 pixels -> make it"):
        both(voc, maps)
