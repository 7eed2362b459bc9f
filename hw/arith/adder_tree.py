"""Balanced binary tree of adders."""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from typing import Any, TypeAlias

from amaranth.hdl import C, Module, Shape, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from hw._checks import check_natural, check_positive
from hw._component import Component
from hw.arith._shapes import add_with_carry, register
from quantizers.errors import UsageError

# A sum, what must still be added to it, and the number of terms that it holds.
_Node: TypeAlias = tuple[Value, Value, int]


def sum_shape(terms: int, *, low: int, high: int, has_carry: bool) -> Shape:
    """The narrowest signed shape of the sum of *terms* numbers of *low* to *high*, less one carry."""
    smallest, largest = min(terms * low - has_carry, -1), max(terms * high, 0)
    return signed(max((~smallest).bit_length(), largest.bit_length()) + 1)


def check_range(low: int, high: int) -> None:
    """Raises :class:`UsageError` where the smallest value of a term is above the largest."""
    if low > high:
        msg = f"low must not be above high, but {low} is above {high}"
        raise UsageError(msg, given=f"{low}, {high}", expected=["low <= high"])


class AdderTree(Component):
    """``sum + carry`` is the sum of all ``addends[i] + carries[i]``, exactly.

    A tree of n terms has n - 1 adders, and each takes the carry of one term on its carry input, which
    costs nothing; the last carry is left to the consumer, an adder as well. Every adder has the width of
    the sums that it can see.

    Ports: ``addends`` (array of *terms* signed numbers), ``carries`` (a bit a term, or none) in;
    ``sum``, ``carry`` (0 or 1 bit) out. Latency :attr:`latency` cycles; one sum a cycle. Registers
    free-run and are not reset.

    Args:
        terms: numbers to add.
        low: the smallest value of ``addends[i] + carries[i]``.
        high: the largest.
        has_carry: whether terms have a carry; they then reach down to ``low - 1`` without it.
        levels_per_stage: adders in a row between registers; 0: no registers at all.

    Raises:
        UsageError: an argument of the wrong kind, or *low* above *high*.
    """

    def __init__(
        self, *, terms: int, low: int, high: int, has_carry: bool = False, levels_per_stage: int = 0
    ) -> None:
        check_positive("terms", terms)
        check_natural("levels_per_stage", levels_per_stage)
        check_range(low, high)
        self._levels_per_stage = levels_per_stage
        self._sum_shape = partial(sum_shape, low=low, high=high, has_carry=has_carry)
        super().__init__(
            {
                "addends": In(data.ArrayLayout(self._sum_shape(1), terms)),
                "carries": In(terms if has_carry else 0),
                "sum": Out(self._sum_shape(terms)),
                "carry": Out(int(has_carry)),
            }
        )

    @property
    def depth(self) -> int:
        """Adders from a term to the sum."""
        return (self._terms - 1).bit_length()

    @property
    def latency(self) -> int:
        """Cycles from the terms to the sum."""
        return self.depth // self._levels_per_stage if self._levels_per_stage else 0

    @property
    def _terms(self) -> int:
        return self.addends.shape().length

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        no_carry = C(0, 0)
        nodes: list[_Node] = [
            (addend, carry, 1)
            for addend, carry in zip_longest(self.addends, self.carries, fillvalue=no_carry)
        ]
        for level in range(1, self.depth + 1):
            nodes = [
                self._added(m, f"level{level}_{index // 2}", nodes[index : index + 2])
                for index in range(0, len(nodes), 2)
            ]
            if self._levels_per_stage and level % self._levels_per_stage == 0:
                nodes = [(register(m, total), register(m, carry), terms) for total, carry, terms in nodes]
        [(total, carry, _)] = nodes
        m.d.comb += [self.sum.eq(total), self.carry.eq(carry)]
        return m

    def _added(self, m: Module, name: str, pair: list[_Node]) -> _Node:
        if len(pair) == 1:
            return pair[0]
        (a, a_carry, a_terms), (b, b_carry, b_terms) = pair
        terms = a_terms + b_terms
        total = Signal(self._sum_shape(terms), name=name)
        m.d.comb += total.eq(add_with_carry(a, b, a_carry, width=len(total)))
        return total, b_carry, terms
