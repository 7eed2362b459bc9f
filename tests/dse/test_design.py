"""A design point's hash: what it stands for, and what changes it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from costmodel import content_key
from dse.design import DesignPoint
from quantizers.errors import UsageError

POINT = DesignPoint(
    workload="fmnist-resnet",
    weights="int4",
    activations="int8",
    edge_format="int8",
    integer_weights="narrow",
    weight_scale="mse",
    activation_scale="mse",
    percentile=None,
    bias="fixed",
    unsigned_activations=True,
    recipe="round",
    calibration_images=None,
    evaluation_images=None,
    block="mac",
    dot_length=4608,
    part="xc7z020",
    seed=0,
    weight_group=None,
    activation_granularity="tensor",
    residual_format=None,
)
TOOLS = {"torch": "2.9.0", "pyosys": "0.60"}
CHANGES: dict[str, Any] = {
    "workload": "fmnist-vit",
    "weights": "e2m1",
    "activations": "int4",
    "edge_format": "int6",
    "integer_weights": "full",
    "weight_scale": "max",
    "activation_scale": "percentile",
    "percentile": 99.9,
    "bias": "float",
    "unsigned_activations": False,
    "recipe": "gptq",
    "calibration_images": 64,
    "evaluation_images": 200,
    "block": "dot",
    "dot_length": 4607,
    "part": "xc7a35t",
    "seed": 1,
    "weight_group": 32,
    "activation_granularity": "token",
    "residual_format": "int8",
}


def key(point: DesignPoint, tools: dict[str, str] = TOOLS, data: str = "abc") -> str:
    return point.key(tools=tools, data=data)


def test_every_choice_is_tried_here() -> None:
    assert list(CHANGES) == [field.name for field in fields(DesignPoint)] == list(POINT.as_dict())


@pytest.mark.parametrize("name", CHANGES)
def test_each_choice_changes_the_key(name: str) -> None:
    assert key(replace(POINT, **{name: CHANGES[name]})) != key(POINT)


def test_no_two_changes_give_the_same_key() -> None:
    keys = {key(replace(POINT, **{name: value})) for name, value in CHANGES.items()}
    assert len(keys) == len(CHANGES)
    swapped = replace(POINT, weights="int8", activations="int4")
    assert key(swapped) not in {key(POINT), *keys}


def test_equal_points_have_equal_keys() -> None:
    again = DesignPoint(**POINT.as_dict())
    assert again == POINT
    assert again is not POINT
    assert key(again) == key(POINT)
    assert key(POINT, dict(reversed(TOOLS.items()))) == key(POINT)


def test_tools_and_data_change_the_key() -> None:
    others = [
        key(POINT, {**TOOLS, "torch": "2.9.1"}),
        key(POINT, {**TOOLS, "numba": "0.61"}),
        key(POINT, {"torch": "2.9.0"}),
        key(POINT, data="abd"),
    ]
    assert len({key(POINT), *others}) == 5


def test_the_key_is_the_hash_of_what_it_names() -> None:
    document = {"design": POINT.as_dict(), "tools": TOOLS, "data": "abc"}
    assert key(POINT) == content_key(document)


def test_points_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        POINT.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("weights", "activations", "family", "label"),
    [
        ("int4", "int8", "integer", "int4/int8"),
        ("e2m1", "e2m1", "minifloat", "e2m1"),
        ("e2m1", "int8", "mixed", "e2m1/int8"),
        ("ternary", "int8", "mixed", "ternary/int8"),
    ],
)
def test_family_and_label(weights: str, activations: str, family: str, label: str) -> None:
    point = replace(POINT, weights=weights, activations=activations)
    assert (point.family, point.label) == (family, label)
    assert (point.weight_format.name, point.activation_format.name) == (weights, activations)


@pytest.mark.parametrize(
    ("changes", "label", "integer_sums"),
    [
        ({"weight_group": 32}, "int4g32/int8", False),
        (
            {"weight_group": 64, "activations": "int4", "activation_granularity": "token"},
            "int4g64/int4t",
            False,
        ),
        ({"activations": "int4", "activation_granularity": "token"}, "int4/int4t", True),
        ({"weights": "mxfp4", "activations": "mxfp4"}, "mxfp4", False),
        ({"activations": "mxint8"}, "int4/mxint8", False),
    ],
)
def test_labels_tell_groups_and_tokens(changes: dict[str, Any], label: str, integer_sums: bool) -> None:
    point = replace(POINT, **changes)
    assert (point.label, point.has_integer_sums) == (label, integer_sums)


def test_a_wrong_format_name_is_told_when_the_format_is_needed() -> None:
    with pytest.raises(UsageError) as caught:
        _ = replace(POINT, weights="e9m9").weight_format
    assert str(caught.value) == "no format 'e9m9': minifloats have 1 to 5 exponent bits, not 9"
