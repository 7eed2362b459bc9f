"""Writer and reader of the rotated cache with bits by coefficient, as blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from hw._checks import check_natural, check_positive
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli
from hw.blocks.codes import element_words
from hw.kv_cache.allocated import KvAllocatedReader, KvAllocatedWriter, RotatedGeometry
from hw.kv_cache.hadamard import SIZES, exchanged_order
from quantizers.kv_cache.codebook import ScaleFormat
from quantizers.kv_cache.codec import Code
from quantizers.kv_cache.fixed_point import BITS, HIGHEST, LOWEST
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.packing import pack
from quantizers.kv_cache.rotated import Rotated, Rotation
from quantizers.kv_cache.rotation import largest_sum, random_signs


def _check_finest(name: str, value: object) -> None:
    check_range(name, value, 2, 6)


def _check_scale(name: str, value: object) -> None:
    check_range(name, value, 5, 16)


def _geometry(*, size: int, heads: int, lanes: int, finest: int, scale_bits: int) -> RotatedGeometry:
    scale = ScaleFormat.covering(largest_sum(size), bits=scale_bits)
    return RotatedGeometry(heads=heads, size=size, lanes=lanes, finest=finest, scale=scale)


def _writer(*, lowest: int, **sizes: int) -> KvAllocatedWriter:
    return KvAllocatedWriter(geometry=_geometry(**sizes))


def _reader(*, lowest: int, **sizes: int) -> KvAllocatedReader:
    return KvAllocatedReader(geometry=_geometry(**sizes))


def _random_vectors(geometry: RotatedGeometry, lowest: int, rng: np.random.Generator) -> list[Rotation]:
    """One a head, with random means, signs and widths."""
    fewest = min(lowest, geometry.finest)
    return [
        Rotation(
            elements=geometry.size,
            bits=tuple(rng.integers(fewest, geometry.finest + 1, geometry.size).tolist()),
            finest=geometry.finest,
            signs=tuple(random_signs(geometry.size, int(rng.integers(1 << 16))).tolist()),
            scale=geometry.scale,
            means=tuple(rng.integers(-2000, 2001, geometry.size).tolist()),
        )
        for _ in range(geometry.heads)
    ]


def _words(geometry: RotatedGeometry, code: Code) -> list[int]:
    """The packed words of all tokens."""
    order = exchanged_order(geometry.size, geometry.lanes)
    columns, widths = [], []
    for codes, scale in zip(code[::2], code[1::2], strict=True):
        columns += [scale.values, codes.values[:, order]]
        widths += [*scale.widths, *np.array(codes.widths)[order].tolist()]
    numbers = np.concatenate(columns, axis=1)
    return [int(word) for word in pack(numbers, widths, word_bits=geometry.word_bits).reshape(-1)]


def _payloads(
    vectors: list[Rotation], geometry: RotatedGeometry, rng: np.random.Generator, tokens: int
) -> tuple[list[int], list[int], list[int]]:
    """Of random tokens: elements, words of codes, and elements again."""
    codec = Rotated(vectors)
    spread = np.exp2(rng.uniform(0, 15, (tokens, 1, 1)))
    x = np.clip(rng.normal(0, spread, (tokens, 1, codec.channels)), LOWEST, HIGHEST).astype(np.int64)
    code = codec.encode(x)
    elements, decoded = (
        element_words(part, lanes=geometry.lanes, bits=BITS) for part in (x, codec.decode(code))
    )
    return elements, _words(geometry, code), decoded


def _written(
    component: KvAllocatedWriter, rng: np.random.Generator, count: int, *, lowest: int, **_: Any
) -> Stimuli:
    """As many tokens as give at least *count* words."""
    geometry = component.geometry
    vectors = _random_vectors(geometry, lowest, rng)
    of_token = -(-sum(vector.stored_bits for vector in vectors) // geometry.word_bits)
    elements, words = _payloads(vectors, geometry, rng, -(-count // of_token))[:2]
    load = component.load_words(vectors)
    return Stimuli({"load": load, "inputs": elements}, {"words": words}, first=("load",))


def _read(
    component: KvAllocatedReader, rng: np.random.Generator, count: int, *, lowest: int, **_: Any
) -> Stimuli:
    """As many tokens as give at least *count* words of elements."""
    geometry = component.geometry
    vectors = _random_vectors(geometry, lowest, rng)
    words, elements = _payloads(vectors, geometry, rng, -(-count // geometry.words))[1:]
    load = component.load_words(vectors)
    return Stimuli({"load": load, "words": words}, {"outputs": elements}, first=("load",))


def _datasheet(component: KvAllocatedWriter | KvAllocatedReader, **_: Any) -> Datasheet:
    geometry = component.geometry
    elements = f"{geometry.lanes} elements of a vector; a vector for each of {geometry.heads} heads, in turn"
    words = "packed codes and scales; those of a token from a new word on"
    throughput = f"one token of {geometry.heads * geometry.size} elements in {component.interval} cycles"
    if isinstance(component, KvAllocatedWriter):
        latency = "from a word of elements to when its codes are packed"
        streams = {"inputs": elements, "words": words}
    else:
        latency = "from the last of a word's codes to its elements"
        streams = {"words": words, "outputs": elements}
    load = {"load": "means, signs and widths, as load_words gives them"}
    return Datasheet(component.latency, latency, throughput, load | streams)


def _speed(component: KvAllocatedWriter | KvAllocatedReader, **_: Any) -> dict[str, float]:
    return {"elements_per_cycle": component.geometry.lanes}


_PARAMETERS = (
    Parameter("size", 64, f"elements of a vector: {', '.join(map(str, SIZES))}", check_positive),
    Parameter("heads", 1, "whose vectors come in turn, each with its own tables", check_positive),
    Parameter("lanes", 4, "elements a cycle; a vector has 2**(finest - 1) words or more", check_positive),
    Parameter("finest", 5, "bits of a code at most, 2 to 6", _check_finest),
    Parameter("scale_bits", 8, "of a vector's scale, 5 to 16", _check_scale),
    Parameter("lowest", 3, "bits of a code at least, in simulations", check_natural),
)

KV_ALLOCATED_WRITER = Block(
    "kv_allocated_writer",
    _writer,
    "rotates keys or values, and packs codes of a width each with one scale a vector",
    _PARAMETERS,
    _written,
    _datasheet,
    speed=_speed,
    formats=(),
)

KV_ALLOCATED_READER = Block(
    "kv_allocated_reader",
    _reader,
    "gives the keys or values back of which kv_allocated_writer made words",
    _PARAMETERS,
    _read,
    _datasheet,
    speed=_speed,
    formats=(),
)
