"""Which tokens of a prefill are not merged: those whose distance is in one end of the range."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import register
from hw.arith.booth import BoothMultiplier
from quantizers.errors import UsageError
from quantizers.kv_cache.merge_arithmetic import DISTANCE_BITS
from quantizers.kv_cache.merging import GAMMA_BITS, MergeSettings


class DistinctTokens(Component):
    """Flags the tokens to retain: :func:`quantizers.kv_cache.merging.distinct`.

    Distances are written to a memory while the smallest and the largest are found; with the last one gamma
    times the range is known, and they are read again and compared with it.

    Ports:
        ``distances``: input stream of ``{distance, last}``; ``last`` marks the last token of the prefill, at
        most *capacity*.
        ``flags``: output stream of a bit for each token, in their order: whether it is retained.

    A distance a cycle, then, from :attr:`latency` cycles after the last one, a flag a cycle; the next prefill
    is taken from the cycle of the last flag on.

    Args:
        settings: rule and gamma.
        capacity: tokens of a prefill that the memory holds.
        retained: at most so many tokens are flagged, the first ones: what the side memory has room for;
            by default all.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(self, *, settings: MergeSettings, capacity: int = 512, retained: int | None = None) -> None:
        if not isinstance(settings, MergeSettings):
            msg = f"settings must be MergeSettings, not {settings!r}"
            raise UsageError(msg, given=repr(settings), expected=["MergeSettings()"])
        check_positive("capacity", capacity)
        self.retained = capacity if retained is None else retained
        check_positive("retained", self.retained)
        self.settings, self.capacity = settings, capacity
        self._product = BoothMultiplier(
            multiplicand=unsigned(DISTANCE_BITS), multiplier=unsigned(GAMMA_BITS + 1)
        )
        distance = data.StructLayout({"distance": unsigned(DISTANCE_BITS), "last": unsigned(1)})
        super().__init__({"distances": In(stream.Signature(distance)), "flags": Out(stream.Signature(1))})

    @property
    def latency(self) -> int:
        """Cycles from the one in which the last distance is taken to the first with a flag."""
        return self._product.latency + 6

    def cycles(self, tokens: int) -> int:
        """From the first offer to the last flag of one prefill, where nothing waits outside."""
        return 2 * tokens + self.latency - 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.distances = kept = memory.Memory(
            shape=unsigned(DISTANCE_BITS), depth=self.capacity, init=[], attrs={"ram_style": "block"}
        )
        write, read = kept.write_port(), kept.read_port()
        low, high = Signal(DISTANCE_BITS, reset_less=True), Signal(DISTANCE_BITS, reset_less=True)
        place, count = Signal(range(self.capacity)), Signal(range(self.capacity))
        is_reading, is_first = Signal(), Signal(init=1)
        wait = Signal(range(self._product.latency + 3))
        advance, reads = Signal(), Signal()
        is_read, has_gap = Signal(), Signal()
        # The extremes stay until the last flag has been made of them.
        is_open = ~(is_reading | is_read | has_gap)
        taken = self.distances.valid & is_open
        distance, last = self.distances.payload.distance, self.distances.payload.last
        is_ending = reads & (place == count)
        m.d.comb += [
            self.distances.ready.eq(is_open),
            advance.eq(~self.flags.valid | self.flags.ready),
            reads.eq(is_reading & (wait == 0) & advance),
            write.en.eq(taken),
            write.addr.eq(place),
            write.data.eq(distance),
            read.addr.eq(place),
            read.en.eq(advance),
        ]
        with m.If(taken):
            m.d.sync += [is_first.eq(last), place.eq(Mux(last, 0, place + 1)), count.eq(place)]
            m.d.sync += wait.eq(self._product.latency + 2)
            with m.If(is_first | (distance < low)):
                m.d.sync += low.eq(distance)
            with m.If(is_first | (distance > high)):
                m.d.sync += high.eq(distance)
        with m.If(is_reading & (wait != 0)):
            m.d.sync += wait.eq(wait - 1)
        with m.If(reads):
            m.d.sync += place.eq(Mux(is_ending, 0, place + 1))
        m.d.sync += is_reading.eq((taken & last) | (is_reading & ~is_ending))
        limit = self._limit(m, register(m, (high - low)[:DISTANCE_BITS]))
        self._flag(m, read.data, low, high, limit, reads, is_ending, is_read, has_gap, advance)
        return m

    def _limit(self, m: Module, span: Value) -> Value:
        """Gamma times the range, in units of 2**-32."""
        m.submodules.product = product = self._product
        m.d.comb += [
            product.multiplicand.eq(span),
            product.multiplier.eq(Const(self.settings.gamma_code, GAMMA_BITS + 1)),
        ]
        return register(m, product.product)

    def _flag(
        self,
        m: Module,
        distance: Value,
        low: Value,
        high: Value,
        limit: Value,
        reads: Value,
        is_ending: Value,
        is_read: Signal,
        has_gap: Signal,
        advance: Value,
    ) -> None:
        left = Signal(range(self.retained + 1), init=self.retained)
        is_prose = self.settings.retention == "prose"
        is_last = Signal(2)
        gap = Signal(DISTANCE_BITS, reset_less=True)
        is_near = Signal()
        m.d.comb += is_near.eq((Cat(C(0, GAMMA_BITS), gap) < limit) & (left != 0))
        with m.If(advance):
            m.d.sync += [
                is_read.eq(reads),
                has_gap.eq(is_read),
                is_last.eq(Cat(is_ending, is_last)),
                gap.eq(high - distance if is_prose else distance - low),
                self.flags.valid.eq(has_gap),
                self.flags.payload.eq(is_near),
            ]
            with m.If(has_gap):
                m.d.sync += left.eq(Mux(is_last[1], self.retained, left - is_near))
