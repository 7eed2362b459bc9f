"""Vectors of rotated coefficients to codes of a fixed codebook with one scale a vector, and back."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Signal, Value, signed, unsigned
from amaranth.lib import data

from hw.arith._shapes import register
from hw.kv_cache.hadamard import check_hadamard_size
from hw.kv_cache.lockstep import Lockstep, Stage, delayed, flag_line, word_count
from hw.kv_cache.scale import ScaledConstants, ScaleEncoder
from hw.kv_cache.vector_tables import (
    ThresholdTables,
    buffer_count,
    magnitude_of,
    written_table,
    written_vectors,
)
from quantizers.errors import UsageError
from quantizers.kv_cache.codebook import Codebook, ScaleFormat
from quantizers.kv_cache.rotation import halvings, largest_sum


def most_lanes(size: int, bits: int) -> int:
    """Of vectors of *size* coefficients, so that each has a word for each level of codes of *bits* bits."""
    return max(1, size >> (bits - 1))


class RotatedQuantizer(Lockstep):
    """Coefficients to codes and the code of the vector's scale.

    What :class:`quantizers.kv_cache.codebook.Codebook` and ``ScaleFormat`` compute for coefficients of
    :func:`quantizers.kv_cache.rotation.rotate`.

    Ports:
        ``inputs``: stream of words of *lanes* signed coefficients.
        ``outputs``: stream of words of *lanes* ``codes`` and the ``scale``, which is the same in all words of
            a vector.

    One word a cycle; latency :attr:`latency` cycles, most of which the vector waits in LUT RAM for its scale.

    Structure: magnitudes are summed, the sum becomes a scale, one multiplier makes the thresholds of a
    vector while the next one comes in, and each lane searches its code in halves, a bit a cycle.

    Args:
        size: coefficients of a vector: 8, 16, 32, 64 or 128.
        lanes: coefficients of a word, a power of two; a vector has a word for each threshold at least.
        bits: of a code, 1 to 6.
        scale: format of the scales; by default 8 bits that reach every vector of 16-bit elements.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(self, *, size: int, lanes: int, bits: int, scale: ScaleFormat | None = None) -> None:
        super().__init__(QuantizerStage(size=size, lanes=lanes, bits=bits, scale=scale))


class RotatedDequantizer(Lockstep):
    """Codes and scales to coefficients: the inverse of :class:`RotatedQuantizer`.

    Ports: ``inputs``: what the quantizer gives; the scale is read with the first word of a vector.
    ``outputs``: stream of words of *lanes* signed coefficients. One word a cycle; latency :attr:`latency`.

    Structure: one multiplier makes the levels of a vector while the one before goes out, and writes them to a
    table in LUT RAM, of which each lane has a copy.

    Args:
        size, lanes, bits, scale: as of the quantizer. No scale must come that the quantizer does not give.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(self, *, size: int, lanes: int, bits: int, scale: ScaleFormat | None = None) -> None:
        super().__init__(DequantizerStage(size=size, lanes=lanes, bits=bits, scale=scale))


class CodebookStage(Stage):
    """What both directions share: codebook, scales, layouts.

    Args:
        size, lanes, bits, scale: see :class:`RotatedQuantizer`.
    """

    def __init__(
        self, *, size: int, lanes: int, bits: int, scale: ScaleFormat | None, is_inverse: bool
    ) -> None:
        check_hadamard_size(size)
        words = word_count(size, lanes)
        self._lanes = lanes
        self._book = Codebook(bits=bits, size=size)
        self._largest_sum = largest_sum(size)
        self._scale = scale or ScaleFormat.covering(self._largest_sum)
        if self._scale.largest < self._largest_sum:
            msg = f"the scales reach {self._scale.largest}, but a vector's sum can be {self._largest_sum}"
            raise UsageError(msg, given=self._scale, expected=[str(ScaleFormat.covering(self._largest_sum))])
        self._check_words(words, len(self._book.levels) if is_inverse else len(self._book.thresholds))
        coefficients = self._level_layout() if is_inverse else self._coefficient_layout(size)
        codes = self.code_layout
        super().__init__(
            inputs=codes if is_inverse else coefficients,
            outputs=coefficients if is_inverse else codes,
            words=words,
        )

    @property
    def code_layout(self) -> data.StructLayout:
        """Of a word of codes and the scale of its vector."""
        codes = data.ArrayLayout(unsigned(self._book.bits), self._lanes)
        return data.StructLayout({"codes": codes, "scale": unsigned(self._scale.bits)})

    def _check_words(self, words: int, products: int) -> None:
        if products <= words:
            return
        most = self._lanes * words // (1 << (products - 1).bit_length())
        msg = (
            f"codes of {self._book.bits} bits take {products} products a vector and so as many words, "
            f"not {words}; expected at most {most} lanes"
        )
        raise UsageError(msg, given=self._lanes, expected=[f"at most {most} lanes", "fewer bits"])

    @property
    def largest_scale(self) -> int:
        """The largest one that a vector can have."""
        return int(self._scale.decode(self._scale.encode(self._largest_sum)))

    def _coefficient_layout(self, size: int) -> data.ArrayLayout:
        # Differences of 16-bit elements have 17 bits.
        bits = 17 + size.bit_length() - 1 - halvings(size)
        return data.ArrayLayout(signed(bits), self._lanes)

    def _level_layout(self) -> data.ArrayLayout:
        largest = 2 * (self._book.levels[-1] * self.largest_scale >> (self._book.shift + 1)) + 1
        return data.ArrayLayout(signed(largest.bit_length() + 1), self._lanes)

    def _constants(self, constants: tuple[int, ...], shift: int) -> ScaledConstants:
        return ScaledConstants(
            constants=constants, shift=shift, scale=self._scale, largest=self.largest_scale
        )

    def first_scale(self, m: Module) -> tuple[Signal, Signal]:
        """The scale that came with a vector's first word, from the cycle after it on, and a flag in that."""
        position = Signal(range(self.words))
        with m.If(self.valid):
            m.d.sync += position.eq(position + 1)
        start, scale = Signal(), Signal(self._scale.bits, reset_less=True)
        is_first = self.valid & (position == 0)
        m.d.sync += start.eq(is_first)
        with m.If(is_first):
            m.d.sync += scale.eq(self.inputs.scale)
        return scale, start

    def vector_number(self, m: Module, valid: Value, buffers: int) -> Value:
        """Modulo *buffers*, of the word that is there."""
        word = Signal(range(self.words * buffers), name="word_number")
        with m.If(valid):
            m.d.sync += word.eq(word + 1)
        return word[(self.words - 1).bit_length() :]


class QuantizerStage(CodebookStage):
    """The pipeline of :class:`RotatedQuantizer`, see there."""

    def __init__(self, *, size: int, lanes: int, bits: int, scale: ScaleFormat | None = None) -> None:
        super().__init__(size=size, lanes=lanes, bits=bits, scale=scale, is_inverse=False)
        self._steps = bits - 1
        self._products = (
            self._constants(self._book.thresholds, self._book.shift) if self._book.thresholds else None
        )

    @property
    def latency(self) -> int:
        """To the complete sum, to its code, to the last threshold, and a cycle for each bit searched."""
        return self._search_age + self._steps

    @property
    def _sum_age(self) -> int:
        """Of the first word, when the sum of its vector is there."""
        return self._lanes.bit_length() - 1 + self.words

    @property
    def _scale_age(self) -> int:
        return self._sum_age + ScaleEncoder.latency

    @property
    def _search_age(self) -> int:
        products = self._products
        return self._scale_age + (products.latency + len(self._book.thresholds) + 1 if products else 0)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        there = flag_line(m, self.valid, self.latency)
        m.submodules.encoder = encoder = ScaleEncoder(largest=self._largest_sum, scale=self._scale)
        starts, total = self._add_sum(m, there[self._lanes.bit_length() - 1])
        first = flag_line(m, starts, self.words + ScaleEncoder.latency)
        m.d.comb += [encoder.total.eq(total), encoder.enable.eq(first[self.words])]
        scale = delayed(m, "scale_line", encoder.code, self.latency - self._scale_age)
        coefficients = self._delayed_words(m)
        codes = self._search(m, coefficients, encoder.code, first[-1], there)
        m.d.comb += [Value.cast(self.outputs.codes).eq(Cat(codes)), self.outputs.scale.eq(scale)]
        return m

    def _delayed_words(self, m: Module) -> list[Value]:
        words = delayed(m, "words_line", self.inputs, self._search_age)
        width = len(words) // self._lanes
        return [words[lane * width : (lane + 1) * width] for lane in range(self._lanes)]

    def _add_sum(self, m: Module, valid: Value) -> tuple[Value, Value]:
        """When the first word's sum is there, and the running sum of its vector, a cycle later."""
        terms = [magnitude_of(Value.cast(self.inputs[lane])) for lane in range(self._lanes)]
        while len(terms) > 1:
            terms = [register(m, a + b) for a, b in zip(terms[::2], terms[1::2], strict=True)]
        position = Signal(range(self.words))
        with m.If(valid):
            m.d.sync += position.eq(position + 1)
        starts, total = Signal(), Signal(range(self._largest_sum + 1), reset_less=True)
        is_first = position == 0
        m.d.comb += starts.eq(valid & is_first)
        before = total & ~is_first.replicate(len(total))
        with m.If(valid):
            m.d.sync += total.eq(before + terms[0])
        return starts, total

    def _search(
        self, m: Module, coefficients: list[Value], code: Value, start: Value, there: list[Value]
    ) -> list[Value]:
        """The codes, a cycle later for each threshold that a lane is compared with."""
        if self._products is None:
            return [~coefficient[-1] for coefficient in coefficients]
        m.submodules.products = products = self._products
        m.d.comb += [products.code.eq(code), products.start.eq(start)]
        # The last step reads until the last word of its vector, while the next vectors' are written.
        needed = len(self._book.thresholds) + self.words + self._steps - 1
        buffers = buffer_count(needed, self.words)
        thresholds = ThresholdTables(m, products, steps=self._steps, buffers=buffers)
        # One cycle ahead of the coefficients.
        number = self.vector_number(m, there[self._search_age - 1], buffers)
        found: list[Value] = [Cat() for _ in coefficients]
        for depth in range(self._steps):
            limits = thresholds.limits(depth, number, found)
            found = [
                register(m, Cat(magnitude_of(coefficient) >= limit, bits))
                for coefficient, limit, bits in zip(coefficients, limits, found, strict=True)
            ]
            coefficients = [register(m, coefficient) for coefficient in coefficients]
            number = register(m, number)
        return [
            Cat(bits ^ coefficient[-1].replicate(len(bits)), ~coefficient[-1])
            for coefficient, bits in zip(coefficients, found, strict=True)
        ]


class DequantizerStage(CodebookStage):
    """The pipeline of :class:`RotatedDequantizer`, see there."""

    def __init__(self, *, size: int, lanes: int, bits: int, scale: ScaleFormat | None = None) -> None:
        super().__init__(size=size, lanes=lanes, bits=bits, scale=scale, is_inverse=True)
        self._products = self._constants(self._book.levels, self._book.shift + 1)

    @property
    def latency(self) -> int:
        """Until the last level is in the table, and a cycle to look it up."""
        return self._lookup_age + 1

    @property
    def _lookup_age(self) -> int:
        return 1 + self._products.latency + len(self._book.levels)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.products = products = self._products
        there = flag_line(m, self.valid, self.latency)
        scale, start = self.first_scale(m)
        m.d.comb += [products.code.eq(scale), products.start.eq(start)]
        self._look_up(m, there[self._lookup_age], delayed(m, "is_there", scale.any(), self._lookup_age - 1))
        return m

    def _look_up(self, m: Module, valid: Value, is_there: Value) -> None:
        products, bits = self._products, self._book.bits
        needed = len(self._book.levels) + self.words - 1
        buffers = buffer_count(needed, self.words)
        written = written_vectors(m, products, buffers)
        number = self.vector_number(m, valid, buffers)
        codes = delayed(m, "codes_line", self.inputs.codes, self._lookup_age)
        for lane in range(self._lanes):
            code = codes[lane * bits : (lane + 1) * bits]
            is_negative = ~code[-1]
            magnitude = code[:-1] ^ is_negative.replicate(bits - 1)
            half = written_table(
                m,
                f"levels{lane}",
                Cat(products.index[: bits - 1], written),
                products.write,
                products.value,
                Cat(magnitude, number),
            )
            flipped = is_negative & is_there
            level = Cat(is_there, half ^ flipped.replicate(len(half)), flipped).as_signed()
            result = Signal(signed(len(level)), name=f"result{lane}", reset_less=True)
            m.d.sync += result.eq(level)
            m.d.comb += self.outputs[lane].eq(result)
