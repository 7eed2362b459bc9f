"""What a design point is worth: accuracy of the quantized network, cost of its datapath.

Runs in worker processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dse import accuracy
from dse.accuracy import Products, Quality, Source, quality_of, settings_of
from dse.costing import BlockCost, build_block, cost_of_block, speed_of_block
from dse.design import DesignPoint, HardwarePoint
from dse.metrics import Figure, Provenance
from quantizers.errors import BitfrontError, UsageError, unknown_choice

BEST_MAC = "best_mac"
"""Not a block, but the choice of one for each pair of formats: see :data:`MAC_CHOICES`."""

MAC_CHOICES = (BEST_MAC, "mac", "binned_mac")
"""The units that a study can cost; ``best_mac`` is the one of the others that takes the fewest LUT6 sites
times cycles for the network's dot products."""


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
class HardwareTask:
    """A point without a network; *tools* are the versions in its key."""

    point: HardwarePoint
    tools: Mapping[str, str]

    @property
    def key(self) -> str:
        return self.point.key(tools=self.tools, data="")


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
    block, *_ = _blocks(point)
    formats = {"weights": point.weights, "activations": activations.name}
    build_block(block, formats, _parameters(point))
    if point.unsigned_activations:
        unsigned = {**formats, "activations": activations.unsigned_counterpart.name}
        build_block(block, unsigned, _parameters(point))


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
    if not quality.weight_products:
        return Evaluation(metrics, details)
    unit = costliest(point, quality.weight_products)
    synthesis = ", ".join(f"{name} {text}" for name, text in unit.tools.items())
    of_mac = {f"mac_{name}": unit.design[name] for name in ("block", "weights", "activations")}
    return Evaluation({**metrics, **unit.metrics}, {**details, **of_mac, "synthesis": synthesis})


def evaluate_hardware(task: HardwareTask) -> Evaluation:
    """Build and synthesise a block; its speed, where it tells one, and what its area is for that."""
    point = task.point
    parameters = json.loads(point.parameters)
    cost = cost_of_block(point.block, point.formats, parameters, part=point.part)
    speed = speed_of_block(point.block, point.formats, parameters)
    metrics = {**cost.metrics, **speed}
    area = cost.metrics["luts"]
    for what in ("weight_bit", "weight", "element"):
        if rate := speed.get(f"{what}s_per_cycle"):
            metrics[f"luts_per_{what}_cycle"] = Figure(area.value / rate.value, area.provenance)
    synthesis = ", ".join(f"{name} {text}" for name, text in cost.tools.items())
    return Evaluation(metrics, {"synthesis": synthesis})


def float_accuracy(task: Task) -> Figure:
    """The float network's accuracy."""
    return accuracy.float_accuracy(task.point, task.source)


def costliest(point: DesignPoint, products: Sequence[Products]) -> BlockCost:
    """The largest datapath among those of all pairs of formats.

    A network whose layers see signed and unsigned inputs needs both datapaths; the cost that a point
    carries is that of the larger one, so that no format looks cheaper than it is.
    """
    of_pairs: dict[tuple[str, str], list[Products]] = {}
    for some in products:
        of_pairs.setdefault((some.weights, some.activations), []).append(some)
    return max((_unit(point, *pair, some) for pair, some in of_pairs.items()), key=_site_cycles)


def _unit(point: DesignPoint, weights: str, activations: str, products: list[Products]) -> BlockCost:
    """The unit for a pair of formats; of several, that which needs the fewest sites and cycles."""
    units = []
    formats = {"weights": weights, "activations": activations}
    for block in _blocks(point):
        try:
            component = build_block(block, formats, _parameters(point))
        except UsageError:  # formats without exponents have no bins
            if block == point.block:
                raise
            continue
        pause = getattr(component, "pause", 0)
        cost = cost_of_block(block, formats, _parameters(point), part=point.part)
        count = sum(some.count for some in products)
        cycles = sum(some.count * (1 + pause / some.dot_length) for some in products) / count
        sites = cost.metrics["luts"]
        time = {
            "cycles_per_product": Figure(cycles, Provenance.ANALYTIC),
            "lut_cycles_per_product": Figure(sites.value * cycles, sites.provenance),
        }
        units.append(replace(cost, metrics={**cost.metrics, **time}))
    return min(units, key=_site_cycles)


def _site_cycles(unit: BlockCost) -> float:
    return unit.metrics["lut_cycles_per_product"].value


def _blocks(point: DesignPoint) -> tuple[str, ...]:
    """The blocks that a point may be computed by.

    Raises:
        UsageError: the point names none that multiplies and accumulates.
    """
    if point.block not in MAC_CHOICES:
        raise unknown_choice("block", point.block, MAC_CHOICES)
    return ("mac", "binned_mac") if point.block == BEST_MAC else (point.block,)


def _attention_cost(point: DesignPoint, quality: Quality) -> dict[str, Figure]:
    if not quality.activation_products:
        return {}
    return {"activation_product_luts": costliest(point, quality.activation_products).metrics["luts"]}


def _parameters(point: DesignPoint) -> dict[str, Any]:
    return {"dot_length": point.dot_length}
