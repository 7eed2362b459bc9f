"""Norms, angle and weights of two vectors that are merged, from their three products."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from amaranth.hdl import C, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import register
from hw.kv_cache.digit_recurrence import DigitRecurrence
from hw.kv_cache.merge_product import RegisteredProduct
from quantizers.errors import UsageError
from quantizers.kv_cache.merge_arithmetic import (
    COSINE_FRACTION,
    DISTANCE_BITS,
    ENDPOINT_SEGMENTS,
    NORM_FRACTION,
    NORMAL_BITS,
    NORMAL_STEPS,
    OFFSET_BITS,
    SEGMENT_BITS,
    TABLE_FRACTION,
    WEIGHT_BITS,
    WEIGHT_FRACTION,
    MergeArithmetic,
    Table,
)


class Operation(IntEnum):
    """What the recurrence computes, in this order."""

    FIRST_NORM = 0
    SECOND_NORM = 1
    DOT_BY_FIRST = 2
    COSINE = 3
    HALF_SINE = 4
    HALF_COSINE = 5
    FIRST_RATIO = 6
    FIRST_WEIGHT = 7
    SECOND_RATIO = 8
    SECOND_WEIGHT = 9


_ROOTS = (Operation.FIRST_NORM, Operation.SECOND_NORM, Operation.HALF_SINE, Operation.HALF_COSINE)

_TABLES = (Operation.HALF_SINE, Operation.HALF_COSINE, Operation.FIRST_WEIGHT)
"""After these a straight line is looked up: a distance, and each weight times 2h."""

_LOOKUP_CYCLES = 3
"""Word of the block RAM, its register, and sum, beside the cycles of the product before the sum."""

_START_BITS, _SLOPE_BITS = TABLE_FRACTION + 2, TABLE_FRACTION - 3
"""g is at most 2, and so is its slope, of which a 64th is in the table, with a sign."""

_SHORT = 2 + WEIGHT_FRACTION + NORM_FRACTION
"""A ratio of *digits* bits is divided as the upper ones of ``2 * digits - _SHORT - 2``."""


def weights_layout(arithmetic: MergeArithmetic) -> data.StructLayout:
    """What merging two vectors needs; see :class:`quantizers.kv_cache.merge_arithmetic.Weights`.

    The shifts are counted in fours.
    """
    return data.StructLayout(
        {
            "first": unsigned(WEIGHT_BITS),
            "second": unsigned(WEIGHT_BITS),
            "first_shift": unsigned(2),
            "second_shift": unsigned(2),
            "first_magnitude": unsigned(arithmetic.magnitude_bits),
            "second_magnitude": unsigned(arithmetic.magnitude_bits),
            "distance": unsigned(DISTANCE_BITS),
        }
    )


def products_layout(arithmetic: MergeArithmetic) -> data.StructLayout:
    """``x.x``, ``y.y`` and ``x.y`` of two vectors, exact."""
    bits = arithmetic.square_bits + 1
    return data.StructLayout({"xx": unsigned(bits), "yy": unsigned(bits), "xy": signed(bits + 1)})


class MergeWeights(Component):
    """Weights, magnitudes and distance of two vectors: `quantizers.kv_cache.merge_arithmetic.weights_of`.

    Ten square roots and quotients, one after the other on one subtractor, and three straight lines of tables
    in one block RAM, with one multiplier.

    Ports:
        ``products``: input stream of :func:`products_layout`.
        ``weights``: output stream of :func:`weights_layout`.

    Weights are valid :attr:`latency` cycles after the one in which the products were taken; the next ones are
    taken in the cycle after that in which the weights are, at the earliest: :attr:`interval` cycles a pair.

    Args:
        arithmetic: widths and tables.
        multipliers: ``dsps`` or ``luts``.

    Raises:
        UsageError: *arithmetic* is none, or *multipliers* is neither.
    """

    def __init__(self, *, arithmetic: MergeArithmetic, multipliers: str = "dsps") -> None:
        check_arithmetic(arithmetic)
        self.arithmetic = arithmetic
        self._product = RegisteredProduct(
            left=signed(_SLOPE_BITS), right=unsigned(OFFSET_BITS), multipliers=multipliers
        )
        super().__init__(
            {
                "products": In(stream.Signature(products_layout(arithmetic))),
                "weights": Out(stream.Signature(weights_layout(arithmetic))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the one in which products are taken to the first in which their weights are valid."""
        operations = len(Operation) * (self.arithmetic.digits + 2)
        return 1 + NORMAL_STEPS + operations + len(_TABLES) * self._lookup_cycles

    @property
    def interval(self) -> int:
        """Cycles from pair to pair."""
        return self.latency + 1

    def cycles(self, pairs: int) -> int:
        """From the first offer to the last weights of so many pairs, where nothing waits outside."""
        return pairs * self.interval

    @property
    def _lookup_cycles(self) -> int:
        return _LOOKUP_CYCLES + self._product.latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        bits = self.arithmetic.square_bits
        recurrence = DigitRecurrence(digits=self.arithmetic.digits, low_bits=bits + 2)
        m.submodules.recurrence = recurrence
        operation = Signal(Operation)
        take, normalize, looks = Signal(), Signal(), Signal()
        self._add_phases(m, recurrence, operation, take, normalize, looks)
        dot, is_zero = self._add_inputs(m, take, normalize)
        self._keep_results(m, recurrence, operation)
        self._add_table(m, looks, operation)
        self._add_operands(m, recurrence, operation, dot, is_zero)
        self._add_outputs(m, recurrence, operation)
        return m

    def _add_phases(
        self,
        m: Module,
        recurrence: DigitRecurrence,
        operation: Signal,
        take: Signal,
        normalize: Signal,
        looks: Signal,
    ) -> None:
        wait = Signal(range(max(NORMAL_STEPS, self._lookup_cycles)))
        with m.FSM(name="phase"):
            with m.State("idle"):
                m.d.comb += [self.products.ready.eq(1), take.eq(self.products.valid)]
                m.d.sync += [operation.eq(0), wait.eq(NORMAL_STEPS - 1)]
                with m.If(take):
                    m.next = "normalize"
            with m.State("normalize"):
                m.d.comb += normalize.eq(1)
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.next = "start"
            with m.State("start"):
                m.d.comb += recurrence.start.eq(1)
                m.d.sync += wait.eq(self._lookup_cycles - 1)
                m.next = "run"
            with m.State("run"), m.If(recurrence.done):
                with m.If(_is_any(operation, _TABLES)):
                    m.next = "look"
                with m.Elif(operation == Operation.SECOND_WEIGHT):
                    m.next = "finished"
                with m.Else():
                    m.d.sync += operation.eq(operation + 1)
                    m.next = "start"
            with m.State("look"):
                m.d.comb += looks.eq(1)
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.d.sync += operation.eq(operation + 1)
                    m.next = "start"
            with m.State("finished"):
                m.d.comb += self.weights.valid.eq(1)
                with m.If(self.weights.ready):
                    m.next = "idle"

    def _add_inputs(self, m: Module, take: Value, normalize: Value) -> tuple[Signal, tuple[Value, Value]]:
        """Squares and dot product, shifted until both vectors are long; and whether a vector is zero."""
        bits = self.arithmetic.square_bits
        dot = Signal(bits, reset_less=True)
        self._is_negative = Signal(reset_less=True)
        magnitude = Signal(bits + 1)
        xy = self.products.payload.xy
        m.d.comb += magnitude.eq(Mux(xy[-1], -xy, xy))
        small, zero = [], []
        self._squares, self._shifts = [], []
        for name, given in (("first", self.products.payload.xx), ("second", self.products.payload.yy)):
            square = Signal(bits, name=f"{name}_square", reset_less=True)
            shift = Signal(2, name=f"{name}_shift", reset_less=True)
            is_small = Signal(name=f"{name}_is_small")
            m.d.comb += is_small.eq(normalize & ~square[NORMAL_BITS:].any())
            with m.If(take):
                m.d.sync += [square.eq(_saturated(given, bits)), shift.eq(0)]
            with m.Elif(is_small):
                m.d.sync += [square.eq(square << 8), shift.eq(shift + 1)]
            self._squares.append(square)
            self._shifts.append(shift)
            small.append(is_small)
            zero.append(~square[8 * NORMAL_STEPS :].any())
        with m.If(take):
            m.d.sync += [dot.eq(_saturated(magnitude, bits)), self._is_negative.eq(xy[-1])]
        with m.Elif(small[0] & small[1]):
            m.d.sync += dot.eq(dot << 8)
        with m.Elif(small[0] | small[1]):
            m.d.sync += dot.eq(dot << 4)
        return dot, (zero[0], zero[1])

    def _keep_results(self, m: Module, recurrence: DigitRecurrence, operation: Signal) -> None:
        """Results that are needed after the next operation."""
        result, digits = recurrence.result, self.arithmetic.digits
        self._roots = [Signal(digits, name=f"{name}_root", reset_less=True) for name in ("first", "second")]
        self._cosine = Signal(COSINE_FRACTION, reset_less=True)
        self._half = Signal(digits - 2, reset_less=True)
        self._first = Signal(WEIGHT_BITS, reset_less=True)
        self._magnitudes = [
            Signal(self.arithmetic.magnitude_bits, name=f"{name}_magnitude", reset_less=True)
            for name in ("first", "second")
        ]
        shift = Mux(operation == Operation.FIRST_NORM, *self._shifts)
        magnitude = self._magnitude(m, result, shift)
        with m.If(recurrence.done), m.Switch(operation):
            with m.Case(Operation.FIRST_NORM):
                m.d.sync += [self._roots[0].eq(result), self._magnitudes[0].eq(magnitude)]
            with m.Case(Operation.SECOND_NORM):
                m.d.sync += [self._roots[1].eq(result), self._magnitudes[1].eq(magnitude)]
            with m.Case(Operation.COSINE):
                m.d.sync += self._cosine.eq(_saturated(result, COSINE_FRACTION))
            with m.Case(Operation.HALF_SINE, Operation.HALF_COSINE):
                m.d.sync += self._half.eq(result)
            with m.Case(Operation.FIRST_WEIGHT):
                m.d.sync += self._first.eq(result)

    def _magnitude(self, m: Module, root: Value, shift: Value) -> Value:
        """The norm to the nearest integer; never a tie, since no square of a half is an integer."""
        bits = self.arithmetic.magnitude_bits
        halves = Signal(bits + 1, name="halves")
        m.d.comb += halves.eq((root >> (NORM_FRACTION - 1) >> (shift << 2))[: bits + 1])
        return _saturated((halves + 1)[1 : bits + 2], bits)

    def _add_table(self, m: Module, looks: Value, operation: Signal) -> None:
        """The point of a straight line, from the registers of the last root."""
        arithmetic = self.arithmetic
        tables = (arithmetic.arcsine_table, arithmetic.first_table, arithmetic.second_table)
        words = [word for table in tables for word in _table_words(table)]
        m.submodules.table = table = memory.Memory(
            shape=unsigned(_START_BITS + _SLOPE_BITS),
            depth=len(words),
            init=words,
            attrs={"ram_style": "block"},
        )
        entry = table.read_port()
        where = Mux(operation == Operation.HALF_SINE, 0, Mux(operation == Operation.HALF_COSINE, 1, 2))
        segment = self._half[-SEGMENT_BITS:]
        # A register of its own, without an enable, for which the slice has no room that can be timed.
        offset = register(m, self._half[-SEGMENT_BITS - OFFSET_BITS : -SEGMENT_BITS])
        word = register(m, entry.data)
        start, slope = word[:_START_BITS], word[_START_BITS:].as_signed()
        m.submodules.product = product = self._product
        m.d.comb += [product.left.eq(slope), product.right.eq(offset)]
        self._line = Signal(_START_BITS, reset_less=True)
        m.d.comb += [entry.addr.eq(Cat(segment, where[:2])), entry.en.eq(looks)]
        with m.If(looks):
            m.d.sync += self._line.eq(start + (product.product >> OFFSET_BITS))

    def _add_operands(
        self,
        m: Module,
        recurrence: DigitRecurrence,
        operation: Signal,
        dot: Value,
        is_zero: tuple[Value, Value],
    ) -> None:
        arithmetic, result = self.arithmetic, recurrence.result
        digits = arithmetic.digits
        is_end, takes_second = Signal(), Signal()
        m.d.comb += [
            is_end.eq((self._half[-SEGMENT_BITS:] < ENDPOINT_SEGMENTS) | is_zero[0] | is_zero[1]),
            takes_second.eq(is_zero[0] | (~is_zero[1] & arithmetic.ends_at_second)),
        ]
        m.d.comb += recurrence.is_root.eq(_is_any(operation, _ROOTS))
        dot_cut = arithmetic.magnitude_bits + 1 - NORM_FRACTION
        cosine_cut, weight_cut = digits - COSINE_FRACTION, 2 * digits - _SHORT - 2
        half_cut = arithmetic.square_bits - 3 - COSINE_FRACTION
        one = Const(1 << COSINE_FRACTION, COSINE_FRACTION + 1)
        cosine = Signal(COSINE_FRACTION)
        m.d.comb += cosine.eq(self._cosine | (is_zero[0] | is_zero[1]).replicate(COSINE_FRACTION))
        is_added = (operation == Operation.HALF_COSINE) & ~self._is_negative
        radicand = Mux(is_added, one + cosine, one - cosine)[: COSINE_FRACTION + 1]
        with m.Switch(operation):
            with m.Case(Operation.FIRST_NORM):
                m.d.comb += recurrence.low.eq(self._squares[0])
            with m.Case(Operation.SECOND_NORM):
                m.d.comb += recurrence.low.eq(self._squares[1])
            with m.Case(Operation.DOT_BY_FIRST):
                self._divide(m, recurrence, dot, dot_cut, self._roots[0])
            with m.Case(Operation.COSINE):
                self._divide(m, recurrence, result, cosine_cut, self._roots[1])
            with m.Case(Operation.HALF_SINE, Operation.HALF_COSINE):
                m.d.comb += recurrence.low.eq(radicand << half_cut)
            with m.Case(Operation.FIRST_RATIO, Operation.SECOND_RATIO):
                m.d.comb += recurrence.remainder.eq(self._line << (digits - TABLE_FRACTION - 7))
                m.d.comb += recurrence.divisor.eq(self._half)
            with m.Case(Operation.FIRST_WEIGHT):
                ratio = _ratio(result, is_end, ~takes_second, digits)
                self._divide(m, recurrence, ratio, weight_cut, self._roots[0])
            with m.Case(Operation.SECOND_WEIGHT):
                ratio = _ratio(result, is_end, takes_second, digits)
                self._divide(m, recurrence, ratio, weight_cut, self._roots[1])

    def _divide(
        self, m: Module, recurrence: DigitRecurrence, dividend: Value, cut: int, divisor: Value
    ) -> None:
        """The lowest *cut* bits of the dividend follow one by one."""
        padding = C(0, len(recurrence.low) - cut)
        m.d.comb += [
            recurrence.remainder.eq(dividend[cut:]),
            recurrence.low.eq(Cat(padding, dividend[:cut])),
            recurrence.divisor.eq(divisor),
        ]

    def _add_outputs(self, m: Module, recurrence: DigitRecurrence, operation: Signal) -> None:
        payload = self.weights.payload
        distance = Signal(DISTANCE_BITS, reset_less=True)
        straight = self._line[: DISTANCE_BITS + 1]
        opposite = ((1 << DISTANCE_BITS) - straight)[: DISTANCE_BITS + 1]
        with m.If(recurrence.start & (operation == Operation.HALF_COSINE)):
            m.d.sync += distance.eq(_saturated(Mux(self._is_negative, opposite, straight), DISTANCE_BITS))
        m.d.comb += [
            payload.first.eq(self._first),
            payload.second.eq(recurrence.result),
            payload.first_shift.eq(self._shifts[0]),
            payload.second_shift.eq(self._shifts[1]),
            payload.first_magnitude.eq(self._magnitudes[0]),
            payload.second_magnitude.eq(self._magnitudes[1]),
            payload.distance.eq(distance),
        ]


def check_arithmetic(arithmetic: object) -> None:
    """Raises :class:`UsageError` unless *arithmetic* says how to merge."""
    if not isinstance(arithmetic, MergeArithmetic):
        msg = f"arithmetic must be a MergeArithmetic, not {arithmetic!r}"
        raise UsageError(msg, given=repr(arithmetic), expected=["MergeArithmetic(channels=64)"])


def _saturated(value: Value, bits: int) -> Value:
    """The low bits of an unsigned number, all set where it has higher ones."""
    return value[:bits] | value[bits:].any().replicate(bits)


def _is_any(operation: Signal, choices: tuple[Operation, ...]) -> Value:
    return Cat(*(operation == choice for choice in choices)).any()


def _ratio(result: Value, is_end: Value, is_chosen: Value, digits: int) -> Value:
    """A weight before its norm divides it; 1 or 0 where there is no interpolation."""
    end = Cat(C(0, digits - 4), is_chosen, C(0, 3))
    return Mux(is_end, end, result)


def _table_words(table: Table) -> list[int]:
    """Start in the low bits, slope above."""
    mask = (1 << _SLOPE_BITS) - 1
    lines = zip(table.starts.tolist(), table.slopes.tolist(), strict=True)
    return [start | (slope & mask) << _START_BITS for start, slope in lines]
