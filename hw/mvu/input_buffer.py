"""Memory of two vectors: one is read again and again while the next one streams in."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Shape, Signal, unsigned
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.mvu._counter import step


class InputBuffer(Component):
    """Keeps a vector until it is released.

    Ports:
        ``inputs``: stream of words, *depth* of them a vector.
        ``column`` in: the word to read; ``available`` out: whether it has come. It can be read in the
        cycle after the one in which it was taken.
        ``enable`` in: ``word`` becomes that word in the next cycle, else it keeps its value.
        ``release`` in: no word of this vector is read any more, from the next cycle on.

    Args:
        word: layout of a word.
        depth: words of a vector.
        attrs: attributes of the memory, for synthesis.
    """

    def __init__(self, *, word: data.ArrayLayout, depth: int, attrs: dict[str, str]) -> None:
        self._depth = depth
        self._attrs = attrs
        super().__init__(
            {
                "inputs": In(stream.Signature(word)),
                "column": In(Shape.cast(range(depth))),
                "available": Out(1),
                "enable": In(1),
                "release": In(1),
                "word": Out(word),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        width = Shape.cast(self.word.shape()).width
        columns = 1 << len(self.column)
        m.submodules.words = words = memory.Memory(
            shape=unsigned(width), depth=2 * columns, init=[], attrs=self._attrs
        )
        write, read = words.write_port(), words.read_port()
        full = Signal(2)
        writing = Signal()
        reading = Signal()
        position = Signal.like(self.column)
        taken = Signal()
        ends = step(m, position, self._depth, taken)
        with m.If(ends):
            m.d.sync += [full.bit_select(writing, 1).eq(1), writing.eq(~writing)]
        with m.If(self.release):
            m.d.sync += [full.bit_select(reading, 1).eq(0), reading.eq(~reading)]
        m.d.comb += [
            self.inputs.ready.eq(~full.bit_select(writing, 1)),
            taken.eq(self.inputs.valid & self.inputs.ready),
            write.addr.eq(Cat(position, writing)),
            write.data.eq(self.inputs.payload),
            write.en.eq(taken),
            # The reader never gets ahead of the writer, so that "not yet written" is "being written".
            self.available.eq(
                full.bit_select(reading, 1) | ((writing == reading) & (position != self.column))
            ),
            read.addr.eq(Cat(self.column, reading)),
            read.en.eq(self.enable),
            self.word.eq(read.data),
        ]
        return m
