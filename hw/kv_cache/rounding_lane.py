"""Division of one element of a group by the group's span, rounded exactly."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import accumulate, register


class RoundingLane(Component):
    """``code = round((element - minimum) * (2**bits - 1) / span)``, ties to the even code, exactly.

    With w = 2 * element - minimum - maximum, twice the distance from the middle of the group, the code is
    the number of odd multiples of span that (2**bits - 1) * w has reached, counted from -2**bits * span.
    Non-restoring division finds it, a bit a step, on one carry chain of 18 positions each: the sign of what
    is left is a bit of the code, and says whether the next, half as large, multiple is added or taken off.
    A tie at which the upper of two codes is odd shows as nothing left in the last step, and there
    "at least" becomes "above"; a tie that an earlier step meets has an even upper code.

    Ports: ``element`` and ``middle`` = ceil((minimum + maximum) / 2), ``is_odd`` = the lowest bit of
    the span, in the same cycle. ``spans``: the span 2, 3, ... cycles later, one for each step but the last.
    ``half`` and ``half_less``: span >> 1 and (span - 1) >> 1, ``bits`` cycles later. The span must be at
    least 1; of a group of equal elements it is taken as 1, and its maximum as one more than they are.
    ``code`` comes :attr:`latency` cycles later. Registers free-run.

    Args:
        bits: of a code, 2 to 8.
    """

    def __init__(self, *, bits: int) -> None:
        self._bits = bits
        super().__init__(
            {
                "element": In(signed(16)),
                "middle": In(signed(16)),
                "is_odd": In(1),
                "spans": In(data.ArrayLayout(unsigned(16), bits - 2)),
                "half": In(15),
                "half_less": In(15),
                "code": Out(bits),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from an element to its code."""
        return self._bits + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        distance = Signal(signed(17), reset_less=True)
        m.d.sync += distance.eq(Cat(self.is_odd, (self.element - self.middle)[:16]))
        left: Value = register(m, ((distance << self._bits) - distance)[: self._bits + 17])
        bits: Value = C(0, 0)
        for index, place in enumerate(reversed(range(1, self._bits - 1))):
            bits = register(m, Cat(~left[-1], bits))
            left = register(m, _step(left, self.spans[index], place))
        sign = left[-1]
        bits = register(m, Cat(~sign, bits))
        operand = Mux(sign, Cat(self.half_less, C(0, 1)), Cat(~self.half, C(1, 1)))
        last = register(m, accumulate(left[2:], operand, left[1], width=16)[-1])
        m.d.comb += self.code.eq(Cat(~last, bits))
        return m


def _step(left: Value, span: Value, place: int) -> Value:
    """What is left when ``span << (place + 1)`` is taken off, or added where it is below zero."""
    kept, upper = left[: place + 1], left[place + 1 :]
    subtracts = ~left[-1]
    operand = Cat(span, C(0, 1)) ^ subtracts.replicate(17)
    return Cat(kept, accumulate(upper, operand, subtracts, width=17))
