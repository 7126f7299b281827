"""Instances: two strict criteria, cut-outs as they lie in their images, and no way to a true mask."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_lib import stages
from wsss_lib.data import PseudoMaskSet, VOCFolder, train_transform, write_mask
from wsss_lib.data.instances import (
    InstanceBank,
    bounding_box,
    collect_instances,
    contact_sheet,
    object_share,
    single_class,
)
from wsss_lib.data.layout import MASK_FOLDERS
from wsss_lib.data.masks import read_mask
from wsss_lib.errors import DataError, SettingsError
from wsss_lib.runs import Run
from wsss_lib.settings import load

LABELS = {"a": "cat", "b": "cat dog", "c": "dog", "d": "dog"}
TRANSFORM = train_transform((12, 24), 16, pad=2)


def covering(n, value=1):
    """A mask of 20 x 16 pixels, the first n of them of this value."""
    mask = np.zeros(16 * 20, np.uint8)
    mask[:n] = value
    return mask.reshape(16, 20)


def block(top, left, height, width, value=1):
    mask = np.zeros((16, 20), np.uint8)
    mask[top : top + height, left : left + width] = value
    return mask


@pytest.fixture
def folder(make_voc):
    return VOCFolder(make_voc(labels=LABELS))


@pytest.fixture
def collect(folder, tmp_path):
    """Collect the instances of some masks by image id; keywords go to `collect_instances`."""

    def run(masks, **options):
        return collect_instances(folder, masks, masks.__getitem__, tmp_path / "bank", **options)

    return run


@pytest.fixture
def make_bank(folder, collect, tmp_path):
    """A bank of a cat at the border, in image a, and a dog with a hole, in image c; keywords go to it."""

    def make(**options):
        dog = block(2, 3, 6, 8, value=2)
        dog[4:6, 5:7], dog[4, 5] = 0, 255
        collect({"a": block(8, 12, 8, 8), "c": dog})
        return InstanceBank(folder, tmp_path / "bank", **options)

    return make


@pytest.mark.parametrize(("pixels", "kept"), [(31, 0), (32, 0), (33, 1), (223, 1), (224, 0), (225, 0), (0, 0)])
def test_both_bounds_of_the_share_are_excluded(collect, pixels, kept):
    counts = collect({"a": covering(pixels)}, epsilon_1=0.1, epsilon_2=0.7)
    assert counts == {"cat": kept, "dog": 0}


@pytest.mark.parametrize(
    ("label", "values", "both", "mask_alone"),
    [
        ([1, 0], [0, 1], 0, 0),
        ([1, 0], [0, 1, 255], 0, 0),
        ([1, 0], [0, 2], None, 1),
        ([1, 1], [0, 1], None, 0),
        ([0, 0], [0, 1], None, 0),
        ([1, 0], [0, 1, 2], None, None),
        ([1, 1], [0, 1, 2], None, None),
        ([1, 0], [0], None, None),
        ([1, 0], [0, 255], None, None),
    ],
)
def test_one_class_in_label_and_mask_or_in_the_mask_alone(label, values, both, mask_alone):
    mask, label = np.array([values]), torch.tensor(label).float()
    assert single_class(label, mask) == both
    assert single_class(label, mask, mask_only=True) == mask_alone


def test_the_rule_of_the_mask_alone_reaches_the_collection(collect):
    masks = {"a": covering(100, 2), "b": covering(100, 1)}
    assert collect(masks) == {"cat": 0, "dog": 0}
    assert collect(masks, mask_only=True) == {"cat": 1, "dog": 1}


def test_ignored_pixels_are_no_object_but_part_of_the_image(collect):
    mask = covering(40)
    mask[8:] = 255
    assert object_share(mask) == 40 / 320
    assert collect({"a": mask}, epsilon_1=0.1, epsilon_2=0.2)["cat"] == 1
    assert collect({"a": mask}, epsilon_1=0.2, epsilon_2=0.7)["cat"] == 0


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.7, 0.1), (-0.1, 0.5), (0.1, 1.5)])
def test_bounds_that_are_no_shares_are_refused(collect, low, high):
    with pytest.raises(SettingsError, match=f"epsilon_1={low}, epsilon_2={high}: give shares of the image"):
        collect({"a": covering(100)}, epsilon_1=low, epsilon_2=high)


def test_the_bounding_box_is_the_smallest():
    mask = np.zeros((9, 11), bool)
    mask[3, 4] = mask[7, 2] = True
    assert bounding_box(mask) == (3, 2, 5, 3)
    assert bounding_box(np.ones((9, 11), bool)) == (0, 0, 9, 11)


def test_counts_name_classes_without_an_instance(collect, folder, tmp_path):
    counts = collect({"a": covering(100), "b": covering(100, 2), "c": covering(10, 2)})
    bank = InstanceBank(folder, tmp_path / "bank")
    assert counts == bank.counts == {"cat": 1, "dog": 0}
    assert bank.available.tolist() == [True, False] and bank.of_class == [[0], []]


def test_the_table_says_share_and_box(make_bank):
    bank = make_bank()
    with (bank.path / "instances.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [list(row.values()) for row in rows] == [
        ["a", "cat", "0.2000", "8", "12", "8", "8"],
        ["c", "dog", "0.1375", "2", "3", "6", "8"],
    ]
    assert bank.shares == [0.2, 0.1375]


def test_a_cut_out_is_image_and_mask_in_the_bounding_box(make_bank, folder):
    cat, dog = make_bank()
    assert torch.equal(cat.image, folder.image("a")[:, 8:, 12:]) and cat.mask.all()
    assert torch.equal(dog.image, folder.image("c")[:, 2:8, 3:11])
    hole = ~dog.mask
    assert hole[2:4, 2:4].all() and hole.sum() == 4
    assert [(one.class_index, one.image_id) for one in (cat, dog)] == [(0, "a"), (1, "c")]
    assert cat.image.dtype == torch.uint8 and cat.mask.dtype == torch.bool


@pytest.mark.parametrize("long_side", [5, 10, 33, 40, 200])
def test_the_length_of_the_longest_side_scales_cut_outs_and_keeps_their_aspect(make_bank, long_side):
    _, plain = make_bank()
    _, scaled = make_bank(long_side=long_side)
    factor = long_side / 20
    assert scaled.image.shape[1:] == scaled.mask.shape
    np.testing.assert_allclose(scaled.mask.shape, factor * np.array(plain.mask.shape), atol=0.5)
    assert scaled.mask.dtype == torch.bool and scaled.image.dtype == torch.uint8
    if factor > 1:
        assert abs(scaled.mask.float().mean() - plain.mask.float().mean()) < 0.05


def test_cut_outs_of_the_images_own_size_are_not_touched(make_bank):
    for plain, same in zip(make_bank(), make_bank(long_side=20), strict=True):
        assert torch.equal(plain.image, same.image) and torch.equal(plain.mask, same.mask)


def test_an_empty_bank_is_one_line_with_remedies(collect, folder, tmp_path):
    collect({"a": covering(10)})
    with pytest.raises(DataError, match=r"not a single instance; lower instances\.epsilon_1") as error:
        InstanceBank(folder, tmp_path / "bank")
    assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)


def test_a_folder_without_a_table_is_no_bank(folder, tmp_path):
    with pytest.raises(DataError, match=r"instances\.csv: no such bank of instances; run the stage") as error:
        InstanceBank(folder, tmp_path / "bank")
    assert "\n" not in str(error.value)


def test_the_table_comes_last_so_that_half_a_bank_is_none(folder, tmp_path):
    def mask_of(image_id):
        if image_id == "c":
            raise KeyboardInterrupt
        return covering(100)

    with pytest.raises(KeyboardInterrupt):
        collect_instances(folder, ["a", "c"], mask_of, tmp_path / "bank")
    with pytest.raises(DataError, match="no such bank"):
        InstanceBank(folder, tmp_path / "bank")


def test_a_scene_is_the_sample_of_the_set_of_pseudo_masks(make_bank, folder):
    bank = make_bank(transform=TRANSFORM)
    masks = PseudoMaskSet(folder, ["a", "c"], bank.path / "masks", TRANSFORM)
    for index in (0, 1):
        for seed in (0, 1, 2**62 - 1):
            scene, sample = bank.scene(index, seed), masks[index, seed]
            assert torch.equal(scene.image, sample.image) and torch.equal(scene.mask, sample.mask)
            assert scene.image_id == sample.image_id == bank[index].image_id


def test_scenes_of_a_bank_without_a_transform_are_refused(make_bank):
    with pytest.raises(SettingsError, match="transform: this bank has none"):
        make_bank().scene(0, 0)


def test_a_cache_changes_nothing_and_reads_each_image_once(make_bank, folder):
    plain, cached = (make_bank(long_side=30, transform=TRANSFORM, cache=cache) for cache in (False, True))
    expected = [(plain[i], plain.scene(i, seed)) for i in (0, 1) for seed in (3, 4)]
    for _ in range(2):
        got = [(cached[i], cached.scene(i, seed)) for i in (0, 1) for seed in (3, 4)]
        for (cut, scene), (other_cut, other_scene) in zip(expected, got, strict=True):
            assert torch.equal(cut.image, other_cut.image) and torch.equal(cut.mask, other_cut.mask)
            assert torch.equal(scene.image, other_scene.image) and torch.equal(scene.mask, other_scene.mask)
        shutil.rmtree(folder.root / "JPEGImages", ignore_errors=True)


def test_a_contact_sheet_has_a_row_a_class_and_objects_on_white(collect, folder, tmp_path):
    collect({"a": block(8, 12, 8, 8)})
    bank = InstanceBank(folder, tmp_path / "bank")
    sheet = contact_sheet(bank, per_class=3, side=8)
    assert sheet.shape == (3, 2 * 10 + 2, 3 * 10 + 2) and sheet.dtype == torch.uint8
    assert torch.equal(sheet[:, 2:10, 2:10], bank[0].image)
    assert (sheet[:, 2:10, 12:20] == 255).all() and (sheet[:, 12:20, 2:10] == 255).all()


def test_a_contact_sheet_hides_what_is_no_object(make_bank):
    _, dog = bank = make_bank()
    sheet = contact_sheet(bank, per_class=1, side=8)
    row = sheet[:, 12:18, 2:10]
    assert torch.equal(row[:, dog.mask], dog.image[:, dog.mask]) and (row[:, ~dog.mask] == 255).all()


def test_a_bank_of_pseudo_masks_opens_and_changes_no_true_mask(folder, make_bank, monkeypatch):
    true = {path: path.read_bytes() for path in (folder.root / "SegmentationClass").iterdir()}
    opened, real_open = [], Image.open
    monkeypatch.setattr(Image, "open", lambda f, *a, **k: opened.append(str(f)) or real_open(f, *a, **k))
    bank = make_bank(transform=TRANSFORM)
    for index in range(len(bank)):
        bank.scene(index, 0), bank[index]
    contact_sheet(bank)
    assert opened and not [path for path in opened if any(name in path for name in MASK_FOLDERS)]
    assert {path: path.read_bytes() for path in (folder.root / "SegmentationClass").iterdir()} == true
    assert set(read_mask(bank.path / "masks" / "c.png").ravel()) == {0, 2, 255}


def test_the_masks_folder_of_the_data_is_no_place_for_a_bank_of_scenes(folder, tmp_path):
    write_mask(folder.root / "SegmentationClass" / "a.png", covering(100))
    path = tmp_path / "bank"
    collect_instances(folder, ["a"], lambda _: covering(100), path)
    shutil.rmtree(path / "masks")
    (path / "masks").symlink_to(folder.root / "SegmentationClass")
    with pytest.raises(DataError, match="holds the true masks"):
        InstanceBank(folder, path, transform=TRANSFORM)


@pytest.fixture(scope="module")
def blind_run(toy_root, tmp_path_factory):
    """A smoke run on scenes whose training images have no true mask at all."""
    root = shutil.copytree(toy_root, tmp_path_factory.mktemp("blind") / "scenes")
    folder = VOCFolder(root, name="toy")
    for image_id in folder.split("train"):
        folder.mask_path(image_id).unlink()
    return Run(load("smoke"), folder, root=tmp_path_factory.mktemp("blind_runs"))


@pytest.mark.parametrize("source", stages.MASK_SOURCES)
@pytest.mark.parametrize("method", ["cda", "csd"])
def test_training_with_instances_opens_no_true_mask(blind_run, method, source, monkeypatch):
    bounds = {"instances.epsilon_1": 0.0, "instances.epsilon_2": 1.0}  # after three epochs masks are of any size
    settings = load("smoke", {"instances.source": source, **bounds})
    blind_run = Run(settings, blind_run.folder, root=blind_run.root)
    folder, opened, real_open = blind_run.folder, [], Image.open
    assert not any(folder.has_masks([i]) for i in blind_run.ids("train")) and folder.has_masks(blind_run.ids("val"))
    monkeypatch.setattr(Image, "open", lambda f, *a, **k: opened.append(str(f)) or real_open(f, *a, **k))
    stage = stages.train_classifier(blind_run.of(method))
    assert stage.complete and 0 < stage.metrics["map"] <= 1
    assert [path for path in opened if "/instances/masks/" in path]
    assert not [path for path in opened if any(name in path for name in MASK_FOLDERS)]


def test_true_masks_are_no_source_of_instances(smoke_run):
    assert set(stages.MASK_SOURCES) == {"pseudo_masks", "seeds"}
    run = Run(load("smoke", {"instances.source": "true_masks"}), smoke_run.folder, root=smoke_run.root)
    with pytest.raises(SettingsError, match="'true_masks': choose one of pseudo_masks, seeds") as error:
        stages.make_instances(run)
    assert "\n" not in str(error.value)
