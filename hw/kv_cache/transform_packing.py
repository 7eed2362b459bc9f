"""Codes of a width each, packed into words and taken from them."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from quantizers.errors import UsageError


def coded_layout(max_bits: int) -> data.StructLayout:
    """A code with its width; ``is_last``: of its record."""
    return data.StructLayout(
        {"code": unsigned(max_bits), "width": Shape.cast(range(max_bits + 1)), "is_last": 1}
    )


class MixedPacker(Component):
    """Packs codes of mixed widths, the first one in the lowest bits; a code may go on in the next word.

    :func:`quantizers.kv_cache.packing.pack` is the model.

    Ports: ``inputs``: stream of codes, see :func:`coded_layout`; a code has zeros above its width, which may
    be 0. ``outputs``: stream of words; the last word of a record is filled up with zeros. A code a cycle; a
    word is valid one cycle after its last code was taken, and where a record's last code goes on in a word
    of its own, that one a cycle later. ``inputs.ready`` depends on ``outputs.ready`` in the same cycle.

    Args:
        max_bits: of a code.
        word_bits: of a word, at least *max_bits*.

    Raises:
        UsageError: an argument is not a positive integer, or words are too narrow.
    """

    def __init__(self, *, max_bits: int, word_bits: int) -> None:
        check_word(max_bits, word_bits)
        self._max_bits, self._word_bits = max_bits, word_bits
        super().__init__(
            {
                "inputs": In(stream.Signature(coded_layout(max_bits))),
                "outputs": Out(stream.Signature(word_bits)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        size, coded = self._word_bits, self.inputs.payload
        held = Signal(size + self._max_bits)
        # Of a record that ends the level is a whole number of words: one, or two.
        level, after = Signal(range(2 * size + 1)), Signal(range(2 * size + 1))
        reached = Signal(range(size + self._max_bits + 1))
        taken, given = Signal(), Signal()
        m.d.comb += [
            self.outputs.valid.eq(level >= size),
            self.outputs.payload.eq(held),
            given.eq(self.outputs.valid & self.outputs.ready),
            after.eq(Mux(given, level - size, level)),
            self.inputs.ready.eq(after <= size),
            taken.eq(self.inputs.valid & self.inputs.ready),
            reached.eq(after + coded.width),
        ]
        rest = Mux(given, held[size:], held)
        placed = _placed(coded.code, after, highest=size)
        with m.If(taken):
            whole = Mux(reached > size, 2 * size, Mux(reached > 0, size, 0))
            m.d.sync += level.eq(Mux(coded.is_last, whole, reached))
        with m.Else():
            m.d.sync += level.eq(after)
        m.d.sync += held.eq(rest | Mux(taken, placed, 0))
        return m


class MixedUnpacker(Component):
    """The inverse of :class:`MixedPacker`; what fills up the last word of a record is dropped.

    :func:`quantizers.kv_cache.packing.unpack` is the model.

    Ports: ``inputs``: stream of words. ``width``, ``is_last`` in: of the code that is next. ``outputs``:
    stream of codes, zeros above the width. A code a cycle, from the cycle after the one in which its word was
    taken; where a record's last code goes on in a word of its own, the next record begins a cycle later.
    ``inputs.ready`` follows ``outputs.ready``, and ``outputs.valid`` ``inputs.valid``, in the same cycle.

    Args:
        max_bits: of a code.
        word_bits: of a word, at least *max_bits*.

    Raises:
        UsageError: an argument is not a positive integer, or words are too narrow.
    """

    def __init__(self, *, max_bits: int, word_bits: int) -> None:
        check_word(max_bits, word_bits)
        self._max_bits, self._word_bits = max_bits, word_bits
        super().__init__(
            {
                "inputs": In(stream.Signature(word_bits)),
                "width": In(Shape.cast(range(max_bits + 1))),
                "is_last": In(1),
                "outputs": Out(stream.Signature(max_bits)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        size = self._word_bits
        held, is_held = Signal(size, reset_less=True), Signal()
        position = Signal(range(size))
        reached = Signal(range(size + self._max_bits))
        taken, crosses, empties = Signal(), Signal(), Signal()
        window = Cat(held, self.inputs.payload)[: size + self._max_bits - 1]
        m.d.comb += [
            reached.eq(position + self.width),
            crosses.eq(reached > size),
            # Codes of no bits at a record's end must not wait for a word, nor drop that of the next record.
            self.outputs.valid.eq((reached == 0) | (is_held & (~crosses | self.inputs.valid))),
            self.outputs.payload.eq(_bits_from(window, position, self._max_bits) & _ones(self.width)),
            taken.eq(self.outputs.valid & self.outputs.ready),
            empties.eq(taken & ((reached >= size) | (self.is_last & (reached > 0)))),
            self.inputs.ready.eq(empties | ~is_held),
        ]
        with m.If(self.inputs.ready):
            m.d.sync += [
                held.eq(self.inputs.payload),
                is_held.eq(self.inputs.valid & ~(taken & crosses & self.is_last)),
            ]
        with m.If(taken):
            m.d.sync += position.eq(Mux(self.is_last, 0, Mux(reached >= size, reached - size, reached)))
        return m


def check_word(max_bits: int, word_bits: int) -> None:
    """Raises :class:`UsageError` unless a word holds a code."""
    check_positive("max_bits", max_bits)
    check_positive("word_bits", word_bits)
    if word_bits < max_bits:
        msg = f"word_bits must be at least the {max_bits} bits of a code, not {word_bits}"
        raise UsageError(msg, given=word_bits, expected=[f"{max_bits} or more"])


def _placed(code: Value, position: Value, *, highest: int) -> Value:
    """The code from a bit on that is at most *highest*."""
    placed = code
    for stage in range(highest.bit_length()):
        placed = Mux(position[stage], placed << (1 << stage), placed)
    return placed


def _bits_from(window: Value, position: Signal, count: int) -> Value:
    """So many bits from a position on."""
    for stage in reversed(range(len(position))):
        kept = count + (1 << stage) - 1
        window = Mux(position[stage], window[1 << stage :], window)[:kept]
    return window


def _ones(width: Value) -> Value:
    """As many ones, from the lowest bit on."""
    most = (1 << len(width)) - 1
    return Cat(width > bit for bit in range(most))
