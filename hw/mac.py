"""The multiply-accumulate unit for any pair of integer or minifloat formats."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import EnableInserter, Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.arith._shapes import check_positive
from hw.arith.decoder import check_format
from hw.arith.product import scaled_product
from hw.reference.widths import exact_accumulator_bits
from quantizers.formats import ScalarFormat


class MultiplyAccumulate(wiring.Component):
    def __init__(
        self,
        *,
        weights: ScalarFormat,
        activations: ScalarFormat,
        dot_length: int,
        accumulator_bits: int | None = None,
    ) -> None:
        check_format("weights", weights)
        check_format("activations", activations)
        check_positive("dot_length", dot_length)
        if accumulator_bits is None:
            accumulator_bits = exact_accumulator_bits(weights, activations, dot_length)
        check_positive("accumulator_bits", accumulator_bits)
        self._product = scaled_product(weights, activations)
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
        return self._accumulator_bits

    @property
    def latency(self) -> int:
        """Cycles from the last pair of a dot product to its sum."""
        return self._product.latency + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        product = self._product
        advance = Signal()
        m.submodules.product = EnableInserter(advance)(product)
        m.submodules.accumulator = accumulator = product.accumulator(self._accumulator_bits)
        valid, last = self.pairs.valid, self.pairs.valid & self.pairs.payload.last
        for stage in range(product.latency):
            valid_next, last_next = Signal(name=f"valid{stage}"), Signal(name=f"last{stage}")
            with m.If(advance):
                m.d.sync += [valid_next.eq(valid), last_next.eq(last)]
            valid, last = valid_next, last_next
        sum_waits = self.sums.valid & ~self.sums.ready
        sum_register = Signal(signed(self._accumulator_bits), reset_less=True)
        with m.If(last & ~sum_waits):
            m.d.sync += sum_register.eq(accumulator.total)
        m.d.sync += self.sums.valid.eq(last | sum_waits)
        m.d.comb += [
            advance.eq(~(last & sum_waits)),
            self.pairs.ready.eq(advance),
            product.weight.eq(self.pairs.payload.weight),
            product.activation.eq(self.pairs.payload.activation),
            accumulator.term.eq(product.term),
            accumulator.negate.eq(product.negate),
            accumulator.select.eq(product.select),
            accumulator.enable.eq(valid & advance),
            accumulator.clear.eq(last & advance),
            self.sums.payload.eq(sum_register),
        ]
        return m
