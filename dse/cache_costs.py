"""What the engine of a cache's codec costs: writers and readers of keys and of values; what merges layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from costmodel import ContentCache, synthesize
from dse.cache_engines import CacheEngine, engine_of
from dse.merge_engines import MergeMemories, merge_parts
from dse.metrics import Figure, Provenance
from hw._component import Component
from quantizers.errors import UsageError
from quantizers.kv_cache.codec import Exact
from quantizers.kv_cache.merge_plan import MergePlan
from quantizers.kv_cache.stores import Plan

_SUMMED = ("luts", "lut_cells", "carries", "carry_positions", "ffs", "dsps", "brams", "lutrams")


@dataclass(frozen=True)
class EngineCost:
    """Resources by metric, of all parts together; none where there is no engine.

    Attributes:
        metrics: sums, also of the elements a cycle of keys and of values; the logic delay is the longest.
        details: sites of each part, and with what it was synthesised, or why there is no engine.
    """

    metrics: dict[str, Figure] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def cost_of_plan(plan: Plan, *, part: str, memories: MergeMemories | None = None) -> EngineCost:
    """Of a writer and a reader for each stream of channels: loaded tables have room for those of every
    layer, tables in logic are those of the first. Where layers are merged, of what merges and restores them
    as well, with memories as large as *memories* says; directions go through the writers and readers of the
    other layers, where these are coded.

    Raises:
        SynthesisError: the synthesiser failed.
    """
    try:
        engines = _engines(plan)
        components = _components(plan, engines, memories)
    except UsageError as error:  # none, or sizes that it cannot do
        return EngineCost(details={"engine": str(error)})
    cache = ContentCache(namespace="synthesis")
    parts = {
        name: synthesize(component, name=f"kv_{name}", part=part, cache=cache)
        for name, component in components.items()
    }
    found = {name: resources.as_metrics() for name, resources in parts.items()}
    metrics = {
        name: Figure(sum(document[name]["value"] for document in found.values()), Provenance.MEASURED)
        for name in _SUMMED
        if all(name in document for document in found.values())
    }
    if all("logic_delay_ns" in document for document in found.values()):
        delay = max(document["logic_delay_ns"]["value"] for document in found.values())
        metrics["logic_delay_ns"] = Figure(delay, Provenance.MEASURED)
    if engines and not isinstance(plan, MergePlan):
        rate = sum(engine.elements_per_cycle for engine in engines)
        metrics["elements_per_cycle"] = Figure(rate, Provenance.ANALYTIC)
        metrics["luts_per_element_cycle"] = Figure(metrics["luts"].value / rate, Provenance.MEASURED)
    sites = ", ".join(f"{name} {document['luts']['value']:.0f}" for name, document in found.items())
    tools = ", ".join(f"{name} {text}" for name, text in next(iter(parts.values())).tools.items())
    return EngineCost(metrics, {"engine": f"sites: {sites}", "synthesis": tools})


def _engines(plan: Plan) -> list[CacheEngine]:
    """One for each stream of channels; none where layers that are not merged stay exact.

    Raises:
        UsageError: there is no hardware for a codec, or none of its sizes.
    """
    if isinstance(plan, MergePlan) and all(isinstance(c, Exact) for codecs in plan.codecs for c in codecs):
        return []
    return [engine_of(first, others) for first, *others in zip(*plan.codecs, strict=True)]


def _components(
    plan: Plan, engines: Sequence[CacheEngine], memories: MergeMemories | None
) -> dict[str, Component]:
    """By name.

    Raises:
        UsageError: there is no hardware of such sizes.
    """
    parts = {
        f"{kind}{number}": make()
        for number, engine in enumerate(engines)
        for kind, make in (("writer", engine.writer), ("reader", engine.reader))
    }
    return {**parts, **merge_parts(plan, memories)} if isinstance(plan, MergePlan) else parts
