import numpy as np
import pytest
from amaranth.hdl import Array, Module, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._component import Component
from hw.kv_cache.transform_packing import MixedPacker, MixedUnpacker
from hw.mvu._counter import step
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from quantizers.kv_cache.packing import pack

WIDTHS = [
    (8, [1, 2, 3, 4, 5, 6, 7, 8]),
    (8, [4, 4, 0, 0]),
    (13, [8, 8, 8, 8, 8, 5, 0]),
    (32, [3, 0, 1]),
    (4, [3, 3, 3]),
    (1, [1, 0, 1, 1]),
    (5, [0, 0, 5]),
]


class Unpacked(Component):
    """An unpacker that is told the widths of a record."""

    def __init__(self, widths, *, max_bits, word_bits) -> None:
        self._widths = widths
        self._inner = MixedUnpacker(max_bits=max_bits, word_bits=word_bits)
        super().__init__(
            {"inputs": In(stream.Signature(word_bits)), "outputs": Out(stream.Signature(max_bits))}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.inner = inner = self._inner
        connect(m, flipped(self.inputs), inner.inputs)
        connect(m, inner.outputs, flipped(self.outputs))
        position = Signal(range(len(self._widths)))
        step(m, position, len(self._widths), self.outputs.valid & self.outputs.ready)
        m.d.comb += [
            inner.width.eq(Array(self._widths)[position]),
            inner.is_last.eq(position == len(self._widths) - 1),
        ]
        return m


def records(widths, word_bits, *, count=20):
    codes = np.random.default_rng(1).integers(0, 1 << np.array(widths), (count, len(widths)))
    return codes, pack(codes, widths, word_bits=word_bits).reshape(-1).tolist()


@pytest.mark.parametrize(("word_bits", "widths"), WIDTHS)
@pytest.mark.parametrize(("valid", "ready"), [(1.0, 1.0), (0.5, 1.0), (0.7, 0.4)])
def test_words_and_codes(word_bits, widths, valid, ready):
    codes, words = records(widths, word_bits)
    chances = {"valid_probability": valid, "ready_probability": ready, "seed": 2}
    max_bits = max(widths)
    items = [
        {"code": int(code), "width": width, "is_last": place == len(widths) - 1}
        for record in codes
        for place, (code, width) in enumerate(zip(record, widths, strict=True))
    ]
    packer = MixedPacker(max_bits=max_bits, word_bits=word_bits)
    assert simulate_stream(packer, items, output_count=len(words), **chances).outputs == words
    unpacker = Unpacked(widths, max_bits=max_bits, word_bits=word_bits)
    trace = simulate_stream(unpacker, words, output_count=codes.size, **chances)
    assert trace.outputs == codes.reshape(-1).tolist()


@pytest.mark.parametrize(
    ("word_bits", "widths", "extra"), [(8, [5, 3, 4, 8], True), (8, [5, 3, 4, 4], False), (8, [2, 3], False)]
)
def test_cycles(word_bits, widths, extra):
    """A code a cycle; the unpacker needs one more for a record whose last code begins in one word and ends in
    the next."""
    codes, words = records(widths, word_bits, count=10)
    items = [
        {"code": int(code), "width": width, "is_last": place == len(widths) - 1}
        for record in codes
        for place, (code, width) in enumerate(zip(record, widths, strict=True))
    ]
    packer = MixedPacker(max_bits=8, word_bits=word_bits)
    assert simulate_stream(packer, items, output_count=len(words)).cycles == codes.size + 1 + extra
    unpacker = Unpacked(widths, max_bits=8, word_bits=word_bits)
    cycles = simulate_stream(unpacker, words, output_count=codes.size).cycles
    assert cycles == codes.size + 1 + (len(codes) - 1) * extra


def test_words_must_hold_a_code():
    for kind in (MixedPacker, MixedUnpacker):
        with pytest.raises(UsageError) as caught:
            kind(max_bits=8, word_bits=7)
        assert str(caught.value) == "word_bits must be at least the 8 bits of a code, not 7"
