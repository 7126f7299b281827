"""The whole way on a folder of photographs: seeds, pseudo masks and segmentation, three seeds."""

import argparse

import pandas as pd

from data_prep.ready import ready
from wsss_lib import results, stages
from wsss_lib.project import project_root
from wsss_lib.runs import Run
from wsss_lib.settings import load

SEEDS = (0, 1, 2)


def main() -> None:
    """Run every stage of plain CAM for each seed; write ``results/photographs.csv``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_root", help="folder in VOC layout, with masks to score against")
    parser.add_argument("--runs-root", default="", help="where the runs are kept (default: runs/ of the project)")
    parser.add_argument("--segment", type=int, default=len(SEEDS), help="train a DeepLab for the first so many seeds")
    options = parser.parse_args()
    settings = load("laptop")
    folder = ready(settings, data_root=options.data_root)
    runs = [Run(settings, folder, seed=seed, root=options.runs_root) for seed in SEEDS]
    n_train, n_val = (len(runs[0].ids(split)) for split in ("train", "val"))
    rows = []
    for run in runs:
        seeds, masks = stages.make_cams(run).metrics["seed"], stages.make_pseudo_masks(run).metrics["mask"]
        rows.append(
            {
                "seed": run.seed,
                "map_val": 100 * stages.train_classifier(run).metrics["map"],
                "seed_miou_fixed": 100 * seeds["fixed"]["miou"],
                "seed_miou_best": 100 * seeds["best"]["miou"],
                "best_threshold": seeds["best"]["threshold"],
                "pseudo_mask_miou": 100 * masks["miou"],
                "classes": " ".join(seeds["fixed"]["miou_classes"]),
            }
        )
        print(rows[-1])
    for run, row in zip(runs[: options.segment], rows, strict=False):
        row["segmentation_miou_val"] = 100 * stages.segment_val(run).metrics["mask"]["miou"]
        print(row)
    results.record(
        project_root() / "results" / "photographs.csv",
        pd.DataFrame(rows),
        f"python results/photographs.py DATA_ROOT --segment {options.segment}",
        f"profile laptop, {n_train} training and {n_val} val photographs, seeds {SEEDS}",
    )


if __name__ == "__main__":
    main()
