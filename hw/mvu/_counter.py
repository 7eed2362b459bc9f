"""Counters of the matrix-vector unit."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value


def step(m: Module, counter: Signal, size: int, enable: Value) -> Value:
    """Counts 0 to *size* - 1 and around while *enable*; returns whether this step goes around."""
    wraps = Signal(name=f"{counter.name}_wraps")
    m.d.comb += wraps.eq(enable & (counter == size - 1))
    with m.If(wraps):
        m.d.sync += counter.eq(0)
    with m.Elif(enable):
        m.d.sync += counter.eq(counter + 1)
    return wraps
