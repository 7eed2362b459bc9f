"""Non-dominated fronts and hypervolumes over result tables (moocore does the computing)."""

from __future__ import annotations

from dataclasses import dataclass

import moocore
import numpy as np
import pandas as pd

from dse.metrics import Metric, metric
from quantizers.errors import UsageError, unknown_choice


@dataclass(frozen=True)
class Front:
    """The non-dominated rows of a table for two metrics.

    Attributes:
        x, y: metric names.
        workload: whose points; ``family``: ``all`` or one format family.
        rows: the non-dominated rows, ordered by x.
        hypervolume: area dominated up to ``reference``, in units of x times units of y;
            ``None`` where fewer than two distinct points make the reference meaningless.
        reference: the worst x and the worst y over all of the workload's points, so that the
            families of one workload are comparable.
    """

    x: str
    y: str
    workload: str
    family: str
    rows: pd.DataFrame
    hypervolume: float | None
    reference: tuple[float, float]

    def as_json(self) -> dict[str, object]:
        choices = [name for name in ("weights", "activations", "codec") if name in self.rows]
        columns = ["key", *choices, self.x, self.y]
        document: dict[str, object] = {
            "x": self.x,
            "y": self.y,
            "workload": self.workload,
            "family": self.family,
            "points": [
                {name: value for name, value in row.items() if not pd.isna(value)}
                for row in self.rows[columns].to_dict(orient="records")
            ],
            "reference": list(self.reference),
        }
        return document if self.hypervolume is None else {**document, "hypervolume": self.hypervolume}


def compute_fronts(table: pd.DataFrame, x: str, y: str) -> list[Front]:
    """The front of every workload, over all points and for each format family.

    Rows that miss one of the two metrics take no part.

    Raises:
        UsageError: an unknown metric, the same metric twice, or one that no row holds.
    """
    if x == y:
        msg = f"a front needs two different metrics, not {x!r} twice"
        raise UsageError(msg, given=x)
    metrics = (metric(x), metric(y))
    for wanted in metrics:
        if wanted.name not in table or table[wanted.name].isna().all():
            present = [name for name in table.columns if name in _metric_names(table)]
            raise unknown_choice("metric of this run", wanted.name, present)
    complete = table.dropna(subset=[x, y])
    return [
        _front(rows, points, metrics, str(workload), family)
        for workload, points in complete.groupby("workload", sort=False)
        for family, rows in _families(points)
    ]


def _metric_names(table: pd.DataFrame) -> list[str]:
    return [name.removesuffix("_provenance") for name in table.columns if name.endswith("_provenance")]


def _families(points: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    families = [(str(name), rows) for name, rows in points.groupby("family", sort=True)]
    return [("all", points), *families] if len(families) > 1 else [("all", points)]


def _front(
    rows: pd.DataFrame, points: pd.DataFrame, metrics: tuple[Metric, Metric], workload: str, family: str
) -> Front:
    names = [m.name for m in metrics]
    maximise = [m.maximise for m in metrics]
    values = rows[names].to_numpy(dtype=float)
    kept = moocore.is_nondominated(values, maximise=maximise, keep_weakly=True)
    everything = points[names].to_numpy(dtype=float)
    worst = np.where(maximise, everything.min(axis=0), everything.max(axis=0))
    volume = None
    if len(np.unique(everything, axis=0)) > 1:
        volume = float(moocore.hypervolume(values, ref=worst, maximise=maximise))
    return Front(
        x=names[0],
        y=names[1],
        workload=workload,
        family=family,
        rows=rows[kept].sort_values(names, kind="stable"),
        hypervolume=volume,
        reference=(float(worst[0]), float(worst[1])),
    )
