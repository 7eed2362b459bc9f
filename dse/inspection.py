"""Facts about workloads, as ``dse workloads`` shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dse.accuracy import answers
from dse.statistics import accuracy_figure
from dse.workloads import list_workloads, load_workload
from quantizers.errors import UsageError


def workload_list(data: Path | None = None) -> list[dict[str, Any]]:
    """Every named workload: what it is, what it needs, whether it can be loaded with *data* and why not."""
    return [
        {
            "name": info.name,
            "description": info.description,
            "needs": info.needs or "nothing",
            "available": "yes" if info.available else f"no: {info.reason}",
        }
        for info in list_workloads(data)
    ]


def check_data_is_used(name: str, data: Path | None) -> None:
    """Raises :class:`UsageError` where *data* is given to a workload that brings its own data."""
    without_data = {info.name for info in list_workloads() if not info.needs} if data else set()
    if data is not None and (name in without_data or ":" in name):
        msg = f"{name} brings its own data; --data {data} would have no effect"
        raise UsageError(msg, given=data, expected=["no --data"])


def inspect_workload(name: str, data: Path | None) -> dict[str, Any]:
    """One workload: where weights and data come from, its size, and its measured float accuracy (a fraction).

    Raises:
        UsageError: the workload cannot be loaded, or does not take *data*.
    """
    check_data_is_used(name, data)
    workload = load_workload(name, data=data)
    accuracy = accuracy_figure(answers(workload.model, workload.evaluation))
    return {
        "name": workload.name,
        "description": workload.description,
        "source": workload.source,
        "dataset": workload.dataset,
        "parameters": sum(parameter.numel() for parameter in workload.model.parameters()),
        "calibration_images": len(workload.calibration),
        "evaluation_images": len(workload.evaluation),
        "float_accuracy": accuracy.value,
        "float_accuracy_interval": list(accuracy.interval or ()),
    }
