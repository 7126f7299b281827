"""How plain CAM suffers from context bias: seeds and CAM energy over the dial, three seeds a point."""

import argparse

import pandas as pd

from data_prep.ready import ready
from wsss_lib import results, stages
from wsss_lib.project import project_root
from wsss_lib.runs import Run
from wsss_lib.settings import load

BIASES, SEEDS = (0.0, 0.5, 0.7, 0.9), (0, 1, 2)


def main() -> None:
    """Train and localise for each bias and seed; write ``results/context_bias.csv``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs-root", default="", help="where the runs are kept (default: runs/ of the project)")
    runs_root = parser.parse_args().runs_root
    rows = []
    for bias in BIASES:
        for seed in SEEDS:
            settings = load("demo", {"toy.context_bias": bias, "toy.seed": seed})
            run = Run(settings, ready(settings), seed=seed, root=runs_root)
            metrics = {**stages.train_classifier(run).metrics, **stages.make_cams(run).metrics}
            energy = metrics["seed"]["energy"]
            rows.append(
                {
                    "context_bias": bias,
                    "seed": seed,
                    "seed_miou_fixed": 100 * metrics["seed"]["fixed"]["miou"],
                    "seed_miou_best": 100 * metrics["seed"]["best"]["miou"],
                    "best_threshold": metrics["seed"]["best"]["threshold"],
                    "energy_context": 100 * (energy["own_context"] + energy["other_context"]),
                    "energy_own_context": 100 * energy["own_context"],
                    "map_val": 100 * metrics["map"],
                }
            )
            print(rows[-1])
    results.record(
        project_root() / "results" / "context_bias.csv",
        pd.DataFrame(rows),
        "python results/context_bias.py",
        f"profile demo, toy scenes, context_bias {BIASES}, seeds {SEEDS} of scenes and training",
    )


if __name__ == "__main__":
    main()
