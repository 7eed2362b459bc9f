"""From the weights of compressed keys to the scores of blocks."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from quantizers.errors import UsageError
from quantizers.sparse_attention import BlockSelection


class BlockPooling(Component):
    """The largest weight among the compressed keys that share a token with a block; forced blocks have all
    ones.

    Ports:
        ``positions``: input stream: the position of a query.
        ``weights``: input stream of ``weight`` and ``is_last``, one for each compressed key that the query
        sees; none where it takes all blocks.
        ``scores``: output stream of ``score``, ``is_last`` and ``is_dense`` (the query takes all blocks),
        one for each block up to the query's own.

    :meth:`cycles` cycles a query; one that waits for a weight or for the consumer takes longer.

    Args:
        selection: sizes; *stride* and *block* powers of two.
        weight: shape of a weight; all ones must be more than any.
        max_tokens: positions are below.

    Raises:
        UsageError: a size is out of range, or no power of two.
    """

    def __init__(self, *, selection: BlockSelection, weight: Shape, max_tokens: int) -> None:
        check_selection(selection, max_tokens)
        self.selection, self.max_tokens = selection, max_tokens
        item = data.StructLayout({"weight": weight, "is_last": 1})
        score = data.StructLayout({"score": weight, "is_last": 1, "is_dense": 1})
        super().__init__(
            {
                "positions": In(stream.Signature(Shape.cast(range(max_tokens)))),
                "weights": In(stream.Signature(item)),
                "scores": Out(stream.Signature(score)),
            }
        )

    def cycles(self, position: int) -> int:
        """From a query's position to the score of its own block, where nothing waits outside."""
        selection = self.selection
        is_dense = position + 1 < selection.dense_length
        keys = 0 if is_dense else selection.compressed_count(position + 1)
        blocks = position // selection.block + 1
        return 1 + keys + blocks - keys // selection.keys_per_block + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        selection = self.selection
        keys, is_dense = visible_keys(self.positions.payload, selection, self.max_tokens)
        own = Signal(range(selection.block_count(self.max_tokens)), reset_less=True)
        block, left = Signal.like(own, name="current"), Signal.like(keys, name="left")
        is_working, takes_all = Signal(), Signal(reset_less=True)
        can_put, puts, takes = Signal(), Signal(), Signal()
        slot = Signal(range(selection.keys_per_block))
        ends_block = slot == selection.keys_per_block - 1
        m.d.comb += [
            self.positions.ready.eq(~is_working),
            can_put.eq(~self.scores.valid | self.scores.ready),
            self.weights.ready.eq(is_working & left.any() & can_put),
            takes.eq(self.weights.valid & self.weights.ready),
            puts.eq(is_working & can_put & Mux(left.any(), takes & ends_block, 1)),
        ]
        with m.If(self.positions.valid & self.positions.ready):
            m.d.sync += [
                is_working.eq(1),
                own.eq(self.positions.payload >> (selection.block.bit_length() - 1)),
                takes_all.eq(is_dense),
                left.eq(Mux(is_dense, 0, keys)),
                block.eq(0),
                slot.eq(0),
            ]
        with m.If(takes):
            m.d.sync += [left.eq(left - 1), slot.eq(Mux(ends_block, 0, slot + 1))]
        with m.If(puts):
            m.d.sync += block.eq(block + 1)
            with m.If(block == own):
                m.d.sync += is_working.eq(0)
        with m.If(can_put):
            m.d.sync += self.scores.valid.eq(puts)
        largest = self._add_maxima(m, slot, takes, puts, self.positions.valid & self.positions.ready)
        is_forced = takes_all | (block < selection.initial) | (block + selection.local >= own)
        score = self.scores.payload
        with m.If(puts):
            m.d.sync += [
                score.score.eq(largest | is_forced.replicate(len(largest))),
                score.is_last.eq(block == own),
                score.is_dense.eq(takes_all),
            ]
        return m

    def _add_maxima(self, m: Module, slot: Signal, takes: Value, puts: Value, starts: Value) -> Value:
        """The largest weight of the block so far, the weight that comes included; and that of the next
        one."""
        selection, weight = self.selection, self.weights.payload.weight
        maxima = [Signal.like(weight, name=name) for name in ("of_this", "of_next")]
        reaches_on = slot >= selection.keys_per_block - selection.overlap
        counts = [takes, takes & reaches_on] if selection.overlap else [takes]
        grown: list[Value] = []
        for maximum, count in zip(maxima, counts, strict=False):
            larger = Signal.like(maximum, name=f"{maximum.name}_grown")
            m.d.comb += larger.eq(Mux(count & (weight > maximum), weight, maximum))
            grown.append(larger)
        with m.If(puts | starts):
            following = grown[1] if selection.overlap else 0
            m.d.sync += [maxima[0].eq(Mux(starts, 0, following)), maxima[1].eq(0)]
        with m.Elif(takes):
            m.d.sync += [maximum.eq(larger) for maximum, larger in zip(maxima, grown, strict=False)]
        return grown[0]


def visible_keys(position: Value, selection: BlockSelection, max_tokens: int) -> tuple[Value, Value]:
    """How many compressed keys a query at *position* sees, and whether it takes all blocks."""
    most = selection.compressed_count(max_tokens)
    whole = position + 1 >= selection.kernel
    shifted = (position + (1 + selection.stride - selection.kernel)) >> (selection.stride.bit_length() - 1)
    return Mux(whole, shifted[: most.bit_length()], 0), position + 1 < selection.dense_length


def check_selection(selection: BlockSelection, max_tokens: object) -> None:
    """Raises UsageError unless hardware can have these sizes."""
    if not isinstance(selection, BlockSelection):
        msg = f"selection must be a BlockSelection, not {selection!r}"
        raise UsageError(msg, given=repr(selection), expected=["BlockSelection()"])
    check_positive("max_tokens", max_tokens)
    for name in ("stride", "block"):
        size = getattr(selection, name)
        if size & (size - 1):
            near = 1 << (size.bit_length() - 1)
            msg = f"{name} must be a power of two, not {size}"
            raise UsageError(msg, given=size, expected=[str(near), str(2 * near)])
    if isinstance(max_tokens, int) and max_tokens < selection.kernel:
        msg = f"max_tokens must be at least the kernel of {selection.kernel} tokens, not {max_tokens}"
        raise UsageError(msg, given=max_tokens, expected=[str(selection.kernel)])
