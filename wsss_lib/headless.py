"""One notebook, executed headless.

One idea: papermill executes it in a fresh kernel, and whatever happens the executed notebook is kept, with its
pictures beside it and one line that says what went wrong. Most of a short lesson's time is its surroundings (the
kernel's start and end, saving after each cell), so these are kept small.
"""

from __future__ import annotations

import base64
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

SAVE_EVERY = 2  # seconds, at least, from one save of a running notebook to the next
# The libraries that a lesson imports make half a million objects that stay: looking through them for garbage as
# often as Python does by itself costs three seconds.
RARE_GARBAGE_COLLECTION = "import gc; gc.set_threshold(100_000, 50, 100)"


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook.

    Parameters
    ----------
    name : str
        The notebook.
    state : str
        ``done``, ``failed`` or ``not started``.
    path : Path, optional
        The executed notebook; kept after a failure too.
    seconds : float
        How long it took.
    message : str
        One line: the failing cell and its error, or what was missing.

    Examples
    --------
    >>> Outcome("01_cam", "done").ok
    True
    """

    name: str
    state: str
    path: Path | None = None
    seconds: float = 0.0
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether the notebook ran to its end."""
        return self.state == "done"


class _SparingEngine(NBClientEngine):
    """Papermill's engine, which saves at most every `SAVE_EVERY` seconds instead of twice for each cell."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, **options: Any) -> None:
        """Execute all cells of `nb_man.nb`; the last state is saved whether they finish or fail."""
        save = nb_man.save

        def save_if_due() -> None:
            if (nb_man.now() - nb_man.last_save_time).total_seconds() >= SAVE_EVERY:
                save()

        nb_man.save = save_if_due
        try:
            super().execute_managed_notebook(nb_man, kernel_name, **options)
        finally:
            save()


papermill_engines.register("sparing", _SparingEngine)


def execute(source: Path, target: Path, parameters: Mapping[str, Any], timeout: int = 0) -> Outcome:
    """Execute one notebook with papermill in the notebook's own folder, and save its pictures as PNG files.

    Parameters
    ----------
    source : path
        The notebook.
    target : path
        The executed notebook, kept whatever happens; pictures go to ``<stem>_files/`` beside it.
    parameters : mapping
        Values for the notebook's parameters cell.
    timeout : int
        Seconds that one cell may take; 0 for no limit.

    Returns
    -------
    Outcome

    Examples
    --------
    >>> execute(Path("no_such.ipynb"), Path("out.ipynb"), {}).message
    'no_such.ipynb: no such notebook'
    """
    source, target, start = Path(source), Path(target), time.perf_counter()
    if not source.is_file():
        return Outcome(source.stem, "failed", message=f"{source.name}: no such notebook")

    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    state, message = "done", ""
    try:
        papermill.execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (source, target)),
            parameters=dict(parameters),
            kernel_name="python3",
            language="python",
            engine_name="sparing",
            cwd=str(source.parent),
            execution_timeout=timeout or None,
            extra_arguments=["--log-level=ERROR", f"--IPKernelApp.code_to_run={RARE_GARBAGE_COLLECTION}"],
            shutdown_kernel="immediate",  # all is written: two seconds of taking the libraries down serve nobody
            progress_bar={"desc": source.stem, "mininterval": 0.5 if sys.stderr.isatty() else 20},
        )
    except Exception as error:  # a cell's error, a timeout, a dead kernel: whatever it is, the others go on
        state, message = "failed", _failure(target, error)
    kept = target if target.is_file() else None
    if kept:
        save_pictures(kept)
    return Outcome(source.stem, state, kept, time.perf_counter() - start, message)


def _failure(target: Path, error: Exception) -> str:
    """The failing cell by number and first line, and the error's last line."""
    reason = [f"{type(error).__name__}: {line}" for line in str(error).strip().splitlines()][-1:]
    if hasattr(error, "ename"):
        reason = [f"{error.ename}: {line}" for line in error.evalue.strip().splitlines()][-1:] or [error.ename]
    what = reason[0] if reason else type(error).__name__
    if not target.is_file():
        return what
    cells = nbformat.read(target, as_version=4).cells
    own = {"papermill-error-cell-tag", "injected-parameters"}
    cells = [cell for cell in cells if not own & set(cell.metadata.get("tags", ()))]
    started = [
        (number, cell)
        for number, cell in enumerate(cells, 1)
        if cell.cell_type == "code" and cell.metadata.get("papermill", {}).get("start_time")
    ]
    if not started:
        return what
    number, cell = started[-1]
    first = (cell.source.strip().splitlines() or [""])[0]
    return f"cell {number} ({first}) failed: {what}"


def save_pictures(notebook: Path) -> list[Path]:
    """Write the pictures of an executed notebook as PNG files into ``<stem>_files/`` beside it.

    Parameters
    ----------
    notebook : path
        The executed notebook; pictures that an earlier execution left are deleted.

    Returns
    -------
    list of Path

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "empty.ipynb"
    >>> _ = path.write_text(nbformat.writes(nbformat.v4.new_notebook()))
    >>> save_pictures(path)
    []
    """
    folder = notebook.with_name(f"{notebook.stem}_files")
    shutil.rmtree(folder, ignore_errors=True)
    outputs = [o for c in nbformat.read(notebook, as_version=4).cells for o in c.get("outputs", ())]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", ())]
    paths = []
    for number, picture in enumerate(pictures, 1):
        folder.mkdir(exist_ok=True)
        paths.append(folder / f"figure_{number:02d}.png")
        paths[-1].write_bytes(base64.b64decode(picture))
    return paths
