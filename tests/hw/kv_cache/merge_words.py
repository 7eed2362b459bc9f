"""Words of the streams of merging units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from amaranth.hdl import Shape
from amaranth.lib import data

from hw.kv_cache.merge_weights import products_layout, weights_layout
from quantizers.kv_cache.merge_arithmetic import MergeArithmetic, merge, products, weights_of
from tests.quantizers.kv_cache.merge_samples import Vectors, special, unrelated


def packed(layout: data.StructLayout, fields: Mapping[str, Sequence[int]]) -> list[int]:
    """Payloads of a structure as numbers."""
    payloads = [0] * len(next(iter(fields.values())))
    for name, field in layout:
        mask = (1 << Shape.cast(field.shape).width) - 1
        for place, value in enumerate(fields[name]):
            payloads[place] |= (int(value) & mask) << field.offset
    return payloads


def array_word(elements: Sequence[int]) -> int:
    """16-bit elements, the first in the low bits."""
    return sum((int(element) & 0xFFFF) << 16 * place for place, element in enumerate(elements))


def as_objects(payloads: Sequence[int]) -> np.ndarray:
    return np.array(payloads, dtype=object)


def sample_pairs(count: int, channels: int, seed: int) -> tuple[Vectors, Vectors]:
    """Unrelated and nearly (anti)parallel pairs of all lengths, and the special ones, in some order."""
    rng = np.random.default_rng(seed)
    x, y = unrelated(count, channels, rng)
    near = slice(0, count // 3)
    factors = rng.uniform(-2, 2, (count, 1))[near]
    noise = rng.standard_normal(x[near].shape) * 2.0 ** rng.uniform(-3, 5, (len(x[near]), 1))
    y[near] = np.clip(np.rint(x[near] * factors + noise), -32768, 32767)
    pairs = [np.concatenate(both) for both in zip((x, y), special(channels), strict=True)]
    order = rng.permutation(len(pairs[0]))[:count]
    return pairs[0][order], pairs[1][order]


def product_payloads(x: Vectors, y: Vectors, arithmetic: MergeArithmetic) -> list[int]:
    names = ("xx", "yy", "xy")
    return packed(products_layout(arithmetic), dict(zip(names, products(x, y), strict=True)))


def weight_payloads(x: Vectors, y: Vectors, arithmetic: MergeArithmetic) -> list[int]:
    weights = weights_of(*products(x, y), arithmetic)
    fields = weights._asdict() | {
        name: getattr(weights, name) // 4 for name in ("first_shift", "second_shift")
    }
    return packed(weights_layout(arithmetic), fields)


def pair_payloads(x: Vectors, y: Vectors, lanes: int) -> list[int]:
    """Words of both vectors side by side."""
    words = zip(x.reshape(-1, lanes), y.reshape(-1, lanes), strict=True)
    return [array_word([*first, *second]) for first, second in words]


def merged_payloads(x: Vectors, y: Vectors, arithmetic: MergeArithmetic, lanes: int) -> list[int]:
    merged, bits = merge(x, y, arithmetic), arithmetic.magnitude_bits
    payloads = []
    for place, direction in enumerate(merged.direction):
        rest = int(merged.first_magnitude[place]) | int(merged.second_magnitude[place]) << bits
        rest |= int(merged.distance[place]) << 2 * bits
        payloads += [array_word(word) | rest << 16 * lanes for word in direction.reshape(-1, lanes)]
    return payloads
