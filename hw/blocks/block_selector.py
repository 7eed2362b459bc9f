"""Block selection for sparse attention (InfLLM v2), as a block."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from hw._checks import check_natural, check_positive
from hw.arith.addend import MULTIPLIERS
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli, check_text
from hw.blocks.codes import element_words, joined
from hw.reference.sparse_attention import selected_blocks
from hw.sparse_attention import BlockSelector, key_words, query_words
from quantizers.sparse_attention import (
    BlockSelection,
    compressed_bits,
    compressed_sums,
    integer_keys,
    integer_queries,
    key_scales,
)

_SIZES = tuple(field.name for field in fields(BlockSelection) if field.name != "block")


def _selector(*, block_size: int, **arguments: Any) -> BlockSelector:
    # "block" is the name of the block in results.
    selection = BlockSelection(block=block_size, **{name: arguments.pop(name) for name in _SIZES})
    return BlockSelector(selection=selection, **arguments)


def _stimuli(
    component: BlockSelector,
    rng: np.random.Generator,
    count: int,
    *,
    query_bits: int,
    key_bits: int,
    dropped_bits: int,
    **_: Any,
) -> Stimuli:
    """Queries at random positions of a random sequence, until there are *count* blocks."""
    selection, softmax = component.selection, component.softmax
    positions = _positions(component, rng, count)
    keys = 2 * rng.standard_normal((int(positions.max()) + 1, component.head_dim))
    queries = 3 * rng.standard_normal((component.heads, len(positions), component.head_dim))
    scales = key_scales(keys, key_bits=key_bits)
    compressed = compressed_sums(
        integer_keys(keys, scales, key_bits=key_bits),
        selection,
        key_bits=key_bits,
        dropped_bits=dropped_bits,
    )
    coded = integer_queries(
        queries, scales, selection, softmax, query_bits=query_bits, dropped_bits=dropped_bits
    )
    taken = selected_blocks(coded, compressed, positions, selection, softmax)
    index_bits = (selection.block_count(component.max_tokens) - 1).bit_length()
    bits = compressed_bits(key_bits, dropped_bits, selection)
    return Stimuli(
        {
            "positions": positions.tolist(),
            "queries": query_words(component, coded),
            "keys": element_words(
                key_words(component, compressed, positions), lanes=component.lanes, bits=bits
            ),
        },
        {"blocks": [joined([index, is_last], [index_bits, 1]) for index, is_last in taken]},
    )


def _positions(component: BlockSelector, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """So many that at least *count* blocks are taken; the first of a query that reads keys, if one does."""
    selection, last = component.selection, component.max_tokens - 1
    positions: list[int] = []
    blocks = 0
    while blocks < count:
        positions.append(int(rng.integers(component.max_tokens)) if positions else last)
        own = positions[-1] // selection.block + 1
        is_dense = positions[-1] + 1 < selection.dense_length
        blocks += own if is_dense else min(own, selection.topk)
    return np.array(positions, np.int64)


def _datasheet(component: BlockSelector, *, heads: int, **_: Any) -> Datasheet:
    lanes, last = component.lanes, component.max_tokens - 1
    return Datasheet(
        component.cycles(last),
        f"from the position of a query at {last} to its last block",
        f"one query at {last} in {component.interval(last)} cycles",
        {
            "positions": "of a query; begins its selection",
            "queries": f"{lanes} channels of a head of the query, behind each of {heads} heads its shift",
            "keys": f"{lanes} channels of a compressed key; those that the query sees, in order",
            "blocks": "indices of the blocks that the query attends to, ascending; is_last marks the last",
        },
    )


def _speed(component: BlockSelector, **_: Any) -> dict[str, float]:
    return {"cycles_per_vector": component.interval(component.max_tokens - 1)}


BLOCK_SELECTOR = Block(
    "block_selector",
    _selector,
    "chooses the blocks of earlier tokens that a query attends to (InfLLM v2), for one KV head",
    (
        Parameter("head_dim", 64, "channels of queries and keys", check_positive),
        Parameter("heads", 3, "query heads that share the KV head", check_positive),
        Parameter("max_tokens", 8192, "positions are below", check_positive),
        Parameter("kernel", 32, "tokens of which a compressed key is the mean", check_positive),
        Parameter("stride", 16, "tokens from one compressed key to the next", check_positive),
        Parameter("block_size", 64, "tokens of a block", check_positive),
        Parameter("initial", 1, "blocks at the beginning that every query takes", check_natural),
        Parameter("window", 2048, "tokens before its own block whose blocks a query takes", check_natural),
        Parameter("topk", 96, "blocks that a query takes at most", check_positive),
        Parameter("dense_length", 0, "a query that sees fewer tokens takes all blocks", check_natural),
        Parameter("query_bits", 8, "of an integer of a query", check_positive),
        Parameter("key_bits", 8, "of an integer of a key", check_positive),
        Parameter("dropped_bits", 0, "lowest bits that compressed keys do not have", check_natural),
        Parameter("lanes", 8, "products a cycle", check_positive),
        Parameter("multipliers", "luts", f"of what: {', '.join(MULTIPLIERS)}", check_text),
        Parameter("storage", "bram", "of scores: bram or lutram", check_text),
        Parameter("radix_bits", 5, "of a digit of scores, by which the largest are found", check_positive),
    ),
    _stimuli,
    _datasheet,
    speed=_speed,
    formats=(),
)
