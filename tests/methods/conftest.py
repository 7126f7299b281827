"""A bank of instances for the methods that paste: here, in a test, cut out by the scenes' true masks."""

import pytest

from wsss_lib.data import VOCFolder, train_transform
from wsss_lib.data.instances import InstanceBank, collect_instances


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
