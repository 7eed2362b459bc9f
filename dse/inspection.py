"""Facts about workloads, as ``dse workloads`` shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dse.accuracy import answers
from dse.statistics import accuracy_figure
from dse.workloads import list_workloads, load_workload


def workload_list() -> list[dict[str, Any]]:
    """Every named workload: what it is, what it needs, whether it can be loaded here and why not."""
    return [
        {
            "name": info.name,
            "description": info.description,
            "needs": info.needs or "nothing",
            "available": "yes" if info.available else f"no: {info.reason}",
        }
        for info in list_workloads()
    ]


def inspect_workload(name: str, data: Path | None) -> dict[str, Any]:
    """One workload: where weights and data come from, its size, and its measured float accuracy."""
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
