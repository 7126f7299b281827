"""Measure every claim in this folder, one process each, and print a table: `python -m benchmarks [NAME ...]`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    """The benchmarks: every file here whose name does not begin with an underscore."""
    return sorted(path.stem for path in HERE.glob("[!_]*.py"))


def run(name: str) -> dict:
    """Run one benchmark, show what it prints as it comes, and return the record of its last line."""
    print(f"== {name}", flush=True)
    last = ""
    command = [sys.executable, str(HERE / f"{name}.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    try:
        record = json.loads(last)
        record["holds"] = bool(record["holds"]) and process.returncode == 0
    except (json.JSONDecodeError, KeyError, TypeError):
        record = {"claim": f"stopped with exit code {process.returncode}", "holds": False}
    return {"name": name, **record}


def table(records: list[dict]) -> str:
    """One line a claim: name, ours, reference, ratio, bar, and whether it holds."""
    columns = ("ours", "reference", "ratio", "bar")
    lines = [f"{'benchmark':24}" + "".join(f"{column:>12}" for column in columns) + "  holds"]
    for record in records:
        cells = "".join(f"{record.get(column, '-'):>12}" for column in columns)
        lines.append(f"{record['name']:24}{cells}  {'yes' if record['holds'] else 'NO'}")
    return "\n".join(lines)


def main(wanted: list[str]) -> int:
    """Run the benchmarks wanted (all if none is named); 0 where every claim holds, else 1."""
    known = names()
    if unknown := [name for name in wanted if name not in known]:
        print(f"benchmark {unknown[0]!r} is unknown: choose of {', '.join(known)}", file=sys.stderr)
        return 2
    records = [run(name) for name in wanted or known]
    print(f"\n{table(records)}")
    return 0 if all(record["holds"] for record in records) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
