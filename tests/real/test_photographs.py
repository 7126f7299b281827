"""The whole way on real photographs of many sizes, and the paper's settings for two steps a stage."""

import pytest

from data_prep.ready import ready
from wsss_lib import cli, stages
from wsss_lib.runs import Run, collect
from wsss_lib.settings import load

pytestmark = pytest.mark.real


@pytest.fixture
def weights(imagenet_weights, monkeypatch):
    monkeypatch.setenv("WSSS_WEIGHTS", str(imagenet_weights.parent))


def test_the_way_runs_on_photographs_of_many_sizes(photos, weights, tmp_path):
    few = {"data.limit": 12, "cam.max_steps": 3, "segmentation.max_steps": 2, "localize.scales": [1.0]}
    settings = load("laptop", few)
    run = Run(settings, ready(settings, data_root=photos), root=tmp_path)
    assert len({run.folder.size(i) for i in run.ids("train")}) > 1
    final = stages.segment_val(run)
    assert final.metrics["mask"]["miou"] > 0
    assert {row["stage"] for row in collect(tmp_path)} == {
        "classifier",
        "cams",
        "pseudo_masks",
        "segmentation",
        "val_masks",
    }


@pytest.mark.notebooks
def test_papers_settings_take_two_steps_a_stage_through_papermill(photos, tmp_path):
    """ResNet-50 (random weights), the paper's crops and batches, no GPU; 08 asks for every stage before it."""
    overrides = {
        "backbone.weights": "",
        "data.train_split": "train",
        "data.limit": 2,
        "cam.max_steps": 2,
        "cam.micro_batch_size": 4,
        "localize.scales": [1.0, 0.5],
        "segmentation.max_steps": 2,
        "segment.scales": [1.0],
        "machine.workers": 0,
        "machine.processes": 1,
    }
    outcomes = cli.run(["08"], profile="paper", data_root=photos, runs_root=tmp_path, overrides=overrides)
    assert [(o.state, o.message) for o in outcomes] == [("done", "")]
    assert {r["stage"] for r in collect(tmp_path)} == {
        "classifier",
        "cams",
        "pseudo_masks",
        "segmentation",
        "val_masks",
    }
    logs = sorted(tmp_path.rglob("log.csv"))
    assert [len(log.read_text().splitlines()) for log in logs] == [3, 3], "a header and two steps each"
