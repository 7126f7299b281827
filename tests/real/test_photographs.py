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
    """ResNet-50 (random weights), the paper's crops, small batches, no GPU; 08 asks for every stage before it.

    After two steps a network has seen nothing: a small learning rate keeps its maps from dying, and the bounds on
    instances let in whatever its masks cut out.
    """
    overrides = {
        "backbone.weights": "",
        "data.train_split": "train",
        "data.limit": 6,
        "cam.max_steps": 2,
        "cam.batch_size": 4,
        "cam.lr": 1e-3,
        "localize.scales": [1.0, 0.5],
        "localize.threshold": 0.8,
        "instances.source": "seeds",
        "instances.epsilon_1": 0.0,
        "instances.epsilon_2": 1.0,
        "cda.batch_size": 2,
        "csd.batch_size": 2,
        "seam.batch_size": 2,
        "seam.lr": 1e-3,
        "cpn.batch_size": 2,
        "cpn.lr": 1e-3,
        "ws_fcn.batch_size": 2,
        "single_stage.scales": [1.0],
        "affinity_net.max_steps": 2,
        "affinity_net.batch_size": 2,
        "affinity_net.lr": 1e-3,
        "irnet.max_steps": 2,
        "irnet.batch_size": 2,
        "segmentation.backbone": "",
        "segmentation.max_steps": 2,
        "segmentation.batch_size": 4,
        "segment.scales": [1.0],
        "machine.workers": 0,
        "machine.processes": 1,
    }
    lessons = ["02", "03", "04", "05", "06", "07", "08"]
    outcomes = cli.run(lessons, profile="paper", data_root=photos, runs_root=tmp_path, overrides=overrides)
    assert [(o.state, o.message) for o in outcomes] == [("done", "")] * len(lessons)
    assert {(r["pipeline"].partition("+")[0], r["stage"]) for r in collect(tmp_path)} == {
        ("cam", "classifier"),
        ("cam", "cams"),
        ("cam", "instances"),
        ("cam", "pseudo_masks"),
        ("cam", "segmentation"),
        ("cam", "val_masks"),
        *((method, stage) for method in ("cda", "csd", "seam", "cpn", "deft") for stage in ("classifier", "cams")),
        *(("ws_fcn", stage) for stage in ("classifier", "direct_masks")),
        *(("cam", stage) for stage in ("affinity_labels", "affinity", "walked_cams")),
    }
    logs = sorted(tmp_path.rglob("log.csv"))
    assert [len(log.read_text().splitlines()) for log in logs] == [3] * 11, "a header and two steps each"
