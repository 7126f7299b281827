"""Work spread over processes: bounded memory, errors that name the image, no orphans on Ctrl-C.

One idea: at most two jobs a process are in flight, so jobs may come from a generator and carry arrays,
however many there are. Workers start afresh (a plain fork would copy a torch with running threads) and import
only the module of the function that they run: keep torch out of it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from wsss_lib.errors import WsssError


def work(function: Callable, jobs: Iterable[tuple[str, Sequence]], processes: int) -> Iterator[tuple[str, object]]:
    """Yield `(name, function(*arguments))` for every job, in the order in which they finish.

    Parameters
    ----------
    function : callable
        A function of a module (or a `partial` of one), which runs in the workers.
    jobs : iterable of (str, tuple)
        Names (image ids) and arguments; drawn only when a worker is nearly free.
    processes : int
        Number of worker processes; 1 runs here, without a pool.

    Yields
    ------
    tuple
        The job's name and its result.

    Raises
    ------
    WsssError
        If a job fails: the message starts with its name. Jobs in flight end first, the rest is dropped.

    Examples
    --------
    >>> list(work(len, [("a", ([1, 2],)), ("b", ([],))], processes=1))
    [('a', 2), ('b', 0)]
    """
    if processes < 1:
        raise WsssError(f"processes={processes}: give 1 or more")
    if processes == 1:
        for name, arguments in jobs:
            yield name, _run(function, name, arguments)
    else:
        yield from _in_pool(function, iter(jobs), processes)


def _run(function, name, arguments):
    try:
        return function(*arguments)
    except Exception as error:
        raise WsssError(f"{name}: {error}" if isinstance(error, WsssError) else f"{name}: {error!r}") from error


def _leave_ctrl_c_to_the_parent():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_pool(function, jobs, processes):
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    pool = ProcessPoolExecutor(processes, context, initializer=_leave_ctrl_c_to_the_parent)
    try:
        running = {pool.submit(_run, function, *job): job[0] for job in islice(jobs, 2 * processes)}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                result = future.result()
                for job in islice(jobs, 1):
                    running[pool.submit(_run, function, *job)] = job[0]
                yield name, result
    except BrokenProcessPool as error:
        raise WsssError("a worker process died, most likely out of memory; use fewer processes") from error
    finally:
        pool.shutdown(cancel_futures=True)
