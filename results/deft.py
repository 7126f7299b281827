"""Two measures of the paper of DEFT, on toy scenes: its toy experiment (section 3.1), object and context (table 3).

    python results/deft.py activations
    python results/deft.py table3

Interrupted, a command continues with the training in which it stopped.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ablations import ALONE, DEFT, TABLES
from torch import nn

from data_prep.ready import ready
from wsss_lib import results, score, stages
from wsss_lib.data import TrainingSet, normalize
from wsss_lib.methods.base import Method
from wsss_lib.metrics import region_activation
from wsss_lib.project import project_root
from wsss_lib.runs import Run, Stage
from wsss_lib.settings import load
from wsss_lib.train import fit, pick_device

CUTMIX = ("cda", {**ALONE, "cda.augmentation": "cutmix"})
ROWS = {
    "activations": {"CAM": ("cam", {}), "CutMix": CUTMIX, "DEFT": DEFT},
    "table3": {"CAM": TABLES["deft_table4"]["CAM"], "DEFT": DEFT},
}
IMAGES = 150  # of each group: one class on its own context, one class elsewhere


class Probe:
    """Average activations of foreground and background before the last BatchNorm, over images of two groups."""

    def __init__(self, run: Run):
        members = {"own": [], "other": []}
        for i in run.ids("train"):
            if len(run.folder.class_names(i)) == 1:
                members["own" if run.folder.context[i].agrees else "other"].append(i)
        self.ids = {group: ids[:IMAGES] for group, ids in members.items()}
        self.folder = run.folder

    @torch.no_grad()
    def __call__(self, method: Method) -> dict[str, float]:
        """Return afa and aba of both groups, and the spread of a cell's mean activation."""
        norm = [m for m in method.backbone.modules() if isinstance(m, nn.BatchNorm2d)][-1]
        seen, training = [], method.training
        hook = norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        device, line, cells = next(method.parameters()).device, {}, []
        method.eval()
        try:
            for group, ids in self.ids.items():
                values = []
                for image_id in ids:
                    method.backbone(normalize(self.folder.image(image_id))[None].to(device))
                    features = seen.pop()[0].float().cpu()
                    values.append(region_activation(features, self.folder.mask(image_id)))
                    cells.append(features.mean(0).flatten())
                line |= {f"{k}_{group}": v for k, v in zip(("afa", "aba"), np.nanmean(values, axis=0), strict=True)}
        finally:
            hook.remove()
            method.train(training)
        return {**line, "spread": float(torch.cat(cells).std())}


def activations(run: Run) -> list[dict]:
    """Train the run's method anew and measure before each epoch, and once after the last."""

    def compute(stage: Stage) -> dict:
        method, probe, lines = stages.build_method(run), Probe(run), {}
        learn, options = method.loss, stages.recipe(run)

        def loss(batch, progress):
            if progress.epoch not in lines:
                with torch.autocast(batch.image.device.type, enabled=False):
                    lines[progress.epoch] = probe(method)
            return learn(batch, progress)

        method.loss = loss
        dataset = TrainingSet(run.folder, run.ids("train"), stages.training_transform(options), cache=True)
        with tempfile.TemporaryDirectory() as folder:
            files = {"checkpoint": Path(folder, "checkpoint.pt"), "log": Path(folder, "log.csv")}
            device = pick_device(run.settings.machine.device)
            fit(method, dataset, options, seed=run.seed, device=device, title=f"watch {run.method}", **files)
        lines[options.epochs] = probe(method)
        return {"epochs": [{"epoch": epoch, **line} for epoch, line in lines.items()]}

    uses = ("data", "toy", "backbone", "cam", *({run.method} & set(run.settings)))
    return run.stage("activations", uses).ensure(compute).metrics["epochs"]


def table3(run: Run) -> list[dict]:
    """The scores of seeds at the fixed threshold, in percent, one line a class."""
    stage = stages.make_cams(run)
    pairs = score.score_pairs(run.folder, run.ids("seed"), stage.folder("cams"), run.settings.localize.threshold)
    percent = {"ratio", "own", "other"}
    return [
        {"class": name, **{k: 100 * v if k in percent and v is not None else v for k, v in line.items()}}
        for name, line in pairs.items()
    ]


def main() -> None:
    """Measure what is missing; write ``results/deft_<table>.csv`` for each table asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training and scenes alike")
    parser.add_argument("--runs-root", default="", help="where the runs are kept (default: runs/ of the project)")
    parser.add_argument("--profile", default="demo", help="smoke to try it out")
    options = parser.parse_args()
    asked = "" if options.seeds == [0, 1, 2] else f" --seeds {' '.join(map(str, options.seeds))}"
    asked += "" if options.profile == "demo" else f" --profile {options.profile}"
    for name in options.tables:
        measure, lines = {"activations": activations, "table3": table3}[name], []
        for seed in options.seeds:
            for row, (method, overrides) in ROWS[name].items():
                settings = load(options.profile, {**overrides, "toy.seed": seed})
                run = Run(settings, ready(settings), method, seed, root=options.runs_root)
                lines += [{"row": row, "seed": seed, **line} for line in measure(run)]
                print(name, lines[-1], flush=True)
        results.record(
            project_root() / "results" / f"deft_{name}.csv",
            pd.DataFrame(lines),
            f"python results/deft.py {name}{asked}",
            f"profile {options.profile}, toy scenes, seeds {options.seeds}",
        )


if __name__ == "__main__":
    main()
