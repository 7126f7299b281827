"""Samples: no way to a mask, draws that depend on their seed alone, resumed runs with the same batches."""

import builtins
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from wsss_lib.data import (
    Batch,
    DrawSampler,
    MaskBatch,
    PseudoMaskSet,
    TrainingSet,
    VOCFolder,
    collate,
    collate_masks,
    train_transform,
    write_mask,
)
from wsss_lib.data.layout import MASK_FOLDERS
from wsss_lib.data.samples import drawing_from
from wsss_lib.errors import DataError, SettingsError

TRANSFORM = train_transform((12, 24), 16, jitter=(0.3, 0.3, 0.3, 0.1), pad=2)


@pytest.fixture
def dataset(voc):
    folder = VOCFolder(voc)
    return TrainingSet(folder, folder.split("train"), TRANSFORM)


@pytest.fixture
def pseudo(voc, tmp_path):
    """A folder of pseudo masks: the true ones with their values changed."""
    folder = VOCFolder(voc)
    (tmp_path / "pseudo").mkdir()
    for image_id in folder.split("train"):
        write_mask(tmp_path / "pseudo" / f"{image_id}.png", folder.mask(image_id).numpy() % 3)
    return tmp_path / "pseudo"


def load(dataset, workers=0, steps=4, seed=5, collate_fn=collate):
    sampler = DrawSampler(len(dataset), seed=seed, batch_size=2, steps=steps)
    return list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_fn, num_workers=workers))


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one[1], other[1])
        assert one.image_id == other.image_id


def test_a_sample_is_an_image_with_its_label(dataset):
    sample = dataset[1, 0]
    assert type(sample.image) is torch.Tensor
    assert sample.image.dtype == torch.float32
    assert (sample.image.shape, sample.label.tolist(), sample.image_id) == ((3, 16, 16), [1, 1], "b")
    assert len(dataset) == 3


def test_a_training_runs_worth_of_samples_needs_no_masks_folder(voc):
    shutil.rmtree(voc / "SegmentationClass")
    folder = VOCFolder(voc)
    dataset = TrainingSet(folder, folder.split("train"), TRANSFORM)
    assert all(batch.image.isfinite().all() for batch in load(dataset, steps=50))


def test_training_opens_no_mask(voc, monkeypatch):
    (voc / "SegmentationClassAug").mkdir()
    for path in (voc / "SegmentationClass").iterdir():
        shutil.copy(path, voc / "SegmentationClassAug")
    opened = []

    def recording(open_):
        def record(file, *arguments, **named):
            opened.append(str(file))
            return open_(file, *arguments, **named)

        return record

    monkeypatch.setattr(Image, "open", recording(Image.open))
    monkeypatch.setattr(builtins, "open", recording(builtins.open))
    folder = VOCFolder(voc)
    dataset = TrainingSet(folder, folder.split("train"), TRANSFORM)
    for batch in load(dataset, steps=20):
        batch.to("cpu")
    assert {Path(path).parent.name for path in opened if path.endswith(".jpg")} == {"JPEGImages"}
    assert not [path for path in opened if any(name in path for name in MASK_FOLDERS)]


def test_nothing_that_a_training_set_holds_leads_to_a_mask(dataset):
    held = {name: value for name, value in vars(dataset).items() if name != "transform"}
    assert set(held) == {"ids", "labels", "_paths", "_images", "_region_paths", "_regions"}
    assert held["_region_paths"] is None  # super-pixels are made of images alone, and only when asked for
    assert not any(isinstance(value, VOCFolder) for value in held.values())
    assert not [name for name in dir(dataset) if "mask" in name.lower()]
    assert Batch._fields == ("image", "label", "image_id", "regions")
    assert b"SegmentationClass" not in pickle.dumps(held)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(dataset, workers):
    assert_same(load(dataset, workers), load(dataset))


def test_order_and_what_was_drawn_before_change_nothing(dataset):
    keys = [(index, seed) for index in range(3) for seed in (0, 1, 2**63 - 1)]
    first = [dataset[key] for key in keys]
    torch.rand(7)
    assert_same(first, [dataset[key] for key in reversed(keys)][::-1])


def test_another_seed_draws_another_augmentation(dataset):
    assert not torch.equal(dataset[0, 1].image, dataset[0, 2].image)


def test_augmenting_leaves_the_generators_of_the_run_alone(dataset):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    dataset[0, 99]
    assert torch.equal(torch.rand(3), expected)


def test_the_generator_goes_on_even_after_an_error():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(KeyError), drawing_from(5):
        raise KeyError
    assert torch.equal(torch.rand(3), expected)


def test_a_cache_changes_nothing_and_reads_each_image_once(voc):
    folder = VOCFolder(voc)
    plain, cached = (TrainingSet(folder, folder.split("train"), TRANSFORM, cache=cache) for cache in (False, True))
    expected = load(plain)
    assert_same(load(cached), expected)
    shutil.rmtree(voc / "JPEGImages")
    assert_same(load(cached), expected)


def test_faults_are_raised_before_the_training(voc):
    folder = VOCFolder(voc)
    image = voc / "JPEGImages" / "b.jpg"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"b\.jpg: truncated image -> copy"):
        TrainingSet(folder, folder.split("train"), TRANSFORM)
    image.unlink()
    with pytest.raises(DataError, match=r"b\.jpg: no such image -> add it"):
        TrainingSet(folder, folder.split("train"), TRANSFORM)
    with pytest.raises(DataError, match=r"labels\.csv: no label for id x"):
        TrainingSet(folder, ["x"], TRANSFORM)


def test_batches_move_with_their_ids(dataset):
    batch = load(dataset, steps=1)[0]
    assert (batch.image.shape, batch.label.shape) == ((2, 3, 16, 16), (2, 2))
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert moved.image.device.type == moved.label.device.type == "meta"
    assert moved.image_id == batch.image_id
    assert isinstance(Batch(batch.image, batch.label, list(batch.image_id)).to("cpu").image_id, tuple)


def test_pseudo_masks_move_with_their_images(voc, pseudo):
    folder = VOCFolder(voc)
    dataset = PseudoMaskSet(folder, folder.split("train"), pseudo, TRANSFORM)
    batches = load(dataset, collate_fn=collate_masks)
    assert all(isinstance(batch, MaskBatch) for batch in batches)
    assert batches[0].mask.shape == (2, 16, 16)
    assert batches[0].mask.dtype == torch.int64
    assert type(batches[0].image) is type(batches[0].mask) is torch.Tensor
    assert {value for batch in batches for value in batch.mask.unique().tolist()} == {0, 1, 2, 255}
    for batch in batches:
        assert torch.equal((batch.image == 0).all(1), batch.mask == 255)
    assert_same(load(dataset, workers=2, collate_fn=collate_masks), batches)
    cached = PseudoMaskSet(folder, folder.split("train"), pseudo, TRANSFORM, cache=True)
    assert_same(load(cached, collate_fn=collate_masks), batches)
    shutil.rmtree(pseudo)
    assert_same(load(cached, collate_fn=collate_masks), batches)
    assert batches[0].to("cpu").image_id == batches[0].image_id


def test_training_on_pseudo_masks_needs_no_true_ones(voc, pseudo):
    shutil.rmtree(voc / "SegmentationClass")
    folder = VOCFolder(voc)
    assert load(PseudoMaskSet(folder, folder.split("train"), pseudo, TRANSFORM), collate_fn=collate_masks)


@pytest.mark.parametrize("name", MASK_FOLDERS)
def test_true_masks_are_refused_as_pseudo_masks(voc, tmp_path, name):
    folder = VOCFolder(voc)
    (tmp_path / "link").symlink_to(voc / name)
    for mask_dir in (voc / name, voc / "JPEGImages" / ".." / name, tmp_path / "link"):
        with pytest.raises(DataError, match="holds the true masks -> give the folder of a pseudo-mask stage"):
            PseudoMaskSet(folder, folder.split("train"), mask_dir, TRANSFORM)


def test_faults_of_pseudo_masks_are_one_line(voc, pseudo):
    folder = VOCFolder(voc)
    ids = folder.split("train")
    write_mask(pseudo / "a.png", np.zeros((4, 4), int))
    with pytest.raises(DataError, match=r"a\.png: mask of 4 x 4, image of 20 x 16 pixels -> run the stage"):
        PseudoMaskSet(folder, ids, pseudo, TRANSFORM)
    write_mask(pseudo / "a.png", np.full((16, 20), 3))
    with pytest.raises(DataError, match=r"a\.png: mask has the value 3, classes go from 0 to 2"):
        PseudoMaskSet(folder, ids, pseudo, TRANSFORM)[0, 0]
    (pseudo / "a.png").unlink()
    (pseudo / "b.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: no such pseudo mask -> run the stage .* again \(and 1 more\)"):
        PseudoMaskSet(folder, ids, pseudo, TRANSFORM)


@given(
    n=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    steps=st.integers(0, 40),
    start=st.integers(0, 45),
    seed=st.integers(0, 2**70),
)
@settings(max_examples=60, deadline=None)
def test_a_resumed_run_gets_exactly_the_later_batches(n, batch_size, steps, start, seed):
    whole = list(DrawSampler(n, seed, batch_size, steps=steps))
    resumed = DrawSampler(n, seed, batch_size, start_step=start, steps=steps)
    assert list(resumed) == whole[start:]
    assert len(resumed) == len(whole[start:])
    assert len(whole) == steps
    assert all(len(batch) == batch_size for batch in whole)
    assert all(0 <= index < n and 0 <= draw < 2**63 for batch in whole for index, draw in batch)


@given(n=st.integers(1, 30), batch_size=st.integers(1, 12), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_no_image_comes_twice_in_an_epoch(n, batch_size, seed):
    sampler = DrawSampler(n, seed, batch_size, steps=3 * max(1, n // batch_size))
    stream = [index for batch in sampler for index, _ in batch]
    epoch = sampler.steps_per_epoch * batch_size if n >= batch_size else n
    for begin in range(0, len(stream), epoch):
        assert len(set(stream[begin : begin + epoch])) == len(stream[begin : begin + epoch])
    if n < batch_size:
        assert set(stream) == set(range(n))


def test_every_draw_of_a_run_has_a_seed_of_its_own():
    draws = [draw for batch in DrawSampler(100, seed=0, batch_size=10, steps=100) for _, draw in batch]
    assert len(set(draws)) == 1000


def test_seeds_and_epochs_shuffle_differently():
    orders = {
        tuple(index for batch in list(DrawSampler(20, seed, 20, steps=2))[epoch:][:1] for index, _ in batch)
        for seed in range(3)
        for epoch in range(2)
    }
    assert len(orders) == 6


def test_a_longer_run_begins_as_a_shorter_one():
    assert list(DrawSampler(7, 0, 3, steps=9))[:4] == list(DrawSampler(7, 0, 3, steps=4))


@pytest.mark.parametrize("given", [{"n": 0}, {"batch_size": 0}, {"seed": -1}, {"start_step": -1}, {"steps": -1}])
def test_impossible_numbers_are_refused(given):
    with pytest.raises(SettingsError, match="give n and batch_size"):
        DrawSampler(**{"n": 4, "seed": 0, "batch_size": 2, "steps": 3, **given})
