"""Keys or values of one head written to a cache in groups of few bits, and read back."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._checks import check_switch
from hw._component import Component
from hw.kv_cache._ring import add_ring, counted
from hw.kv_cache.dequantizer import GroupDequantizer
from hw.kv_cache.packer import Packer
from hw.kv_cache.quantizer import ELEMENT_BITS, GroupQuantizer, check_lanes
from hw.kv_cache.transposer import Transposer
from hw.kv_cache.unpacker import Unpacker
from hw.mvu._counter import step

RANGE = data.StructLayout({"minimum": signed(ELEMENT_BITS), "span": ELEMENT_BITS})
"""What is stored of a group beside its codes."""

_RANGE_DEPTH = 4


class UniformWriter(Component):
    """Quantizes the vectors of one head and packs their codes.

    Values have groups along the channels of a token; keys, *per_channel*, along the tokens of a channel:
    Z. Liu et al., "KIVI", arXiv 2402.02750. These are first turned in a buffer of two times *group* tokens.

    Ports:
        ``inputs``: stream of *lanes* signed 16-bit elements of a token, from channel 0.
        ``words``: stream of words of packed codes, the codes of a group from a new word on. Groups come in
        the order of channels of a token, or of the channels of *group* tokens.
        ``ranges``: stream of minimum and span, one for each group, not later than its first word.

    A word of elements a cycle where *word_bits* are at least ``bits * lanes`` and divide the group's bits;
    :attr:`interval` cycles a group, :attr:`latency` cycles.

    Args:
        head_dim: elements of a vector.
        bits: of a code, 2 to 8.
        group: elements that share minimum and span; they must divide *head_dim* unless *per_channel*.
        lanes: elements of a cycle; they must divide *group* and *head_dim*.
        word_bits: of a word.
        per_channel: groups are along the tokens.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        head_dim: int = 64,
        bits: int = 4,
        group: int = 64,
        lanes: int = 8,
        word_bits: int = 32,
        per_channel: bool = False,
    ) -> None:
        check_geometry(head_dim, group, lanes, per_channel)
        self._code_words = -(-min(word_bits, bits * group) // (bits * lanes))
        self._transposer = Transposer(rows=group, columns=head_dim, lanes=lanes) if per_channel else None
        self._quantizer = GroupQuantizer(bits=bits, group=group, lanes=lanes)
        self._packer = Packer(bits=bits, lanes=lanes, codes=group, word_bits=word_bits)
        super().__init__(
            {
                "inputs": In(stream.Signature(data.ArrayLayout(signed(ELEMENT_BITS), lanes))),
                "words": Out(stream.Signature(word_bits)),
                "ranges": Out(stream.Signature(RANGE)),
            }
        )

    @property
    def interval(self) -> int:
        """Cycles from group to group."""
        return max(self._quantizer.interval, self._packer.interval)

    @property
    def latency(self) -> int:
        """Cycles from the one in which the last elements of a group are taken, or *per_channel* those of
        *group* tokens, to the first word of its codes. Where the writer was idle and nothing waits outside.
        """
        turned = self._transposer.latency + self._quantizer.interval - 1 if self._transposer else 0
        return turned + self._quantizer.latency + self._code_words

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.quantizer, m.submodules.packer = quantizer, packer = self._quantizer, self._packer
        if self._transposer:
            m.submodules.transposer = transposer = self._transposer
            connect(m, flipped(self.inputs), transposer.inputs)
            connect(m, transposer.outputs, quantizer.inputs)
        else:
            connect(m, flipped(self.inputs), quantizer.inputs)
        connect(m, packer.outputs, flipped(self.words))
        coded = quantizer.outputs
        position = Signal(range(quantizer.interval))
        is_first = Signal(init=1)
        given, stored, left = Signal(), Signal(), Signal()
        is_last = step(m, position, quantizer.interval, given)
        with m.If(given):
            m.d.sync += is_first.eq(is_last)
        is_waiting, has_room = counted(m, "waiting", _RANGE_DEPTH, enters=stored, leaves=left)
        kept = Cat(coded.payload.minimum, coded.payload.span)
        metadata = add_ring(m, "kept", _RANGE_DEPTH, word=kept, enters=stored, leaves=left)
        may_pass = has_room | ~is_first
        m.d.comb += [
            packer.inputs.payload.eq(coded.payload.codes),
            packer.inputs.valid.eq(coded.valid & may_pass),
            coded.ready.eq(packer.inputs.ready & may_pass),
            given.eq(coded.valid & coded.ready),
            stored.eq(given & is_first),
            left.eq(self.ranges.valid & self.ranges.ready),
            self.ranges.valid.eq(is_waiting),
            Value.cast(self.ranges.payload).eq(metadata),
        ]
        return m


class UniformReader(Component):
    """Gives the vectors back of which :class:`UniformWriter` made words and ranges.

    Ports: ``words``, ``ranges``: streams as the writer gives them; ``outputs``: stream of *lanes* signed
    16-bit elements of a token, from channel 0, in the order in which they were written. A word of elements
    a cycle where *word_bits* are at least ``bits * lanes``; :attr:`interval` cycles a group, :attr:`latency`
    cycles.

    Args:
        head_dim: elements of a vector.
        bits: of a code, 2 to 8.
        group: elements that share minimum and span.
        lanes: elements of a cycle.
        word_bits: of a word.
        per_channel: groups are along the tokens.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        head_dim: int = 64,
        bits: int = 4,
        group: int = 64,
        lanes: int = 8,
        word_bits: int = 32,
        per_channel: bool = False,
    ) -> None:
        check_geometry(head_dim, group, lanes, per_channel)
        self._words = group // lanes
        words = -(-bits * group // word_bits)
        self._last_codes = self._words - (words - 1) * word_bits // (bits * lanes)
        self._unpacker = Unpacker(bits=bits, lanes=lanes, codes=group, word_bits=word_bits)
        self._dequantizer = GroupDequantizer(bits=bits, lanes=lanes)
        self._transposer = Transposer(rows=head_dim, columns=group, lanes=lanes) if per_channel else None
        super().__init__(
            {
                "words": In(stream.Signature(word_bits)),
                "ranges": In(stream.Signature(RANGE)),
                "outputs": Out(stream.Signature(data.ArrayLayout(signed(ELEMENT_BITS), lanes))),
            }
        )

    @property
    def interval(self) -> int:
        """Cycles from group to group."""
        return self._unpacker.interval

    @property
    def latency(self) -> int:
        """Cycles from the word that completes a group's first codes to their elements; *per_channel* from the
        last word of *group* tokens to the elements of the first one. Where nothing waits outside."""
        if self._transposer:
            return self._last_codes + self._dequantizer.latency + self._transposer.latency
        return 1 + self._dequantizer.latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unpacker, m.submodules.dequantizer = unpacker, dequantizer = (
            self._unpacker,
            self._dequantizer,
        )
        connect(m, flipped(self.words), unpacker.inputs)
        coded, codes = dequantizer.inputs, unpacker.outputs
        taken = Signal()
        m.d.comb += [
            coded.payload.codes.eq(codes.payload),
            coded.payload.minimum.eq(self.ranges.payload.minimum),
            coded.payload.span.eq(self.ranges.payload.span),
            coded.valid.eq(codes.valid & self.ranges.valid),
            codes.ready.eq(coded.ready & self.ranges.valid),
            taken.eq(coded.valid & coded.ready),
            self.ranges.ready.eq(step(m, Signal(range(self._words), name="position"), self._words, taken)),
        ]
        if self._transposer:
            m.submodules.transposer = transposer = self._transposer
            connect(m, dequantizer.outputs, transposer.inputs)
            connect(m, transposer.outputs, flipped(self.outputs))
        else:
            connect(m, dequantizer.outputs, flipped(self.outputs))
        return m


def check_geometry(head_dim: object, group: object, lanes: object, per_channel: object) -> None:
    """Raises :class:`UsageError` unless vectors, groups and words fit."""
    check_switch("per_channel", per_channel)
    check_lanes(group, lanes)
    check_lanes(head_dim, lanes, of="head_dim")
    if not per_channel:
        check_lanes(head_dim, group, of="head_dim", name="group")
