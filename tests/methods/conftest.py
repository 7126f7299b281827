"""For the methods that paste: a bank of instances, cut out by true masks (in a test). A batch, a short training."""

import pytest
import torch

from wsss_lib.data import TrainingSet, VOCFolder, collate, train_transform
from wsss_lib.data.instances import InstanceBank, collect_instances
from wsss_lib.settings import load
from wsss_lib.train import fit, seeded


@pytest.fixture(scope="session")
def toy_folder(toy_root):
    """The toy scenes."""
    return VOCFolder(toy_root)


@pytest.fixture(scope="session")
def bank(toy_folder, tmp_path_factory):
    """Of the 36 toy scenes; scenes and labels come with it."""
    path, ids = tmp_path_factory.mktemp("bank"), toy_folder.split("train")
    collect_instances(toy_folder, ids, lambda i: toy_folder.mask(i).numpy(), path, epsilon_1=0.01, epsilon_2=0.95)
    labels = toy_folder.labels(ids)
    return InstanceBank(toy_folder, path, 64, train_transform(None, 64, pad=4), labels, cache=True)


@pytest.fixture(scope="module")
def batch(toy_folder):
    """Six toy scenes."""
    ids = toy_folder.split("train")[:6]
    dataset = TrainingSet(toy_folder, ids, train_transform(None, 64))
    return collate([dataset[i, i] for i in range(6)])


@pytest.fixture
def gradient(method):
    """The gradient of a loss by all weights of `method`, as one vector; 0 where none flows."""

    def of(loss):
        weights = list(method.parameters())
        parts = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    return of


@pytest.fixture
def train_briefly(toy_folder, tmp_path):
    """Run `fit` for 4 steps of 4 images on what `build` makes, up to step `stop`; gives the weights."""

    def run(build, name, stop=None, micro_batch_size=0):
        model = seeded(0, build)
        loss = model.loss

        def stopping(batch, progress):
            if progress.step == stop:
                raise KeyboardInterrupt
            return loss(batch, progress)

        model.loss = stopping
        dataset = TrainingSet(toy_folder, toy_folder.split("train")[:8], train_transform(None, 64, pad=4))
        recipe = {**load("smoke").cam, "epochs": 2, "batch_size": 4, "lr": 0.01, "precision": "fp32"}
        recipe["micro_batch_size"] = micro_batch_size
        (tmp_path / name).mkdir(exist_ok=True)
        paths = {"checkpoint": tmp_path / name / "c.pt", "log": tmp_path / name / "l.csv"}
        return fit(model, dataset, recipe, seed=0, checkpoint_seconds=0, **paths).state_dict()

    return run
