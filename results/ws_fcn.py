"""What the tables of WS-FCN measure: masks straight from a single-stage method, and masks of the way in stages."""

from torch import nn

from wsss_lib import methods, results, stages
from wsss_lib.runs import Run


def single_stage(run: Run) -> list[dict]:
    """One line: masks of the val split in percent, parameters in millions, and what the seeds score."""
    direct = stages.segment_directly(run).metrics
    line = {
        "direct": 100 * direct["mask"]["miou"],
        "direct_with_labels": 100 * direct["mask_with_labels"]["miou"],
        "pixel_accuracy": 100 * direct["mask"]["pixel_accuracy"],
        "parameters": millions(stages.build_method(run)),
    }
    return [{**line, **results.seed_scores(run)}]


def millions(network: nn.Module) -> float:
    """Parameters of `network`, in millions."""
    return sum(p.numel() for p in network.parameters()) / 1e6


def ways(run: Run) -> list[dict]:
    """A line a way from the run's method to masks of the val split.

    Scores in percent, millions of parameters of the network that draws the masks, seconds of all stages of the way.
    """
    single = run.method in methods.SINGLE_STAGE
    trained = [stages.train_classifier(run)]
    if run.settings.get(run.method, {}).get("init") == "classifier":
        trained.append(stages.train_classifier(run.of("cam")))
    in_stages = (stages.make_cams, stages.make_pseudo_masks, stages.train_segmentation, stages.segment_val)
    lines = []
    for way, rest in {"direct": (stages.segment_directly,), "in stages": in_stages}.items():
        if way == "in stages" or single:
            done = [*trained, *(make(run) for make in rest)]
            mask, seconds = done[-1].metrics["mask"], sum(stage.metrics["seconds"] for stage in done)
            network = stages.build_method(run) if way == "direct" else stages.build_segmentation(run)
            line = {"miou": 100 * mask["miou"], "pixel_accuracy": 100 * mask["pixel_accuracy"]}
            lines.append({"way": way, **line, "parameters": millions(network), "seconds": seconds})
    return lines
