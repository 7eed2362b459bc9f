"""The sum of the activations of each block, which zero points are multiplied by."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import add_with_carry, register, shape_range
from hw.arith.adder_tree import sum_shape
from hw.arith.compressor import CompressorTree
from hw.lut_kernel.queue import Queue
from hw.mvu._counter import step

_DEPTH = 8
"""Blocks that can be between the tables and the scale stage: two or three in the banks and as many in the
pipeline of the engine, where each has a single transfer, one that waits, one that is scaled."""


class ActivationSums(Component):
    """Adds up the words of each block.

    Ports: ``words``: input stream of arrays of the codes of activations; ``sums``: output stream of a signed
    sum for every *words* of them, two cycles after the last one. One word a cycle.

    Args:
        activation: shape of an activation, an integer.
        length: activations of a word.
        words: of a block.
        terms: activations of a block that are not zero.
    """

    def __init__(self, *, activation: Shape, length: int, words: int, terms: int) -> None:
        self._activation, self._words = activation, words
        low, high = shape_range(activation)
        self._tree = CompressorTree(terms=length, low=low, high=high)
        super().__init__(
            {
                "words": In(stream.Signature(data.ArrayLayout(activation.width, length))),
                "sums": Out(
                    stream.Signature(sum_shape(max(terms, length), low=low, high=high, has_carry=False))
                ),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.tree = tree = self._tree
        shape = self.sums.payload.shape()
        m.submodules.queue = queue = Queue(width=shape.width, depth=_DEPTH)
        enters, follows = Signal(), Signal()
        m.d.comb += [
            # A word that is being added may yet enter the queue.
            self.words.ready.eq(queue.level < _DEPTH - 1),
            enters.eq(self.words.valid & self.words.ready),
            *(addend.eq(value) for addend, value in zip(tree.addends, self._values(), strict=True)),
        ]
        m.d.sync += follows.eq(enters)
        word_sum = register(m, tree.sum)
        total, running = Signal(shape), Signal(shape, reset_less=True)
        place = Signal(range(self._words))
        before = Mux(place == 0, 0, running).as_signed()
        m.d.comb += total.eq(add_with_carry(before, word_sum, 0, width=len(total)))
        with m.If(follows):
            m.d.sync += running.eq(total)
        m.d.comb += [
            queue.inputs.payload.eq(total),
            queue.inputs.valid.eq(step(m, place, self._words, follows)),
            self.sums.payload.eq(queue.outputs.payload),
            self.sums.valid.eq(queue.outputs.valid),
            queue.outputs.ready.eq(self.sums.ready),
        ]
        return m

    def _values(self) -> list[Value]:
        codes = [Value.cast(code) for code in self.words.payload]
        return [code.as_signed() if self._activation.signed else code for code in codes]
