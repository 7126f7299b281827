"""The command line: what runs, in which order, where it goes, and what is said when something is wrong."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from wsss_lib import cli, headless
from wsss_lib.data import VOCFolder
from wsss_lib.errors import WsssError
from wsss_lib.runs import Run
from wsss_lib.settings import load

PARAMETERS = "profile = 'demo'\ndataset = 'toy'\ndata_root = ''\nruns_root: str = ''\nseed = 0\noverrides = {}"
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="


@pytest.fixture
def folder(tmp_path):
    """Writes notebooks: `folder({"01_cam": ["x = 1"]})`, each with a title and a parameters cell."""

    def write(notebooks):
        for name, cells in notebooks.items():
            parameters = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
            if "method" in name or name.startswith("07"):
                parameters.source += "\nmethod = 'cam'"
            code = [new_code_cell(source) for source in cells]
            notebook = new_notebook(cells=[new_markdown_cell(f"# Lesson {name}"), parameters, *code])
            (tmp_path / "notebooks").mkdir(exist_ok=True)
            nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
        return tmp_path / "notebooks"

    return write


ALL = {name: [] for name in cli.NEEDS}


def test_names_numbers_and_all_run_in_the_order_of_the_course(folder):
    course = folder({**ALL, "11_mine": []})
    assert cli.select(["all"], course) == list(cli.NEEDS)
    assert cli.select(["09", "00_start", "01_cam.ipynb"], course) == ["00_start", "01_cam", "09_compare"]
    assert cli.select(["11_mine", "all"], course)[-1] == "11_mine"
    with pytest.raises(WsssError, match="42: no such notebook; there are 00_start, 01_cam"):
        cli.select(["42"], course)


def test_needs_name_only_notebooks_that_come_before():
    names = list(cli.NEEDS)
    assert all(names.index(needed) < names.index(name) for name, need in cli.NEEDS.items() for needed in need)


@pytest.mark.notebooks
def test_a_run_gets_its_parameters_and_keeps_notebook_and_pictures(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    show = f"from IPython.display import display\ndisplay({{'image/png': '{DOT}'}}, raw=True)"
    record = (
        "import json, os\njson.dump([profile, dataset, data_root, runs_root, seed, overrides, os.getcwd()],"
        " open('seen.json', 'w'))"
    )
    course = folder({"01_cam": [record, show]})
    monkeypatch.setattr(cli, "notebooks_folder", lambda: course)
    options = "--profile smoke --data-root here --runs-root out -p seed=2 --set cam.epochs=1 cam.lr=1e-2"
    code = cli.main(["run", "01", *options.split()])
    assert code == 0
    profile, dataset, data_root, runs_root, seed, overrides, cwd = json.loads((course / "seen.json").read_text())
    assert (profile, dataset, seed, overrides) == ("smoke", "toy", 2, {"cam.epochs": 1, "cam.lr": 0.01})
    assert (data_root, runs_root) == (str(tmp_path / "here"), str(tmp_path / "out"))
    assert cwd == str(course)
    kept = tmp_path / "out/toy/smoke/notebooks+cam.epochs=1+cam.lr=0.01/seed2"
    assert (kept / "01_cam.ipynb").is_file()
    assert [p.name for p in (kept / "01_cam_files").iterdir()] == ["figure_01.png"]
    said = capsys.readouterr().out
    assert "executed notebooks: out/toy/smoke/notebooks+cam.epochs=1+cam.lr=0.01/seed2/" in said


@pytest.mark.notebooks
def test_a_failure_names_the_cell_stops_dependants_and_nothing_else(folder, tmp_path, monkeypatch, capsys):
    course = folder({**ALL, "01_cam": ["x = 1", "# why\nraise ValueError('first\\nno such thing')", "never = 1"]})
    monkeypatch.setattr(cli, "notebooks_folder", lambda: course)
    assert cli.main(["run", "all", "--profile", "smoke", "--runs-root", str(tmp_path / "runs")]) == 1
    lines = capsys.readouterr().out.splitlines()[: len(ALL)]
    said = dict(line.split(": ", 1) for line in lines)
    assert list(said) == list(ALL)
    assert said["01_cam"] == "failed: cell 4 (# why) failed: ValueError: no such thing"
    assert said["07_pseudo_masks"] == "not started: needs 01_cam, which did not finish"
    assert said["08_segmentation"] == "not started: needs 07_pseudo_masks, which did not finish"
    assert said["00_start"].startswith("done in") and said["09_compare"].startswith("done in")
    kept = nbformat.read(tmp_path / "runs/toy/smoke/notebooks/seed0/01_cam.ipynb", as_version=4)
    assert any(o.output_type == "error" for c in kept.cells for o in c.get("outputs", ()))
    assert not (tmp_path / "runs/toy/smoke/notebooks/seed0/07_pseudo_masks.ipynb").exists()


@pytest.mark.notebooks
@pytest.mark.parametrize(
    ("source", "reason"),
    [("import time\ntime.sleep(60)", "CellTimeoutError"), ("import os\nos._exit(1)", "DeadKernelError")],
)
def test_a_cell_that_hangs_or_dies_is_named_and_the_notebook_kept(folder, tmp_path, source, reason):
    course = folder({"01_cam": [source]})
    target = tmp_path / "out" / "01_cam.ipynb"
    outcome = headless.execute(course / "01_cam.ipynb", target, {}, timeout=3)
    assert not outcome.ok and target.is_file()
    assert outcome.message.startswith(f"cell 3 ({source.splitlines()[0]}) failed: {reason}")


@pytest.mark.notebooks
def test_a_running_notebook_is_saved_now_and_then_and_its_end_always(folder, tmp_path, monkeypatch):
    saves = []
    written = headless.NotebookExecutionManager.save
    monkeypatch.setattr(headless.NotebookExecutionManager, "save", lambda self: saves.append(1) or written(self))
    course = folder({"01_cam": ["x = 1"] * 20 + ["import time; time.sleep(2.5)", "print('the end')"]})
    target = tmp_path / "out" / "01_cam.ipynb"
    assert headless.execute(course / "01_cam.ipynb", target, {}).ok
    assert 3 <= len(saves) <= 8, "at the start, after the sleep, at the end; more on a slow machine, not twice a cell"
    assert "the end" in nbformat.read(target, as_version=4).cells[-1].outputs[0].text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run 01 -p sed=1", "parameter 'sed': 01_cam does not know it; it knows profile, dataset"),
        ("run 01 -p seed=-1", "seed=-1: give a whole number of 0 or more"),
        ("run 01 -p seed", "-p seed: write -p key=value"),
        ("run 01 -p method=cda", "parameter 'method': 01_cam does not know it"),
        ("run 01 --set cam.epoch=3", "did you mean 'cam.epochs'?"),
        ("run 01 --profile big", "profile='big': choose one of smoke, demo"),
        ("run 42", "42: no such notebook"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(folder, tmp_path, monkeypatch, capsys, arguments, message):
    course = folder({"01_cam": []})
    monkeypatch.setattr(cli, "notebooks_folder", lambda: course)
    assert cli.main([*arguments.split(), "--runs-root", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.notebooks
def test_a_parameter_goes_to_the_notebooks_that_know_it(folder, tmp_path):
    course = folder({"01_cam": [], "07_pseudo_masks": ["assert method == 'cda'"]})
    done = cli.run(["all"], parameters={"method": "cda"}, folder=course, runs_root=tmp_path / "runs")
    assert [outcome.state for outcome in done] == ["done", "done"]
    assert done[0].path.parts[-3] == "notebooks+method=cda"


def test_without_a_checkout_the_error_says_where_it_looked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "lib" / "wsss_lib" / "cli.py"))
    assert cli.main(["list"]) == 2
    assert "run wsss inside a checkout of the kit" in capsys.readouterr().err


def test_results_are_printed_as_a_table(toy_root, tmp_path, capsys):
    run = Run(load("smoke"), VOCFolder(toy_root, name="toy"), root=tmp_path)
    run.stage("classifier", ("cam",)).ensure(lambda stage: {"map": 0.8})
    assert cli.main(["results", "--runs-root", str(tmp_path)]) == 0
    assert "toy   smoke      cam mAP val           80.0      1" in capsys.readouterr().out


def test_no_resume_is_a_setting_of_the_machine(monkeypatch):
    given = {}
    monkeypatch.setattr(cli, "run", lambda names, **options: given.update(options) or [])
    assert cli.main(["run", "01", "--no-resume", "--set", "cam.epochs=3"]) == 0
    assert given["overrides"] == {"cam.epochs": 3, "machine.resume": False}
    assert cli.main(["run", "01", "--resume"]) == 0
    assert given["overrides"] == {}


def test_values_of_the_command_line_are_python_literals():
    text = ["1", "-1.5", "1e-3", "True", "none", "None", "[1, 2]", "{'a': 1}", "a,b", "01", "path/to/x"]
    expected = [1, -1.5, 1e-3, True, "none", None, [1, 2], {"a": 1}, "a,b", "01", "path/to/x"]
    assert [cli.parse_value(t) for t in text] == expected
