"""Packed codes of a calibrated transform to keys or values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Module, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._component import Component
from hw.kv_cache.quantizer import check_lanes
from hw.kv_cache.transform_geometry import (
    Means,
    TransformGeometry,
    coefficient_widths,
    crosses_word,
    level_words,
    stacked,
)
from hw.kv_cache.transform_lanes import Gatherer, Serializer
from hw.kv_cache.transform_levels import LevelLookup
from hw.kv_cache.transform_load import LoadRouter
from hw.kv_cache.transform_matrices import MatricesInTurn
from hw.kv_cache.transform_rounding import ELEMENT, SaturatingOffset, ShiftRounder
from hw.mvu._counter import step
from quantizers.formats import IntegerFormat
from quantizers.kv_cache.transform import LEVEL_BITS, Block


class TransformReader(Component):
    """Gives the vectors back of which :class:`hw.kv_cache.transform_writer.TransformWriter` made words.

    :meth:`quantizers.kv_cache.transform.Block.decode`, bit for bit, and the means added, saturated again
    (:class:`quantizers.kv_cache.codec.Centred`). Matrices and tables are loaded.

    Ports:
        ``load``: stream of :meth:`load_words`. It is taken between tokens, and no token starts before its
            end.
        ``words``: stream as the writer gives it.
        ``outputs``: stream of words of *lanes* 16-bit elements; the vectors of a token in turn.

    Cycles: see :meth:`interval` and :attr:`latency`. With *pe* above the cycles of a row's columns the first
    tokens may be a few cycles late, at most the difference together.

    Args:
        geometry: what there must be room for.
        lanes: elements of a word; they must divide a vector.
        pe: elements that are worked on at a time; they must divide a vector.
        simd: coefficients of a cycle, of each.
        word_bits: of a word of codes.
        memory: of the matrices: ``bram``, ``lutram`` or ``registers``.
        multipliers: ``luts`` or ``dsps``.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        geometry: TransformGeometry,
        lanes: int = 8,
        pe: int = 8,
        simd: int = 8,
        word_bits: int = 32,
        memory: str = "bram",
        multipliers: str = "luts",
    ) -> None:
        check_lanes(geometry.elements, lanes, of="vector")
        check_lanes(geometry.elements, pe, of="vector", name="pe")
        self.geometry, self._lanes, self._word_bits = geometry, lanes, word_bits
        self._lookup = LevelLookup(
            coefficients=geometry.token_coefficients,
            levels=geometry.levels,
            max_bits=len(geometry.slots),
            word_bits=word_bits,
        )
        self._unit = MatricesInTurn(
            weights=IntegerFormat(bits=geometry.entry_bits),
            activations=IntegerFormat(bits=LEVEL_BITS),
            matrices=geometry.matrices,
            rows=geometry.elements,
            columns=geometry.coefficients,
            pe=pe,
            simd=simd,
            memory=memory,
            multipliers=multipliers,
            name="inverse_element",
        )
        width = max(len(self._unit.load.payload), LEVEL_BITS)
        super().__init__(
            {
                "load": In(stream.Signature(width)),
                "words": In(stream.Signature(word_bits)),
                "outputs": Out(stream.Signature(data.ArrayLayout(ELEMENT, lanes))),
            }
        )

    def interval(self, blocks: Sequence[Block]) -> int:
        """Cycles from token to token: the most of its codes, and one if the last one goes on in a word of its
        own, and of the folds of its vectors, each of which takes the cycles of its columns or its elements.
        """
        widths = coefficient_widths(blocks, self.geometry.coefficients)
        return max(
            len(widths) + crosses_word(widths, self._word_bits), self.geometry.matrices * self._vector_folds
        )

    @property
    def latency(self) -> int:
        """Cycles from the one in which a token's first word was taken to the first in which its last word of
        elements is offered, where the reader was idle and nothing waits outside."""
        folding, n = self._unit.folding, self.geometry.coefficients
        arrives = (self.geometry.matrices - 1) * max(n, self._vector_folds) + n + self._lookup.latency
        # No sums come after the last ones: these need not wait for a fold's columns.
        summed = self._unit.latency - 1 + self._vector_folds - max(0, folding.column_folds - folding.pe)
        centring = SaturatingOffset.latency if self.geometry.has_means else 0
        return arrives + summed + ShiftRounder.latency + centring + 1

    @property
    def load_count(self) -> int:
        """Words of the load stream."""
        return sum(self._sizes)

    def load_words(self, blocks: Sequence[Block], means: Means = None) -> list[int]:
        """The words of the load stream for the blocks of a token, and for its means, shape (elements,).

        Raises:
            UsageError: they do not fit the geometry.
        """
        geometry = self.geometry
        geometry.check(blocks, means)
        n = geometry.coefficients
        matrices = stacked([block.inverse for block in blocks], rows=geometry.elements, columns=n)
        levels = level_words(blocks, n)
        return [
            *self._unit.load_words(matrices),
            *coefficient_widths(blocks, n),
            *levels,
            *[0] * (geometry.levels - len(levels)),
            *[block.shift for block in blocks],
            *geometry.mean_words(means),
        ]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        geometry, unit, lookup = self.geometry, self._unit, self._lookup
        m.submodules.lookup, m.submodules.unit = lookup, unit
        m.submodules.router = router = LoadRouter(sizes=self._sizes, width=len(self.load.payload))
        m.submodules.levels = levels = Gatherer(
            shape=signed(LEVEL_BITS), lanes=unit.folding.simd, elements=geometry.coefficients
        )
        m.submodules.sums = sums = Serializer(
            shape=unit.sum_shape, lanes=unit.folding.pe, elements=geometry.elements
        )
        m.submodules.rounder = rounder = ShiftRounder(
            shape=unit.sum_shape, matrices=geometry.matrices, elements=geometry.elements
        )
        m.submodules.gatherer = gatherer = Gatherer(
            shape=ELEMENT, lanes=self._lanes, elements=geometry.elements
        )
        connect(m, flipped(self.load), router.load)
        connect(m, flipped(self.words), lookup.words)
        connect(m, lookup.outputs, levels.inputs)
        m.d.comb += [
            Value.cast(unit.inputs.payload).eq(Value.cast(levels.outputs.payload)),
            unit.inputs.valid.eq(levels.outputs.valid),
            levels.outputs.ready.eq(unit.inputs.ready),
        ]
        connect(m, unit.outputs, sums.inputs)
        connect(m, sums.outputs, rounder.inputs)
        elements = self._with_means(m, rounder.outputs, router)
        connect(m, elements, gatherer.inputs)
        connect(m, gatherer.outputs, flipped(self.outputs))
        last = step(
            m,
            Signal(range(geometry.token_elements), name="element"),
            geometry.token_elements,
            elements.valid & elements.ready,
        )
        m.d.comb += [
            router.is_idle.eq(lookup.is_idle),
            lookup.may_start.eq(router.may_start),
            lookup.finished.eq(last),
            unit.load.valid.eq(router.write[0]),
            unit.load.payload.eq(router.word),
            lookup.write.eq(router.write[1:3]),
            rounder.write.eq(router.write[3]),
        ]
        for part in (lookup, rounder):
            m.d.comb += [part.address.eq(router.address), part.word.eq(router.word)]
        return m

    @property
    def _vector_folds(self) -> int:
        """Cycles from vector to vector, where its codes come fast enough."""
        folding = self._unit.folding
        return folding.row_folds * max(folding.column_folds, folding.pe)

    @property
    def _sizes(self) -> list[int]:
        """Words of the parts of the load stream."""
        geometry = self.geometry
        means = [geometry.token_elements] if geometry.has_means else []
        return [self._unit.load_count, *self._lookup.sizes, geometry.matrices, *means]

    def _with_means(self, m: Module, elements: Any, router: LoadRouter) -> Any:
        """The stream of elements, means added where there are any."""
        if not self.geometry.has_means:
            return elements
        m.submodules.means = means = SaturatingOffset(elements=self.geometry.token_elements, subtracts=False)
        connect(m, elements, means.inputs)
        m.d.comb += [
            means.write.eq(router.write[-1]),
            means.address.eq(router.address),
            means.word.eq(router.word),
        ]
        return means.outputs
