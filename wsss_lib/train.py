"""One training loop for all: SGD with a poly schedule, a log line a step, checkpoints, resume to the same bytes.

Every random draw is a function of (seed, step): which images a batch holds and how they are augmented
(`DrawSampler`), and what dropout drops (the generator is seeded anew at each step). So nothing random has to be
stored, and a training that was interrupted continues on a CPU to the same bytes as one that was not.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from wsss_lib.data.samples import DrawSampler, collate
from wsss_lib.errors import WsssError
from wsss_lib.methods.base import Progress
from wsss_lib.runs import atomic_open


class TrainingStopped(WsssError):
    """A loss term is no longer a number; the message names the term, the step and the batch's images.

    Examples
    --------
    >>> issubclass(TrainingStopped, WsssError)
    True
    """


def poly_lr(lr: float, step: int, steps: int, power: float = 0.9) -> float:
    """Poly schedule: ``lr (1 - step / steps) ** power``.

    Parameters
    ----------
    lr : float
        Learning rate at step 0.
    step, steps : int
        Present step, 0 <= step <= steps, and number of steps in all.
    power : float
        1 is a straight line.

    Returns
    -------
    float

    Examples
    --------
    >>> poly_lr(0.1, 0, 100), poly_lr(0.1, 50, 100, power=1.0), poly_lr(0.1, 100, 100)
    (0.1, 0.05, 0.0)
    """
    return lr * (1 - step / steps) ** power


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on.

    Parameters
    ----------
    name : str
        ``auto`` takes a GPU where there is one; ``cpu``, ``cuda``, ``cuda:1`` are taken as they are.

    Returns
    -------
    torch.device

    Raises
    ------
    WsssError
        If a GPU is asked for and there is none.

    Examples
    --------
    >>> pick_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise WsssError(f"machine.device={name!r}: this machine has no GPU that torch can use; take 'auto' or 'cpu'")
    return torch.device(name)


def uses_bf16(precision: str, device: str | torch.device) -> bool:
    """Whether a training computes in bfloat16 (sums and weights stay in float32).

    Parameters
    ----------
    precision : str
        ``fp32``; ``bf16``; or ``fast``: bfloat16 where the device has instructions for it, float32 elsewhere.
    device : str or torch.device
        Where the training computes.

    Returns
    -------
    bool

    Raises
    ------
    WsssError
        For another precision.

    Examples
    --------
    >>> uses_bf16("fp32", "cpu"), uses_bf16("bf16", "cpu")
    (False, True)
    """
    if precision not in ("fp32", "bf16", "fast"):
        raise WsssError(f"precision={precision!r}: choose fp32, bf16 or fast")
    if precision != "fast":
        return precision == "bf16"
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch has it since 2.11
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module whose random weights depend on the seed alone; torch's own generator stays as it was.

    Parameters
    ----------
    seed : int
        0 or more.
    build : callable
        Makes the module.

    Returns
    -------
    nn.Module

    Examples
    --------
    >>> a, b = (seeded(1, lambda: nn.Linear(2, 1)).weight for _ in range(2))
    >>> torch.equal(a, b)
    True
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def n_steps(n_samples: int, batch_size: int, epochs: int, max_steps: int = 0) -> int:
    """Length of a training in optimiser steps; an epoch drops its last, incomplete batch.

    Parameters
    ----------
    n_samples, batch_size, epochs : int
        Samples in the data set, samples in a batch, passes over the data.
    max_steps : int
        Upper bound; 0 for none.

    Returns
    -------
    int
        At least 1.

    Examples
    --------
    >>> n_steps(10582, 16, 5), n_steps(10582, 16, 5, max_steps=2)
    (3305, 2)
    """
    steps = max(n_samples // batch_size, 1) * epochs
    return min(steps, max_steps) if max_steps else steps


def fit(
    model: nn.Module,
    dataset: Dataset,
    recipe: Mapping,
    *,
    seed: int,
    checkpoint: Path,
    log: Path,
    collate: Callable = collate,
    device: str | torch.device = "cpu",
    workers: int = 0,
    checkpoint_seconds: float = 60.0,
    title: str = "training",
) -> nn.Module:
    """Train a model by SGD with a poly schedule, or continue where a checkpoint stands.

    Parameters
    ----------
    model : nn.Module
        Has ``loss(batch, progress) -> Losses`` and ``parameter_groups()`` (a list of dicts with ``params``,
        ``lr_factor`` and ``name``). A `wsss_lib.methods.Method` or a `wsss_lib.segment.DeepLab`.
    dataset : Dataset
        Indexed by ``(index, seed)``, as `wsss_lib.data.TrainingSet`.
    recipe : mapping
        A section of the settings: ``epochs, max_steps, batch_size, micro_batch_size, lr, classifier_factor,
        momentum, weight_decay, poly_power, precision``. The loss of a batch is the mean over its micro-batches,
        weighted by size. With ``compat_schedule`` the learning rate reaches its end half way and stays there, as it
        does in CDA's released code, whose pairs make twice as many steps as its schedule knows.
    seed : int
        Of every random draw.
    checkpoint, log : path
        The state to continue from (``.pt``) and a line a step (``.csv``): step, epoch, lr, each loss term.
    collate : callable
        Makes a batch of a list of samples.
    device : str or torch.device
        Where to compute.
    workers : int
        Processes that load samples; their number changes no result.
    checkpoint_seconds : float
        How often the checkpoint is written, at the end always.
    title : str
        Of the progress bar.

    Returns
    -------
    nn.Module
        The same model, trained, in evaluation mode.

    Raises
    ------
    TrainingStopped
        If a loss term is nan or infinite. The checkpoint before it stays.

    Examples
    --------
    See ``tests/test_train.py``; the schedule alone:

    >>> [round(poly_lr(0.1, k, 4), 3) for k in range(4)]
    [0.1, 0.077, 0.054, 0.029]
    """
    device = torch.device(device)
    batch_size = recipe["batch_size"]
    steps = n_steps(len(dataset), batch_size, recipe["epochs"], recipe["max_steps"])
    model = model.to(device, memory_format=torch.channels_last).train()
    bf16 = uses_bf16(recipe["precision"], device)
    groups = [
        {**group, "params": [p for p in group["params"] if p.requires_grad]}
        for group in model.parameter_groups(recipe["classifier_factor"])
    ]
    optimizer = torch.optim.SGD(
        [g for g in groups if g["params"]],
        lr=recipe["lr"],
        momentum=recipe["momentum"],
        weight_decay=recipe["weight_decay"],
    )
    first, rows = _restore(checkpoint, model, optimizer)
    sampler = DrawSampler(len(dataset), seed=seed, batch_size=batch_size, start_step=first, steps=steps)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    horizon = max(1, steps // 2) if recipe.get("compat_schedule") else steps
    written = time.monotonic()
    bar = tqdm(total=steps, initial=first, desc=title, unit="step", mininterval=1.0, disable=first >= steps)
    with torch.random.fork_rng(), bar:
        for step, batch in enumerate(loader if first < steps else (), start=first):
            torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1))
            lr = poly_lr(recipe["lr"], min(step, horizon - 1), horizon, recipe["poly_power"])
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]
            progress = Progress(step=step, steps=steps, epoch=step // sampler.steps_per_epoch, epochs=recipe["epochs"])
            terms = _accumulate(model, batch.to(device), progress, recipe["micro_batch_size"], bf16)
            _stop_if_not_finite(terms, step, batch.image_id)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rows.append({"step": step, "epoch": progress.epoch, "lr": lr, **terms})
            bar.update()
            bar.set_postfix(loss=f"{terms['total']:.3f}", refresh=False)
            if step + 1 == steps or time.monotonic() - written > checkpoint_seconds:
                _write_log(log, rows)
                _save(checkpoint, model, optimizer, step + 1, rows)
                written = time.monotonic()
    return model.eval()


def load_weights(model: nn.Module, checkpoint: str | Path) -> nn.Module:
    """Put a checkpoint's weights into a model.

    Parameters
    ----------
    model : nn.Module
        Of the architecture that was trained.
    checkpoint : path
        A file that `fit` wrote; read without pickles.

    Returns
    -------
    nn.Module
        The same model in evaluation mode.

    Raises
    ------
    WsssError
        If the file is missing, damaged or of another architecture.

    Examples
    --------
    >>> load_weights(nn.Linear(2, 1), "no/such.pt")
    Traceback (most recent call last):
    wsss_lib.errors.WsssError: no/such.pt: no checkpoint there; train the stage first
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise WsssError(f"{path}: no checkpoint there; train the stage first")
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise WsssError(f"{path}: not a checkpoint of this model ({reason}); delete it and train again") from error
    return model.eval()


def _accumulate(model, batch, progress, micro_batch_size: int, bf16: bool) -> dict[str, float]:
    """Backward through the batch in micro-batches; the terms' values, each a mean over the batch."""
    n, part = len(batch.image_id), micro_batch_size or len(batch.image_id)
    terms: dict[str, float] = {}
    for start in range(0, n, part):
        micro = batch if part >= n else type(batch)(*(_part(field, start, start + part) for field in batch))
        micro = micro._replace(image=micro.image.contiguous(memory_format=torch.channels_last))
        weight = len(micro.image_id) / n
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=bf16):
            losses = model.loss(micro, progress)
        (losses.total * weight).backward()
        for name, value in {**losses.terms, "total": losses.total}.items():
            terms[name] = terms.get(name, 0.0) + float(value.detach()) * weight
    return terms


def _part(field, start: int, stop: int):
    return None if field is None else field[start:stop]  # a batch without regions


def _stop_if_not_finite(terms: dict[str, float], step: int, image_ids) -> None:
    for name, value in terms.items():
        if not math.isfinite(value):
            shown = ", ".join(image_ids[:8]) + (" ..." if len(image_ids) > 8 else "")
            raise TrainingStopped(
                f"loss term {name!r} is {value} at step {step} (images {shown}):"
                " lower the learning rate, or look at these images"
            )


def _save(path: Path, model: nn.Module, optimizer, step: int, rows: list[dict]) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "log": rows}
    with atomic_open(path, "wb") as f:
        torch.save(state, f)


def _restore(path: Path, model: nn.Module, optimizer) -> tuple[int, list[dict]]:
    """The step to continue from and the log so far; (0, []) where there is nothing to continue."""
    if not Path(path).is_file():
        return 0, []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file fails in many ways
        print(f"{Path(path).name} is damaged: training from the start")
        return 0, []
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"continuing at step {state['step']}")
    return state["step"], state["log"]


def _write_log(path: Path, rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(k for row in rows for k in row)), restval="")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    with atomic_open(path) as f:
        f.write(text.getvalue())
