"""The smallest and the largest of a group of numbers, as they stream in."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import register
from hw.mvu._counter import step


def is_greater(a: Value, b: Value) -> Value:
    """Whether a > b, of signed numbers of one even width: two bits a position of one carry chain.

    A position generates a carry if its two bits of *a* are the greater ones, and hands one on if they are
    equal: both are functions of the same four bits, so they share a LUT6.
    """
    a, b = (Cat(value[:-1], ~value[-1]) for value in (a, b))
    generates, passes = [], []
    for low in range(0, len(a), 2):
        a0, a1, b0, b1 = a[low], a[low + 1], b[low], b[low + 1]
        generates.append((a1 & ~b1) | (~(a1 ^ b1) & a0 & ~b0))
        passes.append((a1 & ~b1) | (~(a1 ^ b1) & (a0 | ~b0)))
    return (Cat(generates) + Cat(passes))[-1]


class Extremes(Component):
    """Minimum and maximum of each group of words.

    The two of a pair of lanes come of one comparison; then there is a tree for each of the two.

    Ports: ``word`` in, *lanes* signed numbers; ``enable`` in: it is one; ``minimum``, ``maximum`` out, of the
    words of the group so far; ``is_complete`` out: of all *words* of them. They follow a word by
    :attr:`latency` cycles; registers free-run.

    Args:
        lanes: numbers of a word.
        words: of a group.
        bits: of a number; even.
    """

    def __init__(self, *, lanes: int, words: int, bits: int) -> None:
        self._lanes, self._words = lanes, words
        super().__init__(
            {
                "word": In(data.ArrayLayout(signed(bits), lanes)),
                "enable": In(1),
                "minimum": Out(signed(bits)),
                "maximum": Out(signed(bits)),
                "is_complete": Out(1),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a word to the extremes that count it."""
        return max(1, (self._lanes - 1).bit_length()) + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        lanes = [self.word[lane] for lane in range(self._lanes)]
        low, high = _sorted_pairs(m, lanes)
        valid = _late(m, self.enable)
        while len(low) > 1:
            low = [register(m, _least(*pair)) for pair in _pairs(low)]
            high = [register(m, _greatest(*pair)) for pair in _pairs(high)]
            valid = _late(m, valid)
        position = Signal(range(self._words))
        ends = step(m, position, self._words, valid)
        is_first = position == 0
        with m.If(valid):
            m.d.sync += [
                self.minimum.eq(Mux(is_first | is_greater(self.minimum, low[0]), low[0], self.minimum)),
                self.maximum.eq(Mux(is_first | is_greater(high[0], self.maximum), high[0], self.maximum)),
            ]
        m.d.sync += self.is_complete.eq(ends)
        return m


def _late(m: Module, bit: Value) -> Signal:
    late = Signal(name="valid")
    m.d.sync += late.eq(bit)
    return late


def _pairs(values: list[Value]) -> list[tuple[Value, ...]]:
    return [tuple(values[first : first + 2]) for first in range(0, len(values), 2)]


def _sorted_pairs(m: Module, lanes: list[Value]) -> tuple[list[Value], list[Value]]:
    low, high = [], []
    for pair in _pairs(lanes):
        swaps = is_greater(*pair) if len(pair) == 2 else C(0, 1)
        low.append(register(m, Mux(swaps, pair[-1], pair[0])))
        high.append(register(m, Mux(swaps, pair[0], pair[-1])))
    return low, high


def _least(a: Value, *other: Value) -> Value:
    return Mux(is_greater(a, other[0]), other[0], a) if other else a


def _greatest(a: Value, *other: Value) -> Value:
    return Mux(is_greater(a, other[0]), a, other[0]) if other else a
