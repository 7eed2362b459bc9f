"""Square roots and quotients, a digit a cycle, with one subtractor."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Signal
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from quantizers.errors import UsageError


class DigitRecurrence(Component):
    """A root or a quotient of *digits* bits, rounded down: the restoring recurrences, one digit a cycle.

    Both subtract from twice, or four times, the remainder, and keep the difference where it is not negative:
    a quotient the divisor, a root four times the digits so far and one (J.-M. Muller, "Elementary
    Functions", 2016, section 1.4, has them as school methods). The new digit says whether.

    Ports:
        ``start`` in: takes, in this cycle, ``is_root``, ``remainder`` and ``low``.
        ``is_root`` in; ``divisor`` in: to be held until ``done``.
        ``remainder``, ``low`` in: for a root 0, and the upper *low_bits* of a radicand of ``2 * digits``
        bits whose lower ones are 0. For a quotient the dividend is ``remainder * 2**digits + low *
        2**(digits - low_bits)``; only the upper *digits* bits of ``low`` count; ``remainder < divisor``.
        ``result`` out: the root or the quotient, from the cycle of ``done`` on until the next start.
        ``done`` out: in one cycle, *digits* + 1 after that of ``start``. A start may come in it.

    A quotient by zero has all bits set.

    Args:
        digits: bits of the result.
        low_bits: of ``low``: even, at most ``2 * digits``.

    Raises:
        UsageError: a number is not positive, or *low_bits* odd or too large.
    """

    def __init__(self, *, digits: int, low_bits: int) -> None:
        check_positive("digits", digits)
        check_positive("low_bits", low_bits)
        if low_bits % 2 or low_bits > 2 * digits:
            msg = f"low_bits must be even and at most {2 * digits}, not {low_bits}"
            raise UsageError(msg, given=low_bits, expected=[f"2, 4, ..., {2 * digits}"])
        self._digits, self._low_bits = digits, low_bits
        super().__init__(
            {
                "start": In(1),
                "is_root": In(1),
                "divisor": In(digits),
                "remainder": In(digits),
                "low": In(low_bits),
                "result": Out(digits),
                "done": Out(1),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the start to the result."""
        return self._digits + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        # Of a root the remainder is at most twice the digits so far, so it has a bit more than they.
        remainder, low = Signal(self._digits + 1, reset_less=True), Signal(self._low_bits, reset_less=True)
        is_root, is_busy = Signal(reset_less=True), Signal()
        left = Signal(range(self._digits))
        shifted = Signal(self._digits + 3)
        subtracted = Signal.like(shifted)
        difference = Signal(len(shifted) + 1)
        m.d.comb += [
            shifted.eq(Mux(is_root, Cat(low[-2:], remainder), Cat(low[-1], remainder))),
            subtracted.eq(Mux(is_root, Cat(C(1, 2), self.result), self.divisor)),
            difference.eq(shifted - subtracted),
        ]
        digit = ~difference[-1]
        with m.If(self.start):
            m.d.sync += [
                remainder.eq(self.remainder),
                low.eq(self.low),
                is_root.eq(self.is_root),
                self.result.eq(0),
            ]
        with m.Elif(is_busy):
            m.d.sync += [
                remainder.eq(Mux(digit, difference, shifted)),
                low.eq(Mux(is_root, low << 2, low << 1)),
                self.result.eq(Cat(digit, self.result)),
            ]
        is_last = is_busy & (left == 0)
        m.d.sync += [self.done.eq(is_last), is_busy.eq(self.start | (is_busy & (left != 0)))]
        with m.If(self.start):
            m.d.sync += left.eq(self._digits - 1)
        with m.Elif(is_busy):
            m.d.sync += left.eq(left - 1)
        return m
