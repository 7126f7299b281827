"""The builder as a module, the committed notebooks, and a small course for the tests of the machinery."""

import importlib.util
import sys
import textwrap
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))

PARAMETERS = """
# %% tags=["parameters"]
import os

profile = os.environ.get("WSSS_PROFILE", "demo")
dataset = "toy"
data_root = ""
runs_root = ""
seed = 0
overrides = {}
"""


def pytest_generate_tests(metafunc):
    """A test with the argument `committed` runs once for each committed notebook."""
    if "committed" in metafunc.fixturenames:
        metafunc.parametrize("committed", COMMITTED, ids=[path.stem for path in COMMITTED], scope="session")


@pytest.fixture(scope="session")
def builder():
    """`notebooks/build.py`, which is a script, as a module."""
    spec = importlib.util.spec_from_file_location("notebook_builder", PROJECT / "notebooks" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def course(tmp_path):
    """Writes sources: `course({"01_cam": "# %%\\nx = 1"})` gives src/; each has a parameters cell."""

    def write(cells: dict[str, str]) -> Path:
        src = tmp_path / "notebooks" / "src"
        src.mkdir(parents=True, exist_ok=True)
        for name, text in cells.items():
            body = PARAMETERS + "\n" + textwrap.dedent(text)
            (src / f"{name}.py").write_text(f"# %% [markdown]\n# # Lesson {name}\n{body}", encoding="utf-8")
        return src

    return write
