"""What the tables of refinements measure: pseudo masks of the training images, and what they came from."""

from wsss_lib import choices, stages
from wsss_lib.runs import Run


def refined(run: Run) -> list[dict]:
    """One line, in percent: the masks; the maps' best threshold, chosen WITH masks; labels of the affinities; seconds.

    The seconds are those of all that is done after the CAMs.
    """
    cams, masks = stages.make_cams(run), stages.make_pseudo_masks(run)
    learnt = run.settings.refine.how in choices.AFFINITY_NETWORKS
    done = [stages.make_affinity_labels(run), stages.train_affinity(run), stages.walk_cams(run)] if learnt else []
    best = (done[-1] if learnt else cams).metrics["seed"]["best"]
    line = {
        "miou": 100 * masks.metrics["mask"]["miou"],
        "pixel_accuracy": 100 * masks.metrics["mask"]["pixel_accuracy"],
    }
    if learnt or run.settings.refine.how == "none":  # of scores that went through a CRF there is no threshold
        line |= {"best_miou": 100 * best["miou"], "best_threshold": best["threshold"]}
    if learnt:
        line |= {f"labels_{name}": 100 * done[0].metrics[name] for name in ("sure", "right")}
    return [{**line, "seconds": sum(stage.metrics["seconds"] for stage in [*done, masks])}]
