"""Bits of one width of word into words of another, record by record."""

from __future__ import annotations

import math
from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.mvu._counter import step


class Gearbox(Component):
    """Cuts the bits of a record anew, the lowest first.

    A record is so many words in and so many out: what is missing from its last word is zero, and what
    comes beyond it is dropped. The next record begins with a new word on both sides.

    Ports: ``inputs``, ``outputs``: streams of words. The first word of a record is valid one cycle after the
    input that completes it was taken. Without stalls a record takes :attr:`interval` cycles. ``inputs.ready``
    depends on ``outputs.ready`` in the same cycle.

    Args:
        input_bits: of a word that comes.
        output_bits: of a word that goes.
        record_bits: of a record, from its first to its last that counts.

    Raises:
        UsageError: an argument is not a positive integer.
    """

    def __init__(self, *, input_bits: int, output_bits: int, record_bits: int) -> None:
        sizes = {"input_bits": input_bits, "output_bits": output_bits, "record_bits": record_bits}
        for name, value in sizes.items():
            check_positive(name, value)
        self._unit = math.gcd(input_bits, output_bits)
        self._input_units, self._output_units = input_bits // self._unit, output_bits // self._unit
        self.record_inputs, self.record_outputs = (
            -(-record_bits // input_bits),
            -(-record_bits // output_bits),
        )
        super().__init__(
            {
                "inputs": In(stream.Signature(input_bits)),
                "outputs": Out(stream.Signature(output_bits)),
            }
        )

    @property
    def interval(self) -> int:
        """Cycles from record to record.

        Where words become wider a word in a cycle, and for the last one a cycle for each word that it leaves;
        else a word out a cycle.
        """
        if self._input_units >= self._output_units:
            return self.record_outputs
        before = (self.record_inputs - 1) * self._input_units // self._output_units
        return self.record_inputs - 1 + self.record_outputs - before

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        wide, narrow = self._input_units, self._output_units
        if wide == narrow:
            return self._add_register(m)
        held = Signal((wide + narrow - 1) * self._unit, reset_less=True)
        level, after = Signal(range(wide + narrow)), Signal(range(wide + narrow))
        is_ending, taken, given = Signal(), Signal(), Signal()
        ends = step(m, Signal(range(self.record_inputs), name="input"), self.record_inputs, taken)
        leaves = step(m, Signal(range(self.record_outputs), name="output"), self.record_outputs, given)
        below = level < narrow
        rest = Mux(given, held[narrow * self._unit :], held)
        m.d.comb += [
            after.eq(Mux(leaves, 0, Mux(given, level - narrow, level))),
            self.outputs.valid.eq(~below | is_ending),
            self.outputs.payload.eq(held),
            given.eq(self.outputs.valid & self.outputs.ready),
            self.inputs.ready.eq(Mux(is_ending, leaves, after < narrow)),
            taken.eq(self.inputs.valid & self.inputs.ready),
        ]
        m.d.sync += [
            level.eq(Mux(taken, after + wide, after)),
            is_ending.eq(ends | (is_ending & ~leaves)),
        ]
        m.d.sync += held.eq(Mux(leaves, 0, rest) | Mux(taken, self._placed(after), 0))
        return m

    def _add_register(self, m: Module) -> Module:
        """All there is to do where both words are equally wide."""
        held = Signal.like(self.outputs.payload, reset_less=True)
        with m.If(self.inputs.ready):
            m.d.sync += [self.outputs.valid.eq(self.inputs.valid), held.eq(self.inputs.payload)]
        m.d.comb += [
            self.inputs.ready.eq(self.outputs.ready | ~self.outputs.valid),
            self.outputs.payload.eq(held),
        ]
        return m

    def _placed(self, after: Value) -> Value:
        """The word that comes above so many units."""
        placed: Value = self.inputs.payload
        for stage in range((self._output_units - 1).bit_length()):
            placed = Mux(after[stage], placed << (self._unit << stage), placed)
        return placed
