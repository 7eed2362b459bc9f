"""Streams of words of several elements made streams of one element a cycle, and back."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Shape, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.mvu._counter import step


class Serializer(Component):
    """The elements of a word one after the other, the first lane first.

    Ports: ``inputs``: stream of words of *lanes* elements; ``outputs``: stream of elements. What is in the
    lanes of a vector's last word beyond its last element is dropped. An element a cycle, from the cycle on in
    which its word is offered; a word is taken with the last of its elements.

    Args:
        shape: of an element.
        lanes: elements of a word.
        elements: of a vector.

    Raises:
        UsageError: *lanes* or *elements* is not a positive integer.
    """

    def __init__(self, *, shape: Shape, lanes: int, elements: int) -> None:
        check_positive("lanes", lanes)
        check_positive("elements", elements)
        self._lanes, self._elements = lanes, elements
        super().__init__(
            {
                "inputs": In(stream.Signature(data.ArrayLayout(shape, lanes))),
                "outputs": Out(stream.Signature(shape)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        taken = Signal()
        lane, ends, is_last = _lane(m, taken, lanes=self._lanes, elements=self._elements)
        m.d.comb += [
            self.outputs.valid.eq(self.inputs.valid),
            self.outputs.payload.eq(Array(self.inputs.payload[index] for index in range(self._lanes))[lane]),
            taken.eq(self.outputs.valid & self.outputs.ready),
            self.inputs.ready.eq(self.outputs.ready & (ends | is_last)),
        ]
        return m


class Gatherer(Component):
    """The inverse of :class:`Serializer`; what is in the lanes beyond a vector's last element is left open.

    Ports: ``inputs``: stream of elements; ``outputs``: stream of words, each valid in the cycle after the one
    in which its last element was taken. An element a cycle.

    Args:
        shape: of an element.
        lanes: elements of a word.
        elements: of a vector.

    Raises:
        UsageError: *lanes* or *elements* is not a positive integer.
    """

    def __init__(self, *, shape: Shape, lanes: int, elements: int) -> None:
        check_positive("lanes", lanes)
        check_positive("elements", elements)
        self._lanes, self._elements = lanes, elements
        super().__init__(
            {
                "inputs": In(stream.Signature(shape)),
                "outputs": Out(stream.Signature(data.ArrayLayout(shape, lanes))),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        taken, is_full = Signal(), Signal()
        lane, ends, is_last = _lane(m, taken, lanes=self._lanes, elements=self._elements)
        held = [
            Signal(self.inputs.payload.shape(), name=f"held{index}", reset_less=True)
            for index in range(self._lanes)
        ]
        for index, register in enumerate(held):
            with m.If(taken & (lane == index)):
                m.d.sync += register.eq(self.inputs.payload)
        with m.If(self.inputs.ready):
            m.d.sync += is_full.eq(taken & (ends | is_last))
        m.d.comb += [
            self.outputs.valid.eq(is_full),
            Value.cast(self.outputs.payload).eq(Cat(held)),
            self.inputs.ready.eq(~is_full | self.outputs.ready),
            taken.eq(self.inputs.valid & self.inputs.ready),
        ]
        return m


def _lane(m: Module, taken: Value, *, lanes: int, elements: int) -> tuple[Signal, Value, Value]:
    """Of the element that is next: its lane, whether it is the word's last one, and the vector's."""
    lane, position = Signal(range(lanes)), Signal(range(elements))
    ends, is_last = lane == lanes - 1, position == elements - 1
    step(m, position, elements, taken)
    with m.If(taken):
        m.d.sync += lane.eq(lane + 1)
        with m.If(ends | is_last):
            m.d.sync += lane.eq(0)
    return lane, ends, is_last
