"""The first stages of the shift that brings a product into fixed point."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, Value
from amaranth.lib.wiring import In, Out

from hw._checks import check_natural
from hw._component import Component
from hw.arith._shapes import check_shape


class Aligner(Component):
    """``aligned = product << shift``: one 2:1 multiplexer stage a bit of ``shift``, smallest first.

    The smallest shift comes first, where the word is still narrow. The large ones are better left
    to the accumulator (:class:`hw.arith.accumulator.KulischAccumulator`). Combinational.

    Raises:
        UsageError: *product* is no shape of at least one bit, *shift_bits* no natural number.
    """

    def __init__(self, *, product: Shape, shift_bits: int) -> None:
        check_shape("product", product)
        check_natural("shift_bits", shift_bits)
        aligned = Shape(product.width + (1 << shift_bits) - 1, product.signed)
        super().__init__({"product": In(product), "shift": In(shift_bits), "aligned": Out(aligned)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        word: Value = self.product
        for stage in range(len(self.shift)):
            word = Mux(self.shift[stage], word << (1 << stage), word)
        m.d.comb += self.aligned.eq(word)
        return m
