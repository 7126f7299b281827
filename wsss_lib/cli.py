"""`wsss`: run the notebooks of the course headless, and show what the runs scored.

One idea: the notebooks are the program. `wsss run` executes them with papermill, in their order, and keeps
the executed notebooks and their pictures beside the results; `wsss results` reads all finished stages. For
images without true masks, which most lessons compare with, `wsss masks` goes the same way without a lesson.

    wsss list
    wsss run all --profile demo
    wsss run 01_cam 07 -p seed=1 --set cam.epochs=3
    wsss masks my_images
    wsss results
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_lib.errors import WsssError

if TYPE_CHECKING:
    from wsss_lib.headless import Outcome

# The notebooks in their order, with those that each needs: if one fails, those that need it are not started.
NEEDS: dict[str, tuple[str, ...]] = {
    "00_start": (),
    "01_cam": (),
    "02_cda": ("01_cam",),
    "03_csd": ("01_cam",),
    "04_cpn": ("01_cam",),
    "05_deft": ("01_cam",),
    "06_ws_fcn": ("01_cam",),
    "07_pseudo_masks": ("01_cam",),
    "08_segmentation": ("07_pseudo_masks",),
    "09_compare": (),
}
CELL_TIMEOUT = {"smoke": 300, "demo": 900}  # seconds; other profiles may take as long as they need


def notebooks_folder() -> Path:
    """The folder of the notebooks: beside the package, or found upward from the current folder.

    Returns
    -------
    Path

    Raises
    ------
    WsssError
        If there is none, as after an installation without the checkout.

    Examples
    --------
    >>> notebooks_folder().name
    'notebooks'
    """
    here = Path.cwd()
    for folder in (Path(__file__).resolve().parent.parent, here, *here.parents):
        if any((folder / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            return folder / "notebooks"
    raise WsssError(f"no folder notebooks/ with notebooks in {here} or above it: run wsss inside a checkout of the kit")


def select(names: Sequence[str], folder: Path, needs: Mapping[str, tuple[str, ...]] = NEEDS) -> list[str]:
    """Names of notebooks, in the order in which they run.

    Parameters
    ----------
    names : sequence of str
        ``all``, names (``01_cam``) or their numbers (``01``).
    folder : path
        Where the notebooks lie.
    needs : mapping
        The notebooks in their order; others can be named, but are no part of ``all``.

    Returns
    -------
    list of str

    Raises
    ------
    WsssError
        For a name that no notebook has.

    Examples
    --------
    >>> select(["08", "01_cam"], notebooks_folder())
    ['01_cam', '08_segmentation']
    """
    there = sorted(path.stem for path in Path(folder).glob("[0-9][0-9]_*.ipynb"))
    ordered = [name for name in needs if name in there] + [name for name in there if name not in needs]
    chosen: set[str] = set()
    for name in names:
        wanted = name.removesuffix(".ipynb")
        found = [n for n in ordered if wanted in (n, n[:2]) or (wanted == "all" and n in needs)]
        if not found:
            raise WsssError(f"{name}: no such notebook; there are {', '.join(ordered) or 'none'}, and all")
        chosen.update(found)
    return [name for name in ordered if name in chosen]


def parse_value(text: str) -> Any:
    """A value from the command line: a Python literal, else the text itself.

    Parameters
    ----------
    text : str
        Such as ``3``, ``1e-4``, ``[1.0, 0.5]``, ``true`` or ``toy``.

    Returns
    -------
    object

    Examples
    --------
    >>> [parse_value(text) for text in ("3", "1e-4", "[1.0, 0.5]", "true", "toy", "")]
    [3, 0.0001, [1.0, 0.5], True, 'toy', '']
    """
    text = {"true": "True", "false": "False", "null": "None"}.get(text, text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_pairs(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """``key=value`` pairs of the command line.

    Parameters
    ----------
    pairs : iterable of str
        One pair each.
    option : str
        The option that they were given with, for the message.

    Returns
    -------
    dict

    Raises
    ------
    WsssError
        For a pair without ``=`` or without a key.

    Examples
    --------
    >>> parse_pairs(["cam.epochs=3", "data.dataset=toy"], "--set")
    {'cam.epochs': 3, 'data.dataset': 'toy'}
    """
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise WsssError(f"{option} {pair}: write {option} key=value")
        values[key.strip()] = parse_value(text.strip())
    return values


def parameters_of(notebook: Path) -> tuple[str, ...]:
    """The parameters that a notebook knows: the names in its cell tagged ``parameters``.

    Parameters
    ----------
    notebook : path
        An ``.ipynb`` file.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> parameters_of(notebooks_folder() / "01_cam.ipynb")
    ('profile', 'dataset', 'data_root', 'runs_root', 'seed', 'overrides')
    """
    import nbformat

    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", ()):
            body = ast.parse(cell.source).body
            targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
            targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
            return tuple(t.id for t in targets if isinstance(t, ast.Name))
    return ()


def output_folder(runs_root: Path, parameters: Mapping[str, Any]) -> Path:
    """Where executed notebooks go: ``<runs_root>/<dataset>/<profile>/notebooks/seed<k>``.

    What departs from the profile (overrides, another method) is added to ``notebooks``, so that runs with
    other settings lie side by side.

    Parameters
    ----------
    runs_root : path
        The runs' root.
    parameters : mapping
        The notebooks' parameters, with ``dataset`` and ``profile``.

    Returns
    -------
    Path

    Examples
    --------
    >>> kept = {"dataset": "toy", "profile": "demo", "seed": 1}
    >>> output_folder(Path("runs"), {**kept, "overrides": {"cam.epochs": 3}}).as_posix()
    'runs/toy/demo/notebooks+cam.epochs=3/seed1'
    """
    own = {"profile", "dataset", "data_root", "runs_root", "seed", "overrides"}
    departs = {**parameters.get("overrides", {}), **{k: v for k, v in parameters.items() if k not in own}}
    tags = [f"{k}={v}" for k, v in sorted(departs.items()) if (k, v) != ("method", "cam")]
    name = "+".join(["notebooks", *(re.sub(r"[^\w.=,-]+", "_", tag)[:60] for tag in tags)])[:200]
    return Path(runs_root) / parameters["dataset"] / parameters["profile"] / name / f"seed{parameters['seed']}"


def run(
    names: Sequence[str],
    *,
    profile: str = "",
    dataset: str = "",
    data_root: str | Path = "",
    runs_root: str | Path = "",
    parameters: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    timeout: int | None = None,
    folder: Path | None = None,
    needs: Mapping[str, tuple[str, ...]] = NEEDS,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Execute notebooks one after the other; when one fails, those that need it are not started.

    Parameters
    ----------
    names : sequence of str
        As for `select`.
    profile : str
        ``smoke``, ``demo``, ``laptop`` or ``paper``; by default ``$WSSS_PROFILE``, else ``demo``.
    dataset : str
        By default the profile's own.
    data_root : path
        Where the data lie; by default the notebooks find or make them.
    runs_root : path
        By default ``$WSSS_RUNS``, else ``runs/`` of the project.
    parameters : mapping, optional
        More parameters of the notebooks; each must be known to one of them.
    overrides : mapping, optional
        ``{"section.key": value}``, departures from the profile's settings.
    timeout : int, optional
        Seconds that one cell may take, 0 for no limit; by default `CELL_TIMEOUT`.
    folder : path, optional
        Where the notebooks lie; by default `notebooks_folder()`.
    needs : mapping
        Which notebooks need which.
    say : callable
        Gets one line at a time.

    Returns
    -------
    list of Outcome
        One for each notebook, in order.

    Raises
    ------
    WsssError
        Before anything starts: an unknown notebook, parameter, profile or override.

    Examples
    --------
    >>> run(["01"], parameters={"sed": 1})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    wsss_lib.errors.WsssError: parameter 'sed': 01_cam does not know it; it knows profile, dataset, ...
    """
    from wsss_lib import settings
    from wsss_lib.project import runs_root as default_runs_root

    folder = notebooks_folder() if folder is None else Path(folder)
    chosen = select(names, folder, needs)
    given = dict(parameters or {})
    changed = {**given.pop("overrides", {}), **(overrides or {})}
    given["profile"] = profile or given.get("profile") or os.environ.get("WSSS_PROFILE") or "demo"
    values = settings.load(given["profile"], changed)
    given["dataset"] = dataset or given.get("dataset") or values.data.dataset
    given["runs_root"] = str(Path(runs_root or given.get("runs_root") or default_runs_root()).absolute())
    if data_root or given.get("data_root"):
        given["data_root"] = str(Path(data_root or given["data_root"]).absolute())
    given.setdefault("seed", 0)
    if not isinstance(given["seed"], int) or given["seed"] < 0:
        raise WsssError(f"seed={given['seed']!r}: give a whole number of 0 or more")
    if changed:
        given["overrides"] = changed
    known = {name: parameters_of(folder / f"{name}.ipynb") for name in chosen}
    _check_parameters(given, known, asked=parameters or {})

    from wsss_lib.headless import Outcome, execute

    target = output_folder(Path(given["runs_root"]), given)
    limit = CELL_TIMEOUT.get(given["profile"], 0) if timeout is None else timeout
    outcomes: dict[str, Outcome] = {}
    for name in chosen:
        if missing := [n for n in needs.get(name, ()) if n in outcomes and not outcomes[n].ok]:
            message = f"needs {', '.join(missing)}, which did not finish"
            outcomes[name] = Outcome(name, "not started", message=message)
        else:
            own = {k: v for k, v in given.items() if k in known[name]}
            outcomes[name] = execute(folder / f"{name}.ipynb", target / f"{name}.ipynb", own, timeout=limit)
        done = outcomes[name]
        say(f"{name}: {done.state}" + (f" in {done.seconds:.0f} s" if done.ok else f": {done.message}"))
    return list(outcomes.values())


def _check_parameters(given: Mapping, known: Mapping[str, tuple[str, ...]], asked: Mapping) -> None:
    for key in given:
        without = [name for name, names in known.items() if key not in names]
        if len(without) == len(known) and (key in asked or key == "overrides"):
            valid = ", ".join(dict.fromkeys(n for names in known.values() for n in names)) or "none"
            does, knows = ("does", "it knows") if len(without) == 1 else ("do", "they know")
            raise WsssError(f"parameter {key!r}: {', '.join(without)} {does} not know it; {knows} {valid}")


def listing(folder: Path, needs: Mapping[str, tuple[str, ...]] = NEEDS) -> str:
    """The notebooks with their titles and what they need.

    Parameters
    ----------
    folder : path
        Where the notebooks lie.
    needs : mapping
        Which notebooks need which.

    Returns
    -------
    str

    Examples
    --------
    >>> print(listing(notebooks_folder()))  # doctest: +ELLIPSIS
    00_start ...
    """
    import nbformat

    lines = []
    for name in select(["all"], folder, needs):
        cells = nbformat.read(Path(folder) / f"{name}.ipynb", as_version=4).cells
        heads = (m.group(1) for c in cells if (m := re.search(r"^# (.+)", c.source, re.M)))
        after = f"  (after {', '.join(needs[name])})" if needs.get(name) else ""
        lines.append(f"{name:<16} {next(heads, '')}{after}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line's parser.

    Returns
    -------
    ArgumentParser

    Examples
    --------
    >>> parser().parse_args(["run", "01", "-p", "seed=1"]).parameter
    ['seed=1']
    """
    computes = argparse.ArgumentParser(add_help=False)
    computes.add_argument("--dataset", default="", help="name of the data set; default: the profile's")
    computes.add_argument("--runs-root", default="", metavar="DIR", help="where runs are kept; default: runs/")
    computes.add_argument(
        "--set", dest="override", action="append", nargs="+", default=[], metavar="SECTION.KEY=VALUE",
        help="depart from the profile's settings, as cam.epochs=3",
    )  # fmt: skip
    computes.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue what an interrupted run left (default), or compute unfinished stages from the start",
    )

    top = argparse.ArgumentParser(prog="wsss", description="Run the notebooks headless, and show their results.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser(
        "run", parents=[computes], help="execute notebooks", description="Execute notebooks with papermill."
    )
    one.add_argument("names", nargs="+", metavar="NAME", help="01_cam, 01, several, or all")
    one.add_argument("--profile", default="", help="smoke, demo (default), laptop or paper")
    one.add_argument("--data-root", default="", metavar="DIR", help="where the data lie")
    one.add_argument(
        "-p",
        dest="parameter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a notebook's parameter",
    )
    one.add_argument("--timeout", type=int, metavar="S", help="seconds that one cell may take; 0: no limit")
    two = commands.add_parser(
        "masks", parents=[computes], help="masks of your own images",
        description="Learn masks from images and their labels, without a lesson and without true masks.",
    )  # fmt: skip
    two.add_argument("data_root", metavar="DIR", help="the images, in VOC layout")
    two.add_argument("--profile", default="laptop", help="smoke, demo, laptop (default) or paper")
    two.add_argument("--method", default="cam", help="cam (default), seam, cda, csd, cpn, deft or ws_fcn")
    two.add_argument("--seed", type=int, default=0, help="of every random draw; default: 0")
    three = commands.add_parser("results", help="table of all scores", description="Scores of all finished runs.")
    three.add_argument("--runs-root", default="", metavar="DIR", help="where runs are kept; default: runs/")
    commands.add_parser("list", help="the notebooks", description="The notebooks, and what each needs.")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        0 if all went well, 1 if a notebook failed, 2 for a mistake in what was asked for, 130 if interrupted.

    Examples
    --------
    >>> main(["results", "--runs-root", "no/such/folder"])
    no finished runs in no/such/folder: start with wsss run all
    0
    """
    args = parser().parse_args(argv)
    try:
        return {"run": _run, "masks": _masks, "results": _results, "list": _list}[args.command](args)
    except WsssError as error:
        print(f"wsss: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wsss: interrupted; run it again to continue", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    outcomes = run(
        args.names,
        profile=args.profile,
        dataset=args.dataset,
        data_root=args.data_root,
        runs_root=args.runs_root,
        parameters=parse_pairs(args.parameter, "-p"),
        overrides=_overrides(args),
        timeout=args.timeout,
    )
    written = [outcome.path for outcome in outcomes if outcome.path]
    if written:
        print(f"executed notebooks: {_short(written[0].parent)}/")
        print(f"their pictures:     {_short(written[0].parent)}/*_files/*.png")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def _masks(args: argparse.Namespace) -> int:
    from wsss_lib import settings
    from wsss_lib.data import VOCFolder
    from wsss_lib.runs import Run
    from wsss_lib.way import make_masks

    values = settings.load(args.profile, _overrides(args))
    name = args.dataset or values.data.dataset
    folder = VOCFolder(args.data_root, name="" if name == "toy" else name)  # one's own are not the toy scenes
    made = make_masks(Run(values, folder, args.method, args.seed, args.runs_root or None))
    for of, stage in made:
        score = stage.metrics["mask"]
        print(f"masks of {of}: {_short(stage.folder('masks'))}/" + (f"  (mIoU {score['miou']:.1%})" if score else ""))
    print(f"some of them:  {_short(made[-1][1].path / 'overview.png')}")
    return 0


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    given = parse_pairs([pair for pairs in args.override for pair in pairs], "--set")
    return given if args.resume else {**given, "machine.resume": False}


def _results(args: argparse.Namespace) -> int:
    from wsss_lib import results
    from wsss_lib.project import runs_root

    root = Path(args.runs_root or runs_root())
    table = results.table(root)
    print(
        f"no finished runs in {_short(root)}: start with wsss run all" if table.empty else table.to_string(index=False)
    )
    return 0


def _list(_args: argparse.Namespace) -> int:
    print(listing(notebooks_folder()))
    return 0


def _short(path: Path) -> str:
    """A path as seen from the current folder, where it lies inside."""
    path, here = Path(path), Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


if __name__ == "__main__":
    sys.exit(main())
