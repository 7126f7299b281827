"""What the tables of WS-FCN measure: masks straight from a single-stage method, and masks of the way in stages."""

from torch import nn

from wsss_lib import methods, results, stages
from wsss_lib.runs import Run, Stage


def single_stage(run: Run) -> list[dict]:
    """One line: masks of the val split and mAP in percent, parameters in millions, seconds of the training."""
    trained, direct = stages.train_classifier(run).metrics, stages.segment_directly(run).metrics
    line = {
        "direct": 100 * direct["mask"]["miou"],
        "direct_with_labels": 100 * direct["mask_with_labels"]["miou"],
        "pixel_accuracy": 100 * direct["mask"]["pixel_accuracy"],
        "parameters": millions(stages.build_method(run)),
        "map_val": 100 * trained["map"],
        "seconds": trained["seconds"],
    }
    return [line]


def single_stage_and_seeds(run: Run) -> list[dict]:
    """`single_stage`, and what the maps of the training images score."""
    return [{**line, **results.seed_scores(run)} for line in single_stage(run)]


def shorter_way(run: Run) -> list[dict]:
    """One line: the masks of a single-stage method itself; of another one, those of the way in stages."""
    return [direct(run) if run.method in methods.SINGLE_STAGE else in_stages(run)]


def both_ways(run: Run) -> list[dict]:
    """A line a way; a method that is not single-stage has but one."""
    return [direct(run), in_stages(run)] if run.method in methods.SINGLE_STAGE else [in_stages(run)]


def direct(run: Run) -> dict:
    """Score the masks of the val split that the method itself draws."""
    return way("direct", stages.build_method(run), [*trainings(run), stages.segment_directly(run)])


def in_stages(run: Run) -> dict:
    """Score the masks of the val split by a DeepLab that learnt from the method's maps."""
    rest = stages.make_cams, stages.make_pseudo_masks, stages.train_segmentation, stages.segment_val
    return way("in stages", stages.build_segmentation(run), [*trainings(run), *(make(run) for make in rest)])


def trainings(run: Run) -> list[Stage]:
    """The method's training, and the one that it starts from."""
    begun = [stages.train_classifier(run)]
    if run.settings.get(run.method, {}).get("init") == "classifier":
        begun.append(stages.train_classifier(run.of("cam")))
    return begun


def way(name: str, network: nn.Module, done: list[Stage]) -> dict:
    """Scores of the last stage in percent, millions of parameters of what draws its masks, seconds of all stages."""
    mask, seconds = done[-1].metrics["mask"], sum(stage.metrics["seconds"] for stage in done)
    scores = {"miou": 100 * mask["miou"], "pixel_accuracy": 100 * mask["pixel_accuracy"]}
    return {"way": name, **scores, "parameters": millions(network), "seconds": seconds}


def millions(network: nn.Module) -> float:
    """Parameters of `network`, in millions."""
    return sum(p.numel() for p in network.parameters()) / 1e6
