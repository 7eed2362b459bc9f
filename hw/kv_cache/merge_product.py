"""A product in a register, of a DSP slice or of LUTs."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Shape, Signal
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import product_shape, register
from hw.arith.addend import MULTIPLIERS
from hw.arith.booth import BoothMultiplier
from quantizers.errors import unknown_choice


class RegisteredProduct(Component):
    """``product = left * right``, exactly, :attr:`latency` cycles later; one a cycle.

    Ports: ``left``, ``right`` in; ``product`` out.

    Args:
        left: shape of the wider factor; of a DSP slice at most 25 bits.
        right: shape of the narrower one; at most 18 bits.
        multipliers: ``dsps``, a DSP slice, or ``luts``, Booth rows of carry chains.

    Raises:
        UsageError: *multipliers* is neither.
    """

    def __init__(self, *, left: Shape, right: Shape, multipliers: str) -> None:
        if multipliers not in MULTIPLIERS:
            raise unknown_choice("multipliers", multipliers, MULTIPLIERS)
        self._booth = BoothMultiplier(multiplicand=left, multiplier=right) if multipliers == "luts" else None
        super().__init__({"left": In(left), "right": In(right), "product": Out(product_shape(left, right))})

    @property
    def latency(self) -> int:
        """Cycles from the factors to the product."""
        return 1 if self._booth is None else 1 + self._booth.latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        if self._booth is None:
            product = Signal(self.product.shape(), reset_less=True, attrs={"use_dsp": "yes"})
            m.d.sync += product.eq(self.left * self.right)
            m.d.comb += self.product.eq(product)
            return m
        m.submodules.booth = booth = self._booth
        m.d.comb += [booth.multiplicand.eq(self.left), booth.multiplier.eq(self.right)]
        m.d.comb += self.product.eq(register(m, booth.product))
        return m
