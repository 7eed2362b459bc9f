"""The multiply-accumulate unit for any pair of integer or minifloat formats."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import EnableInserter, Module, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive, check_switch
from hw._component import Component
from hw.arith.accumulator import KulischAccumulator
from hw.arith.addend import product_addend
from hw.arith.decoder import check_format
from hw.reference.widths import exact_accumulator_bits
from quantizers.formats import ScalarFormat

SEGMENT_BITS = 10
"""Longest carry chain of a pipelined accumulator. On an ECP5 of speed grade 6 whole units of int8, e2m1, e4m3
and e5m2 reach 271, 283, 259 and 257 MHz with it, 256, 262, 253 and 249 with 14 bits, 278, 283, 266 and 252
with 8; other names of the same signals move these means by up to 8 MHz."""


class MultiplyAccumulate(Component):
    """Exact dot products of two streams of codes.

    Ports:
        ``pairs``: input stream of ``{weight, activation, last}``; ``last`` marks the final pair of a
        dot product.
        ``sums``: output stream of the sums, signed, in units of
        ``2**(weights.grid.lsb_exponent + activations.grid.lsb_exponent)``; see
        :func:`hw.reference.multiply_accumulate`.

    One pair a cycle, without a gap between dot products (initiation interval 1). A sum is valid
    :attr:`latency` cycles after its last pair was taken. It waits in a register of its own while the
    next dot product runs; only when that one ends too before the sum is taken does the pipeline
    stop. Codes that encoding never makes must not come: 2 of ``ternary``, the most negative one of
    ``intNn``.

    Args:
        weights: any scalar format without codes for NaN or infinity.
        activations: likewise; the two are independent.
        dot_length: pairs in the longest dot product. It only sets the accumulator width.
        accumulator_bits: width of the sums, for bounds that are tighter than the formats say (sums
            wrap, two's complement); by default :func:`hw.reference.exact_accumulator_bits`.
        pipelined: a register after every carry chain and every LUT or two, and an accumulator cut into
            segments of :data:`SEGMENT_BITS`: more cycles and more flip-flops for a higher clock frequency.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        weights: ScalarFormat,
        activations: ScalarFormat,
        dot_length: int,
        accumulator_bits: int | None = None,
        pipelined: bool = False,
    ) -> None:
        check_format("weights", weights)
        check_format("activations", activations)
        check_positive("dot_length", dot_length)
        if accumulator_bits is None:
            accumulator_bits = exact_accumulator_bits(weights, activations, dot_length)
        check_positive("accumulator_bits", accumulator_bits)
        check_switch("pipelined", pipelined)
        self._product = product_addend(weights, activations, bits=accumulator_bits, pipelined=pipelined)
        self._accumulator = KulischAccumulator(
            bits=accumulator_bits,
            is_registered=self._product.is_registered,
            segment_bits=SEGMENT_BITS if pipelined else None,
        )
        self._accumulator_bits = accumulator_bits
        pair = data.StructLayout({"weight": weights.bits, "activation": activations.bits, "last": 1})
        super().__init__(
            {
                "pairs": In(stream.Signature(pair)),
                "sums": Out(stream.Signature(signed(accumulator_bits))),
            }
        )

    @property
    def accumulator_bits(self) -> int:
        """Width of the sums."""
        return self._accumulator_bits

    @property
    def latency(self) -> int:
        """Cycles from the one in which the last pair is taken to the first in which its sum is valid."""
        return self._product.latency + self._accumulator.latency + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        product = self._product
        advance = Signal()
        m.submodules.product = EnableInserter(advance)(product)
        m.submodules.accumulator = accumulator = self._accumulator
        pair = self.pairs.payload
        valid, last = self._delay_marks(m, advance)
        done = last
        for _ in range(accumulator.latency):
            done = _enabled_register(m, done, advance)

        sum_waits = self.sums.valid & ~self.sums.ready
        finished = Signal(signed(self._accumulator_bits), reset_less=True)
        with m.If(done & ~sum_waits):
            m.d.sync += finished.eq(accumulator.total)
        m.d.sync += self.sums.valid.eq(done | sum_waits)
        m.d.comb += [
            advance.eq(~(done & sum_waits)),
            self.pairs.ready.eq(advance),
            self.sums.payload.eq(finished),
            product.weight.eq(pair.weight),
            product.activation.eq(pair.activation),
            accumulator.addend.eq(product.addend),
            accumulator.carry.eq(product.carry),
            accumulator.enable.eq(valid),
            accumulator.clear.eq(last),
            accumulator.advance.eq(advance),
        ]
        return m

    def _delay_marks(self, m: Module, advance: Value) -> tuple[Value, Value]:
        """Whether the term at the accumulator is one, and whether it is the last of its dot product."""
        valid: Value = self.pairs.valid
        last: Value = self.pairs.valid & self.pairs.payload.last
        for _ in range(self._product.latency):
            valid, last = _enabled_register(m, valid, advance), _enabled_register(m, last, advance)
        return valid, last


def _enabled_register(m: Module, value: Value, enable: Value) -> Signal:
    held = Signal()
    with m.If(enable):
        m.d.sync += held.eq(value)
    return held
