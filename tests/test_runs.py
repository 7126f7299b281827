"""Runs: finished stages are skipped, broken ones redone, settings never mixed, two processes compute once."""

import json
import multiprocessing
import subprocess
import sys

import pytest

from wsss_lib.errors import WsssError
from wsss_lib.runs import Run, Stage, atomic_open, collect, read_json
from wsss_lib.settings import load


def counting(calls):
    def compute(stage):
        calls.append(stage.name)
        (stage.folder("out") / "a.txt").write_text(json.dumps(stage.config))
        return {"score": len(calls)}

    return compute


def test_a_finished_stage_is_not_computed_again(tmp_path):
    calls = []
    for _ in range(2):
        stage = Stage("s", tmp_path / "s", {"n": 1}).ensure(counting(calls))
    assert calls == ["s"] and stage.metrics["score"] == 1


@pytest.mark.parametrize("damage", ["metrics", "output", "config"])
def test_a_broken_stage_is_redone(tmp_path, damage):
    calls = []
    stage = Stage("s", tmp_path / "s", {"n": 1}).ensure(counting(calls))
    if damage == "metrics":
        (stage.path / "metrics.json").write_text('{"score": ')
    elif damage == "output":
        (stage.path / "out" / "a.txt").unlink()
    else:
        (stage.path / "config.json").write_text("{")
    assert not stage.complete
    assert stage.ensure(counting(calls)).complete
    assert len(calls) == 2


def test_an_interrupted_stage_keeps_what_it_wrote_and_is_not_complete(tmp_path):
    def interrupted(stage):
        (stage.folder("out") / "a.txt").write_text("kept")
        raise KeyboardInterrupt

    stage = Stage("s", tmp_path / "s", {"n": 1})
    with pytest.raises(KeyboardInterrupt):
        stage.ensure(interrupted)
    assert not stage.complete
    seen = []
    stage.ensure(lambda s: seen.append((s.path / "out" / "a.txt").read_text()) or {})
    assert seen == ["kept"]


def test_without_resume_an_interrupted_stage_starts_anew(tmp_path):
    stage = Stage("s", tmp_path / "s", {"n": 1}, resume=False)
    stage.path.mkdir()
    (stage.path / "config.json").write_text('{"n": 1}')
    (stage.path / "left.txt").write_text("old")
    stage.ensure(lambda s: {})
    assert not (stage.path / "left.txt").exists()


def test_a_changed_setting_is_never_mixed_with_old_results(tmp_path, capsys):
    calls = []
    old = Stage("s", tmp_path / "s", {"n": 1}).ensure(counting(calls))
    Stage("s", tmp_path / "s", {"n": 2}).ensure(counting(calls))
    assert "n: 1 -> 2" in capsys.readouterr().out
    assert len(calls) == 2
    aside = tmp_path / f"s.{old.fingerprint}"
    assert read_json(aside / "metrics.json")["score"] == 1, "the earlier result must be kept"
    again = Stage("s", tmp_path / "s", {"n": 1}).ensure(counting(calls))
    assert len(calls) == 2 and again.metrics["score"] == 1, "going back takes the earlier result up again"


def test_a_stage_depends_on_the_settings_of_the_stages_before_it(toy_root, tmp_path):
    from wsss_lib.data import VOCFolder

    folder = VOCFolder(toy_root, name="toy")
    runs = [Run(load("smoke", o), folder, root=tmp_path) for o in ({}, {"cam.epochs": 1}, {"dense_crf.alpha": 2.0})]
    first = [run.stage("classifier", ("data", "cam")) for run in runs]
    second = [r.stage("masks", ("dense_crf",), after=s) for r, s in zip(runs, first, strict=True)]
    assert first[0].path == first[2].path != first[1].path
    assert len({s.path for s in second}) == 3
    assert second[1].path.parent.parent.name == "cam+cam.epochs=1"


def test_a_setting_of_the_machine_changes_no_identity(toy_root, tmp_path):
    from wsss_lib.data import VOCFolder

    folder = VOCFolder(toy_root, name="toy")
    a, b = (Run(load("smoke", o), folder, root=tmp_path) for o in ({}, {"machine.workers": 2}))
    assert a.stage("s", ("cam",)).config == b.stage("s", ("cam",)).config


SLOW = """
import sys, time
from pathlib import Path
from wsss_lib.runs import Stage

root = Path(sys.argv[1])

def compute(stage):
    with (root / "calls.txt").open("a") as f:
        f.write("x")
    time.sleep(1)
    return {}

Stage("s", root / "s", {"n": 1}).ensure(compute)
"""


def test_two_processes_that_ask_at_once_compute_once(tmp_path):
    asking = [subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(60) for process in asking] == [0, 0]
    assert (tmp_path / "calls.txt").read_text() == "x"


def _ask(path):
    Stage("s", path / "s", {"n": 1}).ensure(lambda stage: {})


def test_a_worker_process_is_told_to_guard_its_script(tmp_path):
    worker = multiprocessing.get_context("spawn").Process(target=_ask, args=(tmp_path,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 1 and not (tmp_path / "s").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_open(path) as f:
        f.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_nan_is_no_metric(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Stage("s", tmp_path / "s", {}).ensure(lambda stage: {"miou": float("nan")})


def test_collect_finds_finished_stages_only(toy_root, tmp_path):
    from wsss_lib.data import VOCFolder

    run = Run(load("smoke"), VOCFolder(toy_root, name="toy"), seed=3, root=tmp_path)
    run.stage("s", ("cam",)).ensure(lambda stage: {"score": 1})
    with pytest.raises(RuntimeError):
        run.stage("t", ("cam",)).ensure(lambda stage: (_ for _ in ()).throw(RuntimeError))
    Run(load("smoke"), run.folder, root=tmp_path, seed=3).stage("s", ("cam", "localize")).ensure(
        lambda stage: {"score": 2}
    )
    rows = collect(tmp_path)
    assert [(r["stage"], r["seed"], r["metrics"]["score"]) for r in rows] == [("s", 3, 2)]


@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_a_seed_that_is_no_whole_number_is_refused(toy_root, seed):
    from wsss_lib.data import VOCFolder

    with pytest.raises(WsssError, match="seed="):
        Run(load("smoke"), VOCFolder(toy_root), seed=seed)


def test_overrides_with_paths_make_folder_names_without_folders(toy_root, tmp_path):
    from wsss_lib.data import VOCFolder

    run = Run(
        load("smoke", {"backbone.weights": "some/where/w.pth"}),
        VOCFolder(toy_root, name="toy"),
        root=tmp_path,
    )
    name = run.stage("s", ("backbone",)).path.parent.parent.name
    assert name.startswith("cam+backbone.weights=w.pth-") and "/" not in name
