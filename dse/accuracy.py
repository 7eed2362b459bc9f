"""The accuracy of a network, in float and quantized as a design point says.

What several points share (the loaded network with its calibration statistics, the float network's
answers) is kept by the process; answers are also kept in the content cache, so that no run computes
them twice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from costmodel import ContentCache
from dse.design import DesignPoint
from dse.environment import accuracy_tools
from dse.metrics import Figure, Provenance
from dse.statistics import Answers, accuracy_figure, paired_drop
from dse.workloads import ImageSet, Workload, load_workload, top1_accuracy
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format
from quantizers.inference import for_inference
from quantizers.prepare import PreparedModel, prepare
from quantizers.quantize import LayerSummary, QuantizationSettings, QuantizedModel, layer_summary
from quantizers.recipes import Recipe, quantize_by, rewritten

CACHE = "accuracy"

# Tensors of larger batches are given back to the system and cleared by it again, every time: of 224-pixel
# images fours ran in 2.4 s what eights ran in 3.3 s and sixteens in 4.1 s, with no page fault.
_BATCH_ELEMENTS = 1 << 19
_BATCH_LIMITS = (4, 256)

# The fields of a point that its accuracy does not depend on.
_HARDWARE_CHOICES = frozenset({"block", "dot_length", "part"})


@dataclass(frozen=True)
class Source:
    """Where a point's model and data come from.

    Attributes:
        data: folder of the workload's data, where it needs one.
        fingerprint: content hash of model and data; part of every cache key.
    """

    data: str | None
    fingerprint: str


@dataclass(frozen=True)
class Products:
    """The products of one image in a layer.

    Attributes:
        weights: format of one factor.
        activations: format of the other.
        dot_length: products of a sum.
        count: of all sums.
    """

    weights: str
    activations: str
    dot_length: int
    count: int


@dataclass(frozen=True)
class Quality:
    """What quantization made of a network.

    Attributes:
        metrics: accuracies and what the formats store.
        weight_products: of the inner weight layers; of all where a network has no inner one. None
            where one of them has several scales within a sum: no unit that multiplies and accumulates
            integers computes it.
        activation_products: of two activations (attention); likewise.
        terms: the longest dot product of the inner layers, its bias counted in.
        details: facts that go with the metrics.
    """

    metrics: dict[str, Figure]
    weight_products: list[Products]
    activation_products: list[Products]
    terms: int
    details: dict[str, Any]

    @property
    def weight_pairs(self) -> list[tuple[str, str]]:
        """The pairs of formats of the weight products, each once."""
        return _pairs(self.weight_products)

    @property
    def activation_pairs(self) -> list[tuple[str, str]]:
        """The pairs of formats of the activation products, each once."""
        return _pairs(self.activation_products)

    def as_json(self) -> dict[str, Any]:
        metrics = {name: figure.as_json() for name, figure in self.metrics.items()}
        return {**asdict(self), "metrics": metrics}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Quality:
        return cls(
            metrics={name: Figure.from_json(figure) for name, figure in document["metrics"].items()},
            weight_products=[Products(**products) for products in document["weight_products"]],
            activation_products=[Products(**products) for products in document["activation_products"]],
            terms=document["terms"],
            details=document["details"],
        )


def _pairs(products: list[Products]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((some.weights, some.activations) for some in products))


def settings_of(point: DesignPoint) -> QuantizationSettings:
    """The quantizer's view of a point.

    Raises:
        UsageError: a format or choice that cannot be used.
    """
    percentile = {} if point.percentile is None else {"percentile": point.percentile}
    return QuantizationSettings(
        weights=point.weight_format,
        activations=point.activation_format,
        edge_weights=parse_scalar_format(point.edge_format),
        edge_activations=parse_scalar_format(point.edge_format),
        integer_weights=point.integer_weights,  # type: ignore[arg-type]
        weight_scale=point.weight_scale,  # type: ignore[arg-type]
        weight_group=point.weight_group,
        activation_scale=point.activation_scale,  # type: ignore[arg-type]
        activation_granularity=point.activation_granularity,  # type: ignore[arg-type]
        bias=point.bias,  # type: ignore[arg-type]
        unsigned_activations=point.unsigned_activations,
        residuals=None if point.residual_format is None else parse_scalar_format(point.residual_format),
        **percentile,
    )


def quality_of(point: DesignPoint, source: Source) -> Quality:
    """The quantized network's accuracy and formats, from the cache where they are known."""
    choices = {name: value for name, value in point.as_dict().items() if name not in _HARDWARE_CHOICES}
    key = {"point": choices, "data": source.fingerprint, "tools": accuracy_tools()}
    cache = ContentCache(namespace=CACHE)
    cached = cache.get(key)
    if cached is not None:
        return Quality.from_json(cached)
    quality = _measure(point, source)
    cache.put(key, quality.as_json())
    return quality


def float_accuracy(point: DesignPoint, source: Source) -> Figure:
    """The float network's accuracy on the point's evaluation images."""
    return accuracy_figure(_float_answers(point, source))


def _measure(point: DesignPoint, source: Source) -> Quality:
    workload = _workload(_Origin.of(point, source))
    prepared = _prepared_for(point, source)
    quantized = quantize_by(prepared, settings_of(point), Recipe.parse(point.recipe))
    correct = answers(quantized, workload.evaluation)
    float_answers = _float_answers(point, source)
    layers = layer_summary(quantized)
    weighted = [layer for layer in layers if layer.kind != "matmul"]
    inner = weighted[1:-1] or weighted
    products = [layer for layer in layers if layer.kind == "matmul"]
    metrics = {
        "accuracy": accuracy_figure(correct),
        "float_accuracy": accuracy_figure(float_answers),
        "accuracy_drop_points": paired_drop(float_answers, correct),
        "weight_bits": Figure(
            _weight_bits(inner) / sum(layer.weights for layer in inner), Provenance.ANALYTIC
        ),
        "activation_bits": Figure(point.activation_format.bits_per_value, Provenance.ANALYTIC),
    }
    if len(correct) > 1:  # one image has no halves
        metrics["selection_accuracy"] = accuracy_figure(correct[0::2])
        metrics["held_out_accuracy"] = accuracy_figure(correct[1::2])
    if not prepared.float_products:  # else some weights have no format, and no sum would be true
        metrics["weight_memory_kib"] = Figure(_weight_bits(weighted) / 8 / 1024, Provenance.ANALYTIC)
    details: dict[str, Any] = {
        "calibration_images_used": sum(len(batch) for batch in prepared.batches),
        "evaluation_images_used": len(workload.evaluation),
        "float_products": ", ".join(name or "the model itself" for name in prepared.float_products),
    }
    if point.residual_format is not None:
        details["residual_adds_quantized"] = len(quantized.residual_adds)
    return Quality(
        metrics=metrics,
        weight_products=_products(inner),
        activation_products=_products(products),
        terms=max(layer.dot_length + layer.bias_terms for layer in [*inner, *products]),
        details=details,
    )


def _products(layers: list[LayerSummary]) -> list[Products]:
    if not all(layer.has_integer_sums for layer in layers):
        return []
    return [
        Products(layer.weight_format.name, layer.activation_format.name, layer.dot_length, layer.macs)
        for layer in layers
    ]


def _weight_bits(layers: list[LayerSummary]) -> int:
    """With the scales of groups and blocks; a scale per channel belongs to the requantizer."""
    return sum(layer.weights * layer.weight_format.bits + layer.weight_scale_bits for layer in layers)


@dataclass(frozen=True)
class _Origin:
    """What decides which network and images are loaded."""

    workload: str
    source: Source
    evaluation_images: int | None

    @classmethod
    def of(cls, point: DesignPoint, source: Source) -> _Origin:
        return cls(point.workload, source, point.evaluation_images)


@dataclass(frozen=True)
class _Calibration:
    """What decides which images calibrate the network, and what is drawn from them."""

    images: int | None
    seed: int


# Points of one workload and recipe run together, so one network at a time is enough.
@lru_cache(maxsize=1)
def _workload(origin: _Origin) -> Workload:
    workload = load_workload(
        origin.workload,
        data=None if origin.source.data is None else Path(origin.source.data),
        evaluation_images=origin.evaluation_images,
    )
    if workload.fingerprint not in (None, origin.source.fingerprint):
        msg = (
            f"{origin.workload} returns another model or other data at each call, so its points cannot be "
            "compared; seed what it draws at random"
        )
        raise UsageError(msg, given=origin.workload, expected=["the same model at every call"])
    return workload


_latest_prepared: dict[tuple[_Origin, _Calibration, Recipe], PreparedModel] = {}


def _prepared(origin: _Origin, calibration: _Calibration, rewrites: Recipe) -> PreparedModel:
    key = (origin, calibration, rewrites)
    if key not in _latest_prepared:
        # Before the next one is made, as lru_cache would not: two are half of a worker's memory.
        _latest_prepared.clear()
        _latest_prepared[key] = _prepare(*key)
    return _latest_prepared[key]


def _prepare(origin: _Origin, calibration: _Calibration, rewrites: Recipe) -> PreparedModel:
    workload = _workload(origin)
    images = workload.calibration.drawn(calibration.images, calibration.seed, "calibration_images")
    return rewritten(prepare(workload.model, calibration_batches(images), seed=calibration.seed), rewrites)


def _prepared_for(point: DesignPoint, source: Source) -> PreparedModel:
    calibration = _Calibration(point.calibration_images, point.seed)
    return _prepared(_Origin.of(point, source), calibration, Recipe.parse(point.recipe).rewrites)


def _float_answers(point: DesignPoint, source: Source) -> Answers:
    """Which evaluation images the float network gets right."""
    key = {
        "float_answers": point.workload,
        "images": point.evaluation_images,
        "data": source.fingerprint,
        "tools": accuracy_tools(),
    }
    cache = ContentCache(namespace=CACHE)
    cached = cache.get(key)
    if cached is None:
        workload = _workload(_Origin.of(point, source))
        # What no point could be quantized from is found here, once, instead of by every point.
        _prepared_for(point, source)
        correct = answers(workload.model, workload.evaluation)
        cached = {"wrong": np.flatnonzero(~correct).tolist(), "images": len(correct)}
        cache.put(key, cached)
    correct = np.ones(cached["images"], dtype=np.bool_)
    correct[cached["wrong"]] = False
    return correct


def answers(model: nn.Module, images: ImageSet) -> Answers:
    """Which images the model gets right."""
    model = for_inference(model) if isinstance(model, QuantizedModel) else model
    correct: Answers = top1_accuracy(model, images, _batch_size(images)).correct.numpy()
    return correct


def calibration_batches(images: ImageSet) -> list[Tensor]:
    """The inputs in batches of a size that runs fast."""
    return [inputs for inputs, _ in images.batches(_batch_size(images))]


def _batch_size(images: ImageSet) -> int:
    smallest, largest = _BATCH_LIMITS
    return max(smallest, min(largest, _BATCH_ELEMENTS // images.inputs[0].numel()))
