"""Two measures of the paper of DEFT, on toy scenes: its toy experiment (section 3.1), object and context (Table 3)."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wsss_lib import score, stages
from wsss_lib.data import TrainingSet, normalize
from wsss_lib.methods.base import Method
from wsss_lib.metrics import region_activation
from wsss_lib.runs import Run, Stage
from wsss_lib.train import fit, pick_device

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
    """Train the run's method once more, and measure before each epoch and after the last."""

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

    return run.stage("activations", (), after=stages.train_classifier(run)).ensure(compute).metrics["epochs"]


def scores_by_context(run: Run) -> list[dict]:
    """The scores of seeds at the fixed threshold, in percent, one line a class."""
    stage = stages.make_cams(run)
    pairs = score.score_pairs(run.folder, run.ids("seed"), stage.folder("cams"), run.settings.localize.threshold)
    percent = {"ratio", "own", "other"}
    return [
        {"class": name, **{k: 100 * v if k in percent and v is not None else v for k, v in line.items()}}
        for name, line in pairs.items()
    ]
