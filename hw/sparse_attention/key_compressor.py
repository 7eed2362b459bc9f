"""Compressed keys: sums of the newest tokens' keys."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, EnableInserter, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import add_with_carry, register
from hw.lut_kernel.tables import LUTRAM
from quantizers.errors import UsageError
from quantizers.sparse_attention import BlockSelection, compressed_bits


class KeyCompressor(Component):
    """Adds up the keys of *kernel* tokens, every *stride* tokens.

    ``round(sum / 2**dropped_bits)``, ties to even: :func:`quantizers.sparse_attention.compressed_sums`. Of
    each channel it keeps the sum of the stride that is coming in, and for each compressed key that began
    earlier the sum of its strides, in LUT RAM.

    Ports:
        ``keys``: input stream of ``values``, *lanes* channels of a token, in order, and ``is_first``: of the
        first word of the first token of a sequence.
        ``compressed``: output stream of *lanes* channels of a compressed key.

    A word a cycle. A word of a compressed key is valid :attr:`latency` cycles after the last of its tokens'
    words was taken; one that nobody takes stops everything.

    Args:
        selection: sizes.
        head_dim: channels of a key; a multiple of *lanes*.
        key_bits: of a channel, signed.
        lanes: channels of a word.
        dropped_bits: 0 to ceil(log2(kernel)).

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        selection: BlockSelection,
        head_dim: int,
        key_bits: int = 8,
        lanes: int = 8,
        dropped_bits: int = 0,
    ) -> None:
        check_lanes(head_dim, lanes)
        bits = compressed_bits(key_bits, dropped_bits, selection)
        self.selection, self.head_dim, self.lanes = selection, head_dim, lanes
        self.key_bits, self.dropped_bits = key_bits, dropped_bits
        key = data.StructLayout({"values": data.ArrayLayout(signed(key_bits), lanes), "is_first": 1})
        super().__init__(
            {
                "keys": In(stream.Signature(key)),
                "compressed": Out(stream.Signature(data.ArrayLayout(signed(bits), lanes))),
            }
        )

    @property
    def words(self) -> int:
        """Of a token."""
        return self.head_dim // self.lanes

    @property
    def latency(self) -> int:
        """Cycles from the last token's word to that of the compressed key."""
        return 2 if self.dropped_bits else 1

    def cycles(self, tokens: int) -> int:
        """From the first offer to the last word of the last compressed key, where nothing waits outside."""
        last = (self.selection.compressed_count(tokens) - 1) * self.selection.stride + self.selection.kernel
        return last * self.words + self.latency

    @property
    def _sum_bits(self) -> int:
        return compressed_bits(self.key_bits, 0, self.selection)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        advance, taken = Signal(), Signal()
        m.d.comb += [
            advance.eq(~self.compressed.valid | self.compressed.ready),
            self.keys.ready.eq(advance),
            taken.eq(self.keys.valid & advance),
        ]
        is_first, ends_stride, is_whole = self._add_counters(m, taken)
        sums = self._add_sums(m, taken, is_first, ends_stride)
        lanes = Module()
        m.submodules.lanes = EnableInserter(advance)(lanes)
        is_valid: Value = taken & ends_stride & is_whole
        words = [register(lanes, total) for total in sums]
        is_valid = _kept(lanes, is_valid)
        if self.dropped_bits:
            words = [register(lanes, _rounded(lanes, word, self.dropped_bits)) for word in words]
            is_valid = _kept(lanes, is_valid)
        m.d.comb += self.compressed.valid.eq(is_valid)
        m.d.comb += [out.eq(word) for out, word in zip(self.compressed.payload, words, strict=True)]
        return m

    def _add_counters(self, m: Module, taken: Value) -> tuple[Value, Value, Value]:
        """Whether a word's token begins a stride, ends one, and whether that ends a compressed key."""
        selection = self.selection
        self._word = word = Signal(range(self.words))
        token, strides = Signal(range(selection.stride)), Signal(range(selection.overlap + 1))
        restarts = self.keys.payload.is_first
        now = Mux(restarts, 0, token)
        ends_token = Signal()
        place = Mux(restarts, 0, word)
        m.d.comb += ends_token.eq(taken & (place == self.words - 1))
        ends_stride = now == selection.stride - 1
        with m.If(taken):
            m.d.sync += [word.eq(Mux(ends_token, 0, place + 1)), token.eq(now)]
            with m.If(restarts):
                m.d.sync += strides.eq(0)
        with m.If(ends_token):
            m.d.sync += token.eq(Mux(ends_stride, 0, now + 1))
            with m.If(ends_stride & (Mux(restarts, 0, strides) != selection.overlap)):
                m.d.sync += strides.eq(Mux(restarts, 0, strides) + 1)
        is_whole = Mux(restarts, 0, strides) == selection.overlap
        return now == 0, ends_stride, is_whole

    def _add_sums(self, m: Module, taken: Value, is_first: Value, ends_stride: Value) -> list[Value]:
        """Of every lane the sum that is complete where a stride ends."""
        overlap, bits = self.selection.overlap, self._sum_bits
        row = data.ArrayLayout(data.ArrayLayout(signed(bits), overlap + 1), self.lanes)
        m.submodules.sums = sums = memory.Memory(shape=row, depth=max(self.words, 2), init=[], attrs=LUTRAM)
        read, write = sums.read_port(domain="comb"), sums.write_port()
        place = Mux(self.keys.payload.is_first, 0, self._word)
        m.d.comb += [read.addr.eq(place), write.addr.eq(place), write.en.eq(taken)]
        complete: list[Value] = []
        for lane, value in enumerate(self.keys.payload.values):
            *earlier, running = (read.data[lane][i] for i in range(overlap + 1))
            current = Signal(signed(bits), name=f"current{lane}")
            before = Mux(is_first, 0, running).as_signed()
            m.d.comb += current.eq(add_with_carry(before, value, C(0, 1), width=bits))
            grown = []
            for i, total in enumerate(earlier):
                longer = Signal(signed(bits), name=f"longer{lane}_{i}")
                m.d.comb += longer.eq(add_with_carry(total, current, C(0, 1), width=bits))
                grown.append(longer)
            # The oldest sum is complete, the others move up, the newest begins with this stride.
            shifted = [*grown[1:], current][:overlap]
            for i, (old, new) in enumerate(zip(earlier, shifted, strict=True)):
                m.d.comb += write.data[lane][i].eq(Mux(ends_stride, new, old))
            m.d.comb += write.data[lane][overlap].eq(current)
            complete.append(grown[0] if grown else current)
        return complete


def check_lanes(head_dim: object, lanes: object) -> None:
    """Raises UsageError unless both are positive integers and *head_dim* is a multiple of *lanes*."""
    check_positive("head_dim", head_dim)
    check_positive("lanes", lanes)
    if isinstance(head_dim, int) and isinstance(lanes, int) and head_dim % lanes:
        msg = f"head_dim must be a multiple of the {lanes} lanes, not {head_dim}"
        raise UsageError(msg, given=head_dim, expected=[str(head_dim - head_dim % lanes or lanes)])


def _kept(m: Module, value: Value) -> Signal:
    """A bit one cycle later, zero at first."""
    kept = Signal()
    m.d.sync += kept.eq(value)
    return kept


def _rounded(m: Module, total: Value, dropped: int) -> Value:
    """``total / 2**dropped``, to nearest, ties to even."""
    half, below = total[dropped - 1], total[: dropped - 1].any() if dropped > 1 else C(0, 1)
    kept = total[dropped:].as_signed()
    up = Signal(name="up")
    rounded = Signal(signed(len(kept)), name="rounded")
    m.d.comb += [
        up.eq(half & (below | total[dropped])),
        rounded.eq(add_with_carry(kept, Cat(C(0, 1)).as_signed(), up, width=len(kept))),
    ]
    return rounded
