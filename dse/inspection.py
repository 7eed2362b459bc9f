"""Facts about workloads, as ``dse workloads`` shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dse.accuracy import answers
from dse.statistics import accuracy_figure
from dse.workloads import WorkloadInfo, list_workloads, load_workload
from dse.workloads.language import (
    is_language_model,
    list_language_models,
    load_language_model,
    load_text,
    perplexity,
    windows_of,
)
from dse.workloads.language.registry import FOLDER_FORM
from dse.workloads.registry import OWN_FORM
from quantizers.errors import UsageError, unknown_choice

# Of the default text: enough to see that a language model was read rightly.
_WINDOWS = 2
_WINDOW_TOKENS = 512


def workload_list(data: Path | None = None) -> list[dict[str, Any]]:
    """Every named workload: what it is, what it needs, whether it can be loaded with *data* and why not."""
    return [
        {
            "name": info.name,
            "description": info.description,
            "needs": info.needs or "nothing",
            "available": "yes" if info.available else f"no: {info.reason}",
        }
        for info in _every_workload(data)
    ]


def _every_workload(data: Path | None = None) -> list[WorkloadInfo]:
    return [*list_workloads(data), *list_language_models(data)]


def check_data_is_used(name: str, data: Path | None) -> None:
    """Raises :class:`UsageError` where *data* is given to a workload that brings its own data."""
    without_data = {info.name for info in _every_workload() if not info.needs} if data else set()
    if data is not None and (name in without_data or ":" in name):
        msg = f"{name} brings its own data; --data {data} would have no effect"
        raise UsageError(msg, given=data, expected=["no --data"])


def inspect_workload(name: str, data: Path | None) -> dict[str, Any]:
    """One workload: where weights and data come from, its size, and its measured float accuracy.

    The accuracy of a classifier is a fraction; that of a language model is its perplexity.

    Raises:
        UsageError: the name is unknown, the workload cannot be loaded, or does not take *data*.
    """
    known = [info.name for info in _every_workload()]
    if name not in known and ":" not in name:
        raise unknown_choice("workload", name, [*known, FOLDER_FORM, OWN_FORM])
    check_data_is_used(name, data)
    if is_language_model(name):
        return _inspect_language_model(name, data)
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


def _inspect_language_model(name: str, data: Path | None) -> dict[str, Any]:
    model = load_language_model(name, data)
    config = model.decoder.config
    length = min(_WINDOW_TOKENS, config.context)
    measured = perplexity(model, windows_of(model, load_text(), length=length, count=_WINDOWS))
    return {
        "name": model.name,
        "description": model.description,
        "source": model.source,
        "dataset": f"{measured.text}, first {_WINDOWS} windows of {length} tokens",
        "text_sha256": measured.text_sha256,
        "parameters": sum(parameter.numel() for parameter in model.decoder.parameters()),
        "layers": config.layers,
        "hidden": config.hidden,
        "query_heads": config.query_heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocabulary": config.vocabulary,
        "context": config.context,
        "float_perplexity": measured.perplexity,
        "float_mean_nll": measured.mean_nll,
        "float_mean_nll_standard_error": measured.standard_error,
    }
