"""One list of dependencies in three dialects, a lock without hosts, nothing imported that is not declared."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

PROJECT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"pytorch": "torch", "pytorch-cpu": "torch", "pydensecrf": "pydensecrf2"}
IMPORT_NAMES = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "pydensecrf": "pydensecrf2",
    "IPython": "ipykernel",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
OWN = {"wsss_lib", "data_prep", "tests"}


def required(lines):
    return {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, lines)}


DEPENDENCIES = required(PYPROJECT["dependencies"])
DEV = required(PYPROJECT["optional-dependencies"]["dev"])
BUILD = required(PYPROJECT["optional-dependencies"]["build"])


def conda(path):
    lines = yaml.safe_load((PROJECT / path).read_text(encoding="utf-8"))["dependencies"]
    found = required(lines)
    assert len(found) == len(lines), "a package is listed twice"
    return {canonicalize_name(CONDA_NAMES.get(name, name)): ranges for name, ranges in found.items()}


@pytest.mark.parametrize(
    ("path", "expected"),
    [("environment.yml", {**DEPENDENCIES, **DEV}), ("binder/environment.yml", DEPENDENCIES)],
)
def test_conda_lists_name_the_packages_and_ranges_of_pyproject(path, expected):
    found = conda(path)
    assert PYPROJECT["requires-python"] in found.pop("python").split(",")
    assert found.pop("pip") == ""
    found["pydensecrf2"] = expected["pydensecrf2"]  # numbered otherwise on conda-forge
    assert found == expected


def test_every_dependency_is_a_range_and_not_a_pin():
    for name, ranges in {**DEPENDENCIES, **DEV}.items():
        assert ">=" in ranges and "==" not in ranges, f"{name}{ranges}"


def locked():
    lines = (PROJECT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_lock_pins_every_dependency_inside_its_range():
    extras = [line for lines in PYPROJECT["optional-dependencies"].values() for line in lines]
    pins = {}
    for pin in locked():
        pins.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    for wanted in map(Requirement, [*PYPROJECT["dependencies"], *extras]):
        versions = pins.get(canonicalize_name(wanted.name), [])
        assert versions, f"{wanted.name} is not in requirements.lock: make lock"
        assert all(wanted.specifier.contains(v) for v in versions), f"{wanted} but {versions}: make lock"


def test_lock_names_versions_only_no_host_and_no_path():
    for pin in locked():
        assert pin.url is None and re.fullmatch(r"==[\w.+!]+", str(pin.specifier)), pin
    text = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|file:|--|(?m:^/)|@", text)


def imported(folder, pattern):
    for path in sorted((PROJECT / folder).rglob(pattern)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in names:
                yield name.split(".")[0], path.relative_to(PROJECT)


@pytest.mark.parametrize(
    ("folder", "pattern", "declared"),
    [
        ("wsss_lib", "*.py", DEPENDENCIES),
        ("data_prep", "*.py", DEPENDENCIES),
        ("notebooks", "*.py", DEPENDENCIES),
        ("benchmarks", "*.py", {**DEPENDENCIES, **DEV}),
        (
            "tests",
            "*.py",
            {**DEPENDENCIES, **DEV, **BUILD, "pyyaml": "", "packaging": ""},
        ),  # papermill's, pytest's
    ],
)
def test_everything_imported_is_declared(folder, pattern, declared):
    local = {path.stem for path in (PROJECT / folder).rglob("*.py")}
    for name, path in imported(folder, pattern):
        package = canonicalize_name(IMPORT_NAMES.get(name, name))
        known = name in sys.stdlib_module_names or name in OWN or name in local
        assert known or package in declared, f"{path} imports {name}: add it to pyproject.toml"


def test_everything_declared_is_used():
    used = {name for folder in ("wsss_lib", "data_prep", "notebooks") for name, _ in imported(folder, "*.py")}
    used = {canonicalize_name(IMPORT_NAMES.get(name, name)) for name in used}
    run_as_programs = {"jupyterlab", "ipykernel"}
    assert set(DEPENDENCIES) - used <= run_as_programs


def test_package_data_and_all_packages_are_found():
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = set(find_packages(PROJECT, include=settings["packages"]["find"]["include"]))
    folders = {p.parent for top in ("wsss_lib", "data_prep") for p in (PROJECT / top).rglob("*.py")}
    assert found == {".".join(folder.relative_to(PROJECT).parts) for folder in folders}
    suffixes = {pattern.removeprefix("*") for pattern in settings["package-data"]["*"]}
    data = {p.suffix for f in folders for p in f.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert data <= suffixes


def test_version_is_the_same_everywhere():
    import wsss_lib

    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == wsss_lib.__version__
    assert f"## {wsss_lib.__version__} " in (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8").replace("[", "")


@pytest.mark.parametrize("package", ["wsss_lib", "wsss_lib.cli", "wsss_lib.refine", "data_prep"])
def test_importing_a_light_package_does_not_import_torch(package):
    code = f"import sys, {package}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


@pytest.fixture
def preflight(monkeypatch):
    """`.ci/preflight.py`, which says what the machine lacks, as a module."""
    spec = importlib.util.spec_from_file_location("preflight", PROJECT / ".ci" / "preflight.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(PROJECT)
    return module


def test_a_machine_without_a_compiler_is_told_so_in_one_line(preflight, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = preflight.no_compiler()
    assert said.startswith("missing: a C++ compiler (no-such-compiler)") and "\n" not in said


def test_a_machine_without_venv_is_told_so_in_one_line(preflight, monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    assert re.fullmatch(r"missing: venv for Python 3\.\d+; install python3\.\d+-venv .*", preflight.no_venv())


def test_a_full_disk_is_told_so_in_one_line(preflight, monkeypatch, tmp_path):
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "not yet there"))
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e8))
    assert re.fullmatch(r"missing: disk space; the packages need \d+\.\d GB .*, 0\.1 GB are free", preflight.no_disk())


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_make_without_a_python_that_is_new_enough_says_so_in_one_line(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(PROJECT / name, folder)
    done = subprocess.run(["make", "demo", "PYTHON=false"], cwd=folder, capture_output=True, text=True)
    assert done.returncode and not (folder / ".venv").exists()
    assert done.stderr.splitlines()[0].startswith("missing: Python 3.11 or newer")


def test_every_make_target_is_explained_in_make_help():
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M).group(1).split())
    assert targets == set(re.findall(r"^([a-z]+):.*## \S", makefile, re.M))
