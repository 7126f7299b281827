"""Fixtures for tests and doctests: the photographs, the ImageNet weights, a small folder of toy scenes, a small run."""

import os
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
PROJECT = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("WSSS_SHARED", PROJECT.parent / "shared"))


def pytest_collectstart(collector):
    """Let nbval overlook progress bars, which go to stderr."""
    if getattr(collector, "skip_compare", None) and collector.path.suffix == ".ipynb":
        collector.skip_compare += ("stderr",)


def pytest_collection_modifyitems(items):
    """Photographs and browsers first: they take longest, and two processes then end at about the same time."""
    items.sort(key=lambda item: (not item.get_closest_marker("real"), not item.get_closest_marker("browser")))


@pytest.fixture(autouse=True)
def torch_seeded():
    """torch draws the same numbers in a test, or a doctest, whatever ran before it in this process."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def project():
    """The root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def photos():
    """Real photographs in VOC layout; tests that need them skip where they are not at hand."""
    root = SHARED / "data" / "voc12_animals"
    if not root.is_dir():
        pytest.skip(f"no photographs at {root.name}: set WSSS_SHARED to the folder that holds data/voc12_animals")
    return root


@pytest.fixture(scope="session")
def imagenet_weights():
    """ImageNet weights of MobileNetV1; tests that need them skip where they are not at hand."""
    path = SHARED / "data" / "weights" / "mobilenet_v1_0.75_224.pth"
    if not path.is_file():
        pytest.skip(f"no weights at {path.name}: set WSSS_SHARED to the folder that holds data/weights")
    return path


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory):
    """The toy scenes of the smoke profile: 36 training and 12 validation scenes of 64 pixels."""
    from data_prep import toy
    from wsss_lib.settings import load

    scenes = toy.ToyScenes(**load("smoke").toy)
    return toy.generate(tmp_path_factory.mktemp("toy") / "scenes", scenes)


@pytest.fixture(scope="session")
def smoke_run(toy_root, tmp_path_factory):
    """A run of the smoke profile; its stages are computed once a session, by whoever asks first."""
    from wsss_lib.data import VOCFolder
    from wsss_lib.runs import Run
    from wsss_lib.settings import load

    return Run(load("smoke"), VOCFolder(toy_root, name="toy"), root=tmp_path_factory.mktemp("runs"))
