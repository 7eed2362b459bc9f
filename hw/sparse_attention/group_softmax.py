"""The softmax of scores, added up over the query heads of a group."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, EnableInserter, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import add_with_carry
from hw.lut_kernel.partial_sums import SUM_MEMORIES
from hw.lut_kernel.tables import LUTRAM
from hw.sparse_attention.fixed_point import Logarithm, Power
from hw.sparse_attention.softmax_sequence import SoftmaxSequence
from quantizers.errors import unknown_choice
from quantizers.sparse_attention import FixedSoftmax


class GroupSoftmax(Component):
    """Weights of keys: :meth:`quantizers.sparse_attention.FixedSoftmax.weights` of one query at a time.

    Scores wait in a memory, of which they are read twice: to add up the powers of each head's distance from
    its largest score, and, with the logarithm of that sum in the offset, to add up the weights over the
    heads.

    Ports:
        ``scores``: input stream of ``score`` and ``is_last`` (of the query); key by key, the heads of each in
        order.
        ``weights``: output stream of ``weight``, one a key, and ``is_last``.

    A query of n keys takes :meth:`cycles` cycles; the next one's scores are taken after its last weight.

    Args:
        softmax: widths.
        heads: query heads of the group.
        max_keys: of a query.
        storage: of the scores: ``bram`` or ``lutram``.

    Raises:
        UsageError: an argument is of the wrong kind, or *storage* unknown.
    """

    def __init__(self, *, softmax: FixedSoftmax, heads: int, max_keys: int, storage: str = "bram") -> None:
        check_positive("heads", heads)
        check_positive("max_keys", max_keys)
        if storage not in SUM_MEMORIES:
            raise unknown_choice("storage", storage, SUM_MEMORIES)
        self.softmax, self.heads, self.max_keys, self.storage = softmax, heads, max_keys, storage
        sum_bits = (max_keys << softmax.weight_bits).bit_length()
        self._logarithm = Logarithm(softmax=softmax, bits=sum_bits)
        half, largest = 1 << (softmax.score_bits - 1), 1 << len(self._logarithm.value)
        self._offset = Shape.cast(range(-half, half + largest))
        self._power = Power(softmax=softmax, bits=(2 * half + largest).bit_length())
        score = data.StructLayout({"score": signed(softmax.score_bits), "is_last": 1})
        weight = data.StructLayout({"weight": weight_shape(softmax, heads), "is_last": 1})
        super().__init__({"scores": In(stream.Signature(score)), "weights": Out(stream.Signature(weight))})

    @property
    def pass_latency(self) -> int:
        """Cycles from the address of a score to its power."""
        return 2 + self._power.latency

    def cycles(self, keys: int) -> int:
        """From the first score to the last weight of a query, where nothing waits outside."""
        logarithms = self.heads * (self._logarithm.latency + 1)
        return 3 * keys * self.heads + logarithms + 2 * self.pass_latency + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.sequence = sequence = SoftmaxSequence(heads=self.heads, max_keys=self.max_keys)
        advance, is_taken = Signal(), self.scores.valid & self.scores.ready
        m.d.comb += [
            self.scores.ready.eq(sequence.is_taking),
            sequence.taken.eq(is_taken),
            sequence.is_last.eq(self.scores.payload.is_last),
            sequence.advance.eq(advance),
        ]
        offsets_read, offsets_write = self._heads_memory(m, "offsets", self._offset)
        marks, distance = self._add_distances(m, advance, is_taken, sequence, offsets_read.data)
        m.submodules.power = EnableInserter(advance)(self._power)
        m.d.comb += self._power.x.eq(distance)
        total = self._add_totals(m, sequence, marks[-1], self._power.value)
        self._add_logarithm(m, sequence, total, offsets_read.data, offsets_write, is_taken)
        # The head whose offset counts: of the score that comes, of the one that was read, of the logarithm.
        m.d.comb += offsets_read.addr.eq(Mux(sequence.is_passing, marks[0].head, sequence.head))
        m.d.comb += sequence.ends_pass.eq(marks[-1].is_valid & marks[-1].is_last)
        self._add_weights(m, sequence, marks[-1], self._power.value, advance)
        return m

    def _heads_memory(self, m: Module, name: str, shape: Shape) -> tuple[Any, Any]:
        """A word a head."""
        words = memory.Memory(shape=shape, depth=max(self.heads, 2), init=[], attrs=LUTRAM)
        m.submodules[name] = words
        return words.read_port(domain="comb"), words.write_port()

    def _add_distances(
        self, m: Module, advance: Value, is_taken: Value, sequence: SoftmaxSequence, offset: Value
    ) -> tuple[list[Any], Value]:
        """The marks of each stage of a pass, and a score's distance below the offset of its head."""
        m.submodules.memory = words = memory.Memory(
            shape=signed(self.softmax.score_bits),
            depth=self.max_keys * self.heads,
            init=[],
            attrs=SUM_MEMORIES[self.storage],
        )
        write, read = words.write_port(), words.read_port()
        m.d.comb += [
            write.addr.eq(sequence.address),
            write.data.eq(self.scores.payload.score),
            write.en.eq(is_taken),
            read.addr.eq(sequence.address),
            read.en.eq(advance),
        ]
        distance = Signal(len(self._power.x), reset_less=True)
        marks = [Signal.like(sequence.mark, name=f"mark{i}") for i in range(self.pass_latency)]
        with m.If(advance):
            m.d.sync += distance.eq(offset - read.data)
            m.d.sync += [later.eq(now) for now, later in zip([sequence.mark, *marks], marks, strict=False)]
        return marks, distance

    def _add_totals(self, m: Module, sequence: SoftmaxSequence, mark: Any, power: Value) -> Value:
        """The sum of a head's powers; that of the head of the logarithm behind the pass."""
        read, write = self._heads_memory(m, "totals", self._logarithm.total.shape())
        grown = Signal.like(self._logarithm.total, name="grown")
        before = Mux(mark.is_first, 0, read.data)
        m.d.comb += [
            read.addr.eq(Mux(sequence.is_summing, mark.head, sequence.head)),
            grown.eq(add_with_carry(before, power, C(0, 1), width=len(grown))),
            write.addr.eq(mark.head),
            write.data.eq(grown),
            write.en.eq(sequence.is_summing & mark.is_valid),
        ]
        return read.data

    def _add_logarithm(
        self,
        m: Module,
        sequence: SoftmaxSequence,
        total: Value,
        offset: Value,
        write: Any,
        is_taken: Value,
    ) -> None:
        """Offsets: the largest score so far, and behind the first pass that with the logarithm."""
        m.submodules.logarithm = logarithm = self._logarithm
        score = self.scores.payload.score
        is_larger = sequence.is_first_key | (score > offset)
        raised = offset + logarithm.value
        m.d.comb += [
            logarithm.total.eq(total),
            logarithm.start.eq(sequence.starts_logarithm),
            sequence.ends_logarithm.eq(logarithm.is_done),
            write.addr.eq(sequence.head),
            write.data.eq(Mux(logarithm.is_done, raised, score)),
            write.en.eq(logarithm.is_done | (is_taken & is_larger)),
        ]

    def _add_weights(
        self, m: Module, sequence: SoftmaxSequence, mark: Any, power: Value, advance: Signal
    ) -> None:
        """A key's weights of all heads, and their sum in a register of its own."""
        weights = self.weights
        shape = weights.payload.weight.shape()
        running, total = Signal(shape, reset_less=True), Signal(shape)
        waits = weights.valid & ~weights.ready
        before = Mux(mark.head == 0, 0, running)
        finished = sequence.is_combining & mark.is_valid & (mark.head == self.heads - 1)
        result = Signal.like(weights.payload, reset_less=True)
        m.d.comb += [
            total.eq(add_with_carry(before, power, C(0, 1), width=len(total))),
            advance.eq(~(finished & waits)),
            weights.payload.eq(result),
            sequence.ends_query.eq(weights.valid & weights.ready & weights.payload.is_last),
        ]
        m.d.sync += weights.valid.eq(finished | waits)
        with m.If(advance & mark.is_valid):
            m.d.sync += running.eq(total)
        with m.If(finished & ~waits):
            m.d.sync += [result.weight.eq(total), result.is_last.eq(mark.is_last)]


def weight_shape(softmax: FixedSoftmax, heads: int) -> Shape:
    """Of the sum of the heads' weights."""
    return unsigned((heads << softmax.weight_bits).bit_length())
