"""Engines: run a function over items on worker processes; one item's failure stays its own.

A plain ``ProcessPoolExecutor`` gives up every pending item when the system kills one worker, so the
local engine keeps one pipe a worker and replaces a worker that died or ran past its time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

from quantizers.errors import BitfrontError, UsageError, unknown_choice

ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")

# One thread a worker: oversubscribed threads ran 100 times slower than idle ones (facts/toolchain.md).
# One heap of the C library: recipes run batches in turns on threads of their own, whose heaps would each
# keep what they once held (measured: 4.1 GB at the peak instead of 5.0, 2.5 afterwards instead of 2.9).
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class Outcome(Generic[ValueT]):
    """What became of the item at *index*: a value, or the reason why there is none."""

    index: int
    seconds: float
    value: ValueT | None = None
    error: str | None = None


class Engine(Protocol):
    """Runs a picklable function over items and gives outcomes as they come, in any order."""

    def run(
        self, function: Callable[[ItemT], ValueT], items: Sequence[ItemT], *, timeout_s: float
    ) -> Generator[Outcome[ValueT]]:
        """One outcome for every item; closing the generator gives up the items in flight."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(self, *exception: object) -> None: ...


class LocalEngine:
    """Worker processes on this machine, each with one thread; kept from run to run until closed.

    Args:
        workers: how many; default one for each core this process may use.
    """

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            msg = f"the number of workers must be a positive integer, not {workers}"
            raise UsageError(msg, given=workers, expected=["1 or more"])
        self._workers = [_Worker() for _ in range(workers or usable_cores())]

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.stop()

    def run(
        self, function: Callable[[ItemT], ValueT], items: Sequence[ItemT], *, timeout_s: float
    ) -> Generator[Outcome[ValueT]]:
        """One outcome for every item, as they finish. Items start in the order given."""
        pending = list(enumerate(items))[::-1]
        try:
            while pending or any(worker.busy for worker in self._workers):
                for worker in self._workers:
                    if pending and not worker.busy:
                        worker.start(function, *pending.pop())
                yield from _collect(self._workers, timeout_s)
        finally:
            for worker in self._workers:
                if worker.busy:
                    worker.abandon("given up")


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _collect(workers: list[_Worker], timeout_s: float) -> Generator[Outcome[Any]]:
    """Wait until a worker finishes, dies or runs out of time; give up what was lost."""
    busy = {worker.connection: worker for worker in workers if worker.busy}
    deadline = min(worker.started for worker in busy.values()) + timeout_s
    ready = wait(list(busy), timeout=max(0.0, deadline - time.monotonic()))
    for connection in ready:
        yield busy[connection].finish()  # type: ignore[index]
    for worker in busy.values():
        if worker.busy and time.monotonic() - worker.started >= timeout_s:
            yield worker.abandon(f"timed out after {timeout_s:g} s")


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _WORKER_ENVIRONMENT}
    os.environ.update(_WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep a new process from running the caller's script again, which may have no ``__main__`` guard.

    Nothing that a worker is sent is defined there.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {
        name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)
    }
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


class _Worker:
    """One process, started when there is work for it, and the item it works on."""

    def __init__(self) -> None:
        self.index: int | None = None
        self.started = 0.0
        self.process: BaseProcess | None = None

    @property
    def busy(self) -> bool:
        return self.index is not None

    def start(self, function: Callable[[Any], Any], index: int, item: Any) -> None:
        if self.process is None or not self.process.is_alive():
            self._spawn()
        self.index, self.started = index, time.monotonic()
        # A process that dies just now breaks the pipe; collecting then sees its end and says so.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((function, item))

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _worker_environment(), _without_main():
            self.process.start()
        theirs.close()

    def finish(self) -> Outcome[Any]:
        """The outcome of the item whose connection is ready."""
        try:
            value, error = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return self.abandon(f"the worker process died ({self._exit_reason()})")
        return self._outcome(value, error)

    def _exit_reason(self) -> str:
        if self.process is None:
            return "it never started"
        self.process.join()
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        hint = ", perhaps out of memory" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"

    def abandon(self, reason: str) -> Outcome[Any]:
        """Give up the item and the process; the next item gets a new one."""
        outcome = self._outcome(None, reason)
        self.stop()
        return outcome

    def _outcome(self, value: Any, error: str | None) -> Outcome[Any]:
        index, self.index = self.index, None
        if index is None:
            msg = "a worker without an item cannot have an outcome"
            raise RuntimeError(msg)
        return Outcome(index, time.monotonic() - self.started, value, error)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self.process is not None:
            self.connection.close()
            self.process.kill()
            self.process.join()
            self.process = None


def _serve(connection: Connection) -> None:
    """A worker's life: (function, item) in, (value, error) out, until the other side closes."""
    # What a user's model prints must not end up in the one document on stdout.
    os.dup2(2, 1)
    # Ctrl-C reaches the whole process group; only the coordinator may decide what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            function, item = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            reply: tuple[Any, str | None] = (function(item), None)
        except BitfrontError as error:
            reply = (None, str(error))
        except Exception:
            reply = (None, traceback.format_exc(limit=-6))
        try:
            connection.send(reply)
        except (BrokenPipeError, ConnectionResetError):
            return


ENGINES = ("local", "dask")


def make_engine(name: str, *, workers: int | None = None, scheduler: str | None = None) -> Engine:
    """The engine of a name.

    Raises:
        UsageError: an unknown name, or a scheduler given to an engine that has none.
        MissingExtraError: Dask is not installed.
    """
    if name not in ENGINES:
        raise unknown_choice("engine", name, ENGINES)
    if name == "dask":
        from dse.dask_engine import DaskEngine

        return DaskEngine(scheduler=scheduler, workers=workers)
    if scheduler is not None:
        msg = f"--scheduler belongs to --engine dask; the {name} engine has none"
        raise UsageError(msg, given=scheduler, expected=["--engine dask"])
    return LocalEngine(workers)
