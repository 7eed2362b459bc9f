"""Writer and reader of a cache of keys and values in uniform groups, as blocks."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hw._checks import check_positive
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli, check_flag
from hw.blocks.codes import element_words, joined
from hw.kv_cache.quantizer import ELEMENT_BITS
from hw.kv_cache.uniform_cache import UniformReader, UniformWriter
from quantizers.kv_cache.packing import pack
from quantizers.kv_cache.uniform import dequantize, quantize

_SPREADS = (1, 30, 2000, 32768)


class _Payloads(NamedTuple):
    """Of elements that are written, of words and ranges in the cache, and of elements that are read."""

    written: list[int]
    words: list[int]
    ranges: list[int]
    read: list[int]


def _payloads(
    rng: np.random.Generator,
    groups: int,
    *,
    head_dim: int,
    bits: int,
    group: int,
    lanes: int,
    word_bits: int,
    per_channel: bool,
) -> _Payloads:
    """Random tokens that make at least so many groups, their channels of different spreads."""
    tokens = -(-groups // head_dim) * group if per_channel else -(-groups * group // head_dim)
    spreads = rng.choice(_SPREADS, (1, head_dim))
    x = rng.integers(-32768, 32768, (tokens, head_dim)) % (2 * spreads) - spreads
    turned = x.reshape(-1, group, head_dim).swapaxes(1, 2) if per_channel else x.reshape(-1, group)
    coded = quantize(turned, bits)
    decoded = dequantize(coded, bits)
    ranges = zip(coded.minimum.reshape(-1).tolist(), coded.span.reshape(-1).tolist(), strict=True)
    return _Payloads(
        element_words(x, lanes=lanes, bits=ELEMENT_BITS),
        pack(coded.codes, bits, word_bits=word_bits).reshape(-1).tolist(),
        [joined(both, [ELEMENT_BITS, ELEMENT_BITS]) for both in ranges],
        element_words(decoded.swapaxes(1, 2) if per_channel else decoded, lanes=lanes, bits=ELEMENT_BITS),
    )


def _written(component: UniformWriter, rng: np.random.Generator, count: int, **sizes: Any) -> Stimuli:
    """As many groups as give at least *count* words."""
    words = -(-sizes["bits"] * sizes["group"] // sizes["word_bits"])
    payloads = _payloads(rng, -(-count // words), **sizes)
    return Stimuli({"inputs": payloads.written}, {"words": payloads.words, "ranges": payloads.ranges})


def _read(component: UniformReader, rng: np.random.Generator, count: int, **sizes: Any) -> Stimuli:
    """As many groups as give at least *count* words of elements."""
    payloads = _payloads(rng, -(-count * sizes["lanes"] // sizes["group"]), **sizes)
    return Stimuli({"words": payloads.words, "ranges": payloads.ranges}, {"outputs": payloads.read})


def _datasheet(
    component: UniformWriter | UniformReader,
    *,
    is_reader: bool,
    bits: int,
    group: int,
    lanes: int,
    word_bits: int,
    per_channel: bool,
    **_: Any,
) -> Datasheet:
    along = f"{group} tokens of a channel" if per_channel else f"{group} channels of a token"
    elements = f"{lanes} elements of a token, from channel 0"
    cached = {
        "words": f"{bits}-bit codes of a group, {along}, from a new word on",
        "ranges": "smallest element of a group, and largest less smallest; one for each group",
    }
    block = f"{group} tokens" if per_channel else "a group"
    written = f"from the one in which the last elements of {block} are taken to the first word of codes"
    first = f"last word of {block}" if per_channel else "word that completes the first codes of a group"
    return Datasheet(
        component.latency,
        f"from the one in which the {first} is taken to its first elements" if is_reader else written,
        f"{group} elements in {component.interval} cycles",
        {**cached, "outputs": elements} if is_reader else {"inputs": elements, **cached},
    )


def _speed(component: UniformWriter | UniformReader, *, group: int, **_: Any) -> dict[str, float]:
    return {"elements_per_cycle": group / component.interval}


_PARAMETERS = (
    Parameter("head_dim", 64, "elements of a vector", check_positive),
    Parameter("bits", 4, "of a code, 2 to 8", check_positive),
    Parameter("group", 64, "elements that share minimum and span", check_positive),
    Parameter("lanes", 8, "elements a cycle", check_positive),
    Parameter("word_bits", 32, "of a word of codes", check_positive),
    Parameter("per_channel", False, "groups are along the tokens, for keys (KIVI)", check_flag),
)

KV_UNIFORM_WRITER = Block(
    "kv_uniform_writer",
    UniformWriter,
    "quantizes keys or values of one head in groups and packs their codes",
    _PARAMETERS,
    _written,
    partial(_datasheet, is_reader=False),
    speed=_speed,
    formats=(),
)

KV_UNIFORM_READER = Block(
    "kv_uniform_reader",
    UniformReader,
    "gives the keys or values back of which kv_uniform_writer made words and ranges",
    _PARAMETERS,
    _read,
    partial(_datasheet, is_reader=True),
    speed=_speed,
    formats=(),
)
