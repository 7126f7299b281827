"""What the benchmarks share: two options, taking turns, peak memory, a table of medians, the machine, the record.

torch is imported where it is used: a pool's workers import the script that was started, and would wait for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np


def options_of(text: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with `--rounds` and `--threads`; `text` is a benchmark's docstring, whose first line says its claim."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options; torch computes in so many threads from here on."""
    options = parser.parse_args(arguments)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    return options


def take_turns(runs: Mapping[str, Callable[[], object]], rounds: int, repeats: int = 1) -> dict[str, list[float]]:
    """Seconds a call in every round for each of `runs`, one after the other; the first round warms up.

    Single calls of a few ms measure the machine's hiccups: `repeats` is how often each is called in its turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            if round_:
                seconds[name].append((time.perf_counter() - start) / repeats)
    return seconds


def trace(run: Callable[[], object]) -> list[dict]:
    """What torch's profiler notes of `run` on the CPU: its operations, every allocation and every release."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


def peak_mb(events: Iterable[dict]) -> float:
    """Peak memory of a trace in MB (1e6 bytes) beyond what was there before; only that of torch's CPU allocator."""
    memory = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    return float(np.cumsum([event["args"]["Bytes"] for event in memory]).max() / 1e6)


def peak(run: Callable[[], object], device: str) -> float:
    """Peak memory of `run` in MB beyond what was there, on the CPU or a GPU."""
    if device == "cpu":
        return peak_mb(trace(run))
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def spread(seconds: Iterable[float]) -> tuple[float, float, float]:
    """The median of several rounds, the fastest and the slowest."""
    seconds = list(seconds)
    return statistics.median(seconds), min(seconds), max(seconds)


def table(unit: str, rows: Mapping[str, Iterable[float]], width: int = 12) -> str:
    """A line for each of `rows`: its name, the median in `unit`, the fastest and the slowest round."""
    lines = [f"{'':{width}}{unit:>10}{'fastest':>10}{'slowest':>10}"]
    lines += [f"{name:{width}}" + "".join(f"{value:>10.3f}" for value in values) for name, values in rows.items()]
    return "\n".join(lines)


def machine() -> dict:
    """What computed: the record's entries `threads`, `machine` and `torch`."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
    }


def verdict(record: dict) -> int:
    """Print the record as the last line; 0 where the claim holds, else 1."""
    print(json.dumps(record))
    return 0 if record["holds"] else 1
