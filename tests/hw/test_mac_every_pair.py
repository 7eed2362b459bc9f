"""All pairs of codes of all pairs of formats of up to 6 bits, and of some of 8, through the MAC."""

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.mac import MultiplyAccumulate
from hw.reference import multiply_accumulate
from hw.verilator import VerilatedStream
from quantizers.formats import parse_scalar_format, signed_formats

SMALL = [fmt for bits in range(2, 7) for fmt in signed_formats(bits)]
LARGE = [parse_scalar_format(name) for name in ("e4m3", "e5m2", "e3m4", "int8")]
SUM_BITS = 64
# Its products take 65 bits; tests/hw/test_mac.py has this pair.
TOO_WIDE = ("e5m2", "e5m2")


class Macs(Component):
    """MACs of one weight format side by side: the same codes to all, a dot product of each pair."""

    def __init__(self, weights, activations) -> None:
        self._macs = [MultiplyAccumulate(weights=weights, activations=a, dot_length=1) for a in activations]
        pair = data.StructLayout({"weight": weights.bits, "activation": max(a.bits for a in activations)})
        sums = data.ArrayLayout(signed(SUM_BITS), len(activations))
        super().__init__({"pairs": In(stream.Signature(pair)), "sums": Out(stream.Signature(sums))})

    def elaborate(self, platform):
        m = Module()
        take = self.pairs.valid & Cat(mac.pairs.ready for mac in self._macs).all()
        give = Cat(mac.sums.valid for mac in self._macs).all()
        m.d.comb += [self.pairs.ready.eq(take), self.sums.valid.eq(give)]
        for index, mac in enumerate(self._macs):
            m.submodules += mac
            m.d.comb += [
                mac.pairs.valid.eq(take),
                mac.pairs.payload.weight.eq(self.pairs.payload.weight),
                mac.pairs.payload.activation.eq(self.pairs.payload.activation),
                mac.pairs.payload.last.eq(1),
                mac.sums.ready.eq(give & self.sums.ready),
                self.sums.payload[index].eq(mac.sums.payload),
            ]
        return m


@pytest.mark.parametrize("weights", [*SMALL, *LARGE], ids=str)
def test_every_pair_of_codes(weights):
    activations = [fmt for fmt in (*SMALL, *LARGE) if (weights.name, fmt.name) != TOO_WIDE]
    w, a = (grid.ravel() for grid in np.meshgrid(np.arange(1 << weights.bits), np.arange(256), indexing="ij"))
    trace = VerilatedStream(Macs(weights, activations)).run(w | a << weights.bits, output_count=len(w))
    for index, fmt in enumerate(activations):
        codes = a % (1 << fmt.bits)
        expected = multiply_accumulate(w[:, None], codes[:, None], weights=weights, activations=fmt)
        assert np.array_equal(trace.outputs[:, index], expected), fmt
