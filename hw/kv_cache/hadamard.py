"""Streaming fast Walsh-Hadamard transform."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data

from hw._checks import check_positive
from hw.kv_cache.lockstep import Lockstep, Stage, delayed, flag_line, word_count
from quantizers.errors import UsageError

SIZES = (8, 16, 32, 64, 128)
"""Elements of a vector."""

Lanes = list[Value]


class HadamardTransform(Lockstep):
    """The unnormalised Walsh-Hadamard transform of vectors, in Sylvester's order; every sum is exact.

    What :func:`quantizers.kv_cache.rotation.hadamard` computes. Of a vector whose element i is in lane
    ``i % lanes`` of word ``i // lanes`` the results come in the order of :func:`exchanged_order`, where words
    and lanes have changed places; of one that comes in that order they come in their own.

    Ports: ``inputs``: stream of words of *lanes* signed elements; ``outputs``: likewise, ``log2(size)`` bits
    wider. One word a cycle; the first word of a vector is offered :attr:`latency` cycles after it was taken,
    ``size // lanes + log2(size)``. See :class:`hw.kv_cache.lockstep.Lockstep` for what stops it.

    Structure: elements D words apart meet in one word when two lanes, whose own elements have been combined,
    exchange their words, one delayed by D cycles before and the other one after: the multi-path delay
    commutator of FFTs (L. R. Rabiner and B. Gold, "Theory and Application of Digital Signal Processing",
    1975, section 10.6). Every step so takes one adder a lane. Where a vector has more words than lanes, those
    furthest apart are combined over time, as in the single-path delay feedback of H. L. Groginsky and
    G. A. Works (1970), which takes two. The longest distances come first, while the sums are narrow.

    Args:
        size: elements of a vector, one of :data:`SIZES`.
        lanes: elements of a word, a power of two up to *size*.
        input_bits: of an element.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(self, *, size: int, lanes: int, input_bits: int) -> None:
        super().__init__(HadamardStage(size=size, lanes=lanes, input_bits=input_bits))


class HadamardStage(Stage):
    """The pipeline of :class:`HadamardTransform`, see there.

    Args:
        size, lanes, input_bits: see there.
        halvings: lowest bits of the results that are left out.
    """

    def __init__(self, *, size: int, lanes: int, input_bits: int, halvings: int = 0) -> None:
        check_hadamard_size(size)
        check_positive("input_bits", input_bits)
        self._size, self._lanes, self._halvings = size, lanes, halvings
        output_bits = input_bits + size.bit_length() - 1 - halvings
        super().__init__(
            inputs=data.ArrayLayout(signed(input_bits), lanes),
            outputs=data.ArrayLayout(signed(output_bits), lanes),
            words=word_count(size, lanes),
        )

    @property
    def latency(self) -> int:
        """``words - 1 + log2(size)``."""
        return self.words - 1 + self._size.bit_length() - 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        there = flag_line(m, self.valid, self.latency)
        elements: Lanes = [self.inputs[lane] for lane in range(self._lanes)]
        age, distance = 0, max(self.words, self._lanes) // 2
        while distance:
            if distance < self._lanes:
                elements = _combine_lanes(m, elements, distance)
                age += 1
            if distance < self.words:
                combine = _exchange_words if distance < self._lanes else _combine_words
                elements = combine(m, elements, distance, there[age])
                age += distance + 1
            distance //= 2
        for lane, element in enumerate(elements):
            m.d.comb += self.outputs[lane].eq(element[self._halvings :].as_signed())
        return m


def exchanged_order(size: int, lanes: int) -> npt.NDArray[np.int64]:
    """Which result comes at each place of the stream, shape (size,); its own inverse.

    The lowest bits of the numbers of lane and word have changed places, as many as both have: with as many
    words as lanes, place ``word * lanes + lane`` has result ``lane * words + word``.

    Raises:
        UsageError: as of :class:`HadamardTransform`.
    """
    check_hadamard_size(size)
    count = min(word_count(size, lanes), lanes)
    word, lane = np.divmod(np.arange(size), lanes)
    low_word, low_lane = word % count, lane % count
    return np.asarray((word - low_word + low_lane) * lanes + lane - low_lane + low_word)


def check_hadamard_size(size: int) -> None:
    """Raises :class:`UsageError` unless *size* is one of :data:`SIZES`."""
    if size not in SIZES:
        nearest = sorted(SIZES, key=lambda choice: abs(choice - size))
        msg = (
            f"size must be a power of two from {SIZES[0]} to {SIZES[-1]}, not {size!r}; "
            f"the nearest is {nearest[0]}"
        )
        raise UsageError(msg, given=repr(size), expected=map(str, nearest))


def _exchange_words(m: Module, elements: Lanes, distance: int, valid: Value) -> Lanes:
    """Sums and differences of words that are so far apart, ``distance + 1`` cycles later.

    Of a pair of lanes the first one then has the sums of both, and the second one the differences: in the
    first half of a block those of what was in the first lane.
    """
    is_second = _is_second(m, distance, valid)
    width = len(elements[0])
    firsts = [lane for lane in range(len(elements)) if not lane & distance]
    delayed_second = delayed(
        m, f"second{distance}", Cat(elements[lane | distance] for lane in firsts), distance
    )
    parts = [delayed_second[index * width : (index + 1) * width] for index in range(len(firsts))]
    kept = [Signal(width, name=f"kept{distance}_{lane}") for lane in firsts]
    for lane, part, chosen in zip(firsts, parts, kept, strict=True):
        m.d.comb += chosen.eq(Mux(is_second, part, elements[lane]))
    delayed_first = delayed(m, f"first{distance}", Cat(kept), distance)
    pairs = list(elements)
    for index, (lane, part) in enumerate(zip(firsts, parts, strict=True)):
        second = Signal(signed(width), name=f"other{distance}_{lane}")
        m.d.comb += second.eq(Mux(is_second, elements[lane], part.as_signed()))
        pairs[lane] = delayed_first[index * width : (index + 1) * width].as_signed()
        pairs[lane | distance] = second
    return _combine_lanes(m, pairs, distance, name="exchanged")


def _is_second(m: Module, distance: int, valid: Value) -> Value:
    """Whether the word that is there belongs to the second half of a block of twice the distance."""
    place = Signal(distance.bit_length(), name=f"place{distance}")
    with m.If(valid):
        m.d.sync += place.eq(place + 1)
    return place[-1]


def _combine_words(m: Module, elements: Lanes, distance: int, valid: Value) -> Lanes:
    """Sums and differences of words that are so far apart, ``distance + 1`` cycles later."""
    is_second = _is_second(m, distance, valid)
    width = len(elements[0]) + 1
    kept = [Signal(signed(width), name=f"kept{distance}_{lane}") for lane in range(len(elements))]
    before = delayed(m, f"words{distance}", Cat(kept), distance)
    results = []
    for lane, element in enumerate(elements):
        old = before[lane * width : (lane + 1) * width]
        gate = is_second.replicate(width)
        wide = Signal(signed(width), name=f"wide{distance}_{lane}")
        total = Signal(signed(width), name=f"sum{distance}_{lane}", reset_less=True)
        m.d.comb += [
            wide.eq(element),
            kept[lane].eq((Cat(1, old & gate).as_signed() + Cat(is_second, wide ^ gate).as_signed()) >> 1),
        ]
        m.d.sync += total.eq(old.as_signed() + (wide & gate).as_signed())
        results.append(total)
    return results


def _combine_lanes(m: Module, elements: Lanes, distance: int, *, name: str = "lane") -> Lanes:
    """Sums and differences of lanes that are so far apart, a cycle later."""
    shape = signed(len(elements[0]) + 1)
    results: Lanes = []
    for lane in range(len(elements)):
        result = Signal(shape, name=f"{name}{distance}_{lane}", reset_less=True)
        first, second = elements[lane & ~distance], elements[lane | distance]
        m.d.sync += result.eq(first - second if lane & distance else first + second)
        results.append(result)
    return results
