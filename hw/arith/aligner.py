"""The first stages of the shift that brings a product into fixed point."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, Value
from amaranth.lib.wiring import In, Out

from hw._checks import check_natural
from hw._component import Component
from hw.arith._shapes import check_shape, register

STAGES_BETWEEN_REGISTERS = 2
"""Two 2:1 multiplexers are one LUT6."""


class Aligner(Component):
    """``aligned = product << shift``: one 2:1 multiplexer stage a bit of ``shift``, smallest first.

    The smallest shift comes first, where the word is still narrow. The large ones are better left
    to the accumulator (:class:`hw.arith.accumulator.KulischAccumulator`). Latency :attr:`latency` cycles.

    Args:
        product: shape of the word that is shifted.
        shift_bits: width of ``shift``.
        pipelined: a register between each two stages and the next.

    Raises:
        UsageError: *product* is no shape of at least one bit, *shift_bits* no natural number.
    """

    def __init__(self, *, product: Shape, shift_bits: int, pipelined: bool = False) -> None:
        check_shape("product", product)
        check_natural("shift_bits", shift_bits)
        self._latency = max(shift_bits - 1, 0) // STAGES_BETWEEN_REGISTERS if pipelined else 0
        aligned = Shape(product.width + (1 << shift_bits) - 1, product.signed)
        super().__init__({"product": In(product), "shift": In(shift_bits), "aligned": Out(aligned)})

    @property
    def latency(self) -> int:
        """Cycles from product and shift to the aligned product."""
        return self._latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        word: Value = self.product
        shift: Value = self.shift
        for stage in range(len(self.shift)):
            if self._latency and stage and stage % STAGES_BETWEEN_REGISTERS == 0:
                word, shift = register(m, word), register(m, shift)
            word = Mux(shift[stage], word << (1 << stage), word)
        m.d.comb += self.aligned.eq(word)
        return m
