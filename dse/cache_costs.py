"""What the engine of a cache's codec costs: writers and readers of keys and of values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from costmodel import ContentCache, synthesize
from dse.cache_engines import engine_of
from dse.metrics import Figure, Provenance
from quantizers.errors import UsageError
from quantizers.kv_cache.codec import Codec
from quantizers.kv_cache.stores import CachePlan

_SUMMED = ("luts", "lut_cells", "carries", "carry_positions", "ffs", "dsps", "brams", "lutrams")


@dataclass(frozen=True)
class EngineCost:
    """Resources by metric, of all parts together; none where there is no engine.

    Attributes:
        metrics: sums; the logic delay is the longest.
        details: sites of each part, and with what it was synthesised, or why there is no engine.
    """

    metrics: dict[str, Figure] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def cost_of_plan(plan: CachePlan, *, part: str) -> EngineCost:
    """Of a writer and a reader for each stream of channels: loaded tables have room for those of every
    layer, tables in logic are those of the first.

    Raises:
        SynthesisError: the synthesiser failed.
    """
    try:
        engines = [engine_of(first, others) for first, *others in zip(*_codecs_of_layers(plan), strict=True)]
        components = {
            f"{kind}{number}": make()
            for number, engine in enumerate(engines)
            for kind, make in (("writer", engine.writer), ("reader", engine.reader))
        }
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
    sites = ", ".join(f"{name} {document['luts']['value']:.0f}" for name, document in found.items())
    tools = ", ".join(f"{name} {text}" for name, text in next(iter(parts.values())).tools.items())
    return EngineCost(metrics, {"engine": f"sites: {sites}", "synthesis": tools})


def _codecs_of_layers(plan: CachePlan) -> list[list[Codec]]:
    return [[stream.codec for stream in layer] for layer in plan.layers]
