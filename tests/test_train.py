"""The training loop: schedule, resume to the same bytes, accumulation, a clear stop, and no way to a mask."""

import csv
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_lib import backbones
from wsss_lib.data import TrainingSet, VOCFolder
from wsss_lib.data.transforms import train_transform
from wsss_lib.methods.base import Losses, Progress
from wsss_lib.methods.cam import CAM
from wsss_lib.settings import load
from wsss_lib.train import TrainingStopped, fit, load_weights, n_steps, poly_lr, seeded


@pytest.fixture
def training(toy_root, tmp_path):
    """Run `fit` on 16 scenes; keywords replace entries of the recipe."""
    folder = VOCFolder(toy_root)
    ids = folder.split("train")[:16]

    def run(name="run", model=None, workers=0, **recipe):
        recipe = {**load("smoke").cam, "epochs": 2, "batch_size": 4, **recipe}
        dataset = TrainingSet(folder, ids, train_transform(None, 64, pad=4))
        model = model or seeded(0, lambda: CAM(backbones.build("tiny"), 6))
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        options = {"checkpoint": path / "checkpoint.pt", "log": path / "log.csv", "checkpoint_seconds": 0}
        return fit(model, dataset, recipe, seed=0, workers=workers, **options), path

    return run


def same_bytes(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def stop_after(n):
    class Stopping(CAM):
        def loss(self, batch, progress):
            if progress.step == n:
                raise KeyboardInterrupt
            return super().loss(batch, progress)

    return seeded(0, lambda: Stopping(backbones.build("tiny"), 6))


def test_the_same_seed_gives_the_same_bytes(training):
    assert same_bytes(training("a")[0], training("b")[0])


@pytest.mark.parametrize("stop", [1, 5])
def test_an_interrupted_training_continues_to_the_same_bytes(training, stop):
    whole, path = training("whole")
    with pytest.raises(KeyboardInterrupt):
        training("cut", model=stop_after(stop))
    resumed, cut = training("cut")
    assert same_bytes(whole, resumed)
    assert (path / "log.csv").read_bytes() == (cut / "log.csv").read_bytes()


def test_the_number_of_loading_processes_changes_nothing(training):
    assert same_bytes(training("a", workers=0)[0], training("b", workers=2)[0])


def test_a_damaged_checkpoint_is_trained_again(training, capsys):
    whole, path = training("whole")
    (path / "checkpoint.pt").write_bytes(b"PK\x03\x04 half a file")
    assert same_bytes(whole, training("whole")[0])
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("run", range(2))
def test_a_test_draws_the_same_numbers_whatever_ran_before_it(run):
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(0)))


def test_training_leaves_the_global_generator_alone(training):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    training()
    assert torch.equal(before, torch.get_rng_state())


def test_momentum_is_momentum_and_each_group_follows_the_poly_schedule(training):
    _, path = training(lr=0.05, momentum=0.7, weight_decay=3e-4, classifier_factor=10.0)
    state = torch.load(path / "checkpoint.pt", weights_only=True)["optimizer"]
    last = poly_lr(0.05, 7, 8, 0.9)
    assert [g["momentum"] for g in state["param_groups"]] == [0.7, 0.7]
    assert [g["weight_decay"] for g in state["param_groups"]] == [3e-4, 3e-4]
    np.testing.assert_allclose([g["lr"] for g in state["param_groups"]], [last, 10 * last])


def test_the_schedule_of_the_released_code_of_cda_ends_half_way_and_stays_there(training):
    rates = []
    for compat in (False, True):
        _, path = training(f"{compat}", compat_schedule=compat, lr=0.1)
        with (path / "log.csv").open() as f:
            rates.append([float(row["lr"]) for row in csv.DictReader(f)])
    half = [poly_lr(0.1, step, 4) for step in range(4)]
    np.testing.assert_allclose(rates[0], [poly_lr(0.1, step, 8) for step in range(8)], rtol=1e-5)
    np.testing.assert_allclose(rates[1], half + 4 * half[-1:], rtol=1e-5)


def test_the_last_rate_of_the_papers_schedule_is_that_of_the_released_code():
    assert poly_lr(0.1, 3304, 3305) == pytest.approx(0.1 * (1 / 3305) ** 0.9) == pytest.approx(6.8e-5, rel=1e-2)


def test_a_training_of_one_step_has_the_same_rate_in_both_schedules(training):
    for compat in (False, True):
        _, path = training(f"{compat}", compat_schedule=compat, lr=0.1, max_steps=1)
        assert ",0.1," in (path / "log.csv").read_text()


def test_every_term_of_every_step_is_logged(training):
    _, path = training()
    with (path / "log.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [int(r["step"]) for r in rows] == list(range(8))
    assert [int(r["epoch"]) for r in rows] == [0] * 4 + [1] * 4
    assert all(float(r["classify"]) == float(r["total"]) > 0 for r in rows)


def test_micro_batches_add_up_to_the_batch_where_statistics_are_fixed(training):
    def model():
        net = seeded(0, lambda: CAM(backbones.build("tiny"), 6))
        net.backbone.freeze(0, norm=True)
        return net

    whole, _ = training("whole", model=model(), max_steps=2, lr=0.01)
    parts, _ = training("parts", model=model(), max_steps=2, lr=0.01, micro_batch_size=3)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_no_number_stops_and_names_term_and_images(training):
    class Broken(CAM):
        def loss(self, batch, progress):
            good = super().loss(batch, progress)
            bad = good.total * (float("nan") if progress.step == 3 else 1.0)
            return Losses.weighted({**good.terms, "erase": bad})

    with pytest.raises(TrainingStopped, match=r"'erase' is nan at step 3 \(images .*train") as error:
        training(model=seeded(0, lambda: Broken(backbones.build("tiny"), 6)))
    assert "\n" not in str(error.value)


def test_frozen_stages_do_not_change(training):
    model = seeded(0, lambda: CAM(backbones.build("tiny"), 6))
    model.backbone.freeze(2, norm=True)
    before = [p.clone() for stage in model.backbone.stage_modules()[:2] for p in stage.parameters()]
    trained, _ = training(model=model)
    after = [p for stage in trained.backbone.stage_modules()[:2] for p in stage.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_training_never_opens_a_mask(toy_root, tmp_path, monkeypatch):
    root = shutil.copytree(toy_root, tmp_path / "scenes")
    shutil.rmtree(root / "SegmentationClass")
    folder, opened = VOCFolder(root), []
    real_open = Image.open
    monkeypatch.setattr(Image, "open", lambda f, *a, **k: opened.append(str(f)) or real_open(f, *a, **k))
    dataset = TrainingSet(folder, folder.split("train"), train_transform(None, 64))
    model = CAM(backbones.build("tiny"), 6)
    recipe = {**load("smoke").cam, "epochs": 1}
    fit(model, dataset, recipe, seed=0, checkpoint=tmp_path / "c.pt", log=tmp_path / "l.csv")
    assert opened and not [path for path in opened if "SegmentationClass" in path]
    assert dataset[0, 0]._fields == ("image", "label", "image_id", "regions") and dataset[0, 0].regions is None


def test_loading_weights_of_another_architecture_is_one_line(training, tmp_path):
    from wsss_lib.errors import WsssError

    _, path = training()
    with pytest.raises(WsssError, match="not a checkpoint of this model") as error:
        load_weights(CAM(backbones.build("tiny"), 5), path / "checkpoint.pt")
    assert "\n" not in str(error.value)


def test_poly_schedule_falls_to_zero_monotonically():
    rates = [poly_lr(0.1, k, 50) for k in range(51)]
    assert rates[0] == 0.1 and rates[-1] == 0 and all(a > b for a, b in pairwise(rates))


@pytest.mark.parametrize(
    ("n", "batch", "epochs", "cap", "steps"), [(10582, 16, 5, 0, 3305), (3, 8, 2, 0, 2), (99, 10, 3, 5, 5)]
)
def test_the_number_of_steps_drops_incomplete_batches(n, batch, epochs, cap, steps):
    assert n_steps(n, batch, epochs, cap) == steps


def test_progress_reaches_the_loss(training):
    seen = []

    class Watching(CAM):
        def loss(self, batch, progress):
            seen.append(progress)
            return super().loss(batch, progress)

    training(model=seeded(0, lambda: Watching(backbones.build("tiny"), 6)))
    assert seen[0] == Progress(0, 8, 0, 2) and seen[-1] == Progress(7, 8, 1, 2)
