"""Sums of the inverse transform made elements: shifted, rounded, saturated, and means added."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import memory, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.lut_kernel.tables import LUTRAM
from hw.mvu._counter import step
from quantizers.kv_cache.fixed_point import BITS

ELEMENT = signed(BITS)
"""Of a key or a value."""

SHIFT_BITS = 5

_FIRST_STAGES = 3
"""Stages of the shifter before a register."""


class _Pipeline:
    """Registers that move while the last of them is not waiting.

    Args:
        m: of the registers.
        component: with streams ``inputs`` and ``outputs``.
    """

    def __init__(self, m: Module, component: Any) -> None:
        self._m, self._component = m, component
        self.advance, self.taken = Signal(), Signal()
        self._there: list[Value] = [self.taken]

    def after(self, *values: Value) -> list[Signal]:
        """The values a stage later."""
        kept = [Signal(value.shape(), name="kept", reset_less=True) for value in values]
        there = Signal(name="there")
        with self._m.If(self.advance):
            self._m.d.sync += [later.eq(value) for later, value in zip(kept, values, strict=True)]
            self._m.d.sync += there.eq(self._there[-1])
        self._there.append(there)
        return kept

    def give(self, value: Value) -> None:
        """The last stage's value goes out."""
        inputs, outputs = self._component.inputs, self._component.outputs
        self._m.d.comb += [
            self.advance.eq(~self._there[-1] | outputs.ready),
            inputs.ready.eq(self.advance),
            self.taken.eq(inputs.valid & self.advance),
            outputs.valid.eq(self._there[-1]),
            outputs.payload.eq(value),
        ]


class ShiftRounder(Component):
    """``saturate(sum / 2**shift)`` to 16 bits, ties to even, the shift being that of the sum's matrix.

    Ports: ``inputs``: stream of sums; ``outputs``: stream of elements. ``write`` in: the shift of matrix
    ``address`` is ``word``. A sum a cycle, :attr:`latency` cycles.

    Args:
        shape: of a sum.
        matrices: in turn.
        elements: of each.
    """

    latency = 4

    def __init__(self, *, shape: Shape, matrices: int, elements: int) -> None:
        self._matrices, self._elements = matrices, elements
        super().__init__(
            {
                "inputs": In(stream.Signature(shape)),
                "outputs": Out(stream.Signature(ELEMENT)),
                "write": In(1),
                "address": In(Shape.cast(range(matrices))),
                "word": In(SHIFT_BITS),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        pipeline = _Pipeline(m, self)
        matrix = Signal(range(self._matrices))
        ends = step(m, Signal(range(self._elements), name="element"), self._elements, pipeline.taken)
        step(m, matrix, self._matrices, ends)
        shift = _table(m, self, self._matrices, Shape.cast(SHIFT_BITS), matrix)
        # Below the floor its half, and whether anything is left below that.
        number: Value = Cat(C(0, 1), self.inputs.payload).as_signed()
        number, below = _shifted(number, C(0, 1), shift, range(_FIRST_STAGES))
        number, below, shift = pipeline.after(number, below, shift)
        number, below = _shifted(number, below, shift, range(_FIRST_STAGES, SHIFT_BITS))
        number, below = pipeline.after(number, below)
        floor = number[1:].as_signed()
        (rounded,) = pipeline.after((floor + (number[0] & (below | floor[0])))[: len(floor)].as_signed())
        (element,) = pipeline.after(_saturated(rounded))
        pipeline.give(element)
        return m


class SaturatingOffset(Component):
    """``saturate(element + offset)``, or ``saturate(element - offset)``, the offsets of a token in turn.

    Ports: ``inputs``, ``outputs``: streams of elements. ``write`` in: offset ``address`` is ``word``. An
    element a cycle, :attr:`latency` cycles.

    Args:
        elements: of a token.
        subtracts: the offsets.
    """

    latency = 2

    def __init__(self, *, elements: int, subtracts: bool) -> None:
        self._elements, self._subtracts = elements, subtracts
        super().__init__(
            {
                "inputs": In(stream.Signature(ELEMENT)),
                "outputs": Out(stream.Signature(ELEMENT)),
                "write": In(1),
                "address": In(Shape.cast(range(elements))),
                "word": In(BITS),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        pipeline = _Pipeline(m, self)
        place = Signal(range(self._elements))
        step(m, place, self._elements, pipeline.taken)
        offset = _table(m, self, self._elements, ELEMENT, place)
        element = self.inputs.payload
        (total,) = pipeline.after(element - offset if self._subtracts else element + offset)
        (limited,) = pipeline.after(_saturated(total))
        pipeline.give(limited)
        return m


def _table(m: Module, component: Any, depth: int, shape: Shape, address: Value) -> Value:
    """What was written, in the cycle of its address."""
    m.submodules.table = table = memory.Memory(shape=shape, depth=depth, init=[], attrs=LUTRAM)
    write, read = table.write_port(), table.read_port(domain="comb")
    m.d.comb += [
        write.en.eq(component.write),
        write.addr.eq(component.address),
        write.data.eq(component.word),
        read.addr.eq(address),
    ]
    return read.data


def _shifted(number: Value, below: Value, shift: Value, stages: range) -> tuple[Value, Value]:
    """Shifted right by the bits of *shift* that are named, and whether a one fell out, also before."""
    for stage in stages:
        lost = number[: 1 << stage].any()
        below = below | (lost & shift[stage])
        number = Mux(shift[stage], number >> (1 << stage), number).as_signed()
    return number, below


def _saturated(number: Value) -> Value:
    """To 16 bits."""
    high = number[BITS - 1 :]
    fits = high.all() | ~high.any()
    limit = Cat((~number[-1]).replicate(BITS - 1), number[-1])
    return Mux(fits, number[:BITS], limit).as_signed()
