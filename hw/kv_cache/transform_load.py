"""One stream that fills several memories, and the gate that keeps filling and computing apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import C, Module, Mux, Shape, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.mvu._counter import step

_MOST_TOKENS = 15
"""Between the gate and the end of a pipeline: more than ever are, of tokens of a common size."""


class LoadRouter(Component):
    """Turns a load stream into writes, memory by memory.

    Ports:
        ``load``: stream of words: all of memory 0, then all of memory 1, ...
        ``is_idle`` in: nothing is being computed; the first word is taken only then.
        ``may_start`` out: the memories are full, and nobody waits to fill them again.
        ``write`` out: a bit a memory; ``address``, ``word``: what is written where.

    Args:
        sizes: words of each memory.
        width: of a word.
    """

    def __init__(self, *, sizes: Sequence[int], width: int) -> None:
        self._sizes = tuple(sizes)
        super().__init__(
            {
                "load": In(stream.Signature(width)),
                "is_idle": In(1),
                "may_start": Out(1),
                "write": Out(len(sizes)),
                "address": Out(Shape.cast(range(max(sizes)))),
                "word": Out(width),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        taken, ends, all_end = Signal(), Signal(), Signal()
        section = Signal(range(len(self._sizes)))
        is_loading, is_loaded = Signal(), Signal()
        with m.Switch(section):
            for number, size in enumerate(self._sizes):
                with m.Case(number):
                    m.d.comb += ends.eq(taken & (self.address == size - 1))
        m.d.comb += [
            all_end.eq(step(m, section, len(self._sizes), ends)),
            self.load.ready.eq(is_loading | self.is_idle),
            taken.eq(self.load.valid & self.load.ready),
            self.may_start.eq(is_loaded & ~is_loading & ~self.load.valid),
            self.word.eq(self.load.payload),
            self.write.eq(Mux(taken, C(1) << section, 0)),
        ]
        with m.If(taken):
            m.d.sync += [
                self.address.eq(Mux(ends, 0, self.address + 1)),
                is_loading.eq(~all_end),
                is_loaded.eq(is_loaded | all_end),
            ]
        return m


class TokenGate(Component):
    """Lets a token's items through from the first to the last; the first one must be allowed to.

    Ports: ``inputs``, ``outputs``: streams, passed on in the same cycle. ``may_start`` in. ``finished`` in:
    the pipeline behind has done with a token. ``is_idle`` out: it has with all.

    Args:
        shape: of an item.
        items: of a token.
    """

    def __init__(self, *, shape: Any, items: int) -> None:
        self._items = items
        super().__init__(
            {
                "inputs": In(stream.Signature(shape)),
                "outputs": Out(stream.Signature(shape)),
                "may_start": In(1),
                "finished": In(1),
                "is_idle": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        position, tokens = Signal(range(self._items)), Signal(range(_MOST_TOKENS + 1))
        passes, taken, starts = Signal(), Signal(), Signal()
        step(m, position, self._items, taken)
        m.d.sync += tokens.eq(tokens + starts - self.finished)
        m.d.comb += [
            passes.eq((position != 0) | (self.may_start & (tokens != _MOST_TOKENS))),
            self.outputs.valid.eq(self.inputs.valid & passes),
            self.outputs.payload.eq(self.inputs.payload),
            self.inputs.ready.eq(self.outputs.ready & passes),
            taken.eq(self.inputs.valid & self.inputs.ready),
            starts.eq(taken & (position == 0)),
            self.is_idle.eq(tokens == 0),
        ]
        return m
