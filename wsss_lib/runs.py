"""Where a run's files lie, and how they are written: finished stages are skipped, settings are never mixed.

A run is a folder ``<root>/<dataset>/<profile>/<pipeline>/seed<k>/`` with one folder a stage. The pipeline is the
method's name, followed by the overrides that the stage depends on (``cam+cam.epochs=3``), so runs with different
settings lie side by side and 02 to 05 share the classifier of 01. A stage writes ``metrics.json`` last: with it
the stage is complete and is skipped, without it the stage is continued.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from wsss_lib import __version__
from wsss_lib.data import VOCFolder
from wsss_lib.errors import WsssError
from wsss_lib.project import runs_root
from wsss_lib.settings import MACHINE_SECTIONS, Settings


@contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Write a file whole or not at all: a temporary neighbour that replaces it at the end.

    Parameters
    ----------
    path : path
        The file to write; its folder must exist.
    mode : str
        ``"w"`` for text (UTF-8) or ``"wb"`` for bytes.

    Yields
    ------
    file object

    Examples
    --------
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_open(target) as f:
    ...     _ = f.write("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, atomically.

    Parameters
    ----------
    path : path
        The file to write.
    value : JSON-ready value
        NaN is refused: write None.

    Examples
    --------
    >>> target = Path(tempfile.mkdtemp()) / "m.json"
    >>> write_json(target, {"miou": 0.5}); read_json(target)
    {'miou': 0.5}
    """
    with atomic_open(path) as f:
        json.dump(value, f, indent=1, allow_nan=False)
        f.write("\n")


def read_json(path: str | Path) -> Any:
    """The value of a JSON file, or None where there is none or it is damaged.

    Parameters
    ----------
    path : path
        The file to read.

    Returns
    -------
    JSON value or None

    Examples
    --------
    >>> read_json("no/such/file.json") is None
    True
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


class Run:
    """One method on one data set with one profile and one seed.

    Parameters
    ----------
    settings : Settings
        The profile's numbers with the overrides put in.
    folder : VOCFolder
        The data.
    method : str
        The method's name; it begins the name of the pipeline.
    seed : int
        Seed of every random draw of the run, 0 or more.
    root : path, optional
        The runs' root; by default `wsss_lib.project.runs_root`.

    Raises
    ------
    WsssError
        For a negative seed.

    Examples
    --------
    >>> from wsss_lib.data import VOCFolder
    >>> from wsss_lib.settings import load
    >>> folder = VOCFolder(getfixture("toy_root"), name="toy")
    >>> run = Run(load("smoke", {"cam.epochs": 2}), folder, seed=1, root="runs")
    >>> run.stage("classifier", uses=("cam",)).path.as_posix()
    'runs/toy/smoke/cam+cam.epochs=2/seed1/classifier'
    >>> run.stage("other", uses=("toy",)).path.as_posix()
    'runs/toy/smoke/cam/seed1/other'
    """

    def __init__(
        self,
        settings: Settings,
        folder: VOCFolder,
        method: str = "cam",
        seed: int = 0,
        root: str | Path | None = None,
    ):
        if not isinstance(seed, int) or seed < 0:
            raise WsssError(f"seed={seed!r}: give a whole number of 0 or more")
        self.settings, self.folder, self.method, self.seed = settings, folder, method, seed
        self.root = Path(root) if root else runs_root()

    def ids(self, split: str) -> tuple[str, ...]:
        """Image ids of the settings' ``train``, ``seed`` or ``val`` split, cut to ``data.limit``."""
        data = self.settings.data
        return self.folder.split(data[f"{split}_split"], data.limit)

    def of(self, method: str) -> Run:
        """The same run of another method."""
        return Run(self.settings, self.folder, method, self.seed, self.root)

    def stage(self, name: str, uses: tuple[str, ...], after: Stage | None = None) -> Stage:
        """The stage of this name, which depends on these sections of the settings and on the stage before it."""
        sections = tuple(dict.fromkeys((*(after.uses if after else ()), *uses)))
        assert not set(sections) & set(MACHINE_SECTIONS), "machine settings are no part of a result"
        pipeline = _pipeline_name(self.method, self.settings.changed(sections))
        path = self.root / self.folder.name / self.settings.profile / pipeline / f"seed{self.seed}" / name
        data = self.settings.data
        config = {
            "stage": name,
            "dataset": self.folder.name,
            "data": self.folder.fingerprint(data.train_split, data.seed_split, data.val_split),
            "profile": self.settings.profile,
            "method": self.method,
            "pipeline": pipeline,
            "seed": self.seed,
            "settings": {s: _plain(self.settings[s]) for s in sections},
            "after": after.fingerprint if after else None,
        }
        return Stage(name, path, config, sections, resume=self.settings.machine.resume)


class Stage:
    """A folder with one step's output, its settings (``config.json``) and its results (``metrics.json``).

    Parameters
    ----------
    name : str
        The step's name.
    path : Path
        The step's folder.
    config : dict
        Everything that the output depends on, JSON-ready.
    uses : tuple of str
        Sections of the settings that this step and those before it depend on.
    resume : bool
        Continue what an interrupted computation left; otherwise begin anew.

    Examples
    --------
    >>> stage = Stage("count", Path(tempfile.mkdtemp()) / "count", {"n": 3})
    >>> stage.ensure(lambda stage: {"sum": 6}).metrics["sum"], stage.complete
    (6, True)
    """

    def __init__(self, name: str, path: Path, config: dict, uses: tuple[str, ...] = (), resume: bool = True):
        self.name, self.path, self.config, self.uses, self.resume = name, Path(path), config, uses, resume

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits of the settings: equal settings, equal digits."""
        return _fingerprint(self.config)

    @property
    def metrics(self) -> dict:
        """What the finished stage reports."""
        return read_json(self.path / "metrics.json")

    @property
    def checkpoint(self) -> Path:
        """The file that holds the trained weights, or the state to continue from."""
        return self.path / "checkpoint.pt"

    @property
    def complete(self) -> bool:
        """Whether the folder holds this stage, finished, with these settings and all its files."""
        metrics = self.metrics
        if metrics is None or read_json(self.path / "config.json") != self.config:
            return False
        return all(self._count(pattern) == n for pattern, n in metrics["files"].items())

    def folder(self, name: str) -> Path:
        """A sub-folder for output, made if need be."""
        path = self.path / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def ensure(self, compute: Callable[[Stage], dict]) -> Stage:
        """Compute the stage unless it is complete; another process that asks meanwhile waits.

        ``compute(stage)`` writes into ``stage.path`` and returns the metrics; it may find files there that an
        interrupted computation with the same settings left. A worker process is refused: it would wait for ever
        for the stage that its own parent computes.
        """
        if self.complete:
            return self
        if multiprocessing.parent_process() is not None:
            raise WsssError(
                f"{self.name}: asked for inside a worker process; in a script, start the work under"
                ' if __name__ == "__main__":'
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{self.name}: another process is computing it, waiting ...")
            lock.acquire()
        try:
            self._make_room()
            if not self.complete:  # the other process, or an earlier run with these settings, has not done it
                (self.path / "metrics.json").unlink(missing_ok=True)
                start = time.perf_counter()
                metrics = compute(self)
                self._finish(metrics, time.perf_counter() - start)
        finally:
            lock.release()
        return self

    def _make_room(self) -> None:
        """Keep what these settings left unfinished; move what other settings left to a name of its own."""
        if self.path.exists():
            found = read_json(self.path / "config.json")
            if found != self.config:
                aside = self.path.with_name(f"{self.name}.{_fingerprint(found) if found else 'unknown'}")
                while aside.exists():
                    aside = aside.with_name(aside.name + "_")
                os.replace(self.path, aside)
                what = _difference(found, self.config) if found else "its config.json is damaged"
                print(f"{self.name}: settings changed ({what}); the earlier result is kept in {aside.name}")
            elif not self.resume and not self.complete:
                shutil.rmtree(self.path)
        earlier = self.path.with_name(f"{self.name}.{self.fingerprint}")
        if not self.path.exists() and self.resume and read_json(earlier / "config.json") == self.config:
            os.replace(earlier, self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "config.json", self.config)

    def _finish(self, metrics: dict, seconds: float) -> None:
        patterns = [f"{p.name}/*" for p in sorted(self.path.iterdir()) if p.is_dir()]
        if self.checkpoint.exists():
            patterns.append("checkpoint.pt")
        record = {**metrics, "seconds": round(seconds, 1), "kit": __version__}
        record["files"] = {pattern: self._count(pattern) for pattern in patterns}
        write_json(self.path / "metrics.json", record)

    def _count(self, pattern: str) -> int:
        return sum(1 for p in self.path.glob(pattern) if not p.name.startswith(".") and p.stat().st_size > 0)


def collect(root: str | Path | None = None) -> list[dict]:
    """All finished stages below a root.

    Parameters
    ----------
    root : path, optional
        The runs' root; by default `wsss_lib.project.runs_root`.

    Returns
    -------
    list of dict
        One row a stage: dataset, profile, method, pipeline, seed, stage, and ``metrics``; sorted.

    Examples
    --------
    >>> collect("no/such/folder")
    []
    """
    rows = []
    for path in Path(root or runs_root()).glob("*/*/*/seed*/*/metrics.json"):
        metrics, config = read_json(path), read_json(path.with_name("config.json"))
        if metrics is None or config is None or config.get("stage") != path.parent.name:
            continue  # unfinished, damaged, or moved aside when its settings changed
        keys = ("dataset", "profile", "method", "pipeline", "seed", "stage")
        rows.append({**{k: config[k] for k in keys}, "metrics": metrics})
    return sorted(rows, key=lambda r: tuple(str(r[k]) for k in ("dataset", "profile", "pipeline", "stage", "seed")))


def _plain(section) -> dict:
    return {k: _plain(v) if hasattr(v, "items") else v for k, v in section.items()}


def _fingerprint(config: dict) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def _pipeline_name(method: str, changed: dict) -> str:
    parts = [method, *(f"{k}={_short(v)}" for k, v in changed.items())]
    name = "+".join(parts)
    if len(name) > 120:  # file systems allow 255 bytes
        name = f"{method}+{len(changed)}_overrides_{_fingerprint(changed)}"
    return name


def _short(value) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if os.sep in text or "/" in text:  # a path: its name and a digest, never the machine's folders
        text = f"{Path(text).name}-{_fingerprint({'path': text})[:4]}"
    return text.replace(" ", "_")


def _difference(old: dict, new: dict) -> str:
    old, new = _flat(old), _flat(new)
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return ", ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys)


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
