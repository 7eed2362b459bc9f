"""Run a study: check it, evaluate what is not there yet, keep every result, export the table."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd

from costmodel import ContentCache
from dse.accuracy import CACHE, Source
from dse.any_study import AnyStudy, load_study
from dse.cache_study import CacheStudy
from dse.caches import CacheTask, evaluate_cache
from dse.engine import Engine, LocalEngine, Outcome
from dse.environment import cache_tools, cost_tools, environment, tool_versions
from dse.evaluation import (
    Evaluation,
    HardwareTask,
    Task,
    evaluate,
    evaluate_hardware,
    float_accuracy,
)
from dse.hardware_study import HardwareStudy
from dse.metrics import Figure
from dse.pareto import Front, compute_fronts
from dse.store import Result, ResultStore, as_table, exclusive
from dse.workloads import workload_fingerprint
from quantizers.errors import UsageError

T = TypeVar("T")
AnyTask = Task | HardwareTask | CacheTask

_STUDY = "study.json"
_RUN = "run.json"
_TABLE = "results.parquet"


class Progress(Protocol):
    """Told what happens in a sweep; the library itself prints nothing."""

    def started(self, total: int, done: int) -> None:
        """*done* of *total* points are already in the folder."""

    def float_accuracy(self, workload: str, accuracy: Figure | None, error: str | None) -> None:
        """A network's float accuracy, or why there is none; comes before its points."""

    def finished(self, result: Result) -> None:
        """One more point is in the store."""


class Silent:
    """Progress that nobody watches."""

    def started(self, total: int, done: int) -> None: ...

    def float_accuracy(self, workload: str, accuracy: Figure | None, error: str | None) -> None: ...

    def finished(self, result: Result) -> None: ...


@dataclass(frozen=True)
class Run:
    """A run folder as it stands.

    Attributes:
        folder: where it is.
        study: what was asked for.
        results: of the study's points in the study's order; points not yet evaluated are missing.
        environment: tools and machine of the last sweep in this folder.
    """

    folder: Path
    study: AnyStudy
    results: list[Result]
    environment: dict[str, str]

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.error is not None]

    @property
    def missing(self) -> int:
        """How many of the study's points have no result yet."""
        return len(self.study.points()) - len(self.results)

    @property
    def layers_in_float(self) -> dict[str, str]:
        """For each workload with products that no quantized layer computes, where those are."""
        places = {r.design.workload: r.details.get("float_products", "") for r in self.results}
        return {workload: names for workload, names in places.items() if names}

    def table(self) -> pd.DataFrame:
        """The finished points, one row each."""
        return as_table(result for result in self.results if result.error is None)

    def fronts(self) -> list[Front]:
        """The study's fronts over the finished points; none where nothing is finished."""
        table = self.table()
        if table.empty:
            return []
        return [front for choice in self.study.fronts for front in compute_fronts(table, choice.x, choice.y)]


def run(
    study: AnyStudy,
    folder: Path,
    *,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Run:
    """Evaluate every point of *study* that *folder* does not hold yet.

    Results are written one by one, so a kill loses at most the points in flight; running again
    continues. A point that fails is recorded with its reason and is tried again the next time.

    Raises:
        UsageError: the study's data is not there, the folder cannot be written, or another sweep
            is writing to it. Nothing has been written then.
    """
    study.check()
    ContentCache(namespace=CACHE)  # refused now, if it cannot be written, and not by every point
    tasks = _tasks(study)
    _make_folder(folder)
    _check_same_study(study, folder)
    with exclusive(folder), closing(ResultStore(folder)) as store:
        _write_json(folder / _STUDY, study.model_dump(mode="json"))
        _write_json(folder / _RUN, {"keys": [t.key for t in tasks], "environment": environment()})
        workers = engine or LocalEngine()
        try:
            _evaluate(study, tasks, store, workers, progress or Silent())
        finally:
            if engine is None:
                workers.close()
            _export(_open(folder, store))
        return _open(folder, store)


def _check_same_study(study: AnyStudy, folder: Path) -> None:
    if (folder / _STUDY).is_file() and (there := load_study(folder / _STUDY).name) != study.name:
        msg = f"{str(folder)!r} holds the run of study {there!r}, not of {study.name!r}; choose another --out"
        raise UsageError(msg, given=folder, expected=["an empty folder", f"a folder of study {study.name!r}"])


def load_run(folder: Path) -> Run:
    """The run of a folder that a sweep wrote.

    Raises:
        UsageError: the folder is none.
    """
    if not (folder / _RUN).is_file() or not (folder / _STUDY).is_file():
        near = sorted(str(path.parent) for path in folder.parent.glob(f"*/{_RUN}"))
        listing = f"; runs beside it: {', '.join(near)}" if near else ""
        msg = f"{str(folder)!r} is not a run folder: it has no {_STUDY} and {_RUN}{listing}"
        raise UsageError(msg, given=folder, expected=near or ["a folder written by 'dse sweep'"])
    with ResultStore(folder) as store:
        return _open(folder, store)


def _open(folder: Path, store: ResultStore) -> Run:
    record = json.loads((folder / _RUN).read_text(encoding="utf-8"))
    found = store.get(record["keys"])
    results = [found[key] for key in record["keys"] if key in found]
    return Run(folder, load_study(folder / _STUDY), results, record["environment"])


def _tasks(study: AnyStudy) -> Sequence[AnyTask]:
    if isinstance(study, HardwareStudy):
        return [HardwareTask(point, cost_tools()) for point in study.points()]
    if isinstance(study, CacheStudy):
        text, tools = study.language.source(), cache_tools()
        fingerprint = text.fingerprint
        return [CacheTask(point, text, fingerprint, tools) for point in study.points()]
    # Absolute: a worker may run in another folder.
    sources = {
        w.name: Source(
            None if w.path is None else str(w.path.resolve()), workload_fingerprint(w.name, w.path)
        )
        for w in study.workloads
    }
    tools = tool_versions()
    return [Task(point, sources[point.workload], tools) for point in study.points()]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        msg = f"cannot write to the output folder {str(folder)!r}: {error.strerror}"
        raise UsageError(msg, given=folder, expected=["a folder that can be written"]) from None


def _evaluate(
    study: AnyStudy,
    tasks: Sequence[AnyTask],
    store: ResultStore,
    engine: Engine,
    progress: Progress,
) -> None:
    done = {key for key, result in store.get(t.key for t in tasks).items() if result.error is None}
    pending = [task for task in tasks if task.key not in done]
    progress.started(len(tasks), len(done))
    if not pending:
        return

    def keep(task: AnyTask, outcome: Outcome[Evaluation]) -> None:
        result = _result(task, outcome)
        store.put(result)
        progress.finished(result)

    of_hardware = [task for task in pending if isinstance(task, HardwareTask)]
    _for_each(engine, evaluate_hardware, of_hardware, study.point_timeout_s, keep)
    of_caches = [task for task in pending if isinstance(task, CacheTask)]
    _for_each(engine, evaluate_cache, of_caches, study.point_timeout_s, keep)
    of_networks = [task for task in pending if isinstance(task, Task)]
    _evaluate_networks(study, of_networks, engine, progress, keep)


def _evaluate_networks(
    study: AnyStudy,
    pending: Sequence[Task],
    engine: Engine,
    progress: Progress,
    keep: Callable[[Task, Outcome[Evaluation]], None],
) -> None:
    one_of_each = list({task.point.workload: task for task in pending}.values())

    unusable: dict[str, str] = {}

    def tell(task: Task, outcome: Outcome[Figure]) -> None:
        if outcome.error is not None:
            unusable[task.point.workload] = outcome.error
        progress.float_accuracy(task.point.workload, outcome.value, outcome.error)

    _for_each(engine, float_accuracy, one_of_each, study.point_timeout_s, tell)
    for task in pending:
        if task.point.workload in unusable:
            keep(task, Outcome(0, 0.0, error=unusable[task.point.workload]))
    usable = [task for task in pending if task.point.workload not in unusable]
    _for_each(engine, evaluate, usable, study.point_timeout_s, keep)


def _for_each(
    engine: Engine,
    function: Callable[[T], Any],
    tasks: Sequence[T],
    timeout_s: float,
    use: Callable[[T, Outcome[Any]], None],
) -> None:
    """Hand every outcome to *use* as it comes."""
    with closing(engine.run(function, tasks, timeout_s=timeout_s)) as outcomes:
        for outcome in outcomes:
            use(tasks[outcome.index], outcome)


def _result(task: AnyTask, outcome: Outcome[Evaluation]) -> Result:
    evaluation = outcome.value
    return Result(
        key=task.key,
        design=task.point,
        tools=task.tools,
        wall_seconds=round(outcome.seconds, 3),
        host=environment()["host"],
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics=evaluation.metrics if evaluation else {},
        details=evaluation.details if evaluation else {},
        error=outcome.error,
    )


def _export(run: Run) -> None:
    """Write the table beside the store; a reader sees the old one or the new one, never half."""
    table = run.table()
    if table.empty:
        (run.folder / _TABLE).unlink(missing_ok=True)
        return
    temporary = run.folder / f"{_TABLE}.part"
    table.to_parquet(temporary, index=False)
    temporary.replace(run.folder / _TABLE)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
