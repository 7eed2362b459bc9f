"""Writer and reader of the rotated cache, and its transform, as blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Value

from hw._checks import check_natural, check_positive
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli
from hw.blocks.codes import element_words, joined, packed
from hw.kv_cache.hadamard import SIZES, HadamardTransform, exchanged_order
from hw.kv_cache.lockstep import Lockstep
from hw.kv_cache.rotated import KvRotatedReader, KvRotatedWriter
from quantizers.kv_cache.codebook import Codebook, ScaleFormat, magnitude_sums
from quantizers.kv_cache.fixed_point import BITS
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.rotation import hadamard, largest_sum, random_signs, rotate, unrotate

_MEAN_SPREAD = 1000
"""Of the drawn means; keys have some channels far from zero."""

_MAX_INPUT_BITS = 32

Integers = npt.NDArray[np.int64]


class _Tables(NamedTuple):
    """The means of each head and the signs of all."""

    means: Integers
    signs: Integers


def _tables(size: int, heads: int, table_seed: int) -> _Tables:
    rng = np.random.default_rng(table_seed)
    means = np.clip(np.rint(rng.normal(0, _MEAN_SPREAD, (heads, size))), -32768, 32767).astype(np.int64)
    return _Tables(means, random_signs(size, table_seed).astype(np.int64))


def _check_input_bits(name: str, value: object) -> None:
    check_range(name, value, 1, _MAX_INPUT_BITS)


def _writer(*, size: int, heads: int, lanes: int, bits: int, table_seed: int) -> KvRotatedWriter:
    means, signs = _tables(size, heads, table_seed)
    return KvRotatedWriter(means=means, signs=signs, lanes=lanes, bits=bits)


def _reader(*, size: int, heads: int, lanes: int, bits: int, table_seed: int) -> KvRotatedReader:
    means, signs = _tables(size, heads, table_seed)
    return KvRotatedReader(means=means, signs=signs, lanes=lanes, bits=bits)


def _payloads(
    rng: np.random.Generator,
    count: int,
    *,
    size: int,
    heads: int,
    lanes: int,
    bits: int,
    table_seed: int,
) -> tuple[list[int], list[int], list[int]]:
    """Of at least *count* words of elements: as they are, coded, and read again. One token is the means."""
    means, signs = _tables(size, heads, table_seed)
    tokens = -(-count * lanes // (size * heads))
    spreads = np.exp2(rng.uniform(-1, 15, (tokens, 1, 1)))
    noise = rng.normal(0, spreads, (tokens, heads, size))
    noise[0] = 0
    x = np.clip(np.rint(means + noise), -32768, 32767).astype(np.int64)
    scale, book = ScaleFormat.covering(largest_sum(size)), Codebook(bits=bits, size=size)
    rotated = rotate(x, means=means, signs=signs)
    scales = scale.encode(magnitude_sums(rotated))
    codes = book.quantize(rotated, scale.decode(scales))
    decoded = unrotate(book.dequantize(codes, scale.decode(scales)), means=means, signs=signs)
    words = codes[..., exchanged_order(size, lanes)].reshape(-1, lanes).astype(np.int64)
    of_words = np.repeat(scales, size // lanes).tolist()
    coded = [
        joined([packed(word, bits), of_word], [lanes * bits, scale.bits])
        for word, of_word in zip(words, of_words, strict=True)
    ]
    return element_words(x, lanes=lanes, bits=BITS), coded, element_words(decoded, lanes=lanes, bits=BITS)


def _written(component: KvRotatedWriter, rng: np.random.Generator, count: int, **sizes: Any) -> Stimuli:
    elements, coded, _ = _payloads(rng, count, **sizes)
    return Stimuli({"inputs": elements}, {"outputs": coded})


def _read(component: KvRotatedReader, rng: np.random.Generator, count: int, **sizes: Any) -> Stimuli:
    _, coded, decoded = _payloads(rng, count, **sizes)
    return Stimuli({"inputs": coded}, {"outputs": decoded})


def _transformed(
    component: HadamardTransform,
    rng: np.random.Generator,
    count: int,
    *,
    size: int,
    lanes: int,
    input_bits: int,
) -> Stimuli:
    """Random vectors, the first of the most negative elements."""
    limit = 1 << (input_bits - 1)
    x = rng.integers(-limit, limit, (-(-count * lanes // size), size))
    x[0] = -limit
    results = hadamard(x)[:, exchanged_order(size, lanes)]
    bits = len(Value.cast(component.outputs.payload)) // lanes
    return Stimuli(
        {"inputs": element_words(x, lanes=lanes, bits=input_bits)},
        {"outputs": element_words(results, lanes=lanes, bits=bits)},
    )


_LATENCY = (
    "from the one in which a vector's first word is taken to the first in which what it became is offered"
)
_ORDER = "in the order of hw.kv_cache.hadamard.exchanged_order: places of words and of lanes exchanged"


def _elements(lanes: int, heads: int) -> str:
    return f"{lanes} elements of a vector; a vector for each of {heads} heads, in turn"


def _codes(bits: int, lanes: int) -> str:
    return f"{lanes} codes of {bits} bits, {_ORDER}, and the scale of their vector, the same in all its words"


def _writer_datasheet(
    component: KvRotatedWriter, *, heads: int, lanes: int, bits: int, **_: Any
) -> Datasheet:
    streams = {"inputs": _elements(lanes, heads), "outputs": _codes(bits, lanes)}
    return Datasheet(component.latency, _LATENCY, f"{lanes} elements a cycle", streams)


def _reader_datasheet(
    component: KvRotatedReader, *, heads: int, lanes: int, bits: int, **_: Any
) -> Datasheet:
    streams = {"inputs": _codes(bits, lanes), "outputs": _elements(lanes, heads)}
    return Datasheet(component.latency, _LATENCY, f"{lanes} elements a cycle", streams)


def _hadamard_datasheet(component: HadamardTransform, *, size: int, lanes: int, **_: Any) -> Datasheet:
    streams = {"inputs": f"{lanes} elements of a vector of {size}", "outputs": f"{lanes} results, {_ORDER}"}
    return Datasheet(component.latency, _LATENCY, f"{lanes} elements a cycle", streams)


def _speed(component: Lockstep, *, lanes: int, **_: Any) -> dict[str, float]:
    return {"elements_per_cycle": lanes}


_SIZES = f"{', '.join(map(str, SIZES[:-1]))} or {SIZES[-1]}"
_LANES = Parameter("lanes", 8, "elements a cycle, a power of two", check_positive)
_PARAMETERS = (
    Parameter("size", 64, f"elements of a vector: {_SIZES}", check_positive),
    Parameter("heads", 1, "whose vectors come in turn, each with its own means", check_positive),
    _LANES,
    Parameter("bits", 4, "of a code, 1 to 6", check_positive),
    Parameter("table_seed", 0, "draws the means and signs, which are tables of the design", check_natural),
)

KV_ROTATED_WRITER = Block(
    "kv_rotated_writer",
    _writer,
    "centres and rotates keys or values, and codes them with one scale a vector",
    _PARAMETERS,
    _written,
    _writer_datasheet,
    speed=_speed,
    formats=(),
)

KV_ROTATED_READER = Block(
    "kv_rotated_reader",
    _reader,
    "gives the keys or values back of which kv_rotated_writer made codes and scales",
    _PARAMETERS,
    _read,
    _reader_datasheet,
    speed=_speed,
    formats=(),
)

HADAMARD = Block(
    "hadamard",
    HadamardTransform,
    "streaming Walsh-Hadamard transform, every sum exact",
    (
        Parameter("size", 64, f"elements of a vector: {_SIZES}", check_positive),
        _LANES,
        Parameter("input_bits", 16, f"of a signed element, at most {_MAX_INPUT_BITS}", _check_input_bits),
    ),
    _transformed,
    _hadamard_datasheet,
    speed=_speed,
    formats=(),
)
