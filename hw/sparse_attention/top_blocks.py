"""The blocks of the largest scores, by their indices: found digit by digit in a memory."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import check_shape
from hw.lut_kernel.partial_sums import SUM_MEMORIES
from hw.lut_kernel.tables import LUTRAM
from hw.sparse_attention.top_sequence import TopSequence
from quantizers.errors import UsageError, unknown_choice

MAX_RADIX_BITS = 8
_WORD_STAGES = 2
"""Registers of a score that is read: that of the memory, and one more, as block RAM is slow."""

_EMIT_STAGES = _WORD_STAGES + 1
"""And that of the comparisons."""


class TopBlocks(Component):
    """The *topk* largest of a list of scores; of equal ones those that came first.

    Scores wait in a memory. Their *topk*-th largest is found digit by digit, from the top: the scores that
    agree with the digits found so far are counted by their next digit (the first one as they come in), and
    the counts added up from the largest digit on. In the end what is larger is put out, and of what is equal
    as many of the first as are missing. So the indices come out ascending, and no score is ever moved.

    Ports:
        ``scores``: input stream of ``score``, ``is_last`` and ``is_dense`` (of the last one: all are taken).
        ``blocks``: output stream of ``index``, ascending, and ``is_last``.

    A list of n scores takes :meth:`cycles` cycles; the next is taken after its last index.

    Args:
        score: shape of a score, unsigned.
        max_blocks: scores of a list.
        topk: indices of a list at most.
        radix_bits: of a digit, 1 to 8.
        storage: of the scores: ``bram`` or ``lutram``.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self, *, score: Shape, max_blocks: int, topk: int, radix_bits: int = 5, storage: str = "bram"
    ) -> None:
        check_list(score, max_blocks, topk)
        check_positive("radix_bits", radix_bits)
        if radix_bits > MAX_RADIX_BITS:
            msg = f"radix_bits must be 1 to {MAX_RADIX_BITS}, not {radix_bits}"
            raise UsageError(msg, given=radix_bits, expected=[f"1..{MAX_RADIX_BITS}"])
        if storage not in SUM_MEMORIES:
            raise unknown_choice("storage", storage, SUM_MEMORIES)
        self.score, self.max_blocks, self.topk = score, max_blocks, topk
        self.radix_bits, self.storage = min(radix_bits, score.width), storage
        super().__init__(list_ports(score, max_blocks))

    @property
    def digits(self) -> int:
        """Of a score; the first may have fewer bits."""
        return -(-self.score.width // self.radix_bits)

    def cycles(self, blocks: int, *, is_dense: bool = False) -> int:
        """From the first score of a list to the index of its last one, where that is taken and nothing waits
        outside."""
        rounds = 1 if is_dense or blocks <= self.topk else self.digits
        scans = rounds << self.radix_bits
        return blocks + 1 + scans + (rounds - 1) * (blocks + 1 + _WORD_STAGES) + blocks + _EMIT_STAGES + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.sequence = sequence = TopSequence(
            max_blocks=self.max_blocks, topk=self.topk, digits=self.digits, radix_bits=self.radix_bits
        )
        item, blocks = self.scores.payload, self.blocks
        m.d.comb += [
            self.scores.ready.eq(sequence.fills),
            sequence.taken.eq(self.scores.valid & sequence.fills),
            sequence.is_last.eq(item.is_last),
            sequence.is_dense.eq(item.is_dense),
            sequence.ends_output.eq(blocks.valid & blocks.ready & blocks.payload.is_last),
        ]
        word = self._add_memory(m, sequence)
        threshold = Signal(data.ArrayLayout(self.radix_bits, self.digits), reset_less=True)
        equal = [
            Value.cast(digit) == limit
            for digit, limit in zip(self._digits(word), reversed(list(threshold)), strict=True)
        ]
        left = self._add_search(m, sequence, word, threshold, equal)
        self._add_output(m, sequence, word, threshold, Cat(*equal).all(), left)
        return m

    def _digits(self, score: Value) -> list[Value]:
        """From the top."""
        padded = Cat(score, C(0, self.digits * self.radix_bits - len(score)))
        return [padded.word_select(place, self.radix_bits) for place in reversed(range(self.digits))]

    def _add_memory(self, m: Module, sequence: TopSequence) -> Value:
        """The score that was read :data:`_WORD_STAGES` cycles before."""
        attrs = SUM_MEMORIES[self.storage]
        m.submodules.memory = words = memory.Memory(
            shape=self.score, depth=self.max_blocks, init=[], attrs=attrs
        )
        write, read = words.write_port(), words.read_port()
        m.d.comb += [
            write.addr.eq(sequence.address),
            write.data.eq(self.scores.payload.score),
            write.en.eq(sequence.taken),
            read.addr.eq(sequence.address),
            read.en.eq(sequence.advance),
        ]
        word = Signal(self.score, name="word", reset_less=True)
        with m.If(sequence.advance):
            m.d.sync += word.eq(read.data)
        return word

    def _add_search(
        self, m: Module, sequence: TopSequence, word: Value, threshold: Any, equal: list[Value]
    ) -> Signal:
        """Fills the threshold; gives how many scores that are equal to it are taken."""
        digit, is_counted = self._add_next_digit(m, sequence, word, equal)
        counts = memory.Memory(
            shape=(self.max_blocks).bit_length(), depth=1 << self.radix_bits, init=[], attrs=LUTRAM
        )
        m.submodules.counts = counts
        read, write = counts.read_port(domain="comb"), counts.write_port()
        place = Mux(sequence.scans, ~sequence.scanned, digit)
        m.d.comb += [
            read.addr.eq(place),
            write.addr.eq(place),
            write.data.eq(Mux(sequence.scans, 0, read.data + 1)),
            write.en.eq(sequence.scans | is_counted),
        ]
        left, is_found = Signal(range(self.topk + 1), reset_less=True), Signal()
        with m.If(sequence.fills):
            m.d.sync += left.eq(self.topk)
        with m.If(sequence.scans & ~is_found):
            with m.If(read.data >= left):
                m.d.sync += is_found.eq(1)
                with m.Switch(sequence.digit):
                    for place, limit in enumerate(reversed(list(threshold))):
                        with m.Case(place):
                            m.d.sync += limit.eq(~sequence.scanned)
            with m.Else():
                m.d.sync += left.eq(left - read.data)
        with m.If(sequence.ends_scan):
            m.d.sync += is_found.eq(0)
        return left

    def _add_next_digit(
        self, m: Module, sequence: TopSequence, word: Value, equal: list[Value]
    ) -> tuple[Signal, Signal]:
        """The digit by which a score is counted, and whether it agrees with those found so far."""
        digits = self._digits(word)
        first, *_ = self._digits(self.scores.payload.score)
        digit, is_counted = Signal(self.radix_bits, reset_less=True), Signal()
        selected = Signal.like(digit, name="selected")
        was_read, agrees = Signal(_WORD_STAGES), Signal()
        m.d.sync += was_read.eq(Cat(sequence.counts, was_read[:-1]))
        with m.Switch(sequence.digit):
            for place in range(1, self.digits):
                with m.Case(place):
                    m.d.comb += [selected.eq(digits[place]), agrees.eq(Cat(*equal[:place]).all())]
        m.d.sync += [
            digit.eq(Mux(sequence.fills, first, selected)),
            is_counted.eq(sequence.taken | (was_read[-1] & agrees)),
        ]
        return digit, is_counted

    def _add_output(
        self, m: Module, sequence: TopSequence, word: Value, threshold: Any, is_equal: Value, left: Signal
    ) -> None:
        """Registers behind the word: comparisons, then the index in one that waits for the consumer."""
        blocks, index = self.blocks, sequence.address
        places = [Signal.like(index, name=f"index{stage}", reset_less=True) for stage in range(_EMIT_STAGES)]
        marks = Signal(_EMIT_STAGES)
        larger, equals = Signal(reset_less=True), Signal(reset_less=True)
        takes, waits = Signal(), blocks.valid & ~blocks.ready
        m.d.comb += [
            takes.eq(marks[-1] & (sequence.takes_all | larger | (equals & left.any()))),
            sequence.advance.eq(~(takes & waits)),
        ]
        with m.If(sequence.advance):
            m.d.sync += [
                *(later.eq(now) for now, later in zip([index, *places], places, strict=False)),
                marks.eq(Cat(sequence.emits, marks[:-1])),
                larger.eq(word > Value.cast(threshold)),
                equals.eq(is_equal),
            ]
        with m.If(sequence.ends_output):
            m.d.sync += marks.eq(0)
        with m.If(takes & ~waits & ~sequence.takes_all & ~larger):
            m.d.sync += left.eq(left - 1)
        result = Signal.like(blocks.payload, reset_less=True)
        most = Mux(sequence.takes_all, sequence.last, self.topk - 1)
        count = Signal.like(sequence.last, name="count")
        is_last = count == most
        with m.If(takes & ~waits):
            m.d.sync += [
                result.index.eq(places[-1]),
                result.is_last.eq(is_last),
                count.eq(Mux(is_last, 0, count + 1)),
            ]
        m.d.sync += blocks.valid.eq(takes | waits)
        m.d.comb += blocks.payload.eq(result)


def list_ports(score: Shape, max_blocks: int) -> dict[str, Any]:
    """The streams of scores and indices."""
    item = data.StructLayout({"score": score, "is_last": 1, "is_dense": 1})
    index = data.StructLayout({"index": Shape.cast(range(max_blocks)), "is_last": 1})
    return {"scores": In(stream.Signature(item)), "blocks": Out(stream.Signature(index))}


def check_list(score: object, max_blocks: object, topk: object) -> None:
    """Raises UsageError unless *score* is an unsigned shape and the numbers are positive."""
    check_shape("score", score)
    check_positive("max_blocks", max_blocks)
    check_positive("topk", topk)
    if isinstance(score, Shape) and score.signed:
        msg = f"scores must be unsigned, not {score!r}"
        raise UsageError(msg, given=repr(score), expected=[repr(Shape(score.width))])
