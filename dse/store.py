"""The results of a run: one SQLite file, written by one process, and its Parquet export."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dse.design import CachePoint, Design, DesignPoint, HardwarePoint
from dse.metrics import Figure
from quantizers.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: SQLite's own lock still keeps the file whole
    fcntl = None  # type: ignore[assignment]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY,
    status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
    design TEXT NOT NULL,
    metrics TEXT NOT NULL,
    details TEXT NOT NULL,
    error TEXT,
    tools TEXT NOT NULL,
    wall_seconds REAL NOT NULL,
    host TEXT NOT NULL,
    finished_at TEXT NOT NULL
)
"""


@dataclass(frozen=True)
class Result:
    """What became of one design point.

    Attributes:
        key: the point's hash.
        design: every choice.
        metrics: what could be had; empty for a failed point.
        details: facts that are not metrics (which MAC the cost is of, image counts).
        error: why it failed; ``None`` for a finished point.
    """

    key: str
    design: Design
    tools: Mapping[str, str]
    wall_seconds: float
    host: str
    finished_at: str
    metrics: Mapping[str, Figure] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def status(self) -> str:
        return "done" if self.error is None else "failed"

    def as_row(self) -> dict[str, Any]:
        """One flat table row: choices, metrics with provenance and interval, then the rest."""
        row: dict[str, Any] = {"key": self.key, **self.design.as_row(), **self.details}
        for name, figure in self.metrics.items():
            row[name] = figure.value
            row[f"{name}_provenance"] = str(figure.provenance)
            if figure.interval is not None:
                row[f"{name}_low"], row[f"{name}_high"] = figure.interval
        return {
            **row,
            "status": self.status,
            "error": self.error,
            **{f"version_{name}": version for name, version in self.tools.items()},
            "wall_seconds": self.wall_seconds,
            "host": self.host,
            "finished_at": self.finished_at,
        }


class ResultStore:
    """Results by key in ``results.sqlite`` of a run folder (WAL; survives a kill at any moment)."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.sqlite"
        try:
            self._connection = sqlite3.connect(self.path)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(_SCHEMA)
        except sqlite3.Error as error:
            msg = f"cannot open the result store {str(self.path)!r}: {error}"
            raise UsageError(msg, given=self.path, expected=["a writable run folder"]) from None

    def close(self) -> None:
        """Close the file; the store cannot be used after."""
        self._connection.close()

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def put(self, result: Result) -> None:
        """Write one result durably; a failed point is replaced when it is tried again."""
        values = (
            result.key,
            result.status,
            json.dumps(result.design.as_dict()),
            json.dumps({name: figure.as_json() for name, figure in result.metrics.items()}),
            json.dumps(dict(result.details)),
            result.error,
            json.dumps(dict(result.tools)),
            result.wall_seconds,
            result.host,
            result.finished_at,
        )
        with self._connection:
            self._connection.execute("INSERT OR REPLACE INTO results VALUES (?,?,?,?,?,?,?,?,?,?)", values)

    def get(self, keys: Iterable[str]) -> dict[str, Result]:
        """The stored results of *keys*; a key that has none is left out.

        So is a row whose design has other fields than this version's: another version wrote it.
        """
        found = {}
        for key in keys:
            row = self._connection.execute("SELECT * FROM results WHERE key = ?", (key,)).fetchone()
            if row is not None and frozenset(json.loads(row[2])) in _KINDS:
                found[key] = _from_row(row)
        return found


_KINDS = {
    names: kind for kind in (DesignPoint, HardwarePoint, CachePoint) for names in kind.names_of_choices()
}


def _from_row(row: tuple[Any, ...]) -> Result:
    key, _, design, metrics, details, error, tools, wall_seconds, host, finished_at = row
    choices = json.loads(design)
    return Result(
        key=key,
        design=_KINDS[frozenset(choices)](**choices),
        tools=json.loads(tools),
        wall_seconds=wall_seconds,
        host=host,
        finished_at=finished_at,
        metrics={name: Figure.from_json(document) for name, document in json.loads(metrics).items()},
        details=json.loads(details),
        error=error,
    )


def as_table(results: Iterable[Result]) -> pd.DataFrame:
    """One row a result, in the order given."""
    return pd.DataFrame([result.as_row() for result in results])


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the run folder for one writing process.

    Raises:
        UsageError: another sweep is writing to this folder.
    """
    with (folder / "lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                msg = f"another sweep is writing to {str(folder)!r}; wait for it or choose another --out"
                raise UsageError(msg, given=folder, expected=["a folder no sweep is using"]) from None
        yield
