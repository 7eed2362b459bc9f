"""The Dask engine: the same sweep on a cluster (extra ``dask``).

Workers need this project installed and must see the workload's data under the same path. SLURM and
PBS clusters come in through dask-jobqueue: start its cluster, give its scheduler's address here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from dse.engine import ItemT, Outcome, ValueT
from quantizers.errors import MissingExtraError, UsageError

_CONNECT_TIMEOUT_S = 15


class DaskEngine:
    """Runs items as Dask tasks.

    Args:
        scheduler: address such as ``tcp://host:8786``; without one a cluster of processes is started
            on this machine.
        workers: processes of that local cluster; default one a core. Meaningless with *scheduler*.

    Raises:
        UsageError: nothing answers at the address, or *workers* is given with one.
        MissingExtraError: Dask is not installed.
    """

    def __init__(self, *, scheduler: str | None = None, workers: int | None = None) -> None:
        try:
            import dask
            import distributed
        except ImportError:
            msg = "the dask engine needs Dask: pip install 'bitfront[dask]'"
            raise MissingExtraError(msg) from None
        if scheduler is not None and workers is not None:
            msg = "--workers has no meaning with --scheduler: the cluster has the workers it has"
            raise UsageError(msg, given=workers, expected=["--scheduler or --workers"])
        self._distributed = distributed
        self._cluster = None
        if scheduler is None:
            # A worker that dies takes its point with it; trying the same point again would kill the next.
            dask.config.set({"distributed.scheduler.allowed-failures": 0})
            self._cluster = distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None
            )
        try:
            self._client = distributed.Client(self._cluster or scheduler, timeout=_CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError, ValueError) as error:
            msg = f"no Dask scheduler answers at {scheduler!r}: {error}"
            raise UsageError(
                msg, given=scheduler, expected=["tcp://HOST:PORT of a running scheduler"]
            ) from None

    def __enter__(self) -> DaskEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; end the local cluster if this engine started one."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def run(
        self, function: Callable[[ItemT], ValueT], items: Sequence[ItemT], *, timeout_s: float
    ) -> Generator[Outcome[ValueT]]:
        """One outcome for every item, as they finish.

        Dask cannot stop a running task, so an item past its time is recorded as failed when it ends.
        """
        pending = list(enumerate(items))[::-1]
        indices: dict[Any, int] = {}
        running = self._distributed.as_completed()
        try:
            while pending or indices:
                while pending and len(indices) < self._threads():
                    index, item = pending.pop()
                    future = self._client.submit(_timed, function, item, pure=False)
                    indices[future] = index
                    running.add(future)
                future = next(running)
                yield _outcome(indices.pop(future), future, timeout_s)
        finally:
            self._client.cancel(list(indices), force=True)

    def _threads(self) -> int:
        """How many items are in flight: no more than run at once.

        A task that waits on a worker is blamed with the running one when the worker dies.
        """
        return max(1, sum(self._client.nthreads().values()))


def _timed(function: Callable[[Any], Any], item: Any) -> tuple[Any, float]:
    started = time.monotonic()
    return function(item), time.monotonic() - started


def _outcome(index: int, future: Any, timeout_s: float) -> Outcome[Any]:
    error = future.exception()
    if error is not None:
        return Outcome(index, 0.0, error=f"{type(error).__name__}: {error}")
    value, seconds = future.result()
    if seconds > timeout_s:
        return Outcome(index, seconds, error=f"took {seconds:.0f} s, more than the limit of {timeout_s:g} s")
    return Outcome(index, seconds, value)
