"""Tokens per second of whole models on the table-lookup engine: what ``dse estimate`` asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from costmodel.geometries import GEOMETRIES, Decoder, LatentDecoder, find_geometry
from costmodel.lookup_accelerator import LookupDesign
from costmodel.lookup_record import lookup_cost
from costmodel.parts import Part, find_part
from costmodel.token_rate import (
    ASSUMED_EFFICIENCY,
    MEMORIES,
    SETTING,
    STANDARD,
    Input,
    Memory,
    Setting,
    TokenRate,
    WeightScheme,
    find_memory,
    token_rate,
    weight_scheme,
)
from dse.costing import parse_settings
from dse.metrics import Figure, Provenance
from quantizers.errors import UsageError, unknown_choice

_ENGINE_KEYS = ("groups", "group", "planes", "table", "folds")
_UNITS = {
    "clock": "Hz",
    "bandwidth": "bytes/s",
    "efficiency": "of the peak",
    "capacity": "bytes",
    "stored_bits": "bits a weight",
    **{item.name: getattr(SETTING, item.name).unit for item in fields(Setting) if item.name != "clock"},
}


@dataclass(frozen=True)
class Estimate:
    """One row of the answer.

    Attributes:
        activations: name of their format.
        rate: the estimate.
        tools: what its measured inputs were measured with.
    """

    activations: str
    rate: TokenRate
    tools: Mapping[str, str]

    @property
    def metrics(self) -> dict[str, Figure]:
        """Every figure of the estimate; LUTs are on a line through measured engines."""
        rate = self.rate
        analytic = {
            "tokens_per_second": rate.tokens_per_second,
            "compute_tokens_per_second": rate.compute_bound,
            "memory_tokens_per_second": rate.memory_bound,
            "cycles_per_token": rate.cycles,
            "bytes_per_token": rate.read_bytes,
            "weight_bytes": rate.weight_bytes,
            "cache_bytes": rate.cache_bytes,
            "lanes": rate.lanes,
            "enough_lanes": rate.enough_lanes,
            "lane_use": rate.lane_use,
        }
        calibrated = {"luts": rate.luts, "lutrams": rate.lutrams}
        return {
            name: Figure(value, provenance)
            for provenance, values in (
                (Provenance.ANALYTIC, analytic),
                (Provenance.CALIBRATED, calibrated),
            )
            for name, value in values.items()
            if value is not None
        }

    def as_json(self) -> dict[str, Any]:
        """One entry of ``estimates`` in ``dse estimate --json``."""
        rate = self.rate
        return {
            "model": rate.model,
            "weights": rate.weights,
            "activations": self.activations,
            "part": rate.part,
            "context": rate.context,
            "limit": rate.limit,
            "lane_limit": rate.lane_limit,
            "fits": rate.fits,
            "metrics": {name: figure.as_json() for name, figure in self.metrics.items()},
            "inputs": {name: asdict(value) for name, value in rate.inputs.items()},
            "tools": dict(self.tools),
        }


def estimate(
    model: str | None,
    weights: str | None,
    *,
    part: str,
    activations: str = "int8",
    contexts: str | None = None,
    settings: Sequence[str] = (),
    tell: Callable[[str], None] | None = None,
) -> list[Estimate]:
    """Estimates for a model, or for those of the standard list, at every length of context.

    Args:
        model: a name of :data:`costmodel.geometries.GEOMETRIES`; ``None`` for the standard list.
        weights: format of the weights; ``None`` for those of the standard list.
        part: with a known memory, unless *settings* tell of one.
        activations: format of the activations.
        contexts: tokens in the cache, such as ``1024,8192``.
        settings: inputs, and choices of the engine, as ``key=value``.
        tell: is told, in a line, what takes long.

    Raises:
        UsageError: an unknown name, a value out of range, or an engine that does not fit.
        MissingExtraError, SynthesisError, PlacementError: an engine that is not on record could not be
            measured.
    """
    values = parse_settings(settings)
    unknown = next((key for key in values if key not in (*_UNITS, *_ENGINE_KEYS)), None)
    if unknown is not None:
        raise unknown_choice("input", unknown, (*_UNITS, *_ENGINE_KEYS))
    choices = {key: values[key] for key in _ENGINE_KEYS if key in values}
    given = {key: _given(key, value) for key, value in values.items() if key in _UNITS}
    rows = [(_decoder(name), scheme) for name, scheme in _chosen(model, weights)]
    lengths = _context_lengths(contexts, given.get("context"))
    device = find_part(part)
    memory = _memory(device, given)
    setting = replace(SETTING, **{key: given[key] for key in _names(Setting) & given.keys()})
    schemes = {
        name: weight_scheme(
            LookupDesign(weights=name, activations=activations, **choices), given.get("stored_bits")
        )
        for _, name in rows
    }
    results = []
    for geometry, name in rows:
        for context in lengths:
            here = replace(setting, context=context)
            results.append(_estimate(geometry, schemes[name], device, memory, here, tell))
    return results


def _estimate(
    geometry: Decoder | LatentDecoder,
    scheme: WeightScheme,
    part: Part,
    memory: Memory,
    setting: Setting,
    tell: Callable[[str], None] | None,
) -> Estimate:
    cost = lookup_cost(scheme.design, is_placed=setting.clock is None, tell=tell)
    rate = token_rate(geometry, scheme, cost, part, memory, setting)
    return Estimate(scheme.design.activations, rate, cost.tools)


def _chosen(model: str | None, weights: str | None) -> list[tuple[str, str]]:
    """Models and formats of their weights."""
    if model is None:
        return list(dict.fromkeys((name, weights or usual) for name, usual in STANDARD))
    _decoder(model)
    if weights is not None:
        return [(model, weights)]
    usual = [(name, scheme) for name, scheme in STANDARD if name == model]
    if not usual:
        msg = f"say which weights {model} has: --weights ternary, int2, int3 or int4"
        raise UsageError(msg, given=model, expected=["--weights ternary", "--weights int4"])
    return usual


def _decoder(name: str) -> Decoder | LatentDecoder:
    geometry = find_geometry(name)
    if not isinstance(geometry, Decoder | LatentDecoder):
        decoders = [n for n, g in GEOMETRIES.items() if isinstance(g, Decoder | LatentDecoder)]
        msg = f"{name} gives no tokens; expected one of: {', '.join(decoders)}"
        raise UsageError(msg, given=name, expected=decoders)
    return geometry


def _given(key: str, value: Any) -> Input:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{key} must be a number of {_UNITS[key]}, not {value!r}"
        raise UsageError(msg, given=value)
    if key == "context" and value != int(value):
        msg = f"context must be a whole number, not {value!r}"
        raise UsageError(msg, given=value)
    return Input(value, _UNITS[key], "given")


def _context_lengths(text: str | None, given: Input | None) -> list[Input]:
    if text is None:
        return [given or SETTING.context]
    if given is not None:
        msg = f"the context is given twice: --context {text} and --set context={given.value}"
        raise UsageError(msg, given=text, expected=["--context"])
    lengths = []
    for item in text.split(","):
        if not item.strip().isdecimal() or int(item) < 1:
            msg = f"--context takes numbers of tokens, such as 1024,8192, not {text!r}"
            raise UsageError(msg, given=text, expected=["1024,8192"])
        lengths.append(Input(int(item), SETTING.context.unit, "given"))
    return lengths


def _memory(part: Part, given: Mapping[str, Input]) -> Memory:
    """The memory of the part's board, or the one that is given."""
    changes = {key: given[key] for key in _names(Memory) & given.keys()}
    if part.name not in MEMORIES and {"bandwidth", "capacity"} <= changes.keys():
        return Memory(**{"efficiency": ASSUMED_EFFICIENCY, **changes})
    return replace(find_memory(part), **changes)


def _names(kind: type[Memory] | type[Setting]) -> set[str]:
    return {item.name for item in fields(kind)}
