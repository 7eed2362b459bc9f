"""A component with two output streams, for the tests of simulators and benches."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw._component import Component


class Halves(Component):
    """Gives the low half of every byte, and after four bytes, but for *lost* ones, the highest of their high
    halves."""

    def __init__(self, *, lost: int = 0) -> None:
        self._lost = lost
        half = Out(stream.Signature(4))
        super().__init__({"items": In(stream.Signature(8)), "lows": half, "highs": half})

    def elaborate(self, platform):
        m = Module()
        place, largest = Signal(2), Signal(4)
        lost = Signal(range(self._lost + 2), init=self._lost)
        free = (~self.lows.valid | self.lows.ready) & (~self.highs.valid | self.highs.ready)
        high = self.items.payload[4:]
        m.d.comb += self.items.ready.eq(free)
        for port in (self.lows, self.highs):
            with m.If(port.ready):
                m.d.sync += port.valid.eq(0)
        with m.If(self.items.valid & free):
            m.d.sync += [
                self.lows.valid.eq(1),
                self.lows.payload.eq(self.items.payload[:4]),
                place.eq(place + 1),
                largest.eq(0),
            ]
            with m.If(place != 3):
                with m.If(high > largest):
                    m.d.sync += largest.eq(high)
                with m.Else():
                    m.d.sync += largest.eq(largest)
            with m.Elif(lost.any()):
                m.d.sync += lost.eq(lost - 1)
            with m.Else():
                m.d.sync += [self.highs.valid.eq(1), self.highs.payload.eq(largest)]
                with m.If(high > largest):
                    m.d.sync += self.highs.payload.eq(high)
        return m


ITEMS = [(37 * place) % 256 for place in range(400)]
LOWS = [item % 16 for item in ITEMS]
HIGHS = [max(item >> 4 for item in ITEMS[place : place + 4]) for place in range(0, len(ITEMS), 4)]
COUNTS = {"lows": len(LOWS), "highs": len(HIGHS)}
