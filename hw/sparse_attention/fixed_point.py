"""Powers and logarithms of two by tables with linear interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import C, Cat, Module, Shape, Signal, Value, unsigned
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import register
from hw.arith.multiplier import Multiplier
from hw.arith.table import TruthTable
from quantizers.sparse_attention.fixed_softmax import LOG_GUARD_BITS, LOG_REST_BITS, FixedSoftmax
from quantizers.sparse_attention.settings import Integers


class Interpolation(Component):
    """``table[a] + floor((table[a + 1] - table[a]) * r / 2**rest_bits)``.

    Ports: ``fraction`` in, a above r; ``value`` out, :attr:`latency` cycles later. One result a cycle.

    Args:
        table: ``2**table_bits + 1`` integers, of which the last one is never reached.
        rest_bits: of r; may be 0.
    """

    def __init__(self, *, table: Integers, rest_bits: int) -> None:
        self._table, self._rest_bits = table, rest_bits
        slopes = [int(slope) for slope in np.diff(table)]
        self._slope = Shape.cast(range(min(slopes), max(slopes) + 1))
        self._multiplier = Multiplier(a=self._slope, b=unsigned(rest_bits)) if rest_bits else None
        self._table_bits = (len(table) - 1).bit_length() - 1
        value = Shape.cast(range(int(table.min()), int(table.max()) + 1))
        super().__init__({"fraction": In(self._table_bits + rest_bits), "value": Out(value)})

    @property
    def latency(self) -> int:
        """Cycles from fraction to value."""
        return 2 + (self._multiplier.latency if self._multiplier else 0)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        rest, place = self.fraction[: self._rest_bits], self.fraction[self._rest_bits :]
        base = self._entry(m, "bases", place, self.value.shape(), self._table)
        for _ in range(self.latency - 1):
            base = register(m, base)
        if self._multiplier is None:
            m.d.comb += self.value.eq(register(m, base))
            return m
        m.submodules.multiplier = multiplier = self._multiplier
        slope = self._entry(m, "slopes", place, self._slope, np.diff(self._table))
        m.d.comb += [multiplier.a.eq(slope), multiplier.b.eq(rest)]
        step = register(m, multiplier.product)[self._rest_bits :]
        if multiplier.product.shape().signed:
            step = step.as_signed()
        total = Signal.like(self.value, name="total", reset_less=True)
        m.d.sync += total.eq(base + step)
        m.d.comb += self.value.eq(total)
        return m

    def _entry(self, m: Module, name: str, place: Value, shape: Shape, table: Integers) -> Value:
        entries = [int(entry) for entry in table]
        tables = TruthTable(input_bits=self._table_bits, shape=shape, function=lambda a: entries[a])
        m.submodules[name] = tables
        m.d.comb += tables.input.eq(place)
        return tables.output


class Power(Component):
    """``2**-x``: :meth:`quantizers.sparse_attention.FixedSoftmax.power`.

    Ports: ``x`` in, unsigned; ``value`` out. One result a cycle, :attr:`latency` cycles later.

    Args:
        softmax: widths.
        bits: of ``x``.
    """

    def __init__(self, *, softmax: FixedSoftmax, bits: int) -> None:
        check_positive("bits", bits)
        self._softmax = softmax
        self._table = Interpolation(table=softmax.exp_table, rest_bits=softmax.rest_bits)
        super().__init__({"x": In(bits), "value": Out(softmax.weight_bits + 1)})

    @property
    def latency(self) -> int:
        """Cycles from x to its power."""
        return self._table.latency + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        softmax = self._softmax
        m.submodules.table = table = self._table
        m.d.comb += table.fraction.eq(self.x[: softmax.fraction_bits])
        shift: Value = self.x[softmax.fraction_bits :]
        for _ in range(table.latency):
            shift = register(m, shift)
        aligned = Cat(C(0, softmax.weight_bits - softmax.mantissa_bits), table.value)
        stages = (softmax.weight_bits + 1).bit_length()
        is_far = shift[stages:].any() if len(shift) > stages else C(0, 1)
        moved = aligned >> shift[:stages]
        m.d.comb += self.value.eq(register(m, moved & ~is_far.replicate(len(moved))))
        return m


class Logarithm(Component):
    """``log2(total)``, one sum at a time: :meth:`quantizers.sparse_attention.FixedSoftmax.logarithm`.

    The sum is shifted up bit by bit until its leading one is on top.

    Ports: ``start``, ``total`` in (at least 1.0); ``is_done`` out, for one cycle, :attr:`latency` cycles
    later;
    ``value`` out, in that cycle.

    Args:
        softmax: widths.
        bits: of ``total``, above ``weight_bits``.
    """

    def __init__(self, *, softmax: FixedSoftmax, bits: int) -> None:
        self._softmax = softmax
        self._table = Interpolation(table=softmax.log_table, rest_bits=LOG_REST_BITS)
        self._steps = bits - 1 - softmax.weight_bits
        largest = (self._steps + 1) << softmax.fraction_bits
        super().__init__(
            {
                "start": In(1),
                "total": In(bits),
                "is_done": Out(1),
                "value": Out(Shape.cast(range(largest + 1))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a sum to its logarithm."""
        return self._steps + 1 + self._table.latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        softmax = self._softmax
        word = Signal.like(self.total, reset_less=True)
        exponent = Signal(range(self._steps + 1), reset_less=True)
        is_busy = Signal(self.latency)
        m.d.sync += is_busy.eq(Cat(self.start, is_busy[:-1]))
        with m.If(self.start):
            m.d.sync += [word.eq(self.total), exponent.eq(self._steps)]
        with m.Elif(~word[-1]):
            m.d.sync += [word.eq(word << 1), exponent.eq(exponent - 1)]
        kept = softmax.table_bits + LOG_REST_BITS
        below = Cat(C(0, kept), word[:-1])
        m.submodules.table = table = self._table
        m.d.comb += table.fraction.eq(below[len(below) - kept :])
        rounded = (table.value + (1 << (LOG_GUARD_BITS - 1))) >> LOG_GUARD_BITS
        m.d.comb += [
            self.value.eq((exponent << softmax.fraction_bits) + rounded),
            self.is_done.eq(is_busy[-1]),
        ]
        return m
