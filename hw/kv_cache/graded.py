"""Codes of a width each: cut from the finest ones and put together, taken apart and turned into levels."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value, unsigned
from amaranth.lib import data

from hw.arith._shapes import register
from hw.kv_cache.codebook import CodebookStage
from hw.kv_cache.lane_table import LaneTable
from hw.kv_cache.lockstep import Stage, delayed, flag_line
from hw.kv_cache.vector_tables import buffer_count, written_table, written_vectors
from hw.mvu._counter import step
from quantizers.kv_cache.codebook import Codebook, ScaleFormat


def width_field(finest: int) -> Shape:
    """Bits of a code."""
    return Shape.cast(range(finest + 1))


def item_layout(*, lanes: int, finest: int, scale_bits: int) -> data.StructLayout:
    """The codes of a word, each above the one before, and of a vector's first word below them the scale;
    ``width``: bits of it all."""
    most = scale_bits + lanes * finest
    return data.StructLayout({"code": unsigned(most), "width": Shape.cast(range(most + 1))})


class CuttingStage(Stage):
    """Of each code its highest bits, put together.

    Ports: ``inputs``: words of *lanes* ``codes`` of *finest* bits, and their ``scale``. ``outputs``: see
    :func:`item_layout`.

    Args:
        finest: bits of a code that comes in.
        scale_bits: of a scale.
        words: of a vector.
        table: of :func:`width_field`; elaborated with this component.
    """

    def __init__(self, *, finest: int, scale_bits: int, words: int, table: LaneTable) -> None:
        self._finest, self._table = finest, table
        self._lanes = len(table.row)
        super().__init__(
            inputs=data.StructLayout(
                {"codes": data.ArrayLayout(unsigned(finest), self._lanes), "scale": unsigned(scale_bits)}
            ),
            outputs=item_layout(lanes=self._lanes, finest=finest, scale_bits=scale_bits),
            words=words,
        )

    @property
    def latency(self) -> int:
        """To look widths up, to cut, for each time that neighbours are put together, and for the scale."""
        return 3 + self._lanes.bit_length() - 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.table = table = self._table
        m.d.comb += table.advance.eq(self.valid)
        parts = [
            (register(m, _highest_bits(m, register(m, code), width, self._finest)), register(m, width))
            for code, width in zip(self.inputs.codes, table.row, strict=True)
        ]
        while len(parts) > 1:
            parts = [
                (register(m, low | _shifted_up(m, high, low_width)), register(m, low_width + high_width))
                for (low, low_width), (high, high_width) in zip(parts[::2], parts[1::2], strict=True)
            ]
        ((codes, width),) = parts
        is_first, scale = self._first_and_scale(m)
        with_scale = Cat(scale, codes)
        m.d.comb += [
            self.outputs.code.eq(register(m, Mux(is_first, with_scale, codes))),
            self.outputs.width.eq(register(m, Mux(is_first, width + len(scale), width))),
        ]
        return m

    def _first_and_scale(self, m: Module) -> tuple[Value, Value]:
        """Whether the codes that are together are those of a vector's first word, and the scale."""
        position = Signal(range(self.words))
        step(m, position, self.words, self.valid)
        is_first: Value = position == 0
        for _ in range(self.latency - 1):
            is_first = register(m, is_first)
        return is_first, delayed(m, "scale_line", self.inputs.scale, self.latency - 1)


class SplittingStage(Stage):
    """The inverse of :class:`CuttingStage`, as far as a table of levels needs it.

    Ports: ``inputs``: an item without its width, zeros above it. ``outputs``: for each lane the ``index`` of
    its magnitude, whose highest one is above the ``b - 1`` bits of the magnitude (0 for a code of no bits),
    and the ``sign``; and the ``scale``, which is right in a vector's first word.

    Args:
        finest: bits of a code at most.
        scale_bits: of a scale.
        words: of a vector.
        table: of :func:`width_field`; elaborated with this component.
    """

    def __init__(self, *, finest: int, scale_bits: int, words: int, table: LaneTable) -> None:
        self._finest, self._scale_bits, self._table = finest, scale_bits, table
        self._lanes = len(table.row)
        super().__init__(
            inputs=unsigned(scale_bits + self._lanes * finest),
            outputs=index_layout(lanes=self._lanes, finest=finest, scale_bits=scale_bits),
            words=words,
        )

    @property
    def latency(self) -> int:
        """To take the scale off, for each time that a part is halved, and to make the indices."""
        return 2 + self._lanes.bit_length() - 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.table = table = self._table
        position = Signal(range(self.words))
        step(m, position, self.words, self.valid)
        m.d.comb += table.advance.eq(self.valid)
        scale = self.inputs[: self._scale_bits]
        codes = Mux(position == 0, self.inputs[self._scale_bits :], self.inputs[: self._lanes * self._finest])
        parts: list[tuple[Value, list[Value]]] = [(register(m, codes), list(table.row))]
        while len(parts) < self._lanes:
            parts = [half for part, widths in parts for half in self._halves(m, part, widths)]
        for lane, (code, (width,)) in enumerate(parts):
            index, sign = self._index(m, code, width)
            m.d.comb += [
                self.outputs.lanes[lane].index.eq(register(m, index)),
                self.outputs.lanes[lane].sign.eq(register(m, sign)),
            ]
        m.d.comb += self.outputs.scale.eq(delayed(m, "scale_line", scale, self.latency))
        return m

    def _halves(self, m: Module, part: Value, widths: list[Value]) -> list[tuple[Value, list[Value]]]:
        """The codes of the first half of the lanes, with what is above them, and those of the second."""
        half = len(widths) // 2
        below: Value = widths[0]
        for width in widths[1:half]:
            below = below + width
        bits = half * self._finest
        later = [register(m, width) for width in widths]
        high = part >> below
        return [
            (register(m, part[:bits]), later[:half]),
            (register(m, high[:bits]), later[half:]),
        ]

    def _index(self, m: Module, code: Value, width: Value) -> tuple[Signal, Signal]:
        index, sign = Signal(self._finest), Signal()
        with m.Switch(width):
            for bits in range(1, self._finest + 1):
                with m.Case(bits):
                    magnitude = code[: bits - 1] ^ (~code[bits - 1]).replicate(bits - 1)
                    m.d.comb += [sign.eq(~code[bits - 1]), index.eq(Cat(magnitude, 1))]
        return index, sign


def index_layout(*, lanes: int, finest: int, scale_bits: int) -> data.StructLayout:
    """What :class:`SplittingStage` gives."""
    lane = data.StructLayout({"index": unsigned(finest), "sign": 1})
    return data.StructLayout({"lanes": data.ArrayLayout(lane, lanes), "scale": unsigned(scale_bits)})


class GradedDequantizerStage(CodebookStage):
    """Indices of magnitudes to levels, ``Codebook.dequantize`` of codebooks of several widths.

    Ports: ``inputs``: see :func:`index_layout`; the scale is read with the first word of a vector.
    ``outputs``: words of *lanes* signed coefficients.

    Structure: as :class:`hw.kv_cache.codebook.DequantizerStage`, with a second multiplier and a second table
    for the levels of all widths below the finest, of which there are as many.

    Args:
        size: coefficients of a vector: 8, 16, 32, 64 or 128.
        lanes: coefficients of a word, a power of two; a vector has a word for each of the finest levels.
        finest: bits of the widest code, 2 to 6.
        scale: format of the scales.
    """

    def __init__(self, *, size: int, lanes: int, finest: int, scale: ScaleFormat | None = None) -> None:
        super().__init__(size=size, lanes=lanes, bits=finest, scale=scale, is_inverse=True)
        coarser = [Codebook(bits=bits, size=size, finest=finest).levels for bits in range(1, finest)]
        # Index 0 is that of a code of no bits.
        tables = ((0, *(level for levels in coarser for level in levels)), self._book.levels)
        self._products = [self._constants(table, self._book.shift + 1) for table in tables]

    @property
    def code_layout(self) -> data.StructLayout:
        """See :func:`index_layout`."""
        return index_layout(lanes=self._lanes, finest=self._book.bits, scale_bits=self._scale.bits)

    @property
    def latency(self) -> int:
        """Until the last level is in the table, and a cycle to look it up."""
        return self._lookup_age + 1

    @property
    def _lookup_age(self) -> int:
        return 1 + max(products.latency for products in self._products) + len(self._book.levels)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        there = flag_line(m, self.valid, self.latency)
        scale, start = self.first_scale(m)
        for number, products in enumerate(self._products):
            m.submodules[f"products{number}"] = products
            m.d.comb += [products.code.eq(scale), products.start.eq(start)]
        is_there = delayed(m, "is_there", scale.any(), self._lookup_age - 1)
        self._look_up(m, there[self._lookup_age], is_there)
        return m

    def _look_up(self, m: Module, valid: Value, is_there: Value) -> None:
        buffers = buffer_count(len(self._book.levels) + self.words - 1, self.words)
        written = [written_vectors(m, products, buffers) for products in self._products]
        number = self.vector_number(m, valid, buffers)
        lanes = delayed(m, "index_line", self.inputs.lanes, self._lookup_age)
        width = len(lanes) // self._lanes
        for lane in range(self._lanes):
            index, sign = lanes[lane * width : (lane + 1) * width - 1], lanes[(lane + 1) * width - 1]
            halves = [
                written_table(
                    m,
                    f"levels{grade}_{lane}",
                    Cat(products.index[: len(index) - 1], vectors),
                    products.write,
                    products.value,
                    Cat(index[:-1], number),
                )
                for grade, (products, vectors) in enumerate(zip(self._products, written, strict=True))
            ]
            half = Mux(index[-1], halves[1], halves[0])
            is_number = is_there & index.any()
            flipped = sign & is_number
            level = Cat(is_number, half ^ flipped.replicate(len(half)), flipped).as_signed()
            m.d.comb += self.outputs[lane].eq(register(m, level))


def _highest_bits(m: Module, code: Value, width: Value, finest: int) -> Signal:
    """So many of a code of *finest* bits."""
    cut = Signal(finest, name="cut")
    with m.Switch(width):
        for bits in range(1, finest + 1):
            with m.Case(bits):
                m.d.comb += cut.eq(code[finest - bits :])
    return cut


def _shifted_up(m: Module, number: Value, places: Value) -> Signal:
    """By as many places as the number itself can have bits at most."""
    shifted = Signal(2 * len(number), name="shifted")
    m.d.comb += shifted.eq(number << places)
    return shifted
