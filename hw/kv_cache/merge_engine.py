"""Merges the vectors of two layers that stream in side by side."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, EnableInserter, Module, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import register
from hw.kv_cache.merge_product import RegisteredProduct
from hw.kv_cache.merge_weights import MergeWeights, check_arithmetic, weights_layout
from hw.kv_cache.pair_products import PairProducts, pair_layout, words_of
from hw.lut_kernel.tables import LUTRAM
from hw.mvu._counter import step
from hw.mvu.input_buffer import InputBuffer
from quantizers.errors import UsageError
from quantizers.kv_cache.fixed_point import BITS
from quantizers.kv_cache.merge_arithmetic import (
    DIRECTION_FRACTION,
    DISTANCE_BITS,
    NORMAL_STEPS,
    WEIGHT_BITS,
    WEIGHT_FRACTION,
    MergeArithmetic,
)

_NORMAL_BITS = BITS + 2
"""Of a shifted element: below 2**17, since its vector is only shifted where its norm stays below that."""

_TOTAL_BITS = WEIGHT_FRACTION + 6
"""Of the sum of two weighted elements: weights of normalised vectors are below 8.1."""

_SHIFT = WEIGHT_FRACTION - DIRECTION_FRACTION


class MergeLane(Component):
    """``round((first * (x << 4 first_shift) + second * (y << 4 second_shift)) / 2**17)``, ties to even.

    Ports: ``x``, ``y``, ``first``, ``second``, ``first_shift``, ``second_shift`` in; ``element`` out, 16
    bits, saturated. Two multipliers; :attr:`latency` cycles.

    Args:
        multipliers: ``dsps`` or ``luts``.
    """

    def __init__(self, *, multipliers: str) -> None:
        self._products = [
            RegisteredProduct(
                left=signed(WEIGHT_BITS + 1), right=signed(_NORMAL_BITS), multipliers=multipliers
            )
            for _ in range(2)
        ]
        super().__init__(
            {
                "x": In(signed(BITS)),
                "y": In(signed(BITS)),
                "first": In(WEIGHT_BITS),
                "second": In(WEIGHT_BITS),
                "first_shift": In(2),
                "second_shift": In(2),
                "element": Out(signed(BITS)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from elements to the merged one: shifted, multiplied, added, rounded."""
        return 3 + self._products[0].latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        parts = (
            ("x", self.x, self.first_shift, self.first),
            ("y", self.y, self.second_shift, self.second),
        )
        for (name, value, shift, weight), product in zip(parts, self._products, strict=True):
            normal = Signal(signed(_NORMAL_BITS), name=f"normal_{name}", reset_less=True)
            with m.Switch(shift):
                for step_count in range(NORMAL_STEPS + 1):
                    with m.Case(step_count):
                        m.d.sync += normal.eq(value << 4 * step_count)
            m.submodules[f"product_{name}"] = product
            m.d.comb += [product.left.eq(Cat(register(m, weight), 0).as_signed()), product.right.eq(normal)]
        total = Signal(signed(_TOTAL_BITS), reset_less=True)
        first, second = (product.product[:_TOTAL_BITS] for product in self._products)
        m.d.sync += total.eq(first + second)
        m.d.sync += self.element.eq(rounded(m, total, _SHIFT))
        return m


class MergeEngine(Component):
    """Directions, magnitudes and distances of pairs of vectors: `quantizers.kv_cache.merge_arithmetic.merge`.

    While the words of a pair are written to a buffer of two pairs in LUT RAM, DSP slices sum up its products;
    :class:`~hw.kv_cache.merge_weights.MergeWeights` makes weights of them; then the words are read again and
    weighted. In decoding a token's lower vector waits outside until the upper layer has been computed.

    Ports:
        ``words``: input stream of :func:`~hw.kv_cache.pair_products.pair_layout`.
        ``merged``: output stream of a word for each that came: ``direction``, *lanes* elements in units of
        2**-15; ``first_magnitude``, ``second_magnitude`` and ``distance``, in every word of a pair the same.

    The first word of a pair is valid :attr:`latency` cycles after the one in which its last was taken, the
    others follow in a row; :attr:`interval` cycles from pair to pair. Words that nobody takes stop the
    weighting, and that, in turn, the rest.

    Args:
        arithmetic: channels and interpolation.
        lanes: elements of a word, which divide the channels: as many as it takes to stream pairs in and out
            as fast as weights are made; more only shorten the latency.
        multipliers: ``dsps``, of which a lane has five, and one more is needed, or ``luts``.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(self, *, arithmetic: MergeArithmetic, lanes: int = 4, multipliers: str = "dsps") -> None:
        check_arithmetic(arithmetic)
        self.arithmetic, self.lanes = arithmetic, lanes
        self.words_per_pair = words_of(arithmetic.channels, lanes)
        self._products = PairProducts(arithmetic=arithmetic, lanes=lanes, multipliers=multipliers)
        self._weights = MergeWeights(arithmetic=arithmetic, multipliers=multipliers)
        self._check_pace()
        self._lanes = [MergeLane(multipliers=multipliers) for _ in range(lanes)]
        magnitude = unsigned(arithmetic.magnitude_bits)
        merged = data.StructLayout(
            {
                "direction": data.ArrayLayout(signed(BITS), lanes),
                "first_magnitude": magnitude,
                "second_magnitude": magnitude,
                "distance": unsigned(DISTANCE_BITS),
            }
        )
        super().__init__(
            {"words": In(stream.Signature(pair_layout(lanes))), "merged": Out(stream.Signature(merged))}
        )

    @property
    def latency(self) -> int:
        """Cycles from the one in which a pair's last word is taken to the first with its direction."""
        return self._products.latency + self._weights.latency + 2 + self._lanes[0].latency

    @property
    def interval(self) -> int:
        """Cycles from pair to pair: those of the weights."""
        return self._weights.interval

    def cycles(self, pairs: int) -> int:
        """From the first offer to the last word of so many pairs, where nothing waits outside."""
        return (pairs - 1) * self.interval + 2 * self.words_per_pair + self.latency - 1

    def _check_pace(self) -> None:
        """Each half of the buffer is in use while words come, weights are made, and words leave."""
        most = (self._weights.latency - self._products.latency) // 2
        if self.words_per_pair > most:
            channels = self.arithmetic.channels
            fewest = next(n for n in range(1, channels + 1) if channels % n == 0 and channels // n <= most)
            msg = f"pairs of {channels} channels need at least {fewest} lanes, not {self.lanes}"
            raise UsageError(msg, given=self.lanes, expected=[str(fewest)])

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.products = products = self._products
        m.submodules.weights = unit = self._weights
        m.submodules.buffer = buffer = InputBuffer(
            word=pair_layout(self.lanes), depth=self.words_per_pair, attrs=LUTRAM
        )
        m.d.comb += [
            self.words.ready.eq(products.words.ready & buffer.inputs.ready),
            products.words.valid.eq(self.words.valid & buffer.inputs.ready),
            buffer.inputs.valid.eq(self.words.valid & products.words.ready),
            products.words.payload.eq(self.words.payload),
            buffer.inputs.payload.eq(self.words.payload),
            unit.products.valid.eq(products.products.valid),
            unit.products.payload.eq(products.products.payload),
            products.products.ready.eq(unit.products.ready),
        ]
        advance, is_busy, reads = Signal(), Signal(), Signal()
        weights = Signal(weights_layout(self.arithmetic), reset_less=True)
        ends = step(m, buffer.column, self.words_per_pair, reads)
        m.d.comb += [
            reads.eq(is_busy & advance),
            buffer.enable.eq(reads),
            buffer.release.eq(ends),
            unit.weights.ready.eq(~is_busy | ends),
        ]
        takes = unit.weights.valid & unit.weights.ready
        m.d.sync += is_busy.eq(takes | (is_busy & ~ends))
        with m.If(takes):
            m.d.sync += weights.eq(unit.weights.payload)
        self._add_lanes(m, buffer.word, weights, reads, advance)
        return m

    def _add_lanes(
        self, m: Module, word: data.View, weights: data.View, reads: Value, advance: Signal
    ) -> None:
        """The weighting, which stops while its last word waits.

        A pair's weights change while words of it are still on their way; those behind them are copied.
        """
        pipeline = Module()
        marks = Signal(1 + self._lanes[0].latency)
        pipeline.d.sync += marks.eq(Cat(reads, marks))
        read = Signal(weights.shape(), reset_less=True)
        pipeline.d.sync += read.eq(weights)
        payload = self.merged.payload
        for lane, unit in enumerate(self._lanes):
            pipeline.submodules[f"lane{lane}"] = unit
            pipeline.d.comb += [
                unit.x.eq(word.x[lane]),
                unit.y.eq(word.y[lane]),
                unit.first_shift.eq(read.first_shift),
                unit.second_shift.eq(read.second_shift),
                unit.first.eq(read.first),
                unit.second.eq(read.second),
                payload.direction[lane].eq(unit.element),
            ]
        for name in ("first_magnitude", "second_magnitude", "distance"):
            value: Value = getattr(read, name)
            for _ in range(self._lanes[0].latency):
                value = register(pipeline, value)
            pipeline.d.comb += getattr(payload, name).eq(value)
        pipeline.d.comb += self.merged.valid.eq(marks[-1])
        m.d.comb += advance.eq(~self.merged.valid | self.merged.ready)
        m.submodules.pipeline = EnableInserter(advance)(pipeline)


def rounded(m: Module, total: Value, shift: int) -> Value:
    """``total / 2**shift`` to the nearest 16-bit integer, ties to even, saturated."""
    kept = total[shift:].as_signed()
    is_up = total[shift - 1] & (total[: shift - 1].any() | kept[0])
    whole = Signal(signed(len(kept) + 1))
    m.d.comb += whole.eq(kept + is_up)
    is_beyond = ~(whole[BITS - 1 :].all() | ~whole[BITS - 1 :].any())
    limit = Cat((~whole[-1]).replicate(BITS - 1), whole[-1])
    result = Signal(signed(BITS))
    m.d.comb += result.eq((whole[:BITS] & ~is_beyond.replicate(BITS)) | (limit & is_beyond.replicate(BITS)))
    return result
