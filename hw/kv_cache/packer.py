"""Codes packed into words."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._checks import check_positive
from hw._component import Component
from hw.kv_cache.gearbox import Gearbox
from hw.kv_cache.quantizer import check_lanes


class Packer(Component):
    """Packs records of codes, the first code in the lowest bits; a code may go on in the next word.

    :func:`quantizers.kv_cache.packing.pack` is the model.

    Ports: ``inputs``: stream of *lanes* codes; ``outputs``: stream of words. The last word of a record is
    filled up with zeros. Without stalls a record takes :attr:`interval` cycles, and a word is valid one
    cycle after its last code was taken.

    Args:
        bits: of a code.
        lanes: codes that come in a cycle; they must divide the record.
        codes: of a record.
        word_bits: of a word.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(self, *, bits: int, lanes: int, codes: int, word_bits: int) -> None:
        check_positive("bits", bits)
        check_lanes(codes, lanes, of="record")
        self._gearbox = Gearbox(input_bits=bits * lanes, output_bits=word_bits, record_bits=bits * codes)
        super().__init__(
            {
                "inputs": In(stream.Signature(data.ArrayLayout(bits, lanes))),
                "outputs": Out(stream.Signature(word_bits)),
            }
        )

    @property
    def interval(self) -> int:
        """Cycles from record to record."""
        return self._gearbox.interval

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.gearbox = gearbox = self._gearbox
        m.d.comb += [
            gearbox.inputs.payload.eq(Value.cast(self.inputs.payload)),
            gearbox.inputs.valid.eq(self.inputs.valid),
            self.inputs.ready.eq(gearbox.inputs.ready),
        ]
        connect(m, gearbox.outputs, flipped(self.outputs))
        return m
