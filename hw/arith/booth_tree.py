"""Radix-4 Booth multiplier for the highest clock frequency: a register after every carry chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import C, Cat, Module, Shape, Signal, Value
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import add_with_carry, check_shape, product_shape, register, shape_range
from hw.arith.booth import booth_rows, check_multiplier, open_product_shape, select_multiple


@dataclass(frozen=True)
class _Group:
    """Summed rows ``first`` to ``end - 1``: ``value + missing`` is the multiplicand times their digits."""

    first: int
    end: int
    value: Value
    missing: Value


class PipelinedBoothMultiplier(Component):
    """``product + missing = multiplicand * multiplier``, exactly; no carry chain feeds another.

    The rows of :class:`hw.arith.booth.BoothMultiplier`, first selected, then added in pairs, each step
    from registers. Each pair's chain adds on its carry input the one that the upper row still misses; that
    of the lowest row is left to the consumer, or added at the end where that has no carry to spare.
    A row costs LUTs of its own for its selection, which no longer shares those of the carry chain.

    Ports: those of :class:`hw.arith.booth.BoothMultiplier`. Latency :attr:`latency` cycles, the last
    addition still to be registered; one product a cycle.

    Args:
        multiplicand: shape of the operand that the rows add.
        multiplier: shape of the operand that is recoded into digits; at least two bits.
        is_open: leave the carry of the first row to the consumer.

    Raises:
        UsageError: an argument is not a shape of enough bits.
    """

    def __init__(self, *, multiplicand: Shape, multiplier: Shape, is_open: bool = False) -> None:
        check_shape("multiplicand", multiplicand)
        check_multiplier(multiplier)
        self._multiplicand = multiplicand
        self._multiplier = multiplier
        self._is_open = is_open
        exact = product_shape(multiplicand, multiplier)
        super().__init__(
            {
                "multiplicand": In(multiplicand),
                "multiplier": In(multiplier),
                "product": Out(open_product_shape(exact) if is_open else exact),
                "missing": Out(int(is_open)),
            }
        )

    @property
    def rows(self) -> int:
        """Number of digits."""
        return booth_rows(self._multiplier)

    @property
    def latency(self) -> int:
        """Cycles from operands to product."""
        return (self.rows - 1).bit_length() + (not self._is_open)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        top = self.multiplier[-1] if self._multiplier.signed else C(0, 1)
        digits = Cat(C(0, 1), self.multiplier, top, top)
        groups = []
        for row in range(self.rows):
            triple = digits[2 * row : 2 * row + 3]
            multiple = Signal(self._group_shape(row, row + 1), name=f"multiple{row}")
            m.d.comb += multiple.eq(select_multiple(m, self.multiplicand, triple))
            groups.append(_Group(row, row + 1, multiple, triple[2]))
        while len(groups) > 1:
            groups = [_delayed(m, group) for group in groups]
            pairs = zip(groups[::2], groups[1::2], strict=False)
            groups = [self._joined(m, *pair) for pair in pairs] + groups[len(groups) // 2 * 2 :]
        (group,) = groups
        if self._is_open:
            m.d.comb += [self.product.eq(group.value), self.missing.eq(group.missing)]
        else:
            group = _delayed(m, group)
            m.d.comb += self.product.eq(group.value + group.missing)
        return m

    def _joined(self, m: Module, lower: _Group, upper: _Group) -> _Group:
        """The sum of two groups; the lowest digits of the lower one need no chain."""
        passed = 2 * (lower.end - lower.first)
        shape = self._group_shape(lower.first, upper.end)
        total = Signal(shape, name=f"rows{lower.first}to{upper.end - 1}")
        chain = add_with_carry(
            lower.value[passed:].as_signed(), upper.value, upper.missing, width=shape.width - passed
        )
        m.d.comb += total.eq(Cat(lower.value[:passed], chain))
        return _Group(lower.first, upper.end, total, lower.missing)

    def _group_shape(self, first: int, end: int) -> Shape:
        """The multiplicand times the digits *first* to *end* - 1, less one that may be missing."""
        if end == self.rows:
            low, high = (bound >> (2 * first) for bound in shape_range(self._multiplier))
        else:
            low, high = -(1 << (2 * (end - first) - 1)), (1 << (2 * (end - first) - 1)) - 1
        # The bit below the lowest digit counts as one of it.
        products = [a * b for a in shape_range(self._multiplicand) for b in (low, high + (first > 0))]
        return Shape.cast(range(min(products) - 1, max(products) + 1))


def _delayed(m: Module, group: _Group) -> _Group:
    return _Group(group.first, group.end, register(m, group.value), register(m, group.missing))
