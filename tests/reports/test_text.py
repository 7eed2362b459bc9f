from types import SimpleNamespace

from dse.metrics import METRICS
from reports.text import pair_label, with_interval


def test_values_with_intervals():
    accuracy = {"accuracy": 0.9123, "accuracy_low": 0.9, "accuracy_high": 0.92}
    assert with_interval(accuracy, METRICS["accuracy"]) == "91.23 [90.0, 92.0]"
    assert with_interval({"luts": 80}, METRICS["luts"]) == "80"


def test_equal_formats_are_named_once():
    assert pair_label(SimpleNamespace(weights="e2m1", activations="e2m1")) == "e2m1"
    assert pair_label(SimpleNamespace(weights="e2m1", activations="int8")) == "e2m1/int8"
    row = SimpleNamespace(weights="int4", activations="int4", residual_format="int8")
    assert pair_label(row) == "int4 (adds int8)"
    row = SimpleNamespace(weights="int4", activations="int4", residual_format=float("nan"))
    assert pair_label(row) == "int4"


def test_weight_groups_and_tokens_are_named():
    row = SimpleNamespace(
        weights="int4", activations="int4", weight_group=32.0, activation_granularity="token"
    )
    assert pair_label(row) == "int4g32/int4t"
    row.weight_group, row.activation_granularity = float("nan"), "tensor"
    assert pair_label(row) == "int4"
