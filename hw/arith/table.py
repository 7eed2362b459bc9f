"""Combinational functions given by their value tables, and products made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Cat, Const, Module, Shape, Value
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import check_shape, product_shape, register, shape_range
from quantizers.errors import UsageError

LUT_INPUTS = 6
"""Inputs of the largest function that one LUT of the target computes."""


class TruthTable(Component):
    """``output = function(input)``: every output bit one LUT at most. Combinational.

    Args:
        input_bits: width of ``input``, 1 to 6.
        shape: shape of ``output``; every result of *function* must fit.
        function: called with each input ``0 .. 2**input_bits - 1`` when the table is built.

    Raises:
        UsageError: too many input bits, or a result that *shape* does not hold.
    """

    def __init__(self, *, input_bits: int, shape: Shape, function: Callable[[int], int]) -> None:
        if not isinstance(input_bits, int) or not 1 <= input_bits <= LUT_INPUTS:
            msg = f"a truth table has 1 to {LUT_INPUTS} input bits, not {input_bits!r}"
            raise UsageError(msg, given=repr(input_bits), expected=[f"1..{LUT_INPUTS}"])
        check_shape("shape", shape)
        self._values = [function(code) for code in range(1 << input_bits)]
        low, high = shape_range(shape)
        for value in self._values:
            if not low <= value <= high:
                msg = f"the table holds {value}, which does not fit {shape!r} ({low} to {high})"
                raise UsageError(msg, given=str(value), expected=[f"{low}..{high}"])
        super().__init__({"input": In(input_bits), "output": Out(shape)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        for bit in range(len(self.output)):
            column = sum(((value >> bit) & 1) << code for code, value in enumerate(self._values))
            m.d.comb += self.output[bit].eq(Const(column, len(self._values)).bit_select(self.input, 1))
        return m


def table_pieces(multiplicand: Shape, multiplier: Shape) -> int | None:
    """Pieces of the multiplier that fit into a table beside the multiplicand; ``None``: not even a bit."""
    room = LUT_INPUTS - multiplicand.width
    return -(-multiplier.width // room) if room > 0 else None


class TableMultiplier(Component):
    """``product = multiplicand * multiplier`` from truth tables of at most six inputs.

    The multiplier is cut into pieces so that the multiplicand and one piece are the input of a
    table; the products of two pieces are added on one carry chain. One piece suffices for operands
    of together six bits; 4 x 4 bits take two (12 LUT6 sites, against 16 for Booth rows).
    Latency :attr:`latency` cycles.

    Args:
        multiplicand: shape of the operand that goes to every table.
        multiplier: shape of the operand that is cut.
        pipelined: a register between two tables and the carry chain.

    Raises:
        UsageError: the pair needs more than two tables.
    """

    MAX_PIECES = 2

    def __init__(self, *, multiplicand: Shape, multiplier: Shape, pipelined: bool = False) -> None:
        check_shape("multiplicand", multiplicand)
        check_shape("multiplier", multiplier)
        pieces = table_pieces(multiplicand, multiplier)
        if pieces is None or pieces > self.MAX_PIECES:
            msg = f"{multiplicand!r} times {multiplier!r} needs more than {self.MAX_PIECES} truth tables"
            raise UsageError(msg, given=f"{multiplicand!r}, {multiplier!r}", expected=["narrower operands"])
        self._multiplicand = multiplicand
        self._multiplier = multiplier
        self._cut = -(-multiplier.width // pieces)
        self._latency = int(pipelined and pieces > 1)
        super().__init__(
            {
                "multiplicand": In(multiplicand),
                "multiplier": In(multiplier),
                "product": Out(product_shape(multiplicand, multiplier)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from operands to product."""
        return self._latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        cut = self._cut
        if cut == self._multiplier.width:
            m.d.comb += self.product.eq(self._partial_product(m, "table", self.multiplier))
            return m
        low = self._partial_product(m, "low_table", self.multiplier[:cut])
        upper_piece = self.multiplier[cut:]
        high = self._partial_product(
            m, "high_table", upper_piece.as_signed() if self._multiplier.signed else upper_piece
        )
        if self._latency:
            low, high = register(m, low), register(m, high)
        m.d.comb += self.product.eq(Cat(low[:cut], high + (low >> cut)))
        return m

    def _partial_product(self, m: Module, name: str, piece: Value) -> Value:
        multiplicand, width = self._multiplicand, self._multiplicand.width

        def product(code: int) -> int:
            return _number(code, multiplicand) * _number(code >> width, piece.shape())

        table = TruthTable(
            input_bits=width + len(piece), shape=product_shape(multiplicand, piece.shape()), function=product
        )
        m.submodules[name] = table
        m.d.comb += table.input.eq(Cat(self.multiplicand, piece))
        return table.output


def _number(code: int, shape: Shape) -> int:
    """The value that the low bits of *code* have in *shape*."""
    code &= (1 << shape.width) - 1
    return code - (1 << shape.width) if shape.signed and code >> (shape.width - 1) else code
