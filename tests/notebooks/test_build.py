"""The builder: a notebook is a function of its source, and nothing of the machine or the hour stays in it."""

import nbformat
import pytest

LESSON = """
    # %% [markdown]
    # Some *text*.

    # %% tags=["nbval-ignore-output"]
    import ipywidgets
    ipywidgets.VBox([ipywidgets.IntSlider(value=3), ipywidgets.Label("x")])

    # %%
    import sys
    print("\\r 10%|#         | 1/10 [00:00<00:09, 1.0it/s]", end="", file=sys.stderr)
    print("\\r100%|##########| 10/10 [00:09<00:00, 1.1it/s]", file=sys.stderr)
    object()

    # %%
    x = 1

    # %%
    x = 1
"""


def build(builder, src, *options):
    return builder.main(["--src", str(src), "--out", str(src.parent), "--runs", str(src / "runs"), *options])


def test_ids_of_unchanged_cells_stay_when_another_cell_is_put_between(builder, course):
    src = course({"01_cam": LESSON})
    before = [cell.id for cell in builder.read_source(src / "01_cam.py").cells]
    course({"01_cam": LESSON.replace("# %% [markdown]", "# %%\n    y = 2\n\n    # %% [markdown]", 1)})
    after = [cell.id for cell in builder.read_source(src / "01_cam.py").cells]
    assert len(after) == len(before) + 1
    assert [i for i in after if i in before] == before
    assert len(set(after)) == len(after)


def test_tags_are_kept_and_metadata_is_clean(builder, course):
    notebook = builder.read_source(course({"01_cam": LESSON}) / "01_cam.py")
    assert [c.metadata.tags for c in notebook.cells if c.metadata] == [
        ["parameters"],
        ["nbval-ignore-output"],
    ]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}


@pytest.mark.notebooks
def test_building_twice_gives_the_same_bytes(builder, course):
    src = course({"01_cam": LESSON})
    assert build(builder, src) == 0
    target = src.parent / "01_cam.ipynb"
    first = target.read_bytes()
    assert build(builder, src, "--only", "01") == 0
    assert target.read_bytes() == first
    assert build(builder, src, "--check") == 0

    notebook = nbformat.read(target, as_version=4)
    stream = [o.text for c in notebook.cells for o in c.get("outputs", ()) if o.output_type == "stream"]
    assert stream == ["100%|##########| 10/10\n"]
    results = [o.data["text/plain"] for c in notebook.cells for o in c.get("outputs", ()) if "data" in o]
    assert results[-1] == "<object at 0x0>"
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"].state
    shown = next(
        o.data["application/vnd.jupyter.widget-view+json"].model_id
        for c in notebook.cells
        for o in c.get("outputs", ())
        if "application/vnd.jupyter.widget-view+json" in o.get("data", ())
    )
    assert state[shown].model_name == "VBoxModel"
    assert all(child.removeprefix("IPY_MODEL_") in state for child in state[shown].state.children)
    assert all("execution" not in cell.metadata for cell in notebook.cells)


@pytest.mark.notebooks
def test_check_names_the_cell_that_departs_from_the_source(builder, course, capsys):
    src = course({"01_cam": "# %%\nx = 1\n"})
    assert build(builder, src) == 0
    course({"01_cam": "# %%\nx = 2\n", "02_new": ""})
    (src.parent / "03_gone.ipynb").write_text("{}")
    capsys.readouterr()
    assert build(builder, src, "--check") == 1
    assert capsys.readouterr().out.splitlines() == [
        "01_cam: cell 3 differs in source, id (source: 'x = 2')",
        "02_new: no notebook; run make notebooks",
        "03_gone: no source src/03_gone.py",
    ]


@pytest.mark.notebooks
def test_a_failing_cell_is_named_and_the_old_notebook_stays(builder, course, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "WORK", tmp_path / "work")
    src = course({"01_cam": "# %%\nfine = 1\n\n# %%\n1 / 0\n"})
    (src.parent / "01_cam.ipynb").write_text("old")
    assert build(builder, src) == 1
    error = capsys.readouterr().err
    assert error.startswith("01_cam: cell 4 failed ('1 / 0'): ZeroDivisionError: division by zero")
    assert (src.parent / "01_cam.ipynb").read_text() == "old"
    assert (tmp_path / "work" / "01_cam.failed.ipynb").is_file()


@pytest.mark.notebooks
def test_a_cell_that_takes_too_long_is_named(builder, course, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "WORK", tmp_path / "work")
    src = course({"01_cam": "# %%\nimport time\ntime.sleep(60)\n"})
    assert build(builder, src, "--timeout", "1") == 1
    assert capsys.readouterr().err.startswith("01_cam: cell 3 failed ('import time'): CellTimeoutError")


@pytest.mark.parametrize("text", ["/home/me/runs/x", "in /tmp/ipykernel_1/2.py:3", "C:\\Users\\me"])
def test_an_output_that_names_the_machine_is_refused(builder, text, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "WORK", tmp_path)
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text=f"see {text}\n")])
    with pytest.raises(builder.BuildError, match=r"01_cam: cell 1 shows .*: this names the machine"):
        builder.tidy(nbformat.v4.new_notebook(cells=[cell]), "01_cam")


@pytest.mark.parametrize("text", ["runs/toy/demo", "https://x.org/home/me", "1/2 of 3/4", "a/tmp/b", "and/or"])
def test_relative_paths_and_addresses_are_no_machine_paths(builder, text):
    assert builder.machine_text(text) == ""


def test_a_stream_ends_as_a_terminal_shows_it(builder):
    bar = "a:   0%|   | 0/8 [00:00<?, ?it/s]\ra: 100%|###| 8/8 [00:01<00:00, 5.1it/s, loss=0.2]\n"
    vanished = "b:  50%|## | 4/8 [00:00<00:00, 4it/s]\r                    \r"
    assert builder.last_state(f"start\n{bar}{vanished}end\n") == "start\na: 100%|###| 8/8\nend\n"
    assert builder.last_state(vanished) == ""
