"""What a design point is worth: accuracy of the quantized network, cost of its datapath.

Runs in worker processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dse import accuracy
from dse.accuracy import Quality, Source, quality_of, settings_of
from dse.costing import BlockCost, build_block, cost_of_block
from dse.design import DesignPoint
from dse.metrics import Figure
from quantizers.errors import BitfrontError


@dataclass(frozen=True)
class Task:
    """A point with what a worker needs to evaluate it; *tools* are the versions in its key."""

    point: DesignPoint
    source: Source
    tools: Mapping[str, str]

    @property
    def key(self) -> str:
        return self.point.key(tools=self.tools, data=self.source.fingerprint)


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a point and the facts that go with them (see ``Result``)."""

    metrics: dict[str, Figure]
    details: dict[str, Any]


class DotLengthError(BitfrontError):
    """The datapath's accumulator is too narrow for the network's longest dot product."""


def check_point(point: DesignPoint) -> None:
    """Raise for formats that the quantizer or the datapath cannot do, before anything is measured.

    Raises:
        UsageError: with what was given and what is expected.
    """
    settings_of(point)
    if not point.has_integer_sums:
        return
    activations = point.activation_format
    build_block(point.block, point.weights, activations.name, _parameters(point))
    if point.unsigned_activations:
        build_block(point.block, point.weights, activations.unsigned_counterpart.name, _parameters(point))


def evaluate(task: Task) -> Evaluation:
    """Quantize and measure the network, then build and synthesise the datapath.

    A network with several scales within a sum has no datapath here, and so no cost.

    Raises:
        DotLengthError: the accumulator could overflow in this network.
    """
    point = task.point
    quality = quality_of(point, task.source)
    if quality.terms > point.dot_length:
        msg = (
            f"{point.workload} sums up to {quality.terms} products (bias included), the datapath only "
            f"dot_length = {point.dot_length}; set hardware.dot_length to {quality.terms} or more"
        )
        raise DotLengthError(msg)
    metrics = {**quality.metrics, **_attention_cost(point, quality)}
    details = {**quality.details, "longest_dot_product": quality.terms}
    if not quality.weight_pairs:
        return Evaluation(metrics, details)
    cost = costliest(point, quality.weight_pairs)
    synthesis = ", ".join(f"{name} {text}" for name, text in cost.tools.items())
    of_mac = {"mac_weights": cost.design["weights"], "mac_activations": cost.design["activations"]}
    return Evaluation({**metrics, **cost.metrics}, {**details, **of_mac, "synthesis": synthesis})


def float_accuracy(task: Task) -> Figure:
    """The float network's accuracy."""
    return accuracy.float_accuracy(task.point, task.source)


def costliest(point: DesignPoint, pairs: list[tuple[str, str]]) -> BlockCost:
    """The largest datapath among *pairs* of formats (weights, activations).

    A network whose layers see signed and unsigned inputs needs both datapaths; the cost that a point
    carries is that of the larger one, so that no format looks cheaper than it is.
    """
    costs = [cost_of_block(point.block, w, a, _parameters(point), part=point.part) for w, a in pairs]
    return max(costs, key=lambda cost: cost.metrics["luts"].value)


def _attention_cost(point: DesignPoint, quality: Quality) -> dict[str, Figure]:
    if not quality.activation_pairs:
        return {}
    return {"activation_product_luts": costliest(point, quality.activation_pairs).metrics["luts"]}


def _parameters(point: DesignPoint) -> dict[str, Any]:
    return {"dot_length": point.dot_length}
