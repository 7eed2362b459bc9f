"""The three products of two vectors that stream in side by side."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.kv_cache.merge_product import RegisteredProduct
from hw.kv_cache.merge_weights import check_arithmetic, products_layout
from hw.lut_kernel.generator import selected
from hw.mvu._counter import step
from quantizers.errors import UsageError
from quantizers.kv_cache.fixed_point import BITS
from quantizers.kv_cache.merge_arithmetic import MergeArithmetic

_FACTORS = {"xx": ("x", "x"), "yy": ("y", "y"), "xy": ("x", "y")}


def pair_layout(lanes: int) -> data.StructLayout:
    """A word of both vectors: elements of the lower layer's, x, and of the upper layer's, y."""
    word = data.ArrayLayout(signed(BITS), lanes)
    return data.StructLayout({"x": word, "y": word})


class PairProducts(Component):
    """``x.x``, ``y.y`` and ``x.y``, exact.

    Each lane has three multipliers with accumulators, of which a DSP slice holds both; at the end of a pair
    their sums are added up, a lane a cycle.

    Ports:
        ``words``: input stream of :func:`pair_layout`, ``channels / lanes`` words a pair.
        ``products``: output stream of :func:`~hw.kv_cache.merge_weights.products_layout`.

    Products are valid :attr:`latency` cycles after the one in which the last word was taken. The next pair's
    first word is taken in the cycle after that in which they are, at the earliest.

    Args:
        arithmetic: gives the channels.
        lanes: elements of a word, which divide the channels.
        multipliers: ``dsps`` or ``luts``.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(self, *, arithmetic: MergeArithmetic, lanes: int, multipliers: str = "dsps") -> None:
        check_arithmetic(arithmetic)
        self.words_per_pair = words_of(arithmetic.channels, lanes)
        self._lanes, self._bits = lanes, arithmetic.square_bits + 2
        self._products = [
            [
                RegisteredProduct(left=signed(BITS), right=signed(BITS), multipliers=multipliers)
                for _ in range(lanes)
            ]
            for _ in _FACTORS
        ]
        super().__init__(
            {
                "words": In(stream.Signature(pair_layout(lanes))),
                "products": Out(stream.Signature(products_layout(arithmetic))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the one in which a pair's last word is taken to the first with its products."""
        return self._products[0][0].latency + self._lanes + 2

    @property
    def interval(self) -> int:
        """Cycles from pair to pair."""
        return self.words_per_pair + self.latency

    def cycles(self, pairs: int) -> int:
        """From the first offer to the last products of so many pairs, where nothing waits outside."""
        return pairs * self.interval

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        is_open, taken, lane = Signal(init=1), Signal(), Signal(range(self._lanes))
        position = Signal(range(self.words_per_pair))
        ends = step(m, position, self.words_per_pair, taken)
        pipeline = self._products[0][0].latency
        marks, first, valid = Signal(pipeline + 1), Signal(pipeline), Signal(pipeline)
        adds = Signal()
        finishes = step(m, lane, self._lanes, adds)
        leaves = self.products.valid & self.products.ready
        m.d.comb += [self.words.ready.eq(is_open), taken.eq(self.words.valid & is_open)]
        m.d.sync += [
            is_open.eq((is_open & ~ends) | leaves),
            valid.eq(Cat(taken, valid)),
            first.eq(Cat(position == 0, first)),
            marks.eq(Cat(ends, marks)),
            adds.eq((adds & ~finishes) | marks[-1]),
            self.products.valid.eq(finishes | (self.products.valid & ~self.products.ready)),
        ]
        for (name, factors), products in zip(_FACTORS.items(), self._products, strict=True):
            sums = []
            for number, product in enumerate(products):
                m.submodules[f"{name}{number}"] = product
                left, right = (self.words.payload[factor][number] for factor in factors)
                m.d.comb += [product.left.eq(left), product.right.eq(right)]
                sums.append(self._accumulated(m, product.product, valid[-1], first[-1]))
            total = Signal(signed(self._bits), name=f"{name}_total", reset_less=True)
            with m.If(adds):
                before = Mux(lane == 0, 0, total).as_signed()
                m.d.sync += total.eq(before + selected(sums, lane))
            m.d.comb += self.products.payload[name].eq(total)
        return m

    def _accumulated(self, m: Module, product: Value, valid: Value, first: Value) -> Value:
        total = Signal(signed(self._bits), reset_less=True)
        with m.If(valid):
            m.d.sync += total.eq(Mux(first, 0, total).as_signed() + product)
        return total


def words_of(channels: int, lanes: object) -> int:
    """Words of a vector.

    Raises:
        UsageError: the lanes do not divide the channels.
    """
    check_positive("lanes", lanes)
    if not isinstance(lanes, int) or channels % lanes:
        divisors = [str(n) for n in range(1, channels + 1) if channels % n == 0]
        msg = f"lanes must divide the {channels} channels, not be {lanes}"
        raise UsageError(msg, given=lanes, expected=divisors)
    return channels // lanes
