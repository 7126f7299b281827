"""Notebooks from their sources: `src/NN_name.py` (py:percent, what people edit) to `NN_name.ipynb`, executed.

One idea: a notebook is a function of its source. A cell's id is a digest of its content, so an unchanged cell
keeps its id; nothing of the machine or the hour stays in the file; what cannot be kept stable is thrown away.

    python notebooks/build.py                   # all, from an empty runs folder
    python notebooks/build.py --only 01_cam     # one, beside the runs that are there
    python notebooks/build.py --check           # are sources and notebooks in step? executes nothing
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent
WORK = NOTEBOOKS.parent / "build" / "notebooks"  # runs and failed notebooks; never committed
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
BAR = re.compile(r"(\d+%\|.*?\| *\S+/\S+) \[[^\]]*\]")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
MACHINE_PATH = re.compile(
    r"(?<![\w.:/<~-])/(?:home|root|work|tmp|Users|mnt|opt|private|var|usr|srv|workspace)/[^\s'\"<>)]*"
    r"|\b[A-Z]:\\\\?\w[^\s'\"<>)]*"
)


class BuildError(RuntimeError):
    """A notebook that cannot be built; its message is one line with the notebook's name."""


def sources(src: Path, only: Iterable[str] = ()) -> list[Path]:
    """The sources by name; `only` takes names or their numbers (`01_cam`, `01`)."""
    found = sorted(src.glob("[0-9][0-9]_*.py"))
    if not only:
        return found
    chosen = []
    for name in only:
        match = [p for p in found if name in (p.stem, p.stem[:2])]
        if not match:
            raise BuildError(f"{name}: no such source; there are {', '.join(p.stem for p in found) or 'none'}")
        chosen += match
    return chosen


def read_source(path: Path) -> nbformat.NotebookNode:
    """A notebook without outputs: the source's cells with their tags, stable ids and clean metadata."""
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        text = f"{path.stem}\n{cell.cell_type}\n{cell.source}"
        seen[text] = seen.get(text, -1) + 1
        digest = hashlib.sha256(f"{text}\n{seen[text]}".encode()).hexdigest()
        cell.id = f"{path.stem[:2]}-{digest[:10]}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if not k.startswith("lines_to_")}
    notebook.metadata = json.loads(json.dumps(METADATA))
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook = nbformat.from_dict(notebook)
    nbformat.validate(notebook)
    return notebook


def execute(notebook: nbformat.NotebookNode, name: str, folder: Path, runs: Path, timeout: int) -> None:
    """Fill in the outputs: a fresh kernel in the notebook's own folder, the demo profile, one thread.

    One thread, because the last digits of sums depend on the number of threads, and training carries that on.
    """
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,  # a progress bar is one output, not one a second
        extra_arguments=["--log-level=ERROR"],
    )
    env = {
        **os.environ,
        "WSSS_PROFILE": "demo",
        "WSSS_RUNS": str(runs),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
    try:
        client.execute(env=env)
    except Exception as error:  # a cell's error, a timeout, a dead kernel: the other notebooks are built all the same
        number, cell = _failed_cell(notebook)
        reason = (getattr(error, "evalue", "") or str(error)).strip().splitlines()[-1:] or [""]
        raise BuildError(
            f"{name}: cell {number} failed ({cell.source.strip().splitlines()[0]!r}):"
            f" {getattr(error, 'ename', type(error).__name__)}: {reason[0]};"
            f" {_keep_failed(notebook, name)}"
        ) from None


def _keep_failed(notebook, name: str) -> str:
    """What was executed, kept where it can be looked at; returns where that is."""
    WORK.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, WORK / f"{name}.failed.ipynb")
    return f"see build/notebooks/{name}.failed.ipynb"


def _failed_cell(notebook) -> tuple[int, nbformat.NotebookNode]:
    code = [(i, c) for i, c in enumerate(notebook.cells, 1) if c.cell_type == "code" and c.source.strip()]
    for i, cell in code:
        if any(o.output_type == "error" for o in cell.outputs):
            return i, cell
    return next(((i, c) for i, c in code if c.execution_count is None), code[-1])


def tidy(notebook: nbformat.NotebookNode, name: str) -> None:
    """Throw away what changes from run to run; refuse what names the machine."""
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = nbformat.from_dict(METADATA)
    if widgets:
        notebook.metadata["widgets"] = widgets
    faults = []
    for number, cell in enumerate(notebook.cells, 1):
        for key in ("execution", "papermill", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [kept for output in cell.outputs if (kept := _tidy_output(output))]
        lines = (line for text in texts(cell) for line in text.splitlines())
        faults += [f"cell {number} shows {line.strip()[:200]!r}" for line in lines if machine_text(line)]
    if faults:
        raise BuildError(
            f"{name}: {'; '.join(faults)}: this names the machine;"
            f" show a path relative to the project, or nothing; {_keep_failed(notebook, name)}"
        )
    _name_models_by_order(notebook, name)


def _tidy_output(output):
    if output.output_type == "stream":
        output.text = last_state(output.text)
        return output if output.text else None
    for mime, data in output.get("data", {}).items():
        if mime.startswith("text/") and isinstance(data, str):
            output.data[mime] = ADDRESS.sub("0x0", data)
    return output


def last_state(text: str) -> str:
    """A stream as a terminal would show it in the end, without the speed and time of progress bars."""
    lines = []
    for line in ESCAPE.sub("", text).split("\n"):
        shown = line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()
        if shown or "\r" not in line:
            lines.append(ADDRESS.sub("0x0", BAR.sub(r"\1", shown)))
    kept = "\n".join(lines)
    return kept if kept.strip() else ""


def texts(cell) -> Iterator[str]:
    """What a code cell shows as text."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        elif output.output_type == "error":
            yield "\n".join([output.evalue, *output.traceback])
        for mime, data in output.get("data", {}).items():
            if mime.startswith("text/"):
                yield data if isinstance(data, str) else "".join(data)


def machine_text(text: str) -> str:
    """The first part of a text that names this machine or any other's folders; "" if there is none."""
    own = [str(NOTEBOOKS.parent), sys.prefix, str(Path.home()), tempfile.gettempdir(), socket.gethostname()]
    for part in own:
        if len(part) > 5 and part != "localhost" and part in text:
            return part
    found = MACHINE_PATH.search(text)
    return found.group() if found else ""


def _name_models_by_order(notebook, name: str) -> None:
    """Widgets' random model ids become numbered ones, in order of appearance (outputs, then states)."""
    bundle = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    state = bundle.get("state", {})
    if not state:
        return
    ordered: dict[str, None] = {}

    def visit(text: str) -> None:
        for model in re.findall(r"[0-9a-f]{32}", text):
            if model in state and model not in ordered:
                ordered[model] = None
                visit(json.dumps(state[model], sort_keys=True))

    visit(json.dumps(notebook.cells))
    visit(" ".join(state))
    text = json.dumps({"cells": notebook.cells, "metadata": notebook.metadata})
    for i, old in enumerate(ordered):
        text = text.replace(old, hashlib.sha256(f"{name} widget {i}".encode()).hexdigest()[:32])
    renamed = nbformat.from_dict(json.loads(text))
    notebook.cells, notebook.metadata = renamed.cells, renamed.metadata


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    nbformat.validate(notebook)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")
    os.replace(partial, path)


def differences(src: Path, out: Path, only: Iterable[str] = ()) -> list[str]:
    """Where sources and notebooks are out of step: one line a finding."""
    found = []
    chosen = sources(src, only)
    for path in chosen:
        target = out / f"{path.stem}.ipynb"
        if not target.is_file():
            found.append(f"{path.stem}: no notebook; run make notebooks")
            continue
        built, kept = read_source(path), nbformat.read(target, as_version=4)
        found += [f"{path.stem}: {line}" for line in _compare(built.cells, kept.cells)]
        if not any(c.cell_type == "code" and c.execution_count for c in kept.cells):
            found.append(f"{path.stem}: not executed")
    if not only:
        stems = {path.stem for path in chosen}
        found += [f"{p.stem}: no source src/{p.stem}.py" for p in sorted(out.glob("*.ipynb")) if p.stem not in stems]
    return found


def _compare(built: list, kept: list) -> Iterator[str]:
    for number, (new, old) in enumerate(zip(built, kept, strict=False), 1):
        parts = {
            "type": (new.cell_type, old.cell_type),
            "source": (new.source, old.source),
            "tags": (new.metadata, old.metadata),
            "id": (new.id, old.get("id")),
        }
        if wrong := [part for part, (a, b) in parts.items() if a != b]:
            first = (new.source.strip().splitlines() or [""])[0]
            yield f"cell {number} differs in {', '.join(wrong)} (source: {first[:60]!r})"
            return  # what follows is shifted
    if len(built) != len(kept):
        yield f"{len(built)} cells in the source, {len(kept)} in the notebook"


def build(path: Path, out: Path, runs: Path, timeout: int) -> str:
    """Build and execute one notebook; returns a line that says how long and how large."""
    start = time.perf_counter()
    notebook = read_source(path)
    execute(notebook, path.stem, out, runs, timeout)
    tidy(notebook, path.stem)
    target = out / f"{path.stem}.ipynb"
    write(notebook, target)
    seconds = time.perf_counter() - start
    return f"{path.stem}: {len(notebook.cells)} cells, {seconds:.0f} s, {target.stat().st_size / 1e6:.2f} MB"


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 if all went well, 1 with a line for each fault."""
    parser = argparse.ArgumentParser(prog="build.py", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare sources and notebooks")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these notebooks (01_cam or 01)")
    parser.add_argument("--timeout", type=int, default=600, metavar="S", help="seconds that one cell may take")
    parser.add_argument("--src", type=Path, default=NOTEBOOKS / "src", help="folder of the sources")
    parser.add_argument("--out", type=Path, default=NOTEBOOKS, help="folder of the notebooks")
    parser.add_argument("--runs", type=Path, default=WORK / "runs", help="folder of the runs")
    args = parser.parse_args(argv)
    try:
        if args.check:
            found = differences(args.src, args.out, args.only)
            print("\n".join(found) or "sources and notebooks are in step")
            return bool(found)
        chosen = sources(args.src, args.only)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    if not args.only:
        shutil.rmtree(args.runs, ignore_errors=True)
    failed = 0
    for path in chosen:
        try:
            print(build(path, args.out.resolve(), args.runs.resolve(), args.timeout), flush=True)
        except BuildError as error:
            print(error, file=sys.stderr)
            failed += 1
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
