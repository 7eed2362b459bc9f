import os
import signal
import subprocess
import sys
import time

import pytest

from dse.engine import LocalEngine
from quantizers.errors import UsageError


def square(x):
    return x * x


def fragile(x):
    """Fails in the ways that a real evaluation can."""
    if x == "raise":
        msg = "no such thing"
        raise ValueError(msg)
    if x == "usage":
        msg = "dot_length must be a positive integer, not -1"
        raise UsageError(msg)
    if x == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if x == "exit":
        os._exit(3)
    if x == "hang":
        time.sleep(600)
    return x


def threads(_):
    return os.environ["OMP_NUM_THREADS"]


def run(function, items, timeout_s=60.0, workers=2):
    with LocalEngine(workers) as engine:
        outcomes = sorted(engine.run(function, items, timeout_s=timeout_s), key=lambda o: o.index)
    assert [outcome.index for outcome in outcomes] == list(range(len(items)))
    return outcomes


def test_every_item_has_its_own_outcome():
    assert [o.value for o in run(square, list(range(7)))] == [0, 1, 4, 9, 16, 25, 36]


def test_nothing_to_do():
    assert run(square, []) == []


def test_failures_stay_with_their_item():
    outcomes = run(fragile, ["a", "raise", "usage", "die", "b", "exit", "c"])
    assert [o.value for o in outcomes] == ["a", None, None, None, "b", None, "c"]
    errors = [o.error for o in outcomes]
    assert errors[0] is None
    assert errors[1].strip().splitlines()[-1] == "ValueError: no such thing"
    assert errors[2] == "dot_length must be a positive integer, not -1"
    assert errors[3] == "the worker process died (killed by SIGKILL, perhaps out of memory)"
    assert errors[5] == "the worker process died (exit code 3)"


def test_time_limit_ends_one_item_only():
    outcomes = run(fragile, ["hang", "a", "b"], timeout_s=8.0)
    assert [o.value for o in outcomes] == [None, "a", "b"]
    assert outcomes[0].error == "timed out after 8 s"
    assert 8 <= outcomes[0].seconds < 30


def test_workers_run_one_thread():
    assert [o.value for o in run(threads, [0, 1])] == ["1", "1"]


def test_workers_are_kept_between_runs_and_can_change_function():
    with LocalEngine(1) as engine:
        first = [o.value for o in engine.run(os.path.basename, ["a/b"], timeout_s=60)]
        process = engine._workers[0].process
        second = [o.value for o in engine.run(square, [3], timeout_s=60)]
        assert engine._workers[0].process is process
    assert (first, second) == (["b"], [9])


def test_closing_the_outcomes_stops_the_work():
    with LocalEngine(2) as engine:
        outcomes = engine.run(fragile, ["a", "hang", "hang"], timeout_s=600)
        assert next(outcomes).value == "a"
        started = time.monotonic()
        outcomes.close()
        assert time.monotonic() - started < 10
        assert not any(worker.busy for worker in engine._workers)


def test_number_of_workers_is_checked():
    with pytest.raises(UsageError, match="^the number of workers must be a positive integer, not 0$"):
        LocalEngine(0)


UNGUARDED = """
from dse.engine import LocalEngine

print("script", flush=True)
with LocalEngine(2) as engine:
    print(sorted(outcome.value for outcome in engine.run(abs, [-2, 1], timeout_s=60)))
print([outcome.value for outcome in LocalEngine(1).run(print, ["a worker's own"], timeout_s=60)])
"""


def test_a_script_without_a_main_guard_runs_once_and_workers_print_to_stderr(tmp_path):
    """Each worker ran the caller's script again, which started workers of its own."""
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "script\n[1, 2]\n[None]\n"
    assert done.stderr == "a worker's own\n"
