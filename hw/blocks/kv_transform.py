"""Writer and reader of the cache of calibrated transforms, as blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from hw._checks import check_positive
from hw.arith.addend import MULTIPLIERS
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli, check_text
from hw.blocks.codes import element_words
from hw.kv_cache.transform_geometry import TransformGeometry, coefficient_widths
from hw.kv_cache.transform_reader import TransformReader
from hw.kv_cache.transform_writer import TransformWriter
from hw.mvu import MEMORIES
from quantizers.kv_cache import transform
from quantizers.kv_cache.fixed_point import BITS, HIGHEST, LOWEST
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.packing import pack


def _check_bits(name: str, value: object) -> None:
    check_range(name, value, 1, transform.MAX_CODE_BITS)


def _geometry(size: int, heads: int, coefficients: int, bits: int, entry_bits: int) -> TransformGeometry:
    """Room for as many bits of every coefficient."""
    of_token = heads * coefficients
    return TransformGeometry(
        matrices=heads,
        elements=size,
        coefficients=coefficients,
        entry_bits=entry_bits,
        slots=(of_token,) * bits,
        levels=of_token << bits,
    )


def _writer(
    *, size: int, heads: int, coefficients: int, bits: int, entry_bits: int, **arguments: Any
) -> TransformWriter:
    return TransformWriter(geometry=_geometry(size, heads, coefficients, bits, entry_bits), **arguments)


def _reader(
    *, size: int, heads: int, coefficients: int, bits: int, entry_bits: int, **arguments: Any
) -> TransformReader:
    return TransformReader(geometry=_geometry(size, heads, coefficients, bits, entry_bits), **arguments)


def _random_blocks(geometry: TransformGeometry, bits: int, rng: np.random.Generator) -> list[transform.Block]:
    """A matrix and tables for each head, with thresholds that sums reach."""
    d, n, limit = geometry.elements, geometry.coefficients, 1 << (geometry.entry_bits - 1)
    reach = int(np.sqrt(d) * limit * 15000)
    return [
        transform.Block(
            forward=rng.integers(-limit, limit, (n, d)),
            inverse=rng.integers(-limit, limit, (d, n)),
            shift=geometry.entry_bits,
            thresholds=tuple(
                tuple(sorted(rng.integers(-reach, reach, (1 << bits) - 1).tolist())) for _ in range(n)
            ),
            levels=tuple(tuple(rng.integers(LOWEST, HIGHEST + 1, 1 << bits).tolist()) for _ in range(n)),
        )
        for _ in range(geometry.matrices)
    ]


def _payloads(
    blocks: list[transform.Block], rng: np.random.Generator, tokens: int, *, lanes: int, word_bits: int
) -> tuple[list[int], list[int], list[int]]:
    """Of random tokens: elements, words of codes, and elements again."""
    channels = sum(block.elements for block in blocks)
    spread = np.exp2(rng.uniform(4, 17, (tokens, 1, 1)))
    x = np.clip(rng.normal(0, spread, (tokens, 1, channels)), LOWEST, HIGHEST).astype(np.int64)
    codec = transform.Transformed(blocks)
    fields = codec.encode(x)
    widths = coefficient_widths(blocks, len(blocks[0].widths))
    values = np.concatenate([field.values for field in fields], axis=1)
    words = pack(values, widths, word_bits=word_bits).reshape(-1).tolist()
    decoded = np.asarray(codec.decode(fields))
    return element_words(x, lanes=lanes, bits=BITS), words, element_words(decoded, lanes=lanes, bits=BITS)


def _written(
    component: TransformWriter,
    rng: np.random.Generator,
    count: int,
    *,
    bits: int,
    lanes: int,
    word_bits: int,
    **_: Any,
) -> Stimuli:
    """As many tokens as give at least *count* words."""
    blocks = _random_blocks(component.geometry, bits, rng)
    tokens = -(-count // component.word_count(blocks))
    elements, words = _payloads(blocks, rng, tokens, lanes=lanes, word_bits=word_bits)[:2]
    load = component.load_words(blocks)
    return Stimuli({"load": load, "inputs": elements}, {"words": words}, first=("load",))


def _read(
    component: TransformReader,
    rng: np.random.Generator,
    count: int,
    *,
    bits: int,
    lanes: int,
    word_bits: int,
    **_: Any,
) -> Stimuli:
    """As many tokens as give at least *count* words of elements."""
    blocks = _random_blocks(component.geometry, bits, rng)
    tokens = -(-count * lanes // component.geometry.token_elements)
    words, elements = _payloads(blocks, rng, tokens, lanes=lanes, word_bits=word_bits)[1:]
    load = component.load_words(blocks)
    return Stimuli({"load": load, "words": words}, {"outputs": elements}, first=("load",))


def _full_blocks(geometry: TransformGeometry, bits: int) -> list[transform.Block]:
    """Tables of zeros, for the cycles that do not depend on what they hold."""
    d, n = geometry.elements, geometry.coefficients
    block = transform.Block(
        forward=np.zeros((n, d), np.int64),
        inverse=np.zeros((d, n), np.int64),
        shift=0,
        thresholds=((0,) * ((1 << bits) - 1),) * n,
        levels=((0,) * (1 << bits),) * n,
    )
    return [block] * geometry.matrices


_CODES = "packed codes; those of a token from a new word on"


def _writer_datasheet(component: TransformWriter, *, bits: int, lanes: int, **_: Any) -> Datasheet:
    geometry = component.geometry
    return Datasheet(
        component.latency(_full_blocks(geometry, bits)),
        "from the one in which a token's first word is taken to its last word of codes",
        f"one token of {geometry.token_elements} elements in {component.interval} cycles",
        {
            "load": "matrices, widths and thresholds, as TransformWriter.load_words gives them",
            "inputs": f"{lanes} elements of a token",
            "words": _CODES,
        },
    )


def _reader_datasheet(component: TransformReader, *, bits: int, lanes: int, **_: Any) -> Datasheet:
    geometry = component.geometry
    interval = component.interval(_full_blocks(geometry, bits))
    return Datasheet(
        component.latency,
        "from the one in which a token's first word is taken to its last word of elements",
        f"one token of {geometry.token_elements} elements in {interval} cycles",
        {
            "load": "matrices, widths, levels and shifts, as TransformReader.load_words gives them",
            "words": _CODES,
            "outputs": f"{lanes} elements of a token",
        },
    )


def _writer_speed(component: TransformWriter, **_: Any) -> dict[str, float]:
    return {"elements_per_cycle": component.geometry.token_elements / component.interval}


def _reader_speed(component: TransformReader, *, bits: int, **_: Any) -> dict[str, float]:
    geometry = component.geometry
    return {"elements_per_cycle": geometry.token_elements / component.interval(_full_blocks(geometry, bits))}


_PARAMETERS = (
    Parameter("size", 64, "elements of a vector", check_positive),
    Parameter("heads", 1, "whose vectors come in turn, each with its own matrix", check_positive),
    Parameter("coefficients", 64, "of a vector, that are coded", check_positive),
    Parameter("bits", 4, f"of a coefficient's code, 1 to {transform.MAX_CODE_BITS}", _check_bits),
    Parameter("entry_bits", 8, "of the matrices", check_positive),
    Parameter("lanes", 8, "elements of a word", check_positive),
    Parameter("pe", 8, "rows of the matrix worked on at a time", check_positive),
    Parameter("simd", 8, "columns a cycle", check_positive),
    Parameter("word_bits", 32, "of a word of codes", check_positive),
    Parameter("memory", "bram", f"of the matrices: {', '.join(MEMORIES)}", check_text),
    Parameter("multipliers", "dsps", f"of what: {', '.join(MULTIPLIERS)}", check_text),
)

KV_TRANSFORM_WRITER = Block(
    "kv_transform_writer",
    _writer,
    "codes keys or values by a calibrated transform, which is loaded",
    _PARAMETERS,
    _written,
    _writer_datasheet,
    speed=_writer_speed,
    formats=(),
)

KV_TRANSFORM_READER = Block(
    "kv_transform_reader",
    _reader,
    "gives the keys or values back of which kv_transform_writer made words",
    _PARAMETERS,
    _read,
    _reader_datasheet,
    speed=_reader_speed,
    formats=(),
)
