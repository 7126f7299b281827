"""Tables: the papers' numbers are all there, runs become means over seeds, the two never share a column."""

import csv

import pytest

from wsss_lib import results
from wsss_lib.data import VOCFolder
from wsss_lib.errors import WsssError
from wsss_lib.runs import Run
from wsss_lib.settings import load


def test_all_five_papers_are_there_and_numbers_are_percent():
    table = results.paper()
    assert set(table["paper"]) == {"cda", "csd", "cpn", "deft", "ws_fcn"}
    assert table["id"].is_unique
    assert table.loc[table["metric"] == "mIoU", "value"].between(10, 100).all()


@pytest.mark.parametrize(("key", "value"), [("cda-t4-irn-cda-val", 65.8), ("cpn-t1-cam-cpn-s1.5", 55.44)])
def test_known_numbers_are_the_papers(key, value):
    assert results.paper(id=key)["value"].tolist() == [value]


def test_a_wrong_column_is_named():
    with pytest.raises(WsssError, match="'papers': no such column"):
        results.paper(papers="cda")


def test_runs_become_mean_and_deviation_over_seeds(toy_root, tmp_path):
    folder = VOCFolder(toy_root, name="toy")
    for seed, miou in ((0, 0.40), (1, 0.44)):
        run = Run(load("smoke"), folder, seed=seed, root=tmp_path)
        run.stage("pseudo_masks", ("cam",)).ensure(lambda stage, miou=miou: {"mask": {"miou": miou}})
    run.stage("classifier", ("cam",)).ensure(lambda stage: {"map": 0.9})
    changed = Run(load("smoke", {"cam.epochs": 1}), folder, root=tmp_path)
    changed.stage("pseudo_masks", ("cam",)).ensure(lambda stage: {"mask": None})
    changed.stage("classifier", ("cam",)).ensure(lambda stage: {"map": 0.7})
    table = results.table(tmp_path)
    assert table[["pipeline", "score", "mean ± std (%)", "seeds"]].values.tolist() == [
        ["cam", "mAP val", "90.0", 1],
        ["cam", "pseudo mask mIoU", "42.0 ± 2.8", 2],
        ["cam+cam.epochs=1", "mAP val", "70.0", 1],
    ]
    assert not [c for c in table.columns if "paper" in c]


def test_every_recorded_table_says_how_to_repeat_it(project):
    for path in sorted((project / "results").glob("*.csv")):
        header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        assert [line.split(":")[0] for line in header] == [
            "# command",
            "# settings",
            "# versions",
            "# date",
        ], path.name
        with path.open(encoding="utf-8") as f:
            rows = list(csv.DictReader(line for line in f if not line.startswith("#")))
        assert rows, path.name
