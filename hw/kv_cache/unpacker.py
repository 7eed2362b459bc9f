"""Codes taken from the words into which they were packed."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._checks import check_positive
from hw._component import Component
from hw.kv_cache.gearbox import Gearbox
from hw.kv_cache.quantizer import check_lanes


class Unpacker(Component):
    """The inverse of :class:`hw.kv_cache.packer.Packer`; what fills up the last word of a record is dropped.

    :func:`quantizers.kv_cache.packing.unpack` is the model.

    Ports: ``inputs``: stream of words; ``outputs``: stream of *lanes* codes. Without stalls a record takes
    :attr:`interval` cycles, and codes are valid one cycle after the word with the last of their bits was
    taken.

    Args:
        bits: of a code.
        lanes: codes that go in a cycle; they must divide the record.
        codes: of a record.
        word_bits: of a word.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(self, *, bits: int, lanes: int, codes: int, word_bits: int) -> None:
        check_positive("bits", bits)
        check_lanes(codes, lanes, of="record")
        self._gearbox = Gearbox(input_bits=word_bits, output_bits=bits * lanes, record_bits=bits * codes)
        super().__init__(
            {
                "inputs": In(stream.Signature(word_bits)),
                "outputs": Out(stream.Signature(data.ArrayLayout(bits, lanes))),
            }
        )

    @property
    def interval(self) -> int:
        """Cycles from record to record."""
        return self._gearbox.interval

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.gearbox = gearbox = self._gearbox
        connect(m, flipped(self.inputs), gearbox.inputs)
        m.d.comb += [
            Value.cast(self.outputs.payload).eq(gearbox.outputs.payload),
            self.outputs.valid.eq(gearbox.outputs.valid),
            gearbox.outputs.ready.eq(self.outputs.ready),
        ]
        return m
