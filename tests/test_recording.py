"""The commands in results/: every row of every table can be run, and DEFT's measures are what they say."""

import pytest

from wsss_lib import methods, stages
from wsss_lib.runs import Run
from wsss_lib.settings import load


@pytest.fixture
def deft(script):
    return script("results", "deft")


def test_every_row_is_a_method_with_settings_that_exist_and_no_two_rows_are_the_same_run(script):
    ablations = script("results", "ablations")
    for table, rows in ablations.TABLES.items():
        profile = "laptop" if table in ablations.PHOTOGRAPHS else "demo"
        runs = {(method, repr(load(profile, overrides))) for method, overrides in rows.values()}
        assert len(runs) == len(rows), table
        assert {method for method, _ in rows.values()} <= set(methods.METHODS), table


def test_defts_activations_are_measured_before_each_epoch_and_after_the_last(deft, smoke_run, tmp_path):
    run = Run(load("smoke"), smoke_run.folder, "deft", root=tmp_path)
    lines = deft.activations(run)
    assert [line["epoch"] for line in lines] == list(range(stages.recipe(run).epochs + 1))
    for line in lines:
        assert set(line) == {"epoch", "afa_own", "aba_own", "afa_other", "aba_other", "spread"} and line["spread"] > 0
    assert lines[0]["afa_own"] != lines[-1]["afa_own"]


def test_the_training_that_is_watched_is_that_of_the_stage(deft, smoke_run, tmp_path, monkeypatch):
    run, fit, seen = Run(load("smoke"), smoke_run.folder, "deft", root=tmp_path), deft.fit, []
    expected = stages.load_classifier(run).state_dict()
    monkeypatch.setattr(deft, "fit", lambda model, *a, **k: seen.append(fit(model, *a, **k)))
    deft.activations(run)
    assert all((value == expected[name]).all() for name, value in seen[0].state_dict().items())


def test_table_3_has_a_line_for_each_class_in_percent(deft, smoke_run):
    lines = deft.scores_by_context(smoke_run)
    assert {line["class"] for line in lines} == set(smoke_run.folder.classes)
    assert all(0 <= line["ratio"] <= 100 and (line["own"] is None or 0 <= line["own"] <= 100) for line in lines)
    assert max(line["own"] or 0 for line in lines) > 1
