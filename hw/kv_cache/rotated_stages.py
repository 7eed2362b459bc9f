"""Stages of the rotated cache: away with means and signs, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Value, signed
from amaranth.lib import data

from hw.arith._shapes import add_with_carry, register
from hw.kv_cache.lane_table import LaneTable, table_rows
from hw.kv_cache.lockstep import Stage, flag_line, word_count
from quantizers.kv_cache.codec import IntegerArray
from quantizers.kv_cache.fixed_point import BITS
from quantizers.kv_cache.rotation import halvings

ELEMENT = signed(BITS)
"""Of a key or a value."""

DIFFERENCE = signed(BITS + 1)
"""An element less a mean."""

CENTRING_FIELD = {"offset": DIFFERENCE, "flip": 1}
"""What is added to an element, or to its complement."""

RESTORING_FIELD = {"mean": ELEMENT, "flip": 1}
"""What is added to what was rotated back, or to its complement."""


class Chain(Stage):
    """Stages one after the other.

    Args:
        stages: of vectors of as many words, each of which takes what the one before it gives.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)
        super().__init__(
            inputs=stages[0].inputs.shape(), outputs=stages[-1].outputs.shape(), words=stages[0].words
        )

    @property
    def latency(self) -> int:
        """The sum of theirs."""
        return sum(stage.latency for stage in self._stages)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        word: Value = Value.cast(self.inputs)
        valid: Value = self.valid
        for index, stage in enumerate(self._stages):
            m.submodules[f"stage{index}"] = stage
            m.d.comb += [Value.cast(stage.inputs).eq(word), stage.valid.eq(valid)]
            word = Value.cast(stage.outputs)
            valid = flag_line(m, valid, stage.latency)[-1]
        m.d.comb += Value.cast(self.outputs).eq(word)
        return m


class CentringStage(Stage):
    """``sign * (element - mean)``, in two cycles.

    Structure: the opposite of a difference is the sum of the mean and the element's complement, and one; with
    the one in the table it takes the same adder.

    Args:
        size: elements of a vector.
        table: of :data:`CENTRING_FIELD`, see :func:`centring_rows`; elaborated with this component.
    """

    latency = 2

    def __init__(self, *, size: int, table: LaneTable) -> None:
        self._table = table
        lanes = len(table.row)
        super().__init__(
            inputs=data.ArrayLayout(ELEMENT, lanes),
            outputs=data.ArrayLayout(DIFFERENCE, lanes),
            words=word_count(size, lanes),
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.table = table = self._table
        m.d.comb += table.advance.eq(self.valid)
        for element, field, output in zip(self.inputs, table.row, self.outputs, strict=True):
            flipped = _flipped(register(m, element), field.flip)
            m.d.comb += output.eq(register(m, (flipped + field.offset)[: DIFFERENCE.width]))
        return m


class RestoringStage(Stage):
    """``saturate(mean + sign * round_half_even(2**h * input / size))``, in three cycles.

    Structure: the opposite of a rounded number is the complement of its floor, and a one where it was not
    rounded up; so sign, rounding and mean take one adder.

    Args:
        size: elements of a vector.
        table: of :data:`RESTORING_FIELD`, see :func:`restoring_rows`; elaborated with this component.
        input_bits: of a signed number that comes in.
    """

    latency = 3

    def __init__(self, *, size: int, table: LaneTable, input_bits: int) -> None:
        self._table = table
        lanes = len(table.row)
        self._shift = size.bit_length() - 1 - halvings(size)
        super().__init__(
            inputs=data.ArrayLayout(signed(input_bits), lanes),
            outputs=data.ArrayLayout(ELEMENT, lanes),
            words=word_count(size, lanes),
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.table = table = self._table
        m.d.comb += table.advance.eq(self.valid)
        for element, field, output in zip(self.inputs, table.row, self.outputs, strict=True):
            number, mean, flip = register(m, element), field.mean, field.flip
            floor = number[self._shift :].as_signed()
            half, rest = number[self._shift - 1], number[: self._shift - 1]
            carry = (half & (rest.any() | floor[0])) ^ flip
            flipped = _flipped(floor, flip)
            total = register(m, add_with_carry(flipped, mean, carry, width=len(floor) + 1))
            high = total[BITS - 1 :]
            fits = high.all() | ~high.any()
            limit = Cat((~total[-1]).replicate(BITS - 1), total[-1])
            m.d.comb += output.eq(register(m, Mux(fits, total[:BITS], limit)))
        return m


def _flipped(number: Value, flip: Value) -> Value:
    """The number, or its complement."""
    return (number.as_unsigned() ^ flip.replicate(len(number))).as_signed()


def centring_rows(means: IntegerArray, flips: IntegerArray, lanes: int) -> list[int]:
    """The table of :class:`CentringStage` for means, and where signs are negative, shape (heads, size)."""
    offsets = np.where(flips, means + 1, -means)
    return table_rows({"offset": offsets, "flip": flips}, CENTRING_FIELD, lanes)


def restoring_rows(means: IntegerArray, flips: IntegerArray, lanes: int) -> list[int]:
    """The table of :class:`RestoringStage`, likewise."""
    return table_rows({"mean": means, "flip": flips}, RESTORING_FIELD, lanes)
