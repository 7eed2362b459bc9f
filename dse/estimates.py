"""Tokens per second of whole models on the table-lookup engine: what ``dse estimate`` asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

from costmodel.geometries import GEOMETRIES, Decoder, LatentDecoder, find_geometry
from costmodel.kv_cache import CacheCoding, CachedRate, cache_use
from costmodel.lookup_accelerator import LookupCost, LookupDesign
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
from quantizers.sparse_attention.settings import BlockSelection

_ENGINE_KEYS = ("groups", "group", "planes", "table", "folds")
_UNITS = {
    "clock": "Hz",
    "bandwidth": "bytes/s",
    "efficiency": "of the peak",
    "capacity": "bytes",
    "stored_bits": "bits a weight",
    **{item.name: getattr(SETTING, item.name).unit for item in fields(Setting) if item.name != "clock"},
}

_Cache = tuple[CacheCoding | None, BlockSelection | None]
"""A codec, ``None`` for the same bits of every value, and a selection of blocks."""

USUAL_CACHES = (
    "exact",
    "kivi(bits=4, group=32)",
    "kivi(bits=2, group=32)",
    "per_token(bits=4, group=64)",
    "rotated(bits=4)",
    "rotated(bits=3)",
    "transform(bits=3.25)",
)
"""Codecs of the cache that are listed where none is asked for."""

USUAL_CONTEXTS = (1024, 8192, 32_768, 131_072)
"""Lengths that caches are listed at where none is asked for."""


@dataclass(frozen=True)
class Caches:
    """Which caches a row each is asked for.

    Attributes:
        codecs: as :func:`quantizers.kv_cache.registry.parse_cache_scheme` takes them.
        blocks: with InfLLM v2's selection of blocks, or without; ``None`` for both.
    """

    codecs: Sequence[str] = USUAL_CACHES
    blocks: bool | None = None

    @classmethod
    def asked(cls, usual: bool, codecs: Sequence[str], blocks: bool | None) -> Caches | None:
        """What the options of the command line ask for; ``None`` for no caches.

        Raises:
            UsageError: *blocks* without any cache.
        """
        if usual or codecs:
            return cls(codecs or USUAL_CACHES, blocks)
        if blocks is not None:
            option = "--blocks" if blocks else "--no-blocks"
            msg = f"{option} is of caches: add --caches, or --kv-codec with a codec"
            raise UsageError(msg, given=option, expected=["--caches", "--kv-codec"])
        return None

    @property
    def selections(self) -> list[BlockSelection | None]:
        """Dense attention first."""
        return [BlockSelection() if on else None for on in (False, True) if self.blocks in (None, on)]


@dataclass(frozen=True)
class Estimate:
    """One row of the answer.

    Attributes:
        activations: name of their format.
        rate: the estimate.
        tools: what its measured inputs were measured with.
        cached: the same with its codec and its selection of blocks; ``None`` where none were asked for.
    """

    activations: str
    rate: TokenRate
    tools: Mapping[str, str]
    cached: CachedRate | None = None

    @property
    def inputs(self) -> dict[str, Input]:
        """Every number it rests on, by name."""
        return self.rate.inputs if self.cached is None else self.cached.inputs

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
        if self.cached is not None:
            analytic |= _cache_figures(self.cached)
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
            **({} if self.cached is None else _cache_choices(self.cached)),
            "limit": rate.limit,
            "lane_limit": rate.lane_limit,
            "fits": rate.fits,
            "metrics": {name: figure.as_json() for name, figure in self.metrics.items()},
            "inputs": {name: asdict(value) for name, value in self.inputs.items()},
            "tools": dict(self.tools),
        }


def _cache_choices(cached: CachedRate) -> dict[str, Any]:
    return {
        "cache": cached.coding.name,
        "blocks": cached.selection is not None,
        "dense": cached.is_dense,
    }


def _cache_figures(cached: CachedRate) -> dict[str, float]:
    return {
        "bits_per_element": cached.coding.bits,
        "stored_cache_bytes": cached.use.stored_bytes,
        "read_tokens": cached.use.read_tokens,
        "compressed_key_bytes": cached.use.compressed_bytes,
        "bytes_per_second": cached.bytes_per_second,
        "reader_elements_per_second": cached.elements_per_second,
        "reader_lanes": cached.reader_lanes,
        "burst_reader_lanes": cached.burst_reader_lanes,
        "reader_tokens_per_second": cached.reader_bound,
    }


def estimate(
    model: str | None,
    weights: str | None,
    *,
    part: str,
    activations: str = "int8",
    contexts: str | None = None,
    settings: Sequence[str] = (),
    caches: Caches | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Estimate]:
    """Estimates for a model, or for those of the standard list, at every length of context.

    With *caches* there is one for each codec and selection of blocks, in place of ``cache_bits``.

    Args:
        model: a name of :data:`costmodel.geometries.GEOMETRIES`; ``None`` for the standard list.
        weights: format of the weights; ``None`` for those of the standard list.
        part: with a known memory, unless *settings* tell of one.
        activations: format of the activations.
        contexts: tokens in the cache, such as ``1024,8192``; ``None`` for 1024, or with *caches* for
            :data:`USUAL_CONTEXTS`.
        settings: inputs, and choices of the engine, as ``key=value``.
        caches: codecs, with and without selection of blocks.
        tell: is told, in a line, what takes long.

    Raises:
        UsageError: an unknown name, a value out of range, an engine that does not fit, or a codec that does
            not fit the model's heads.
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
    coded: Mapping[str, Sequence[_Cache]] = (
        {} if caches is None else _coded_caches([geometry for geometry, _ in rows], caches, given)
    )
    lengths = _context_lengths(contexts, given.get("context"), USUAL_CONTEXTS if caches else ())
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
        scheme = schemes[name]
        cost = lookup_cost(scheme.design, is_placed=setting.clock is None, tell=tell)
        one = partial(_estimate, geometry, scheme, cost, device, memory)
        for context in lengths:
            here = replace(setting, context=context)
            results += [one(here, *cache) for cache in coded.get(geometry.name, [(None, None)])]
    return results


def _coded_caches(
    geometries: Sequence[Decoder | LatentDecoder], caches: Caches, given: Mapping[str, Input]
) -> Mapping[str, Sequence[_Cache]]:
    """Of every model by name, each codec without and with selection of blocks."""
    from dse.cache_codings import codings  # loads torch, which a question without caches must not wait for

    if "cache_bits" in given:
        msg = f"the caches have bits of their own: --set cache_bits={given['cache_bits'].value} is in the way"
        raise UsageError(msg, given=given["cache_bits"].value, expected=["without --set cache_bits"])
    found = {}
    for geometry in geometries:
        if not isinstance(geometry, Decoder):
            msg = f"{geometry.name} caches latent vectors; codecs and blocks are for keys and values of heads"
            raise UsageError(msg, given=geometry.name, expected=["without --caches and --kv-codec"])
        found[geometry.name] = [
            (coding, selection)
            for coding in codings(geometry, caches.codecs)
            for selection in caches.selections
        ]
    return found


def _estimate(
    geometry: Decoder | LatentDecoder,
    scheme: WeightScheme,
    cost: LookupCost,
    part: Part,
    memory: Memory,
    setting: Setting,
    coding: CacheCoding | None,
    selection: BlockSelection | None,
) -> Estimate:
    activations = scheme.design.activations
    if coding is None or not isinstance(geometry, Decoder):
        return Estimate(activations, token_rate(geometry, scheme, cost, part, memory, setting), cost.tools)
    use = cache_use(geometry, coding, int(setting.context.value), selection)
    rate = token_rate(geometry, scheme, cost, part, memory, setting, cache=use)
    cached = CachedRate(coding=coding, selection=selection, use=use, rate=rate, reader=_reader())
    return Estimate(activations, rate, cost.tools, cached)


def _reader() -> Input:
    from dse.cache_engines import LANES  # loads the hardware of all codecs

    return Input(LANES, "elements a cycle", "the readers of hw.kv_cache; their clock taken as the engine's")


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


def _context_lengths(text: str | None, given: Input | None, usual: Sequence[int]) -> list[Input]:
    if text is None:
        if given is None and usual:
            return [replace(SETTING.context, value=tokens) for tokens in usual]
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
