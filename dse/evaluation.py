"""What a design point is worth: accuracy of the quantized network, cost of its datapath.

Runs in worker processes. What several points share (the loaded network with its calibration
statistics, the float network's answers) is kept by the process; accuracies and synthesised designs
are also kept in the content cache, so that no run computes them twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from costmodel import ContentCache
from dse.costing import cost_of_block
from dse.design import DesignPoint
from dse.metrics import Figure, Provenance
from dse.workloads import ImageSet, Workload, load_workload, top1_accuracy
from quantizers.formats import parse_scalar_format
from quantizers.prepare import PreparedModel, prepare
from quantizers.quantize import LayerSummary, QuantizationSettings, layer_summary, quantize

# 97.5 % quantile of the standard normal: all intervals here are two-sided 95 % intervals.
_Z95 = 1.959964

_ACCURACY_CACHE = "accuracy"


@dataclass(frozen=True)
class Task:
    """A point with what a worker needs to evaluate it.

    Attributes:
        data: folder of the workload's data, where it needs one.
        data_fingerprint: content hash of model and data; part of every cache key.
        tools: versions that are part of every cache key.
    """

    point: DesignPoint
    data: str | None
    data_fingerprint: str
    tools: Mapping[str, str]

    @property
    def key(self) -> str:
        return self.point.key(tools=self.tools, data=self.data_fingerprint)


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a point and the facts that go with them (see ``Result``)."""

    metrics: dict[str, Figure]
    details: dict[str, Any]


def evaluate(task: Task) -> Evaluation:
    """Quantize and measure the network, then build and synthesise the datapath."""
    quality = _quality(task)
    metrics = {name: Figure.from_json(document) for name, document in quality["metrics"].items()}
    pairs = [(str(w), str(a)) for w, a in quality["format_pairs"]]
    cost = costliest(task.point, pairs)
    return Evaluation({**metrics, **cost.metrics}, {**quality["details"], **cost.details})


def costliest(point: DesignPoint, pairs: list[tuple[str, str]]) -> Evaluation:
    """The cost of the largest datapath among *pairs* of formats (weights, activations).

    A network whose inner layers see signed and unsigned inputs needs both datapaths; the cost that
    a point carries is that of the larger one, so that no format looks cheaper than it is.
    """
    parameters = {"dot_length": point.dot_length}
    costs = [cost_of_block(point.block, w, a, parameters, part=point.part) for w, a in pairs]
    largest = max(costs, key=lambda cost: cost.metrics["luts"].value)
    formats = {f"mac_{operand}": largest.design[operand] for operand in ("weights", "activations")}
    return Evaluation(largest.metrics, formats)


def float_accuracy(task: Task) -> Figure:
    """The float network's accuracy on the evaluation images."""
    return accuracy_figure(_float_answers(task))


def _quality(task: Task) -> dict[str, Any]:
    point = task.point
    hardware = {"block", "dot_length", "part"}
    choices = {name: value for name, value in point.as_dict().items() if name not in hardware}
    key = {"accuracy": choices, "data": task.data_fingerprint, "tools": dict(task.tools)}
    cache = ContentCache(namespace=_ACCURACY_CACHE)
    cached = cache.get(key)
    if cached is None:
        cached = _measure_quality(task)
        cache.put(key, cached)
    return cached


def _measure_quality(task: Task) -> dict[str, Any]:
    point = task.point
    network = _prepared(_network_key(task))
    quantized = quantize(network.prepared, settings_of(point))
    correct = answers(quantized, network.workload.evaluation)
    layers = layer_summary(quantized)
    float_answers = _float_answers(task)
    metrics = {
        "accuracy": accuracy_figure(correct),
        "float_accuracy": accuracy_figure(float_answers),
        "accuracy_drop_points": paired_drop(float_answers, correct),
        "weight_memory_kib": Figure(_weight_bits(layers) / 8 / 1024, Provenance.ANALYTIC),
        "weight_bits": Figure(point.weight_format.bits, Provenance.ANALYTIC),
        "activation_bits": Figure(point.activation_format.bits, Provenance.ANALYTIC),
    }
    return {
        "metrics": {name: figure.as_json() for name, figure in metrics.items()},
        "format_pairs": inner_pairs(layers),
        "details": {
            "calibration_images_used": len(network.workload.calibration),
            "evaluation_images_used": len(network.workload.evaluation),
            "float_products": ", ".join(network.prepared.float_products),
        },
    }


def settings_of(point: DesignPoint) -> QuantizationSettings:
    """The quantizer's view of a point."""
    percentile = {} if point.percentile is None else {"percentile": point.percentile}
    return QuantizationSettings(
        weights=point.weight_format,
        activations=point.activation_format,
        edge_weights=parse_scalar_format(point.edge_format),
        edge_activations=parse_scalar_format(point.edge_format),
        integer_weights=point.integer_weights,  # type: ignore[arg-type]
        weight_scale=point.weight_scale,  # type: ignore[arg-type]
        activation_scale=point.activation_scale,  # type: ignore[arg-type]
        bias=point.bias,  # type: ignore[arg-type]
        unsigned_activations=point.unsigned_activations,
        **percentile,
    )


def inner_pairs(layers: list[LayerSummary]) -> list[tuple[str, str]]:
    """The (weights, activations) formats of the weight layers between the first and the last.

    A network of one or two weight layers has no inner one: then those layers count. Products of two
    activations (attention) are not weight layers.
    """
    weighted = [layer for layer in layers if layer.kind != "matmul"]
    inner = weighted[1:-1] or weighted
    return list(dict.fromkeys((layer.weight_format.name, layer.activation_format.name) for layer in inner))


def _weight_bits(layers: list[LayerSummary]) -> float:
    return sum(layer.weights * layer.weight_format.bits for layer in layers if layer.kind != "matmul")


@dataclass(frozen=True)
class _Network:
    workload: Workload
    prepared: PreparedModel


_NetworkKey = tuple[str, str | None, int | None, int | None]


def _network_key(task: Task) -> _NetworkKey:
    point = task.point
    return point.workload, task.data, point.calibration_images, point.evaluation_images


# Points of one workload run together, so one network at a time is enough.
@lru_cache(maxsize=1)
def _workload(key: _NetworkKey) -> Workload:
    name, data, calibration_images, evaluation_images = key
    return load_workload(
        name,
        data=None if data is None else Path(data),
        calibration_images=calibration_images,
        evaluation_images=evaluation_images,
    )


@lru_cache(maxsize=1)
def _prepared(key: _NetworkKey) -> _Network:
    workload = _workload(key)
    images = workload.calibration
    batches = (inputs for inputs, _ in images.batches(_batch_size(images)))
    return _Network(workload, prepare(workload.model, batches))


# Larger batches leave the processor's caches: 224-pixel images ran twice as fast in eights as in fifties.
_BATCH_ELEMENTS = 1 << 20
_BATCH_LIMITS = (8, 256)


def _batch_size(images: ImageSet) -> int:
    smallest, largest = _BATCH_LIMITS
    return max(smallest, min(largest, _BATCH_ELEMENTS // images.inputs[0].numel()))


def answers(model: nn.Module, images: ImageSet) -> npt.NDArray[np.bool_]:
    """Which images the model gets right."""
    correct: npt.NDArray[np.bool_] = top1_accuracy(model, images, _batch_size(images)).correct.numpy()
    return correct


def _float_answers(task: Task) -> npt.NDArray[np.bool_]:
    """Which evaluation images the float network gets right."""
    key = {
        "float_answers": task.point.workload,
        "images": task.point.evaluation_images,
        "data": task.data_fingerprint,
        "tools": dict(task.tools),
    }
    cache = ContentCache(namespace=_ACCURACY_CACHE)
    cached = cache.get(key)
    if cached is None:
        workload = _workload(_network_key(task))
        correct = answers(workload.model, workload.evaluation)
        cached = {"wrong": np.flatnonzero(~correct).tolist(), "images": len(correct)}
        cache.put(key, cached)
    correct = np.ones(cached["images"], dtype=np.bool_)
    correct[cached["wrong"]] = False
    return correct


def accuracy_figure(correct: npt.NDArray[np.bool_]) -> Figure:
    """Fraction of correct answers with Wilson's 95 % interval (Wilson 1927, JASA 22:209)."""
    n = len(correct)
    p = float(correct.mean())
    centre = (p + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(p * (1 - p) / n + _Z95**2 / (4 * n**2))
    return Figure(p, Provenance.MEASURED, (centre - half, centre + half))


def paired_drop(reference: npt.NDArray[np.bool_], answers: npt.NDArray[np.bool_]) -> Figure:
    """Points of accuracy lost against *reference* on the same images.

    The interval is that of the mean of paired differences: much narrower than the difference of two
    intervals, since both networks err on mostly the same images.
    """
    lost = 100 * (reference.astype(float) - answers.astype(float))
    half = _Z95 * float(lost.std()) / math.sqrt(len(lost))
    return Figure(float(lost.mean()), Provenance.MEASURED, (lost.mean() - half, lost.mean() + half))
