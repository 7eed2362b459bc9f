"""Floating-point activations made integers with an exponent a block, in front of a table-lookup engine."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, EnableInserter, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import add_with_carry, register
from hw.lut_kernel.tables import LUTRAM
from hw.mvu._counter import step
from quantizers.errors import UsageError
from quantizers.table_lookup.alignment import MAX_BITS, MIN_BITS
from quantizers.table_lookup.wide_float import WideFloat

_FORWARD_STAGES = 4
"""Registers behind the buffer: a word as it was, the shifts, shifted magnitudes, codes."""


class BlockAligner(Component):
    """Shifts every mantissa of a block to the block's largest exponent, and rounds it to an integer.

    ``code = round(x / 2**(e + 2 - bits))``, to nearest, ties to even, saturating at the symmetric limits, of
    values below ``2**(e + 1)``: :func:`quantizers.table_lookup.alignment.align`, of which
    :func:`hw.reference.block_aligner.align_words` is the model.

    While the words of a block are written to a ring in LUT RAM, a tree of comparisons finds the largest
    exponent of each and of all of them; then they are read again, as the next block is written.

    Ports:
        ``activations``: input stream of words of *lanes* codes (mantissa in the low bits, exponent, sign),
        the first in the low bits; *words* of them a block. A short block is to be filled up with zeros.
        ``outputs``: output stream of a word for each that came: ``codes``, *lanes* signed integers, and
        ``exponent``, the field that its block shares, at least 1. Where that is all ones the block held an
        infinity or a NaN, and its codes mean nothing.

    A word a cycle, :attr:`interval` cycles a block. The first word of a block is valid :attr:`latency` cycles
    after the one in which its last was taken, the others follow in consecutive cycles. Results that nobody
    takes stop the reader; words are taken until the ring is full.

    Args:
        activations: format of the codes.
        lanes: activations of a word.
        words: of a block.
        bits: of an integer, its sign included; 4 to 16.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(self, *, activations: WideFloat, lanes: int = 4, words: int = 8, bits: int = 12) -> None:
        if not isinstance(activations, WideFloat):
            msg = f"activations must be a WideFloat, such as bf16, not {activations!r}"
            raise UsageError(msg, given=repr(activations), expected=["WideFloat(8, 7)"])
        for name, value in {"lanes": lanes, "words": words, "bits": bits}.items():
            check_positive(name, value)
        if not MIN_BITS <= bits <= MAX_BITS:
            msg = f"bits must be {MIN_BITS} to {MAX_BITS}, not {bits}"
            raise UsageError(msg, given=bits, expected=[f"{MIN_BITS}..{MAX_BITS}"])
        self.activations_format, self.lanes, self.words, self.bits = activations, lanes, words, bits
        self._exponent = unsigned(activations.exponent_bits)
        result = data.StructLayout(
            {"codes": data.ArrayLayout(signed(bits), lanes), "exponent": self._exponent}
        )
        super().__init__(
            {
                "activations": In(stream.Signature(data.ArrayLayout(activations.bits, lanes))),
                "outputs": Out(stream.Signature(result)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the one in which a block's last word is taken to the first with results of it."""
        return self._levels + 1 + _FORWARD_STAGES

    @property
    def interval(self) -> int:
        """Cycles from block to block."""
        return self.words

    @property
    def depth(self) -> int:
        """Words that the ring holds: a block, and what comes until its exponent is known."""
        return self.words + self._levels + 1

    def cycles(self, blocks: int) -> int:
        """From the first offer to the last result of so many blocks, where nothing waits outside."""
        return (blocks + 1) * self.words + self.latency - 1

    @property
    def _levels(self) -> int:
        """Of the tree of comparisons, each with a register behind it."""
        return (self.lanes - 1).bit_length()

    @property
    def _complete_blocks(self) -> int:
        """The most of which the exponent is known and a word is still in the ring."""
        return (self.depth - 1) // self.words + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        advance, is_read = Signal(), Signal()
        taken = self.activations.valid & self.activations.ready
        word = self._add_ring(m, taken, is_read)
        exponent, is_available = self._add_exponents(m, taken, is_read)
        waits = self.outputs.valid & ~self.outputs.ready
        m.d.comb += [advance.eq(~waits), is_read.eq(is_available & advance)]
        marks = Signal(_FORWARD_STAGES)
        with m.If(advance):
            m.d.sync += marks.eq(Cat(is_available, marks[:-1]))
        m.d.comb += self.outputs.valid.eq(marks[-1])
        self._add_lanes(m, word, exponent, advance)
        return m

    def _add_ring(self, m: Module, taken: Value, is_read: Signal) -> Value:
        """The word to read."""
        m.submodules.ring = ring = memory.Memory(
            shape=unsigned(len(Value.cast(self.activations.payload))), depth=self.depth, init=[], attrs=LUTRAM
        )
        write, read = ring.write_port(), ring.read_port(domain="comb")
        count = Signal(range(self.depth + 1))
        step(m, write.addr, self.depth, taken)
        step(m, read.addr, self.depth, is_read)
        m.d.sync += count.eq(count + taken - is_read)
        m.d.comb += [
            self.activations.ready.eq(count != self.depth),
            write.data.eq(self.activations.payload),
            write.en.eq(taken),
        ]
        return read.data

    def _add_exponents(self, m: Module, taken: Value, is_read: Signal) -> tuple[Value, Value]:
        """The exponent of the block that is being read, and whether there is such a block."""
        depth = self._complete_blocks
        m.submodules.exponents = exponents = memory.Memory(
            shape=self._exponent, depth=depth, init=[], attrs=LUTRAM
        )
        write, read = exponents.write_port(), exponents.read_port(domain="comb")
        largest, is_complete = self._add_maximum(m, taken)
        position = Signal(range(self.words))
        is_last = step(m, position, self.words, is_read)
        step(m, write.addr, depth, is_complete)
        step(m, read.addr, depth, is_last)
        complete = Signal(range(depth + 1))
        m.d.sync += complete.eq(complete + is_complete - is_last)
        m.d.comb += [write.data.eq(largest), write.en.eq(is_complete)]
        return read.data, complete.any()

    def _add_maximum(self, m: Module, taken: Value) -> tuple[Value, Value]:
        """The largest exponent of a block, in the cycle of the other result: that the block is complete."""
        fields = [self._fields(code)[1] for code in self.activations.payload]
        is_valid = taken
        while len(fields) > 1:
            pairs = [fields[i : i + 2] for i in range(0, len(fields), 2)]
            fields = [register(m, _larger(*pair) if len(pair) == 2 else pair[0]) for pair in pairs]
            delayed = Signal(name=f"is_valid{len(fields)}")
            m.d.sync += delayed.eq(is_valid)
            is_valid = delayed
        position = Signal(range(self.words), name="found")
        is_complete = step(m, position, self.words, is_valid)
        running, largest = Signal(self._exponent, reset_less=True), Signal(self._exponent)
        m.d.comb += largest.eq(Mux(position == 0, fields[0], _larger(running, fields[0])))
        with m.If(is_valid):
            m.d.sync += running.eq(largest)
        return largest, is_complete

    def _fields(self, code: Value) -> tuple[Value, Value, Value]:
        """Mantissa, exponent field and sign."""
        mantissa_bits = self.activations_format.mantissa_bits
        return code[:mantissa_bits], code[mantissa_bits:-1], code[-1]

    def _add_lanes(self, m: Module, word: Value, exponent: Value, advance: Signal) -> None:
        lanes = Module()
        m.submodules.lanes = EnableInserter(advance)(lanes)
        word, exponent = register(lanes, word), register(lanes, _effective(exponent))
        width = self.activations_format.bits
        for lane in range(self.lanes):
            code = self._code(lanes, word[lane * width : (lane + 1) * width], exponent)
            lanes.d.comb += self.outputs.payload.codes[lane].eq(code)
        for _ in range(_FORWARD_STAGES - 1):
            exponent = register(lanes, exponent)
        lanes.d.comb += self.outputs.payload.exponent.eq(exponent)

    def _code(self, m: Module, code: Value, shared: Value) -> Value:
        """The integer of an activation, three cycles later."""
        mantissa, field, sign = self._fields(code)
        shift = (shared - _effective(field))[: len(field)]
        # From a shift of *bits* on not even half a unit is left.
        stages = (self.bits - 1).bit_length()
        is_below = register(m, shift[stages:].any())
        shift = register(m, shift[:stages])
        significand, sign = register(m, Cat(mantissa, field.any())), register(m, sign)

        halves, rest = self._shifted(significand, shift)
        halves, rest = (register(m, Mux(is_below, 0, value)) for value in (halves, rest))
        sign = register(m, sign)

        # -(magnitude + up) = ~magnitude + 1 - up: one carry chain for rounding and sign.
        magnitude = halves[1:]
        up = halves[0] & (rest | magnitude[0])
        if self._may_overflow:
            up = up & ~magnitude.all()
        signed_magnitude = Cat(magnitude ^ sign.replicate(len(magnitude)), sign)
        return register(m, add_with_carry(signed_magnitude, C(0, 0), up ^ sign, width=self.bits))

    @property
    def _may_overflow(self) -> bool:
        """Whether the significand is wider than a magnitude, so that the largest are rounded."""
        return self.activations_format.mantissa_bits + 1 > self.bits - 1

    def _shifted(self, significand: Value, shift: Value) -> tuple[Value, Value]:
        """The magnitude in half units, rounded down, and whether anything is below."""
        left = self.bits - len(significand)
        word, rest = significand.shift_left(max(left, 0)), C(0, 1)
        if left < 0:
            word, rest = significand[-left:], significand[:-left].any()
        # Small shifts first, where the word still ends in zeros.
        for stage in range(len(shift)):
            distance = 1 << stage
            rest = rest | (word[:distance].any() & shift[stage])
            word = Mux(shift[stage], word.shift_right(distance), word)[: self.bits]
        return word, rest


def _larger(a: Value, b: Value) -> Value:
    return Mux(a > b, a, b)


def _effective(field: Value) -> Value:
    """The exponent field; that of subnormal numbers is 0 and counts as 1."""
    return Cat(field[0] | ~field.any(), field[1:])
