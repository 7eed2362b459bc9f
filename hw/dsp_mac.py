"""Multiply-accumulate units that share one DSP slice."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, EnableInserter, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith.dsp import P_BITS, ROWS, PackedProduct, Packing, widest_packing, without_offset
from hw.reference.widths import exact_accumulator_bits
from quantizers.errors import UsageError
from quantizers.formats import Format, IntegerFormat, ScalarFormat


class PackedMultiplyAccumulate(Component):
    """Exact dot products of two rows of weights with one or two columns of activations, in one DSP slice.

    Ports:
        ``terms``: input stream of ``{weights, activations, last}``: two codes, and one or two; ``last``
        marks the final term of the dot products.
        ``sums``: output stream of arrays of the sums, signed, in units of
        ``2**(weights.grid.lsb_exponent + activations.grid.lsb_exponent)``: sum ``row * columns + column``
        is that of weights *row* and activations *column*, as :func:`hw.reference.multiply_accumulate`
        gives it.

    One term a cycle, with a pause of one cycle after the last one of a dot product, in which the slice
    is cleared. Sums are valid :attr:`latency` cycles after their last term was taken. They wait in
    registers of their own while the next dot products run; only when those end too before the sums are
    taken does the pipeline stop. The most negative code of ``intNn`` must not come.

    The slice accumulates the highest lane itself. Of the other lanes it adds the next product to the
    low bits of the running sum only, with the offset of the lane in place of the upper bits; those go to
    a counter of LUTs. So no lane ever reaches into the next one, whatever the length.

    Args:
        weights: an integer format.
        activations: likewise; the two are independent.
        columns: activations of a term: 2, 1, or None for as many as fit.
        dot_length: terms in the longest dot product. It only sets the accumulator width.
        accumulator_bits: width of the sums, for bounds that are tighter than the formats say (sums
            wrap, two's complement); by default :func:`hw.reference.exact_accumulator_bits`.

    Raises:
        UsageError: an argument is of the wrong kind or out of range, or the products do not fit a slice.
    """

    def __init__(
        self,
        *,
        weights: ScalarFormat,
        activations: ScalarFormat,
        dot_length: int,
        columns: int | None = None,
        accumulator_bits: int | None = None,
    ) -> None:
        _check_integer("weights", weights)
        _check_integer("activations", activations)
        check_positive("dot_length", dot_length)
        if accumulator_bits is None:
            accumulator_bits = exact_accumulator_bits(weights, activations, dot_length)
        check_positive("accumulator_bits", accumulator_bits)
        self._accumulator_bits = accumulator_bits
        self._packing = choose_packing(weights, activations, columns, accumulator_bits)
        self._product = PackedProduct(packing=self._packing)
        term = data.StructLayout(
            {
                "weights": data.ArrayLayout(self._packing.weight, ROWS),
                "activations": data.ArrayLayout(self._packing.activation, self._packing.columns),
                "last": 1,
            }
        )
        sums = data.ArrayLayout(signed(accumulator_bits), self._packing.lanes)
        super().__init__({"terms": In(stream.Signature(term)), "sums": Out(stream.Signature(sums))})

    @property
    def accumulator_bits(self) -> int:
        """Width of each sum."""
        return self._accumulator_bits

    @property
    def packing(self) -> Packing:
        """Where the lanes lie."""
        return self._packing

    @property
    def latency(self) -> int:
        """Cycles from the one in which the last term is taken to the first in which its sums are valid."""
        return self._product.latency + 2

    @property
    def pause(self) -> int:
        """Cycles after the last term of a dot product in which none is taken."""
        return 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        advance = Signal(init=1)
        m.submodules.product = EnableInserter(advance)(self._product)
        m.d.comb += [
            self._product.weights.eq(self.terms.payload.weights),
            self._product.activations.eq(self.terms.payload.activations),
            self.terms.ready.eq(advance),
        ]
        valid, last = self._delay_marks(m, advance)
        sum_waits, finish = Signal(), Signal()
        m.d.comb += [sum_waits.eq(self.sums.valid & ~self.sums.ready), finish.eq(~advance & ~sum_waits)]
        m.d.sync += [
            advance.eq(Mux(advance, ~last, finish)),
            self.sums.valid.eq(~advance | sum_waits),
        ]
        totals = self._accumulate(m, valid & advance, finish)
        finished = Signal(self.sums.payload.shape(), reset_less=True)
        with m.If(finish):
            m.d.sync += [held.eq(total) for held, total in zip(finished, totals, strict=True)]
        m.d.comb += self.sums.payload.eq(finished)
        return m

    def _delay_marks(self, m: Module, advance: Value) -> tuple[Value, Value]:
        """Whether the product is that of a term, and whether it is the last one of its dot product."""
        valid: Value = self.terms.valid
        last: Value = self.terms.valid & self.terms.payload.last
        for stage in range(self._product.latency):
            next_valid, next_last = Signal(name=f"valid{stage}"), Signal(name=f"last{stage}")
            with m.If(advance):
                m.d.sync += [next_valid.eq(valid), next_last.eq(last)]
            valid, last = next_valid, next_last
        return valid, last

    def _accumulate(self, m: Module, enable: Value, clear: Value) -> list[Value]:
        """Adds the product to the lanes, or clears them; the sums of the terms so far."""
        packing = self._packing
        result = Signal(signed(P_BITS))
        lanes = [result[place : place + packing.spacing] for place in packing.places[:-1]]
        highest = result[packing.places[-1] :]
        kept = packing.kept_bits
        offset = Const(1 << (packing.spacing - kept - 1), packing.spacing - kept)
        running = Cat(*(Cat(lane[:kept], offset) for lane in lanes), highest).as_signed()
        with m.If(clear):
            m.d.sync += result.eq(0)
        with m.Elif(enable):
            m.d.sync += result.eq(running + self._product.product)
        totals = [self._count_spills(m, lane, enable, clear) for lane in lanes]
        return [*totals, highest[: self._accumulator_bits].as_signed()]

    def _count_spills(self, m: Module, lane: Value, enable: Value, clear: Value) -> Value:
        """The sum of a lane: its low bits below a counter of what was in the upper ones."""
        kept = self._packing.kept_bits
        width = self._accumulator_bits - kept
        if width <= 0:
            return lane[: self._accumulator_bits].as_signed()
        # An empty lane is without its offset, which the first spill takes off.
        count = Signal(width, init=1 << (len(lane) - kept - 1))
        next_count = Signal(width)
        m.d.comb += next_count.eq(count + without_offset(lane[kept:]))
        with m.If(clear):
            m.d.sync += count.eq(count.init)
        with m.Elif(enable):
            m.d.sync += count.eq(next_count)
        return Cat(lane[:kept], next_count).as_signed()


def choose_packing(
    weights: ScalarFormat, activations: ScalarFormat, columns: int | None, result_bits: int
) -> Packing:
    """The packing of codes of the formats; with *columns* None, with the most columns that fit.

    Raises:
        UsageError: the products do not fit a slice.
    """
    shapes = _code_shape(weights), _code_shape(activations)
    for choice in (2, 1) if columns is None else (columns,):
        packing = widest_packing(*shapes, columns=choice, result_bits=result_bits)
        if packing is not None:
            return packing
    lanes = ROWS * (columns or 1)
    msg = (
        f"{lanes} products of {weights.name} and {activations.name} with {result_bits}-bit sums do not fit "
        "one DSP48E1; up to int8 and int8, or int8 and uint8, fit in twos, int4 and int4 in fours"
    )
    raise UsageError(msg, given=f"{weights.name}, {activations.name}", expected=["int8, int8", "int4, int4"])


def _code_shape(fmt: ScalarFormat) -> Shape:
    return Shape(fmt.bits, signed=fmt.signed)


def _check_integer(name: str, fmt: object) -> None:
    if not isinstance(fmt, IntegerFormat):
        given = fmt.name if isinstance(fmt, Format) else repr(fmt)
        msg = f"{name} must be an integer format, not {given}"
        raise UsageError(msg, given=given, expected=["int8", "int4"])
