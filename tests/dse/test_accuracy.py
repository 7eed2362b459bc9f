"""The accuracy of quantized networks: figures, what is kept in the cache, models that change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dse import accuracy
from dse.accuracy import Products, Quality, Source, float_accuracy, quality_of, settings_of
from dse.design import DesignPoint
from dse.metrics import Figure, Provenance
from dse.study import Study
from dse.workloads import load_workload, workload_fingerprint
from quantizers.errors import UsageError
from quantizers.formats import IntegerFormat, parse_scalar_format
from quantizers.quantize import QuantizedModel

OWN_MODELS = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 3)
    )
    for layer in model[::2]:
        nn.init.normal_(layer.weight)
    inputs = torch.randn(96, 6)
    logits = model(inputs)
    return model, inputs, inputs, (logits - logits.mean(0)).argmax(1)

def two_layers():
    model, inputs, _, labels = make()
    return nn.Sequential(model[0], nn.ReLU(), nn.Linear(8, 3)), inputs, inputs, labels

class Free(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return x @ self.weight

def free():
    model, inputs, _, labels = make()
    return nn.Sequential(Free(), *model), inputs, inputs, labels

def unseeded():
    torch.seed()
    return nn.Linear(2, 2), torch.ones(4, 2), torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
"""

(POINT,) = Study.parse(
    {
        "name": "t",
        "workloads": [{"name": "own_models:make"}],
        "formats": {"pairs": [["int3", "int3"]]},
    }
).points()


@pytest.fixture(autouse=True)
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The models above, an empty cache, and nothing that another test has loaded."""
    (tmp_path / "own_models.py").write_text(OWN_MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path / "cache"))
    _forget()
    yield
    _forget()
    sys.modules.pop("own_models", None)


def _forget() -> None:
    accuracy._workload.cache_clear()
    accuracy._latest_prepared.clear()


def _source(point: DesignPoint) -> Source:
    return Source(None, workload_fingerprint(point.workload))


def _quality(**changes: Any) -> Quality:
    point = replace(POINT, **changes)
    return quality_of(point, _source(point))


def _right(figure: Figure, images: int) -> float:
    return figure.value * images


@pytest.mark.parametrize(
    ("weights", "edge", "bits"),
    [
        # Weights: 6 x 8 and 4 x 3 at the edges, 8 x 10 and 10 x 4 within.
        ("int3", "int8", 60 * 8 + 120 * 3),
        ("e2m1", "int6", 60 * 6 + 120 * 4),
        ("ternary", "int4", 60 * 4 + 120 * 2),
    ],
)
def test_weight_memory_counts_every_layer_in_its_format(weights: str, edge: str, bits: int) -> None:
    metrics = _quality(weights=weights, edge_format=edge).metrics
    assert metrics["weight_memory_kib"] == Figure(bits / 8 / 1024, Provenance.ANALYTIC)
    assert metrics["weight_bits"] == Figure(parse_scalar_format(weights).bits, Provenance.ANALYTIC)
    assert metrics["activation_bits"] == Figure(3, Provenance.ANALYTIC)


def test_weight_memory_is_absent_where_weights_stay_in_float() -> None:
    quality = _quality(workload="own_models:free")
    assert "weight_memory_kib" not in quality.metrics
    assert quality.details["float_products"] == "0"


def test_formats_are_those_of_the_inner_layers() -> None:
    inner = _quality()
    assert (inner.weight_pairs, inner.activation_pairs) == ([("int3n", "uint3")], [])
    signed = _quality(unsigned_activations=False, integer_weights="full")
    assert signed.weight_pairs == [("int3", "int3")]
    # A network of two layers has no edges.
    assert _quality(workload="own_models:two_layers").weight_pairs == [("int3n", "int3"), ("int3n", "uint3")]


@pytest.mark.parametrize("images", [96, 50, 2])
def test_halves_are_the_even_and_the_odd_images(images: int) -> None:
    metrics = _quality(weights="int2", activations="int2", evaluation_images=images).metrics
    halves = [metrics[name].value for name in ("selection_accuracy", "held_out_accuracy")]
    assert sum(halves) / 2 == pytest.approx(metrics["accuracy"].value, abs=1e-12)


def test_an_odd_image_belongs_to_the_selection() -> None:
    metrics = _quality(weights="int2", activations="int2", evaluation_images=51).metrics
    selection, held_out, both = (
        metrics[name] for name in ("selection_accuracy", "held_out_accuracy", "accuracy")
    )
    assert _right(selection, 26) + _right(held_out, 25) == pytest.approx(_right(both, 51))


def test_accuracy_is_that_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = np.array([1, 0, 0, 1, 0, 1, 1, 1], dtype=bool)
    in_float = np.array([1, 1, 0, 1, 1, 1, 1, 1], dtype=bool)
    monkeypatch.setattr(
        accuracy,
        "answers",
        lambda model, images: quantized if isinstance(model, QuantizedModel) else in_float,
    )
    metrics = _quality(evaluation_images=8).metrics
    values = {name: metrics[name].value for name in metrics if name.endswith(("accuracy", "points"))}
    assert values == {
        "accuracy": 5 / 8,
        "selection_accuracy": 2 / 4,
        "held_out_accuracy": 3 / 4,
        "float_accuracy": 7 / 8,
        "accuracy_drop_points": 25.0,
    }
    assert {metrics[name].provenance for name in values} == {Provenance.MEASURED}


def test_a_network_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = _quality(calibration_images=32, evaluation_images=40)
    assert first.details == {
        "calibration_images_used": 32,
        "evaluation_images_used": 40,
        "float_products": "",
    }
    _stop_measuring(monkeypatch)
    assert _quality(calibration_images=32, evaluation_images=40) == first


def _stop_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("measured a second time")

    monkeypatch.setattr(accuracy, "_measure", refuse)


def test_the_datapath_decides_no_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    first = _quality()
    _stop_measuring(monkeypatch)
    assert _quality(block="dot", dot_length=64, part="xc7a35t") == first


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "int4"},
        {"activations": "int4"},
        {"edge_format": "int6"},
        {"integer_weights": "full"},
        {"weight_scale": "max"},
        {"activation_scale": "percentile", "percentile": 99.0},
        {"percentile": 99.0},
        {"bias": "float"},
        {"unsigned_activations": False},
        {"calibration_images": 32},
        {"evaluation_images": 40},
        {"recipe": "gptq"},
        {"seed": 1},
        {"workload": "own_models:two_layers"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_other_choice_does(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _quality()
    _stop_measuring(monkeypatch)
    with pytest.raises(AssertionError, match="measured a second time"):
        _quality(**change)


def test_data_and_tools_decide_too(monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(POINT)
    first = quality_of(POINT, source)
    _stop_measuring(monkeypatch)
    assert quality_of(POINT, replace(source, data="elsewhere")) == first
    with pytest.raises(AssertionError, match="measured a second time"):
        quality_of(POINT, replace(source, fingerprint="another"))
    monkeypatch.setattr(accuracy, "accuracy_tools", lambda: {"torch": "another"})
    with pytest.raises(AssertionError, match="measured a second time"):
        quality_of(POINT, source)


def test_the_float_network_answers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(POINT)
    first = float_accuracy(POINT, source)
    assert first.value == 38 / 96

    def refuse(*arguments: Any) -> None:
        raise AssertionError("asked a second time")

    monkeypatch.setattr(accuracy, "answers", refuse)
    assert float_accuracy(replace(POINT, weights="int8", seed=3), source) == first
    with pytest.raises(AssertionError, match="asked a second time"):
        float_accuracy(replace(POINT, evaluation_images=40), source)


def test_wrong_float_answers_come_back_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    point = replace(POINT, workload="own_models:two_layers")
    source = _source(point)
    first = accuracy._float_answers(point, source)
    workload = load_workload(point.workload)
    assert first.tolist() == accuracy.answers(workload.model, workload.evaluation).tolist()
    assert 0 < first.sum() < len(first) == 96
    monkeypatch.setattr(accuracy, "answers", None)
    assert accuracy._float_answers(point, source).tolist() == first.tolist()


def test_what_the_cache_holds_is_what_was_measured() -> None:
    quality = Quality(
        metrics={
            "accuracy": Figure(0.5, Provenance.MEASURED, (0.4, 0.6)),
            "weight_bits": Figure(3, Provenance.ANALYTIC),
        },
        weight_products=[
            Products("int3n", "uint3", 9, 900),
            Products("int3n", "int3", 16, 320),
            Products("int3n", "uint3", 4, 4),
        ],
        activation_products=[Products("int3", "uint3", 8, 64)],
        terms=17,
        details={"float_products": "a, b"},
    )
    assert Quality.from_json(quality.as_json()) == quality
    assert quality.weight_pairs == [("int3n", "uint3"), ("int3n", "int3")]
    assert quality.activation_pairs == [("int3", "uint3")]


def test_a_model_that_changes_from_call_to_call_is_refused() -> None:
    point = replace(POINT, workload="own_models:unseeded")
    source = _source(point)
    with pytest.raises(UsageError) as caught:
        quality_of(point, source)
    assert str(caught.value) == (
        "own_models:unseeded returns another model or other data at each call, so its points cannot be "
        "compared; seed what it draws at random"
    )
    assert (caught.value.given, caught.value.expected) == (
        "own_models:unseeded",
        ["the same model at every call"],
    )
    with pytest.raises(UsageError, match="^own_models:unseeded returns another model"):
        float_accuracy(point, source)


def test_settings_of_a_point() -> None:
    settings = settings_of(replace(POINT, weights="ternary", activations="e4m3", edge_format="int6"))
    assert [fmt.name for fmt in (settings.weights, settings.activations)] == ["ternary", "e4m3"]
    assert settings.edge_weights == settings.edge_activations == IntegerFormat(6)
    assert settings.percentile == 99.999
    assert settings_of(replace(POINT, percentile=99.0)).percentile == 99.0
    changed = replace(
        POINT, integer_weights="full", weight_scale="max", activation_scale="percentile", bias="float"
    )
    settings = settings_of(replace(changed, unsigned_activations=False))
    assert settings.integer_weights == "full"
    assert settings.weight_scale == "max"
    assert settings.activation_scale == "percentile"
    assert settings.bias == "float"
    assert settings.unsigned_activations is False


@pytest.mark.parametrize(
    ("changes", "bits"),
    [
        # 10 rows of 8 are 3 groups each, 4 rows of 10 are 4: 46 scales of 32 bits.
        ({"weights": "int3", "weight_group": 3}, 120 * 3 + 46 * 32),
        # All of a row's weights in one group: the scale of the channel, which the requantizer has.
        ({"weights": "int3", "weight_group": 10}, 120 * 3),
        ({"weights": "mxfp4"}, 120 * 4),
    ],
)
def test_scales_of_groups_are_stored_with_the_weights(changes: dict[str, Any], bits: int) -> None:
    metrics = _quality(**changes).metrics
    assert metrics["weight_bits"] == Figure(bits / 120, Provenance.ANALYTIC)
    assert metrics["weight_memory_kib"] == Figure((60 * 8 + bits) / 8 / 1024, Provenance.ANALYTIC)


def test_no_datapath_is_named_where_a_sum_has_several_scales() -> None:
    assert _quality(weight_group=3).weight_pairs == []
    blocks = _quality(activations="mxfp4")
    assert blocks.weight_pairs == []
    assert blocks.metrics["activation_bits"] == Figure(4.25, Provenance.ANALYTIC)


def test_choices_of_scales_reach_the_quantizer() -> None:
    point = replace(
        POINT, weights="ternary", weight_scale="mean", weight_group=32, activation_granularity="token"
    )
    settings = settings_of(point)
    assert (settings.weight_scale, settings.weight_group, settings.activation_granularity) == (
        "mean",
        32,
        "token",
    )
