"""Radix-4 Booth multiplier: one carry chain per digit."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Shape, Signal, Value
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import add_with_carry, check_shape, product_shape, register, shape_range
from quantizers.errors import UsageError

MAX_ROWS_PER_STAGE = 3
"""Carry chains in a row between registers: three are about 3 ns of logic on a 7-series part."""


def booth_rows(multiplier: Shape) -> int:
    """Digits, and so carry chains, of a multiplier operand."""
    return (multiplier.width + 1) // 2 if multiplier.signed else multiplier.width // 2 + 1


class BoothMultiplier(Component):
    """``product = multiplicand * multiplier``, exactly.

    A. D. Booth, "A signed binary multiplication technique", 1951, in radix 4: the digit
    ``d = b[2i-1] + b[2i] - 2*b[2i+1]`` selects -2 to 2 times the multiplicand, so that a signed
    multiplier of n bits needs ceil(n/2) rows and an unsigned one n//2 + 1. Each row is one carry
    chain: selection, negation and sum share the LUT of a carry position. A negative multiple is
    added as its one's complement; the missing ones of all rows ride in the unused operand of the
    first row, so that no chain spends a position on a carry input.

    Recode the operand with fewer rows: the narrower one, or the signed one of a pair of equal width.

    Where the consumer is an adder whose carry input is free, the ones of the first row need not be added
    here (*is_open*): ``product + missing`` is the product. The first row, of a digit of two bits, then is
    a mere selection, two bits of it a LUT, and every other row takes its one on its own carry input:
    34 LUT6 sites instead of 40 for 8 x 8 bits.

    Ports: ``multiplicand``, ``multiplier`` in; ``product`` out, of the narrowest shape for all products;
    ``missing`` (1 bit if *is_open*, else 0) out. Latency :attr:`latency` cycles; one product a cycle.

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
        chains = self.rows - self._is_open
        return max(chains - 1, 0) // MAX_ROWS_PER_STAGE

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        rows_per_stage = -(-self.rows // (self.latency + 1))
        top = self.multiplier[-1] if self._multiplier.signed else C(0, 1)
        digits: Value = Cat(C(0, 1), self.multiplier, top, top)[: 2 * self.rows + 1]
        multiplicand: Value = self.multiplicand
        finished: Value = C(0, 0)
        missing: Value = digits[2:3]
        running: Value = Cat(*(Cat(digits[2 * row + 2], C(0, 1)) for row in range(self.rows)))
        for row in range(self.rows):
            if row and row % rows_per_stage == 0:
                digits, multiplicand, finished, running, missing = (
                    register(m, value) for value in (digits, multiplicand, finished, running, missing)
                )
            multiple = select_multiple(m, multiplicand, digits[:3])
            total = Signal(self._row_shape(row), name=f"row{row}")
            if not self._is_open:
                m.d.comb += total.eq(running + multiple)
            elif row == 0:
                m.d.comb += total.eq(multiple)
            else:
                m.d.comb += total.eq(add_with_carry(running, multiple, digits[2], width=len(total)))
            if row < self.rows - 1:
                digits = digits[2:]
                finished, running = Cat(finished, total[:2]), total[2:].as_signed()
        m.d.comb += self.product.eq(Cat(finished, total))
        if self._is_open:
            m.d.comb += self.missing.eq(missing)
        return m

    def _row_shape(self, row: int) -> Shape:
        """The row's sum: the product with the digits so far, and the ones that rows still miss."""
        digits = shape_range(self._multiplier)
        if row < self.rows - 1:
            digits = (-(1 << (2 * row + 1)), (1 << (2 * row + 1)) - 1)
        products = [a * b for a in shape_range(self._multiplicand) for b in digits]
        added = 0 if self._is_open else sum(1 << (2 * later) for later in range(row + 1, self.rows))
        low, high = (min(products) - self._is_open) >> (2 * row), (max(products) + added) >> (2 * row)
        return Shape(max(Shape.cast(range(low, high + 1)).width, 3), low < 0)


def check_multiplier(multiplier: Shape) -> None:
    """Raises :class:`UsageError` unless *multiplier* is a shape that has a whole digit."""
    check_shape("multiplier", multiplier)
    if multiplier.width < 2:
        msg = f"a Booth multiplier needs a multiplier of at least 2 bits, not {multiplier!r}"
        raise UsageError(msg, given=repr(multiplier), expected=["signed(2)", "unsigned(2)"])


def open_product_shape(product: Shape) -> Shape:
    """The shape of a product that may be one short."""
    low, high = shape_range(product)
    return Shape.cast(range(min(low, -1), high + 1))


def select_multiple(m: Module, multiplicand: Value, triple: Value) -> Value:
    """-2 to 2 times the multiplicand; negative multiples are one short (one's complement)."""
    below, low, negative = triple[0], triple[1], triple[2]
    width = len(multiplicand) + 1
    signed = multiplicand.shape().signed
    single = Cat(multiplicand, multiplicand[-1] if signed else C(0, 1))
    double = Cat(C(0, 1), multiplicand)
    # Signals: of an expression that is replicated, Amaranth makes a copy for every bit.
    is_single, is_double = Signal(name="is_single"), Signal(name="is_double")
    m.d.comb += [is_single.eq(low ^ below), is_double.eq((negative ^ low) & ~is_single)]
    selected = (single & is_single.replicate(width)) | (double & is_double.replicate(width))
    complemented = selected ^ negative.replicate(width)
    return (complemented if signed else Cat(complemented, negative)).as_signed()
