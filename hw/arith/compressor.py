"""Sums of many numbers on carry chains that take six bits of one weight at once.

The count of five bits, ``n0 + 2*n1 + 4*n2``, and a sixth bit make two positions of a carry chain: the lower
adds the sixth bit to ``n0``, the upper adds ``count >= 4`` to ``count >= 2``, which is ``n1 + 2*n2``. Both
functions of the upper position have the same five inputs, and the lower has one function of six beside a
bit as it is, so that each position is one LUT6 site. A chain of 2k positions thus takes 6k bits, and one on
its carry input, and leaves 2k + 1: two bits less a site, where a binary adder takes away one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from amaranth.hdl import C, Cat, Const, Module, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from hw._checks import check_natural, check_positive
from hw._component import Component
from hw.arith._shapes import accumulate, add_with_carry, register
from hw.arith.adder_tree import check_range, sum_shape
from quantizers.errors import UsageError

_GROUP = 6
"""Bits of one weight that two positions of a carry chain take."""

_Heights: TypeAlias = list[int]
_Columns: TypeAlias = list[list[Value]]


@dataclass(frozen=True)
class _Chain:
    """A carry chain: where it starts, and how many bits each of its groups takes from there upwards.

    More than two bits take two positions, one or two bits take one; the last position may be cut off.
    """

    start: int
    groups: tuple[int, ...]
    has_carry: bool


class CompressorTree(Component):
    """``sum`` is the sum of all ``addends[i] + carries[i]``, exactly.

    Ports: those of :class:`hw.arith.adder_tree.AdderTree`; ``carry`` has no bits here. Latency
    :attr:`latency` cycles; one sum a cycle. Registers free-run and are not reset.

    Args:
        terms: numbers to add.
        low: the smallest value of ``addends[i] + carries[i]``.
        high: the largest.
        has_carry: whether terms have a carry; they then reach down to ``low - 1`` without it.
        carry_is_sign: whether each carry is also the sign of its addend, as in one's complement. The
            signs are then counted apart, and their number is subtracted once.
        levels_per_stage: carry chains in a row between registers; 0: no registers at all.

    Raises:
        UsageError: an argument of the wrong kind, *low* above *high*, or signs without carries.
    """

    def __init__(
        self,
        *,
        terms: int,
        low: int,
        high: int,
        has_carry: bool = False,
        carry_is_sign: bool = False,
        levels_per_stage: int = 0,
    ) -> None:
        check_positive("terms", terms)
        check_natural("levels_per_stage", levels_per_stage)
        check_range(low, high)
        if carry_is_sign and not has_carry:
            msg = "carry_is_sign needs has_carry: without carries there is no sign among them"
            raise UsageError(msg, given="has_carry = False", expected=["has_carry = True"])
        term = sum_shape(1, low=low, high=high, has_carry=has_carry)
        total = sum_shape(terms, low=low, high=high, has_carry=False)
        self._levels_per_stage = levels_per_stage
        self._has_sign_bits = low - has_carry < 0 and not carry_is_sign
        self._carry_is_sign = carry_is_sign
        super().__init__(
            {
                "addends": In(data.ArrayLayout(term, terms)),
                "carries": In(terms if has_carry else 0),
                "sum": Out(total),
                "carry": Out(0),
            }
        )
        self._plan()

    def _plan(self) -> None:
        """Chooses the chains of every stage, from the numbers of bits of each weight alone."""
        terms, width, top = self.addends.shape().length, len(self.sum), self._sign_position
        heights = ([terms] * top + [terms * self._has_sign_bits] + [0] * width)[:width]
        signs = [0] * terms.bit_length()
        if self._carry_is_sign:
            signs[0] = terms
        else:
            heights[0] += len(self.carries)
        self._stages: list[list[_Chain]] = []
        self._sign_stages: list[list[_Chain]] = []
        while max(signs) > 2 or max(heights) > 4:
            chains, signs = _next_stage(signs)
            self._sign_stages.append(chains)
            chains, heights = _next_stage(heights) if max(heights) > 4 else ([], heights)
            self._stages.append(chains)
        constant = -(terms << top) * self._has_sign_bits
        for place, bits in enumerate(signs):
            heights[place] += bits
            if place + top < width:
                heights[place + top] += bits
            constant -= bits << (place + top)
        self._constant = constant % (1 << width)
        heights = [height + (self._constant >> place & 1) for place, height in enumerate(heights)]
        while max(heights) > 1:
            chains, heights = _next_stage(heights)
            self._stages.append(chains)

    @property
    def _sign_position(self) -> int:
        return int(self.addends.shape().elem_shape.width) - 1

    @property
    def depth(self) -> int:
        """Carry chains from a term to the sum."""
        return len(self._stages)

    @property
    def latency(self) -> int:
        """Cycles from the terms to the sum; no register follows the last chain."""
        return max(self.depth - 1, 0) // self._levels_per_stage if self._levels_per_stage else 0

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        columns = self._term_columns()
        signs: _Columns = [list(self.carries) if self._carry_is_sign else []]
        signs += [[] for _ in range(self.addends.shape().length.bit_length() - 1)]
        for level, chains in enumerate(self._stages):
            if level == len(self._sign_stages):
                self._join(columns, signs)
            columns = _added(m, f"level{level}", columns, chains)
            if level < len(self._sign_stages):
                signs = _added(m, f"signs{level}", signs, self._sign_stages[level])
            is_last = level == self.depth - 1
            if self._levels_per_stage and (level + 1) % self._levels_per_stage == 0 and not is_last:
                columns, signs = _registered(m, columns), _registered(m, signs)
        if not self._stages:
            self._join(columns, signs)
        m.d.comb += self.sum.eq(Cat(*(column[0] if column else C(0, 1) for column in columns)))
        return m

    def _term_columns(self) -> _Columns:
        """The bits of the addends and carries by weight; a sign bit stands for one less its complement."""
        columns: _Columns = [[] for _ in range(len(self.sum))]
        top = self._sign_position
        for addend in self.addends:
            for column, bit in zip(columns, addend[:top], strict=False):
                column.append(bit)
            if self._has_sign_bits and top < len(columns):
                columns[top].append(~addend[top])
        if not self._carry_is_sign:
            columns[0].extend(self.carries)
        return columns

    def _join(self, columns: _Columns, signs: _Columns) -> None:
        """Adds the number of signs, subtracts it at their weight, and adds the constant of complements."""
        for place, bits in enumerate(signs):
            columns[place].extend(bits)
            if place + self._sign_position < len(columns):
                columns[place + self._sign_position].extend(~bit for bit in bits)
        for place, column in enumerate(columns):
            if self._constant >> place & 1:
                column.append(C(1, 1))


def _next_stage(heights: _Heights) -> tuple[list[_Chain], _Heights]:
    """The chains that leave as few bits of any weight as one stage can, and how many these are."""
    goal = 1 if max(heights) <= 2 else 2
    while True:
        chains, left = _stage(heights, goal)
        if max(left) <= goal:
            return chains, left
        goal += 1


def _stage(heights: _Heights, goal: int) -> tuple[list[_Chain], _Heights]:
    """Chains that leave at most *goal* bits of every weight, if one stage can."""
    left, made = list(heights), [0] * (len(heights) + 1)  # the last: what carries out of the top
    chains = []
    for start in range(len(heights)):
        while left[start] > 1 and left[start] + made[start] > goal:
            chains.append(_take_chain(start, left, made, goal))
    return chains, [a + b for a, b in zip(left, made, strict=False)]


def _take_chain(start: int, left: _Heights, made: _Heights, goal: int) -> _Chain:
    """Takes the bits of one chain out of *left* and enters its results in *made*.

    It goes on upwards while there are bits to fill it, or too many for the goal.
    """
    width = len(left)
    groups: list[int] = []
    has_carry = False
    place = start
    while place < width:
        surplus = left[place] + made[place] + 1 - goal
        if groups and left[place] < _GROUP - 1 and not (left[place] and surplus > 0):
            break
        size = min(_GROUP, left[place])
        if size == 3 and surplus <= 2:
            size = 2
        left[place] -= size
        if not groups and left[place]:
            has_carry = True
            left[place] -= 1
        groups.append(size)
        for _ in range(_positions(size)):
            made[place] += 1
            place += 1
    if place < width:
        made[place] += 1
    return _Chain(start, tuple(groups), has_carry)


def _positions(size: int) -> int:
    """Positions of a carry chain that a group of *size* bits takes."""
    return 2 if size > 2 else 1


def _added(m: Module, name: str, columns: _Columns, chains: Sequence[_Chain]) -> _Columns:
    """The columns after the chains of one stage."""
    left = [list(column) for column in columns]
    made: _Columns = [[] for _ in columns]
    for index, chain in enumerate(chains):
        place, low, high = chain.start, [], []
        carry: Value = C(0, 1)
        for number, size in enumerate(chain.groups):
            bits, left[place][:size] = left[place][:size], []
            if chain.has_carry and number == 0:
                carry = left[place].pop(0)
            for a, b in _operands(bits):
                low.append(a)
                high.append(b)
            place += _positions(size)
        total = Signal(min(len(low) + 1, len(columns) - chain.start), name=f"{name}_{index}")
        # With three operands Yosys takes the counts for the data input of the chain, each a LUT of its own:
        # where there are several, a position below the lowest one for the carry costs less.
        is_ordered = chain.has_carry and chain.groups.count(_GROUP) > 1
        add = accumulate if is_ordered else add_with_carry
        m.d.comb += total.eq(add(Cat(*high), Cat(*low), carry, width=len(total)))
        for offset, bit in enumerate(total):
            made[chain.start + offset].append(bit)
    return [[*a, *b] for a, b in zip(left, made, strict=True)]


def _operands(bits: list[Value]) -> list[tuple[Value, Value]]:
    """What the positions of a group add."""
    if len(bits) <= 2:
        a, b = [*bits, C(0, 1)][:2]
        return [(a, b)]
    counted, sixth = bits[: _GROUP - 1], [*bits[_GROUP - 1 :], C(0, 1)][0]
    return [
        (_of_count(counted, lambda n: n & 1 == 1), sixth),
        (_of_count(counted, lambda n: n >= 4), _of_count(counted, lambda n: n >= 2)),
    ]


def _of_count(bits: list[Value], function: Callable[[int], bool]) -> Value:
    """A function of how many of the bits are set."""
    table = sum(function(code.bit_count()) << code for code in range(1 << len(bits)))
    return Const(table, 1 << len(bits)).bit_select(Cat(*bits), 1)


def _registered(m: Module, columns: _Columns) -> _Columns:
    return [list(register(m, Cat(*column))) if column else [] for column in columns]
