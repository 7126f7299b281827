"""Tables: what papers print, what was recorded with a command, and what the runs here say. Never in one column."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import date
from importlib import metadata, resources
from math import nan
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from wsss_lib import stages
from wsss_lib.errors import WsssError
from wsss_lib.metrics import mean_std, paired_interval
from wsss_lib.project import project_root
from wsss_lib.runs import Run, atomic_open, collect

# What a stage's metrics contribute to the table of results: (stage, name of the score, path in metrics.json).
SCORES = (
    ("classifier", "mAP val", ("map",)),
    ("cams", "seed mIoU fixed threshold", ("seed", "fixed", "miou")),
    ("cams", "seed mIoU best threshold (uses masks)", ("seed", "best", "miou")),
    ("walked_cams", "walked seed mIoU best threshold (uses masks)", ("seed", "best", "miou")),
    ("pseudo_masks", "pseudo mask mIoU", ("mask", "miou")),
    ("val_masks", "segmentation mIoU val", ("mask", "miou")),
    ("direct_masks", "single-stage mIoU val", ("mask", "miou")),
    ("direct_masks", "single-stage mIoU val (given true labels)", ("mask_with_labels", "miou")),
)


def paper(**where: str) -> pd.DataFrame:
    """The numbers that the papers print, one a row, each with the table that it stands in.

    Parameters
    ----------
    **where
        Column name to the value wanted, e.g. ``paper="cda", stage="seed"``.

    Returns
    -------
    DataFrame
        Columns id, paper, source, kind, host, method, variant, backbone, supervision, dataset, stage, split,
        metric, value, note; values in percent.

    Raises
    ------
    WsssError
        For a column that does not exist.

    Examples
    --------
    >>> paper(id="cda-t1-irn-rotation")["value"].tolist()
    [48.5]
    """
    with resources.files("wsss_lib").joinpath("paper_results.csv").open(encoding="utf-8") as f:
        table = pd.read_csv(f, keep_default_na=False)
    table["value"] = pd.to_numeric(table["value"], errors="coerce")
    for column, value in where.items():
        if column not in table:
            raise WsssError(f"{column!r}: no such column of the papers' numbers; there are {', '.join(table)}")
        table = table[table[column] == value]
    return table


def read(name: str) -> pd.DataFrame:
    """A table that was recorded once, ``results/<name>.csv``; the lines that begin with # say how.

    Parameters
    ----------
    name : str
        The file's name without its ending.

    Returns
    -------
    DataFrame

    Raises
    ------
    WsssError
        If there is no such table.

    Examples
    --------
    >>> read("none")
    Traceback (most recent call last):
    wsss_lib.errors.WsssError: results/none.csv: no such table; see results/README.md for the command that makes it
    """
    path = project_root() / "results" / f"{name}.csv"
    if not path.is_file():
        raise WsssError(f"results/{name}.csv: no such table; see results/README.md for the command that makes it")
    return pd.read_csv(path, comment="#")


def record(path: str | Path, table: pd.DataFrame, command: str, settings: str) -> None:
    """Write a table with a header that says how to repeat it: command, settings, versions, date.

    Parameters
    ----------
    path : path
        The CSV file, replaced whole.
    table : DataFrame
        What was measured.
    command : str
        The command line that makes it.
    settings : str
        Profile, data and seeds in a line.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "t.csv"
    >>> record(target, pd.DataFrame({"a": [1]}), "python t.py", "profile demo, seed 0")
    >>> target.read_text().splitlines()[0], target.read_text().splitlines()[-1]
    ('# command: python t.py', '1')
    """
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "numpy"))
    text = io.StringIO()
    text.write(f"# command: {command}\n# settings: {settings}\n# versions: {versions}\n# date: {date.today()}\n")
    table.to_csv(text, index=False, float_format="%.4g", lineterminator="\n")
    with atomic_open(path) as f:
        f.write(text.getvalue())


def seed_scores(run: Run) -> dict[str, float]:
    """What a run's classifier and CAMs score, for a line of a recorded table; trained first if need be.

    Parameters
    ----------
    run : Run
        On data with masks to score against.

    Returns
    -------
    dict of str to float
        In percent, but for ``best_threshold``, ``steps`` and ``seconds`` (of the training). ``disagrees`` (images whose
        object does not stand on its usual context) and the energies are missing where the data do not know contexts,
        ``one_class`` and ``several_classes`` (images by their labels) where there is no such image.

    Examples
    --------
    >>> scores = seed_scores(getfixture("smoke_run"))
    >>> scores["steps"], sorted(scores)[:3]
    (9, ['agrees', 'best_threshold', 'disagrees'])
    """
    trained, scored = stages.train_classifier(run), stages.make_cams(run).metrics["seed"]
    scores = {
        "steps": len(pd.read_csv(trained.path / "log.csv")),
        "map_val": 100 * trained.metrics["map"],
        "seed_miou_fixed": 100 * scored["fixed"]["miou"],
        "seed_miou_best": 100 * scored["best"]["miou"],
        "best_threshold": scored["best"]["threshold"],
        **{name.replace(" ", "_"): 100 * v for name, v in scored["counts"].items() if v is not None},
    }
    if energy := scored.get("energy"):
        scores |= {group: 100 * scored["groups"][group] for group in ("agrees", "disagrees")}
        scores["energy_object"] = 100 * energy["object"]
        scores["energy_context"] = 100 * (energy["own_context"] + energy["other_context"])
    return {**scores, "seconds": trained.metrics["seconds"]}


class Gain(NamedTuple):
    """A paired difference of two rows of a recorded table.

    Parameters
    ----------
    mean : float
        The mean difference, in points.
    low, high : float
        Its 95 % interval; nan with one seed.
    seeds : int
        How many.

    Examples
    --------
    >>> print(Gain(1.2, -1.3, 3.7, seeds=3))
    +1.2 [-1.3, +3.7]
    >>> Gain(1.2, -1.3, 3.7, seeds=3).verdict, Gain(1.2, 0.4, 2.0, seeds=3).verdict
    ('not shown by 3 seeds', 'shown')
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """Whether the interval leaves out 0."""
        return "shown" if self.low > 0 or self.high < 0 else f"not shown by {self.seeds} seed{'s' * (self.seeds > 1)}"

    def __str__(self) -> str:
        return f"{self.mean:+.1f}" + (f" [{self.low:+.1f}, {self.high:+.1f}]" if self.seeds > 1 else "")


def gain(scores: pd.DataFrame, row: str, baseline: str, column: str) -> Gain:
    """The paired gain of a row over another, seed by seed.

    Parameters
    ----------
    scores : DataFrame
        Columns ``row``, ``seed`` and `column`, as `read` gives it.
    row, baseline : str
        Two of its rows, with the same seeds.
    column : str
        The score.

    Returns
    -------
    Gain

    Examples
    --------
    >>> scores = pd.DataFrame({"row": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "miou": [40.0, 42.0, 41.0, 43.4]})
    >>> print(gain(scores, "b", "a", "miou"))
    +1.2 [-1.3, +3.7]
    """
    wide = scores.pivot(index="seed", columns="row", values=column)
    if len(wide) < 2:
        return Gain(float((wide[row] - wide[baseline]).mean()), nan, nan, len(wide))
    return Gain(*paired_interval(wide[row], wide[baseline]), len(wide))


def compared(scores: pd.DataFrame, baseline: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """A recorded table by its rows: mean and standard deviation over seeds, and the paired gain over a baseline.

    Parameters
    ----------
    scores : DataFrame
        Columns ``row``, ``seed`` and those named in `columns`, as `read` gives it.
    baseline : str
        The row that the others are compared with, seed by seed.
    columns : mapping
        Column of `scores` to its title.

    Returns
    -------
    DataFrame
        A line a row, in order; two columns for each title: the score and the `gain`, with two seeds or more with its
        95 % interval.

    Examples
    --------
    >>> scores = pd.DataFrame({"row": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "miou": [40.0, 42.0, 41.0, 43.4]})
    >>> compared(scores, "a", {"miou": "mIoU"}).loc["b"].tolist()
    ['42.2 ± 1.7', '+1.2 [-1.3, +3.7]']
    """
    lines = {}
    for row, values in scores.groupby("row", sort=False):
        line = {}
        for column, title in columns.items():
            line[title] = mean_std(values[column], scale=1)
            line[f"{title}: gain [95 %]"] = "" if row == baseline else str(gain(scores, row, baseline, column))
        lines[row] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def table(root: str | Path | None = None) -> pd.DataFrame:
    """The scores of all runs below a root, mean and standard deviation over seeds.

    Parameters
    ----------
    root : path, optional
        The runs' root; by default that of the project.

    Returns
    -------
    DataFrame
        Columns dataset, profile, pipeline, score, ``mean ± std (%)`` and seeds; a row a score, in the order of the
        stages.

    Examples
    --------
    >>> table("no/such/folder").empty
    True
    """
    found: dict[tuple, list[float]] = {}
    for row in collect(root):
        for place, (stage, name, path) in enumerate(SCORES):
            value = _dig(row["metrics"], path) if stage == row["stage"] else None
            if value is not None:
                key = (row["dataset"], row["profile"], row["pipeline"], place, name)
                found.setdefault(key, []).append(value)
    columns = ["dataset", "profile", "pipeline", "score", "mean ± std (%)", "seeds"]
    lines = [(*key[:3], key[4], mean_std(values), len(values)) for key, values in sorted(found.items())]
    return pd.DataFrame(lines, columns=columns)


def _dig(tree, path):
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
