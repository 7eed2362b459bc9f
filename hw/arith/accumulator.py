"""Exact fixed-point (Kulisch) accumulator."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Signal, Value, signed
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import accumulate, add_with_carry


class KulischAccumulator(Component):
    """Adds ``addend + carry`` to a register.

    U. Kulisch, "Very fast and exact accumulation of products", 2011: a register wide enough for every
    product and their sum, so that nothing is ever rounded. The addend of a
    :class:`hw.arith.addend.ProductAddend` shares the LUT of each carry position.

    Ports: ``addend``, ``carry`` in; ``enable``: add them; ``clear``: start again from zero (wins over
    ``enable``); ``advance``: without it nothing happens (1 where it is not connected); ``total``: the
    register plus the addend of this cycle, combinational, so that a sum can be taken in the cycle of its
    last term. Sums wrap modulo ``2**bits``. One term a cycle.

    With *segment_bits*, the carry chain is cut: each segment adds its part of a term a cycle after the one
    below it, whose carry out is its carry in, registered. ``total`` then is that of :attr:`latency` cycles
    (with ``advance``) ago.

    Args:
        bits: width of the register, of ``addend`` and of ``total`` (signed).
        is_registered: ``addend`` comes from a register, not from logic; then the carry is free.
        segment_bits: longest carry chain, without which there is one of *bits*; for registered addends.

    Raises:
        UsageError: *bits* or *segment_bits* is not positive.
    """

    def __init__(self, *, bits: int, is_registered: bool = False, segment_bits: int | None = None) -> None:
        check_positive("bits", bits)
        segment_bits = bits if segment_bits is None else segment_bits
        check_positive("segment_bits", segment_bits)
        self._is_registered = is_registered
        self._segments = -(-bits // segment_bits)
        super().__init__(
            {
                "addend": In(signed(bits)),
                "carry": In(1),
                "enable": In(1),
                "clear": In(1),
                "advance": In(1, init=1),
                "total": Out(signed(bits)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from an addend to the total with it."""
        return self._segments - 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        width = -(-len(self.total) // self._segments)
        rest: Value = self.addend
        carry: Value = self.carry
        enable: Value = self.enable
        clear: Value = self.clear
        finished: Value = C(0, 0)
        for segment in range(self._segments):
            if segment:
                rest = self._delay(m, f"addend{segment}", rest, False)
                carry = self._delay(m, f"carry{segment}", carry, False)
                finished = self._delay(m, f"finished{segment}", finished, False)
                enable = self._delay(m, f"enable{segment}", enable, True)
                clear = self._delay(m, f"clear{segment}", clear, True)
            part = rest[:width]
            register = Signal(len(part), name=f"segment{segment}")
            # Only a segment below others has a carry out.
            total = Signal(len(part) + (segment < self._segments - 1), name=f"total{segment}")
            add = add_with_carry if self._is_registered else accumulate
            m.d.comb += total.eq(add(register, part, carry, width=len(total)))
            with m.If(clear & self.advance):
                m.d.sync += register.eq(0)
            with m.Elif(enable & self.advance):
                m.d.sync += register.eq(total)
            rest, carry, finished = rest[width:], total[width:], Cat(finished, total[:width])
        m.d.comb += self.total.eq(finished)
        return m

    def _delay(self, m: Module, name: str, value: Value, is_reset: bool) -> Signal:
        delayed = Signal(value.shape(), name=name, reset_less=not is_reset)
        with m.If(self.advance):
            m.d.sync += delayed.eq(value)
        return delayed
