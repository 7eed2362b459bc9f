"""What a point is worth: checks before work, the datapath that is costed, too short accumulators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from dse import accuracy
from dse.accuracy import Products, Source, quality_of
from dse.costing import BlockCost, build_block, cost_of_block
from dse.environment import tool_versions
from dse.evaluation import (
    DotLengthError,
    Task,
    check_point,
    costliest,
    evaluate,
    float_accuracy,
)
from dse.metrics import METRICS, Figure, Provenance
from dse.study import Study
from dse.workloads import workload_fingerprint
from quantizers.errors import BitfrontError, UsageError

(POINT,) = Study.parse(
    {
        "name": "t",
        "workloads": [{"name": "fmnist-resnet", "calibration_images": 16, "evaluation_images": 20}],
        "formats": {"pairs": [["int4", "int4"]]},
        "hardware": {"dot_length": 1024},
    }
).points()
SIGNED_WANTED = "give the signed format; inputs never negative lose the sign bit"


@pytest.fixture(autouse=True)
def fresh_networks() -> Iterator[None]:
    """No network that another test has loaded, and none left for the next one."""
    accuracy._workload.cache_clear()
    accuracy._latest_prepared.clear()
    yield
    accuracy._workload.cache_clear()
    accuracy._latest_prepared.clear()


def _task(**changes: Any) -> Task:
    point = replace(POINT, **changes)
    return Task(point, Source(None, workload_fingerprint(point.workload)), tool_versions())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": "e4m3fn"},
            "weights has codes for NaN or infinity, which this datapath cannot carry: e4m3fn",
        ),
        (
            {"activations": "e4m3fn"},
            "activations has codes for NaN or infinity, which this datapath cannot carry: e4m3fn",
        ),
        (
            {"activations": "e5m2ieee"},
            "activations has codes for NaN or infinity, which this datapath cannot carry: e5m2ieee",
        ),
        ({"weights": "uint8"}, f"weights cannot be uint8: {SIGNED_WANTED}"),
        ({"activations": "uint8"}, f"activations cannot be uint8: {SIGNED_WANTED}"),
        ({"edge_format": "ue4m3"}, f"edge_weights cannot be ue4m3: {SIGNED_WANTED}"),
        ({"activations": "ternary"}, "activations cannot be ternary, which is for weights"),
        ({"edge_format": "ternary"}, "edge_activations cannot be ternary, which is for weights"),
        (
            {"edge_format": "mxfp4"},
            "'mxfp4' shares scales between elements; a scalar format is needed here, such as 'e4m3'",
        ),
        ({"bias": "rounded"}, "unknown bias 'rounded'; expected one of: fixed, float"),
        ({"percentile": 0.0}, "percentile must be above 0 and at most 100, not 0.0"),
        (
            {"block": "mca"},
            "unknown block 'mca' (did you mean 'mac'?); expected one of: best_mac, mac, binned_mac",
        ),
        ({"dot_length": 0}, "dot_length must be a positive integer, not 0"),
    ],
)
def test_what_cannot_be_done_is_told_before_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_point(replace(POINT, **changes))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("weights", "activations", "unsigned"),
    [("int4", "int4", True), ("ternary", "e4m3", True), ("e5m2", "int8", False), ("int8n", "e3m0", True)],
)
def test_what_can_be_done_passes(weights: str, activations: str, unsigned: bool) -> None:
    check_point(replace(POINT, weights=weights, activations=activations, unsigned_activations=unsigned))


def test_tasks_are_known_by_point_tools_and_data() -> None:
    task = _task()
    assert task.key == POINT.key(tools=tool_versions(), data=workload_fingerprint("fmnist-resnet"))
    others = {
        replace(task, point=replace(POINT, seed=1)).key,
        replace(task, tools={}).key,
        replace(task, source=Source(None, "other")).key,
    }
    assert len({task.key, *others}) == 4
    assert replace(task, source=replace(task.source, data="elsewhere")).key == task.key


def formats_of(weights: str, activations: str) -> dict[str, str]:
    return {"weights": weights, "activations": activations}


SMALL, LARGE = ("int2", "int2"), ("int4", "int5")


@pytest.mark.parametrize("pairs", [[SMALL, LARGE], [LARGE, SMALL], [LARGE]])
def test_the_larger_datapath_is_the_one_that_counts(pairs: list[tuple[str, str]]) -> None:
    cost = costliest(replace(POINT, dot_length=16), [Products(*pair, 9, 900) for pair in pairs])
    small, large = (
        cost_of_block("mac", formats_of(*pair), {"dot_length": 16}, part="xc7z020") for pair in (SMALL, LARGE)
    )
    assert small.metrics["luts"].value < large.metrics["luts"].value
    assert cost == replace(large, metrics={**large.metrics, **without_pause(large)})


def without_pause(cost: BlockCost) -> dict[str, Figure]:
    return {
        "cycles_per_product": Figure(1.0, Provenance.ANALYTIC),
        "lut_cycles_per_product": Figure(cost.metrics["luts"].value, Provenance.MEASURED),
    }


def test_bins_where_the_dot_products_are_long_enough_for_their_pauses() -> None:
    """60 cycles between dot products of e4m3: dear after 40 products, cheap after 4,000."""
    point = replace(POINT, block="best_mac", dot_length=4608)
    exact, bins = (
        cost_of_block(block, formats_of("e4m3", "e4m3"), {"dot_length": 4608}, part="xc7z020")
        for block in ("mac", "binned_mac")
    )
    short, long = Products("e4m3", "e4m3", 40, 4000), Products("e4m3", "e4m3", 4000, 36000)
    assert costliest(point, [short]).design == exact.design
    best = costliest(point, [short, long])
    assert best.design == bins.design
    pause = build_block("binned_mac", formats_of("e4m3", "e4m3"), {"dot_length": 4608}).pause
    cycles = (4000 * (1 + pause / 40) + 36000 * (1 + pause / 4000)) / 40000
    assert best.metrics["cycles_per_product"].value == pytest.approx(cycles, rel=1e-12)
    sites = bins.metrics["luts"].value
    assert best.metrics["lut_cycles_per_product"].value == pytest.approx(sites * cycles, rel=1e-12)
    assert best.metrics["luts"] == bins.metrics["luts"]


def test_bins_are_not_taken_where_there_are_none() -> None:
    best = costliest(replace(POINT, block="best_mac", dot_length=16), [Products(*SMALL, 9, 900)])
    assert best.design["block"] == "mac"
    with pytest.raises(UsageError) as caught:
        check_point(replace(POINT, block="binned_mac"))
    assert str(caught.value) == ("bins need exponents, and neither int4 nor int4 has more than one binade")


def _terms() -> int:
    task = _task()
    return quality_of(task.point, task.source).terms


def test_a_datapath_too_short_for_the_network() -> None:
    # 96 channels x 3 x 3, and a bias worth a few of the largest products.
    terms = _terms()
    assert 864 < terms < 864 + 20
    with pytest.raises(DotLengthError) as caught:
        evaluate(_task(dot_length=terms - 1))
    assert str(caught.value) == (
        f"fmnist-resnet sums up to {terms} products (bias included), the datapath only "
        f"dot_length = {terms - 1}; set hardware.dot_length to {terms} or more"
    )
    assert isinstance(caught.value, BitfrontError)


def test_a_network_without_attention() -> None:
    terms = _terms()
    task = _task(dot_length=terms)
    evaluation = evaluate(task)
    quality = quality_of(task.point, task.source)
    cost = cost_of_block("mac", formats_of("int4n", "uint4"), {"dot_length": terms}, part="xc7z020")
    assert quality.weight_pairs == [("int4n", "uint4")]
    assert "activation_product_luts" not in evaluation.metrics
    assert evaluation.metrics == {**quality.metrics, **cost.metrics, **without_pause(cost)}
    assert set(evaluation.metrics) <= set(METRICS)
    assert evaluation.details == {
        "calibration_images_used": 16,
        "evaluation_images_used": 20,
        "float_products": "",
        "longest_dot_product": terms,
        "mac_block": "mac",
        "mac_weights": "int4n",
        "mac_activations": "uint4",
        "synthesis": (
            f"yosys {cost.tools['yosys']}, flags -family xc7 -nodsp -noiopad -noclkbuf -flatten -nosrl "
            "-nobram -nolutram, part xc7"
        ),
    }
    assert float_accuracy(task) == evaluation.metrics["float_accuracy"]


def test_attention_is_costed_beside_the_weight_layers() -> None:
    task = _task(workload="fmnist-vit")
    evaluation = evaluate(task)
    quality = quality_of(task.point, task.source)
    assert quality.weight_pairs == [("int4n", "int4")]
    assert quality.activation_pairs == [("int4", "int4"), ("int4", "uint4")]
    products = [
        cost_of_block("mac", formats_of(*pair), {"dot_length": 1024}, part="xc7z020")
        for pair in quality.activation_pairs
    ]
    largest = max(cost.metrics["luts"].value for cost in products)
    assert evaluation.metrics["activation_product_luts"] == Figure(largest, Provenance.MEASURED)
    assert (evaluation.details["mac_weights"], evaluation.details["mac_activations"]) == ("int4n", "int4")


@pytest.mark.parametrize(
    "changes", [{"weight_group": 16}, {"weights": "mxfp4"}, {"activations": "mxfp6_e2m3"}]
)
def test_a_sum_of_several_scales_has_accuracy_and_no_datapath(changes: dict[str, Any]) -> None:
    check_point(replace(POINT, **changes))
    found = evaluate(_task(**changes))
    assert "accuracy" in found.metrics
    assert not {"luts", "lut_cells", "accumulator_bits"} & set(found.metrics)
    assert not {"mac_weights", "synthesis"} & set(found.details)
