"""The pool of processes: bounded, honest about errors, gone afterwards."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from wsss_lib.errors import WsssError
from wsss_lib.pool import work


@pytest.mark.parametrize("processes", [1, 2])
def test_every_job_gives_its_result_under_its_name(processes):
    jobs = [(str(n), (n, 2)) for n in range(9)]
    assert dict(work(pow, jobs, processes)) == {str(n): n**2 for n in range(9)}


def test_jobs_are_drawn_only_when_needed():
    drawn = []

    def jobs():
        for n in range(30):
            drawn.append(n)
            yield str(n), (n,)

    for done, _ in enumerate(work(abs, jobs(), processes=2), start=1):
        assert len(drawn) <= done + 4  # two a process


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_names_its_job(processes):
    with pytest.raises(WsssError, match=r"^bad: TypeError\("):
        list(work(abs, [("good", (1,)), ("bad", ("x",)), ("after", (2,))], processes))
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_reported():
    with pytest.raises(WsssError, match="use fewer processes"):
        list(work(os._exit, [("a", (1,))], processes=2))


def test_leaving_early_ends_the_workers():
    results = work(abs, ((str(n), (n,)) for n in range(100)), processes=2)
    next(results)
    results.close()
    assert not multiprocessing.active_children()


def test_no_process_is_refused():
    with pytest.raises(WsssError, match="give 1 or more"):
        list(work(abs, [], processes=0))


SCRIPT = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
from wsss_lib.pool import work
if __name__ == "__main__":
    for name, _ in work(time.sleep, ((str(n), (0.1,)) for n in range(600)), 2):
        print(name, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a process group")
def test_ctrl_c_ends_all_processes_soon(tmp_path, project):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(project)}
    run = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        start_new_session=True, text=True,
    )  # fmt: skip
    run.stdout.readline()
    start = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert time.monotonic() - start < 10 and "KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):  # nobody is left in the group
        for _ in range(50):
            os.killpg(run.pid, 0)
            time.sleep(0.1)
