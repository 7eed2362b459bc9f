"""From a query and compressed keys to the blocks that the query attends to."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._checks import check_positive
from hw._component import Component
from hw.arith.requantizer import Requantization
from hw.mvu import MatrixVectorUnit
from hw.mvu._counter import step
from hw.sparse_attention.block_pooling import BlockPooling, check_selection, visible_keys
from hw.sparse_attention.group_softmax import GroupSoftmax, weight_shape
from hw.sparse_attention.key_compressor import check_lanes
from hw.sparse_attention.top_blocks import TopBlocks
from quantizers.formats import IntegerFormat
from quantizers.sparse_attention import BlockSelection, FixedSoftmax, compressed_bits
from quantizers.sparse_attention.integers import SHIFTS


class BlockSelector(Component):
    """InfLLM v2's block selection for one KV head, bit for bit
    :func:`quantizers.sparse_attention.select_blocks_integer`.

    A matrix-vector unit holds the integer queries of the group and gives a score for each of them and each
    compressed key; :class:`GroupSoftmax`, :class:`BlockPooling` and :class:`TopBlocks` do the rest.

    Ports:
        ``positions``: input stream: the position of a query, which begins its selection.
        ``queries``: input stream of its heads, as :func:`hw.sparse_attention.query_words` gives them.
        ``keys``: input stream of the compressed keys that it sees, in order, *lanes* channels a transfer;
        none where the query takes all blocks. Where they are kept is the user's: they are read once a query.
        ``blocks``: output stream of ``index``, ascending, and ``is_last``.

    The next query is loaded when the last score of this one has left the matrix-vector unit. One query takes
    :meth:`cycles` cycles.

    Args:
        selection: sizes; *stride* and *block* powers of two.
        head_dim: channels; a multiple of *lanes*.
        heads: query heads of the group.
        max_tokens: positions are below.
        query_bits, key_bits: signed integers.
        dropped_bits: of the compressed keys.
        softmax: widths.
        lanes: products a cycle.
        multipliers: ``luts`` or ``dsps``.
        storage: of the scores of keys and of blocks: ``bram`` or ``lutram``.
        radix_bits: see :class:`TopBlocks`.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        selection: BlockSelection,
        head_dim: int,
        heads: int,
        max_tokens: int,
        query_bits: int = 8,
        key_bits: int = 8,
        dropped_bits: int = 0,
        softmax: FixedSoftmax | None = None,
        lanes: int = 8,
        multipliers: str = "luts",
        storage: str = "bram",
        radix_bits: int = 5,
    ) -> None:
        check_selection(selection, max_tokens)
        check_lanes(head_dim, lanes)
        check_positive("heads", heads)
        softmax = softmax or FixedSoftmax()
        self.selection, self.head_dim, self.heads, self.lanes = selection, head_dim, heads, lanes
        self.max_tokens, self.softmax = max_tokens, softmax
        self.max_keys = selection.compressed_count(max_tokens)
        key_format = IntegerFormat(compressed_bits(key_bits, dropped_bits, selection))
        self.scores = MatrixVectorUnit(
            weights=IntegerFormat(query_bits),
            activations=key_format,
            rows=heads,
            columns=head_dim,
            pe=1,
            simd=lanes,
            multipliers=multipliers,
            output=Requantization(format=IntegerFormat(softmax.score_bits), multiplier_bits=0, shifts=SHIFTS),
        )
        self.group_softmax = GroupSoftmax(
            softmax=softmax, heads=heads, max_keys=self.max_keys, storage=storage
        )
        score = weight_shape(softmax, heads)
        self.pooling = BlockPooling(selection=selection, weight=score, max_tokens=max_tokens)
        self.top = TopBlocks(
            score=score,
            max_blocks=selection.block_count(max_tokens),
            topk=selection.topk,
            radix_bits=radix_bits,
            storage=storage,
        )
        position = Shape.cast(range(max_tokens))
        super().__init__(
            {
                "positions": In(stream.Signature(position)),
                "queries": In(stream.Signature(self.scores.load.payload.shape())),
                "keys": In(stream.Signature(data.ArrayLayout(signed(key_format.bits), lanes))),
                "blocks": Out(stream.Signature(self.top.blocks.payload.shape())),
            }
        )

    @property
    def key_words(self) -> int:
        """Transfers of a compressed key."""
        return self.head_dim // self.lanes

    @property
    def query_words(self) -> int:
        """Transfers of a query: of each head its words, and one for its shift."""
        return self.heads * (self.key_words + 1)

    def visible_keys(self, position: int) -> int:
        """Compressed keys that a query reads."""
        if position + 1 < self.selection.dense_length:
            return 0
        return self.selection.compressed_count(position + 1)

    def cycles(self, position: int) -> int:
        """From a query's position to its last block, where nothing waits outside."""
        blocks = position // self.selection.block + 1
        is_dense = position + 1 < self.selection.dense_length
        pooled = self.interval(position) if self.visible_keys(position) else blocks + 1
        return pooled + 1 + self.top.cycles(blocks, is_dense=is_dense) - blocks

    def interval(self, position: int) -> int:
        """From a query's position to when the next one's is taken, where nothing waits outside and the
        blocks of the query before are out when the weights come.

        ``keys * heads * (key_words + 2)`` cycles, the matrix-vector unit's and the two passes over the
        scores, and a constant.
        """
        keys, blocks = self.visible_keys(position), position // self.selection.block + 1
        if not keys:
            return max(blocks, self.query_words) + 1
        scores = keys * self.heads
        first = self.query_words + self.key_words + self.scores.latency
        softmax = self.group_softmax.cycles(keys) - scores
        pooling = blocks - keys // self.selection.keys_per_block
        return first + (scores - 1) * self.key_words + softmax + pooling + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.scores, m.submodules.softmax = scores, softmax = self.scores, self.group_softmax
        m.submodules.pooling, m.submodules.top = pooling, top = self.pooling, self.top
        keys, is_dense = visible_keys(self.positions.payload, self.selection, self.max_tokens)
        count = Signal(range(self.max_keys + 1), reset_less=True)
        loads, reads = Signal(), Signal()
        may_start, starts, has_scores = Signal(), Signal(), Signal()
        m.d.comb += [
            # The unit loads before it works on a vector that waits.
            may_start.eq(~loads & ~reads & ~has_scores),
            starts.eq(may_start & self.positions.valid & pooling.positions.ready),
            self.positions.ready.eq(may_start & pooling.positions.ready),
            pooling.positions.valid.eq(may_start & self.positions.valid),
            pooling.positions.payload.eq(self.positions.payload),
        ]
        with m.If(starts):
            m.d.sync += [count.eq(Mux(is_dense, 0, keys)), loads.eq(1)]
        query_word, key_word = Signal(range(self.query_words)), Signal(range(self.key_words))
        left = Signal.like(count, name="left")
        ends_load = step(m, query_word, self.query_words, _gated(m, self.queries, scores.load, loads))
        ends_key = step(m, key_word, self.key_words, _gated(m, self.keys, scores.inputs, reads))
        with m.If(ends_load):
            m.d.sync += [loads.eq(0), reads.eq(count.any()), left.eq(count)]
        with m.If(ends_key):
            m.d.sync += left.eq(left - 1)
            with m.If(left == 1):
                m.d.sync += reads.eq(0)
        m.d.comb += has_scores.eq(self._connect_scores(m, ends_load, count))
        connect(m, softmax.weights, pooling.weights)
        connect(m, pooling.scores, top.scores)
        connect(m, top.blocks, flipped(self.blocks))
        return m

    def _connect_scores(self, m: Module, starts: Value, count: Value) -> Value:
        """The unit's codes, marked where they are a query's last; gives whether any are still to come."""
        codes, items = self.scores.outputs, self.group_softmax.scores
        left = Signal.like(count, name="scores_left")
        head = Signal(range(self.heads))
        taken = codes.valid & items.ready
        ends_key = step(m, head, self.heads, taken)
        with m.If(starts):
            m.d.sync += left.eq(count)
        with m.Elif(ends_key):
            m.d.sync += left.eq(left - 1)
        m.d.comb += [
            items.payload.score.eq(Value.cast(codes.payload[0]).as_signed()),
            items.payload.is_last.eq((left == 1) & (head == self.heads - 1)),
            items.valid.eq(codes.valid),
            codes.ready.eq(items.ready),
        ]
        return left.any()


def _gated(m: Module, source: Any, sink: Any, is_open: Value) -> Value:
    """Connects two streams while the gate is open; gives whether a payload goes through."""
    m.d.comb += [
        Value.cast(sink.payload).eq(Value.cast(source.payload)),
        sink.valid.eq(source.valid & is_open),
        source.ready.eq(sink.ready & is_open),
    ]
    return source.valid & sink.ready & is_open
