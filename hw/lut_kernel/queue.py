"""A queue in LUT RAM."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import memory, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.lut_kernel.tables import LUTRAM
from hw.mvu._counter import step


class Queue(Component):
    """What came in comes out in the same order, a cycle later at the earliest.

    Ports: ``inputs``, ``outputs``: streams; ``level`` out: how many wait. One payload a cycle; neither
    stream's ``ready`` has a path to the other one's.

    Args:
        width: bits of a payload.
        depth: payloads that can wait.
    """

    def __init__(self, *, width: int, depth: int) -> None:
        self._depth = depth
        super().__init__(
            {
                "inputs": In(stream.Signature(width)),
                "outputs": Out(stream.Signature(width)),
                "level": Out(range(depth + 1)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        shape = self.inputs.payload.shape()
        m.submodules.waiting = waiting = memory.Memory(shape=shape, depth=self._depth, init=[], attrs=LUTRAM)
        read, write = waiting.read_port(domain="comb"), waiting.write_port()
        first, end = Signal(range(self._depth)), Signal(range(self._depth))
        enters, leaves = Signal(), Signal()
        m.d.comb += [
            self.inputs.ready.eq(self.level != self._depth),
            self.outputs.valid.eq(self.level != 0),
            self.outputs.payload.eq(read.data),
            enters.eq(self.inputs.valid & self.inputs.ready),
            leaves.eq(self.outputs.valid & self.outputs.ready),
            read.addr.eq(first),
            write.addr.eq(end),
            write.data.eq(self.inputs.payload),
            write.en.eq(enters),
        ]
        step(m, first, self._depth, leaves)
        step(m, end, self._depth, enters)
        m.d.sync += self.level.eq(self.level + enters - leaves)
        return m
