"""Groups of 16-bit integers made codes of few bits."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import register
from hw.kv_cache._ring import add_ring, counted
from hw.kv_cache.extremes import Extremes
from hw.kv_cache.rounding_lane import RoundingLane
from hw.mvu._counter import step
from hw.sharing import add_alike
from quantizers.errors import UsageError
from quantizers.kv_cache.uniform import MAX_BITS, MIN_BITS

ELEMENT_BITS = 16
"""Of a key or value."""


class GroupQuantizer(Component):
    """Codes of groups of integers on an even grid between their minimum and their maximum.

    ``code = round((x - minimum) * (2**bits - 1) / span)``, ties to even, exactly:
    :func:`quantizers.kv_cache.uniform.quantize` is the model. While the words of a group are written to a
    ring in LUT RAM their extremes are found; then they are read again, as the next group is written, and
    each lane divides by the span, a bit of the code a pipeline stage (:class:`RoundingLane`).

    Ports:
        ``inputs``: stream of words of *lanes* signed 16-bit elements, ``group / lanes`` of them a group.
        ``outputs``: stream of a word for each that came: ``codes``, *lanes* of them, and ``minimum`` (signed)
        and ``span`` = maximum - minimum of the group, the same in all its words.

    A word a cycle, :attr:`interval` cycles a group. The first word of a group is valid :attr:`latency` cycles
    after the one in which its last was taken, the others follow in consecutive cycles. Results that nobody
    takes stop the reader; words are taken until the ring is full. No stage of the pipeline is ever stopped: a
    word enters it only if there is room for it in the queue behind, so no enable goes to every register.

    Args:
        bits: of a code, 2 to 8.
        group: elements that share a minimum and a span.
        lanes: elements of a word; they must divide the group.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(self, *, bits: int = 4, group: int = 64, lanes: int = 8) -> None:
        check_code_bits(bits)
        check_lanes(group, lanes)
        self.bits, self.group, self.lanes = bits, group, lanes
        self._extremes = Extremes(lanes=lanes, words=self.interval, bits=ELEMENT_BITS)
        self._lanes = [RoundingLane(bits=bits) for _ in range(lanes)]
        super().__init__(
            {
                "inputs": In(stream.Signature(data.ArrayLayout(signed(ELEMENT_BITS), lanes))),
                "outputs": Out(stream.Signature(group_word(bits, lanes))),
            }
        )

    @property
    def interval(self) -> int:
        """Cycles from group to group: the words of a group."""
        return self.group // self.lanes

    @property
    def latency(self) -> int:
        """Cycles from the one in which a group's last word is taken to the first with codes of it."""
        return self._extremes.latency + 2 + self._stages

    @property
    def depth(self) -> int:
        """Words that the ring holds: a group, and what comes until its extremes are known."""
        return self.interval + self._extremes.latency + 1

    def cycles(self, groups: int) -> int:
        """From the first offer to the last result of so many groups, where nothing waits outside."""
        return (groups + 1) * self.interval + self.latency - 1

    @property
    def _stages(self) -> int:
        """Registers behind the ring."""
        return 1 + self._lanes[0].latency

    @property
    def _in_flight(self) -> int:
        """Words between the ring and the output: as many as keep the stages busy."""
        return self._stages + 2

    @property
    def _complete_groups(self) -> int:
        """The most of which the extremes are known and a word is still in the ring."""
        return (self.depth - 1) // self.interval + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        is_read, given = Signal(), Signal()
        taken = self.inputs.valid & self.inputs.ready
        _, has_room = counted(m, "words", self.depth, enters=taken, leaves=is_read)
        payload = Value.cast(self.inputs.payload)
        word = add_ring(m, "ring", self.depth, word=payload, enters=taken, leaves=is_read)
        complete, known = self._add_extremes(m, taken)
        is_last = self._add_position(m, "position", is_read)
        is_known, _ = counted(m, "groups", self._complete_groups, enters=complete, leaves=is_last)
        oldest = add_ring(m, "known", self._complete_groups, word=known, enters=complete, leaves=is_last)
        _, may_enter = counted(m, "in_flight", self._in_flight, enters=is_read, leaves=given)
        m.d.comb += [
            self.inputs.ready.eq(has_room),
            is_read.eq(is_known & may_enter),
            given.eq(self.outputs.valid & self.outputs.ready),
        ]
        marks = Signal(self._stages)
        m.d.sync += marks.eq(Cat(is_read, marks[:-1]))
        codes = self._add_lanes(m, platform, word, oldest)
        is_waiting, _ = counted(m, "waiting", self._in_flight, enters=marks[-1], leaves=given)
        codes = add_ring(m, "codes", self._in_flight, word=codes, enters=marks[-1], leaves=given)
        is_given = self._add_position(m, "output_position", given)
        # Of the groups that are known, and of those of which words are in flight.
        most = self._complete_groups + (self._in_flight - 1) // self.interval + 1
        metadata = add_ring(
            m, "metadata", most, word=known[: 2 * ELEMENT_BITS], enters=complete, leaves=is_given
        )
        m.d.comb += [
            self.outputs.valid.eq(is_waiting),
            Value.cast(self.outputs.payload).eq(Cat(codes, metadata)),
        ]
        return m

    def _add_position(self, m: Module, name: str, enable: Value) -> Value:
        """Whether the word is the last one of its group."""
        return step(m, Signal(range(self.interval), name=name), self.interval, enable)

    def _add_extremes(self, m: Module, taken: Value) -> tuple[Value, Value]:
        """Whether the extremes of a group are known in this cycle, and what is to be kept of them."""
        m.submodules.extremes = extremes = self._extremes
        m.d.comb += [extremes.word.eq(self.inputs.payload), extremes.enable.eq(taken)]
        span = (extremes.maximum - extremes.minimum)[:ELEMENT_BITS]
        return extremes.is_complete, Cat(extremes.minimum, span, extremes.maximum == extremes.minimum)

    def _add_lanes(self, m: Module, platform: Any, word: Value, known: Value) -> Value:
        """The codes of a word of a group of which *known* is kept."""
        minimum, span, is_flat = known[:16].as_signed(), known[16:32], known[32]
        divisor = Cat(span[0] | is_flat, span[1:])
        elements = register(m, word)
        middle = register(m, (minimum + divisor[1:] + divisor[0])[:16])
        divisors = [register(m, divisor)]
        for _ in range(self.bits - 1):
            divisors.append(register(m, divisors[-1]))
        half = register(m, divisors[-1][1:])
        half_less = register(m, (divisors[-1] - 1)[1:16])
        add_alike(m, "lane", self._lanes, platform)
        for index, lane in enumerate(self._lanes):
            m.d.comb += [
                lane.element.eq(elements[16 * index : 16 * index + 16]),
                lane.middle.eq(middle),
                lane.is_odd.eq(divisors[0][0]),
                Value.cast(lane.spans).eq(Cat(divisors[2:])),
                lane.half.eq(half),
                lane.half_less.eq(half_less),
            ]
        return Cat(lane.code for lane in self._lanes)


def group_word(bits: int, lanes: int) -> data.StructLayout:
    """*lanes* codes of a group, with its minimum and span."""
    return data.StructLayout(
        {
            "codes": data.ArrayLayout(unsigned(bits), lanes),
            "minimum": signed(ELEMENT_BITS),
            "span": unsigned(ELEMENT_BITS),
        }
    )


def check_code_bits(bits: object) -> None:
    """Raises :class:`UsageError` unless *bits* can be the width of a code."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        msg = f"bits must be {MIN_BITS} to {MAX_BITS}, not {bits!r}"
        raise UsageError(msg, given=repr(bits), expected=[f"{MIN_BITS}..{MAX_BITS}"])


def check_lanes(whole: object, lanes: object, *, of: str = "group", name: str = "lanes") -> None:
    """Raises :class:`UsageError` unless *lanes* divide the *whole*; names the nearest number that does.

    Args:
        of: what errors call the whole.
        name: what they call the lanes.
    """
    check_positive(of, whole)
    check_positive(name, lanes)
    if not isinstance(whole, int) or not isinstance(lanes, int) or whole % lanes == 0:
        return
    divisors = [number for number in range(1, whole + 1) if whole % number == 0]
    divisors.sort(key=lambda number: abs(number - lanes))
    msg = f"{name} must divide {of} ({whole}), which {lanes} does not; the nearest that does is {divisors[0]}"
    raise UsageError(msg, given=lanes, expected=map(str, divisors))
