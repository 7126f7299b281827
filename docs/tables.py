"""The tables of `docs/evaluation.md`, from the data that the kit computes with.

One idea: a number that stands in a page and in code is wrong in one of them some day, so the page's are written by the
code. Between the comments `<!-- table: NAME -->` and `<!-- end -->` stands what the function of that name returns.

    python docs/tables.py            # write them anew
    python docs/tables.py --check    # are they in step?
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from wsss_lib.protocols import MASKS, SEEDS, Protocol
from wsss_lib.refine.mean_field import HARD, LA_HA, PRESETS

PAGE = Path(__file__).with_name("evaluation.md")
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)
MEANS = {"present": "in truth or prediction", "all": "all, absent ones as 0", "truth": "in the truth"}
USES = {
    "irn": "IRN: labels for IRNet",
    "psa": "PSA: maps at both exponents",
    "seam": "SEAM: maps at both exponents",
    "mctformer": "MCTformer and CSD: maps at both exponents",
    "cpn": "CPN: a helper that its pipeline does not call",
    "ssss": "SSSS: masks at test time",
    "ws_fcn": "WS-FCN: masks at test time",
    "deeplab_v2": "deeplab-pytorch: masks at test time",
    "seam_segment": "SEAM and CPN: masks of the segmentation",
    "mctformer_segment": "MCTformer: masks of the segmentation",
}


def maps() -> str:
    """How maps come about that are scored as seeds."""
    rows = ([f"`{name}`", p.repository, _views(p), p.merged, p.normalised] for name, p in SEEDS.items())
    return _table(["protocol", "code", "scales", "views are merged", "a map gets into [0, 1]"], rows)


def seeds() -> str:
    """How seeds are scored."""
    rows = (
        [f"`{name}`", _rule(p), _reach(p), MEANS[p.over], f"{p.split}, {p.truth}", p.note or "-"]
        for name, p in SEEDS.items()
    )
    head = ["protocol", "background threshold", "of maps in [0, 1]", "classes in the mean", "images, truth"]
    return _table([*head, "note"], rows)


def masks() -> str:
    """How masks come about and are scored."""
    rows = (
        [
            f"`{name}`",
            p.repository,
            _views(p),
            p.merged,
            p.normalised,
            p.labels,
            f"`{p.crf}`" if p.crf else "-",
            MEANS[p.over],
            p.split,
            p.note or "-",
        ]
        for name, p in MASKS.items()
    )
    head = ["protocol", "code", "scales", "views are merged", "background", "image labels", "CRF"]
    return _table([*head, "classes in the mean", "images", "note"], rows)


def crfs() -> str:
    """The numbers of the dense CRFs."""
    rows = (
        [
            f"`{name}`",
            USES[name],
            "argmax, at 0.7" if name in HARD else "scores",
            str(s.iterations),
            f"{s.gaussian_sxy:g} / {s.gaussian_compat:g}",
            f"{s.bilateral_sxy:g} / {s.bilateral_srgb:g} / {s.bilateral_compat:g}",
        ]
        for name, s in PRESETS.items()
    )
    head = ["preset", "of", "refines", "iterations", "place: width / weight"]
    return _table([*head, "place and colour: widths / weight"], rows)


def pairs() -> str:
    """What leaves only pixels that are sure."""
    kinds = {"power": "exponents of (1 - strongest)", "constant": "constant scores"}
    rows = (
        [f"`{name}`", kinds[kind], f"{of_objects:g}", f"{of_background:g}"]
        for kind, table in LA_HA.items()
        for name, (of_objects, of_background) in table.items()
    )
    return _table(["pipeline", "background's score", "sure of objects", "sure of background"], rows)


TABLES = {table.__name__: table for table in (maps, seeds, masks, crfs, pairs)}


def fill(page: str) -> str:
    """The page with its tables written anew."""
    return PLACE.sub(lambda place: f"{place[1]}{TABLES[place[2]]()}\n{place[3]}", page)


def main(arguments: list[str]) -> int:
    """Write the tables, or with `--check` compare them; 1 if they are not in step."""
    page = PAGE.read_text(encoding="utf-8")
    filled = fill(page)
    if "--check" not in arguments:
        PAGE.write_text(filled, encoding="utf-8")
    elif filled != page:
        print("docs/evaluation.md: its tables are out of step; run python docs/tables.py", file=sys.stderr)
        return 1
    return 0


def _views(protocol: Protocol) -> str:
    if not protocol.scales:
        return "as in the settings" if protocol.repository == "this kit" else "-"
    scales = ", ".join(f"{scale:g}" for scale in protocol.scales)
    return f"{scales}; each mirrored, too" if protocol.flip else scales


def _rule(protocol: Protocol) -> str:
    first, last = protocol.sweep[0], protocol.sweep[-1]
    if first == last:
        return f"{first:.2f}"
    how = "up to the first that is no better" if protocol.first_drop else "the best"
    return f"{first:.2f} to {last:.2f} in steps of 0.01, {how}"


def _reach(protocol: Protocol) -> str:
    first, last = protocol.thresholds[0], protocol.thresholds[-1]
    return f"{first:.2f}" if first == last else f"{first:.2f} to {last:.2f}"


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
