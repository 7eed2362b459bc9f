"""Vectors of one layer back from merged directions, and retained rows in their place."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, EnableInserter, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import register
from hw.kv_cache.merge_engine import rounded
from hw.kv_cache.merge_product import RegisteredProduct
from hw.kv_cache.merge_weights import check_arithmetic
from hw.kv_cache.pair_products import words_of
from hw.lut_kernel.tables import LUTRAM
from hw.mvu._counter import step
from quantizers.kv_cache.fixed_point import BITS
from quantizers.kv_cache.merge_arithmetic import DIRECTION_FRACTION, MergeArithmetic


class MergeRestore(Component):
    """``direction * magnitude``, to the nearest, or the token's own row where it was retained.

    :func:`quantizers.kv_cache.merge_arithmetic.restore`. Tokens come in their order from token 0 on, as
    attention reads them; retained rows lie in a side memory in the same order, so that one comparison with
    the next retained token's number tells whether a token is one of them.

    Ports:
        ``rows``: input stream of ``{word, token, clears}``: the words of retained rows in the order of their
        tokens, each with the token's number; ``clears``, with the first word of a row, forgets all earlier
        rows. At most *capacity* rows may come after that, and none while tokens are restored.
        ``merged``: input stream of ``{direction, magnitude, last}``: the words of tokens; ``last``, with the
        last word of a token, says that token 0 comes next.
        ``restored``: output stream of words of elements.

    A word a cycle; :attr:`latency` cycles.

    Args:
        arithmetic: gives channels and magnitude bits.
        lanes: elements of a word, which divide the channels.
        capacity: retained rows that the memory holds.
        token_bits: of a token's number.
        multipliers: ``dsps`` or ``luts``.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        arithmetic: MergeArithmetic,
        lanes: int = 4,
        capacity: int = 32,
        token_bits: int = 16,
        multipliers: str = "dsps",
    ) -> None:
        check_arithmetic(arithmetic)
        for name, value in {"capacity": capacity, "token_bits": token_bits}.items():
            check_positive(name, value)
        self.arithmetic, self.lanes, self.capacity = arithmetic, lanes, capacity
        self.words_per_vector = words_of(arithmetic.channels, lanes)
        self._products = [
            RegisteredProduct(
                left=signed(arithmetic.magnitude_bits + 1), right=signed(BITS), multipliers=multipliers
            )
            for _ in range(lanes)
        ]
        self._token_bits = token_bits
        word = data.ArrayLayout(signed(BITS), lanes)
        rows = data.StructLayout({"word": word, "token": unsigned(token_bits), "clears": unsigned(1)})
        merged = data.StructLayout(
            {"direction": word, "magnitude": unsigned(arithmetic.magnitude_bits), "last": unsigned(1)}
        )
        super().__init__(
            {
                "rows": In(stream.Signature(rows)),
                "merged": In(stream.Signature(merged)),
                "restored": Out(stream.Signature(word)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a word to the restored one: a product and a register."""
        return 1 + self._products[0].latency

    def cycles(self, words: int) -> int:
        """From the first offer to the last result of so many words, where nothing waits outside."""
        return words + self.latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        advance, taken = Signal(), Signal()
        m.d.comb += [
            advance.eq(~self.restored.valid | self.restored.ready),
            self.merged.ready.eq(advance),
            taken.eq(self.merged.valid & advance),
        ]
        next_row, is_match = Signal(range(self.capacity + 1)), Signal()
        next_token = self._keep_tokens(m, next_row)
        is_end = self._count_tokens(m, taken, next_row, next_token, is_match)
        row = self._keep_words(m, taken & is_match, is_end)
        self._add_lanes(m, advance, is_match, row)
        return m

    def _keep_tokens(self, m: Module, next_row: Signal) -> Value:
        """The number of the retained token whose row comes next, a bit above it that there is none."""
        m.submodules.tokens = tokens = memory.Memory(
            shape=unsigned(self._token_bits), depth=self.capacity, init=[], attrs=LUTRAM
        )
        write, read = tokens.write_port(), tokens.read_port(domain="comb")
        filled, column = Signal(range(self.capacity + 1)), Signal(range(self.words_per_vector))
        ends = step(m, column, self.words_per_vector, self.rows.valid)
        place = Mux(self.rows.payload.clears, 0, filled)
        with m.If(self.rows.valid):
            m.d.sync += filled.eq(place + ends)
        m.d.comb += [
            self.rows.ready.eq(1),
            write.en.eq(self.rows.valid),
            write.addr.eq(place),
            write.data.eq(self.rows.payload.token),
            read.addr.eq(next_row),
        ]
        return Cat(read.data, next_row == filled)

    def _count_tokens(
        self, m: Module, taken: Value, next_row: Signal, next_token: Value, is_match: Signal
    ) -> Value:
        """Whether this cycle's word is the last one of all tokens."""
        token, column = Signal(self._token_bits), Signal(range(self.words_per_vector))
        ends = step(m, column, self.words_per_vector, taken)
        m.d.comb += is_match.eq(next_token == Cat(token, C(0, 1)))
        with m.If(ends):
            m.d.sync += [token.eq(token + 1), next_row.eq(next_row + is_match)]
            with m.If(self.merged.payload.last):
                m.d.sync += [token.eq(0), next_row.eq(0)]
        return ends & self.merged.payload.last

    def _keep_words(self, m: Module, moves: Value, is_end: Value) -> Value:
        """The next word of the retained rows, fetched ahead."""
        depth = self.capacity * self.words_per_vector
        m.submodules.words = words = memory.Memory(
            shape=unsigned(BITS * self.lanes), depth=depth, init=[], attrs={"ram_style": "block"}
        )
        write, read = words.write_port(), words.read_port()
        end, place = Signal(range(depth + 1)), Signal(range(depth + 1))
        following = Signal.like(place)
        first = Mux(self.rows.payload.clears, 0, end)
        m.d.comb += [
            write.en.eq(self.rows.valid),
            write.addr.eq(first),
            write.data.eq(self.rows.payload.word.as_value()),
            following.eq(place + moves),
        ]
        with m.If(self.rows.valid):
            m.d.sync += end.eq(first + 1)
        with m.If(is_end):
            m.d.comb += following.eq(0)
        m.d.sync += place.eq(following)
        m.d.comb += [read.addr.eq(following), read.en.eq(1)]
        return read.data

    def _add_lanes(self, m: Module, advance: Value, is_match: Value, row: Value) -> None:
        pipeline = Module()
        marks = Signal(self.latency)
        pipeline.d.sync += marks.eq(Cat(self.merged.valid, marks))
        is_retained: Value = is_match
        for _ in range(self._products[0].latency):
            is_retained, row = register(pipeline, is_retained), register(pipeline, row)
        magnitude = Cat(self.merged.payload.magnitude, C(0, 1)).as_signed()
        for lane, product in enumerate(self._products):
            pipeline.submodules[f"product{lane}"] = product
            pipeline.d.comb += [
                product.left.eq(magnitude),
                product.right.eq(self.merged.payload.direction[lane]),
            ]
            kept = row[lane * BITS : (lane + 1) * BITS]
            restored = rounded(pipeline, product.product, DIRECTION_FRACTION)
            element = register(pipeline, Mux(is_retained, kept, restored)[:BITS])
            m.d.comb += self.restored.payload[lane].eq(element.as_signed())
        m.d.comb += self.restored.valid.eq(marks[-1])
        m.submodules.pipeline = EnableInserter(advance)(pipeline)
