"""What a codec and a selection of blocks make of a decoder's cache: bytes that it takes, bytes that are read.

A token leaves c = layers * kv_heads * head_dim elements of keys in the cache, and as many of values. With a
codec of b bits an element, all metadata counted, and e of n tokens kept exact in 16 bits

    bytes(n, e) = sum over keys and values of c * ((n - e) * b + e * 16) / 8

are stored of a context of n tokens. Dense attention reads all of them for every token that is decoded.

InfLLM v2 (MiniCPM4, arXiv 2506.07900, section 2.2) reads of a context that is not shorter than
`dense_length` the tokens of *topk* blocks, the query's own among them, and to choose these the compressed
keys: means of *kernel* keys, one every *stride* tokens, of every layer and KV head, of keys alone:

    compressed = floor((n - kernel) / stride) + 1
    selected   = n - max(ceil(n / block) - topk, 0) * block
    read       = bytes(selected, e of these) + compressed * c * 16 / 8
    stored     = bytes(n, e) + compressed * c * 16 / 8

(topk * block where the last block is full). Compressed keys are stored from the first on: they are needed
as soon as the context is long enough. Not counted are the writing of a token (a context-th of what a dense
one reads), and, where units of several tokens do not end with a block, the rest of those units.

The query heads that share a KV head work side by side: keys and values are read once for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import numpy as np

from costmodel.geometries import Decoder
from costmodel.token_rate import CacheUse, Input, TokenRate
from quantizers.kv_cache.cache import Kept
from quantizers.kv_cache.fixed_point import BITS
from quantizers.sparse_attention.settings import BlockSelection

_INFLLM = "InfLLM v2: arXiv 2506.07900, section 2.2"


@dataclass(frozen=True)
class Coded:
    """Keys, or values, behind a codec.

    Attributes:
        bits: of an element, metadata included.
        unit: tokens that are coded together.
    """

    bits: Input
    unit: int = 1


@dataclass(frozen=True, kw_only=True)
class CacheCoding:
    """A codec, in the numbers that traffic depends on.

    Attributes:
        name: as in a table.
        keys, values: see there.
        kept: tokens that stay exact, in 16 bits an element.
    """

    name: str
    keys: Coded
    values: Coded
    kept: Kept = field(default_factory=Kept)

    @property
    def bits(self) -> float:
        """Of an element of keys and values, in a long context."""
        return (self.keys.bits.value + self.values.bits.value) / 2

    @property
    def inputs(self) -> dict[str, Input]:
        """Every number of the codec, by name."""
        given = {
            f"exact_{name}": Input(
                getattr(self.kept, name), "tokens", f"of the codec, {BITS} bits an element"
            )
            for name in ("sinks", "residual")
            if getattr(self.kept, name)
        }
        return {"key_bits": self.keys.bits, "value_bits": self.values.bits, **given}


@dataclass(frozen=True, kw_only=True)
class CodedCacheUse(CacheUse):
    """What a coded cache takes of the memory, see :mod:`costmodel.kv_cache`.

    Attributes:
        read_tokens: tokens whose keys and values a token reads.
        elements: of these keys and values, over all layers: what goes through the codec's reader.
        compressed_bytes: read of compressed keys; in ``read_bytes`` too.
    """

    read_tokens: int
    elements: int
    compressed_bytes: float


def cache_use(
    geometry: Decoder, coding: CacheCoding, context: int, selection: BlockSelection | None = None
) -> CodedCacheUse:
    """Bytes of the cache of *context* tokens, and what the newest of them reads.

    Args:
        selection: of blocks; ``None`` for dense attention.
    """
    elements = geometry.cached_values // 2
    stored = sum(
        elements * _side_bits(side, coding.kept, context, context) for side in (coding.keys, coding.values)
    )
    if selection is None:
        return CodedCacheUse(
            stored_bytes=stored / 8,
            read_bytes=stored / 8,
            inputs=coding.inputs,
            read_tokens=context,
            elements=2 * elements * context,
            compressed_bytes=0,
        )
    compressed = selection.compressed_count(context) * elements * BITS / 8
    is_dense = is_dense_at(selection, context)
    tokens = context if is_dense else _selected_tokens(selection, context)
    read = sum(
        elements * _side_bits(side, coding.kept, context, tokens, selection)
        for side in (coding.keys, coding.values)
    )
    read_compressed = 0 if is_dense else compressed
    return CodedCacheUse(
        stored_bytes=stored / 8 + compressed,
        read_bytes=read / 8 + read_compressed,
        inputs={**coding.inputs, **_selection_inputs(selection)},
        read_tokens=tokens,
        elements=2 * elements * tokens,
        compressed_bytes=read_compressed,
    )


def _selected_tokens(selection: BlockSelection, context: int) -> int:
    """Tokens of the blocks that the newest takes: its own block, perhaps not full, is always among them."""
    left_out = max(selection.block_count(context) - selection.topk, 0)
    return context - left_out * selection.block


def is_dense_at(selection: BlockSelection, context: int) -> bool:
    """Whether the newest of so many tokens takes all blocks."""
    return bool(selection.is_dense(np.array(context - 1)))


def _side_bits(
    side: Coded, kept: Kept, context: int, tokens: int, selection: BlockSelection | None = None
) -> float:
    """Bits, for each element of a token, of *tokens* of the *context* tokens.

    Where not all are taken, the exact ones among them are those of the blocks that every query takes: of
    other exact tokens it is not known. Exact tokens are larger, so this is what is read at least.
    """
    coded = kept.coded_units(context, side.unit) * side.unit
    exact = context - coded
    if tokens < context and selection is not None:
        sinks = min(kept.sinks, context)
        first = min(sinks, selection.initial * selection.block)
        newest = min(exact - sinks, selection.window)
        exact = max(min(first + newest, tokens), tokens - coded)
    return (tokens - exact) * side.bits.value + exact * BITS


def _selection_inputs(selection: BlockSelection) -> dict[str, Input]:
    units = {"topk": "blocks", "initial": "blocks"}
    sizes = {
        f"selection_{item.name}": Input(value, units.get(item.name, "tokens"), _INFLLM)
        for item in fields(selection)
        if (value := getattr(selection, item.name))
    }
    source = "assumption: as an element that is not coded"
    return {**sizes, "compressed_key_bits": Input(BITS, "bits an element", source)}


@dataclass(frozen=True, kw_only=True)
class CachedRate:
    """A token rate with a coded cache, and what it asks of the codec's reader.

    The reader gives so many elements a cycle as it has lanes, keys and values one after the other, at the
    engine's clock. While it reads, weights can come from the memory in its place, so on the whole it must
    give a token's elements in the time of a token. Where nothing is read ahead it must keep up with a memory
    that sends nothing but the cache: that takes more lanes.

    Attributes:
        coding: the codec.
        selection: of blocks; ``None`` for dense attention.
        use: what the cache takes of the memory.
        rate: the estimate with it.
        reader: lanes of the codec's reader.
    """

    coding: CacheCoding
    selection: BlockSelection | None
    use: CodedCacheUse
    rate: TokenRate
    reader: Input

    @property
    def inputs(self) -> dict[str, Input]:
        """Every number it rests on, by name."""
        return {**self.rate.inputs, "reader_lanes": self.reader}

    @property
    def is_dense(self) -> bool:
        """Whether all tokens are read."""
        return self.selection is None or is_dense_at(self.selection, self.rate.context)

    @property
    def bytes_per_second(self) -> float:
        """Read of weights and cache, at the estimated rate."""
        return self.rate.read_bytes * self.rate.tokens_per_second

    @property
    def elements_per_second(self) -> float:
        """Through the reader, at the estimated rate."""
        return self.use.elements * self.rate.tokens_per_second

    @property
    def reader_lanes(self) -> int:
        """The fewest lanes with which the reader does not lower the rate."""
        return math.ceil(self.elements_per_second / self._clock)

    @property
    def burst_reader_lanes(self) -> int:
        """The fewest lanes that keep up with the memory while it sends nothing but keys and values."""
        inputs = self.rate.inputs
        bandwidth = inputs["bandwidth"].value * inputs["efficiency"].value
        size = (self.use.read_bytes - self.use.compressed_bytes) / self.use.elements
        return math.ceil(bandwidth / size / self._clock)

    @property
    def reader_bound(self) -> float:
        """Tokens per second that the reader allows; where lower than the rate, it needs more lanes."""
        return self.reader.value * self._clock / self.use.elements

    @property
    def _clock(self) -> float:
        return self.rate.inputs["clock"].value
