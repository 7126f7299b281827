"""Scripts of the project as modules, for the tests of benchmarks/ and results/."""

import importlib.util

import pytest


@pytest.fixture
def script(project, monkeypatch):
    """Load `<folder>/<name>.py` as a module, which finds what its folder shares."""

    def load(folder, name):
        monkeypatch.syspath_prepend(project / folder)
        spec = importlib.util.spec_from_file_location(f"{folder}_{name}", project / folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
