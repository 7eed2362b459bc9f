"""Keys or values to the packed codes of a calibrated transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Module, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._component import Component
from hw.kv_cache.quantizer import check_lanes
from hw.kv_cache.transform_geometry import (
    Means,
    TransformGeometry,
    coefficient_widths,
    crosses_word,
    stacked,
    stage_thresholds,
)
from hw.kv_cache.transform_lanes import Gatherer, Serializer
from hw.kv_cache.transform_load import LoadRouter, TokenGate
from hw.kv_cache.transform_matrices import MatricesInTurn
from hw.kv_cache.transform_packing import MixedPacker
from hw.kv_cache.transform_rounding import ELEMENT, SaturatingOffset
from hw.kv_cache.transform_search import ThresholdSearch
from quantizers.formats import IntegerFormat
from quantizers.kv_cache.fixed_point import BITS
from quantizers.kv_cache.packing import word_count
from quantizers.kv_cache.transform import Block


class TransformWriter(Component):
    """Codes the vectors of a token, each with the matrix and the tables of its own head.

    :meth:`quantizers.kv_cache.transform.Block.encode`, bit for bit, on what is left of the elements when
    means are taken away (:class:`quantizers.kv_cache.codec.Centred`). Matrices and tables are loaded.

    Ports:
        ``load``: stream of :meth:`load_words`. It is taken between tokens, and no token starts before its
            end.
        ``inputs``: stream of words of *lanes* 16-bit elements; the vectors of a token in turn.
        ``words``: stream of words of packed codes. The codes of a token lie one after the other, from a new
            word on; what is left of the last word is zero.

    Cycles: see :attr:`interval` and :meth:`latency`. With *pe* above the cycles of a row's columns the first
    tokens may be a few cycles late, at most the difference together.

    Args:
        geometry: what there must be room for.
        lanes: elements of a word; they must divide a vector.
        pe: coefficients that are worked on at a time.
        simd: elements of a cycle, of each.
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
        self.geometry, self._lanes, self._word_bits = geometry, lanes, word_bits
        self._unit = MatricesInTurn(
            weights=IntegerFormat(bits=geometry.entry_bits),
            activations=IntegerFormat(bits=BITS),
            matrices=geometry.matrices,
            rows=geometry.coefficients,
            columns=geometry.elements,
            pe=pe,
            simd=simd,
            memory=memory,
            multipliers=multipliers,
            name="forward_element",
        )
        self._search = ThresholdSearch(
            shape=self._unit.sum_shape, coefficients=geometry.token_coefficients, slots=geometry.slots
        )
        self._packer = MixedPacker(max_bits=len(geometry.slots), word_bits=word_bits)
        width = max(len(self._unit.load.payload), self._unit.sum_shape.width)
        super().__init__(
            {
                "load": In(stream.Signature(width)),
                "inputs": In(stream.Signature(data.ArrayLayout(ELEMENT, lanes))),
                "words": Out(stream.Signature(word_bits)),
            }
        )

    @property
    def interval(self) -> int:
        """Cycles from token to token.

        That of a vector, times the matrices: the most of its words (its elements, where they are serialised,
        since there are means, or words of another size than *simd*), and of its folds, each of which takes
        the cycles of its columns or those of its coefficients.
        """
        return self.geometry.matrices * self._vector_interval

    def latency(self, blocks: Sequence[Block]) -> int:
        """Cycles from the one in which a token's first word was taken to the first in which its last word of
        codes is offered, where the writer was idle and nothing waits outside; fewer where the last
        coefficients have no bits."""
        folding, d = self._unit.folding, self.geometry.elements
        centring = SaturatingOffset.latency if self.geometry.has_means else 0
        arrives = d + centring if self._is_serial else folding.column_folds - 1
        coded = self._unit.latency - 1 + self._early_folds + self._last_rows + self._search.latency
        widths = coefficient_widths(blocks, self.geometry.coefficients)
        goes_on = crosses_word(widths, self._word_bits)
        return (self.geometry.matrices - 1) * self._vector_interval + arrives + coded + 1 + goes_on

    def word_count(self, blocks: Sequence[Block]) -> int:
        """Words of a token."""
        widths = coefficient_widths(blocks, self.geometry.coefficients)
        return word_count(len(widths), widths, word_bits=self._word_bits)

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
        n, bits = geometry.coefficients, self._unit.sum_shape.width
        matrices = stacked([block.forward for block in blocks], rows=n, columns=geometry.elements)
        mask = (1 << bits) - 1
        words = [*self._unit.load_words(matrices), *coefficient_widths(blocks, n)]
        for stage, size in enumerate(self._search.sizes[1:]):
            thresholds = [t & mask for t in stage_thresholds(blocks, stage, bits=bits)]
            words += thresholds + [0] * (size - len(thresholds))
        return words + geometry.mean_words(means)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        geometry, unit, search = self.geometry, self._unit, self._search
        m.submodules.unit, m.submodules.search, m.submodules.packer = unit, search, self._packer
        m.submodules.router = router = LoadRouter(sizes=self._sizes, width=len(self.load.payload))
        m.submodules.gate = gate = TokenGate(
            shape=self.inputs.payload.shape(), items=geometry.token_elements // self._lanes
        )
        m.submodules.sums = sums = Serializer(
            shape=unit.sum_shape, lanes=unit.folding.pe, elements=geometry.coefficients
        )
        connect(m, flipped(self.load), router.load)
        connect(m, flipped(self.inputs), gate.inputs)
        self._connect_elements(m, gate.outputs, router)
        connect(m, unit.outputs, sums.inputs)
        connect(m, sums.outputs, search.inputs)
        connect(m, search.outputs, self._packer.inputs)
        connect(m, self._packer.outputs, flipped(self.words))
        coded = self._packer.inputs
        stages = len(search.sizes)
        m.d.comb += [
            router.is_idle.eq(gate.is_idle),
            gate.may_start.eq(router.may_start),
            gate.finished.eq(coded.valid & coded.ready & coded.payload.is_last),
            unit.load.valid.eq(router.write[0]),
            unit.load.payload.eq(router.word),
            search.write.eq(router.write[1 : 1 + stages]),
            search.address.eq(router.address),
            search.word.eq(router.word),
        ]
        return m

    @property
    def _is_serial(self) -> bool:
        """Whether elements go one by one before they meet the matrix."""
        return self.geometry.has_means or self._lanes != self._unit.folding.simd

    @property
    def _vector_interval(self) -> int:
        """Cycles from vector to vector."""
        columns = self._unit.folding.column_folds
        incoming = self.geometry.elements if self._is_serial else columns
        return max(incoming, self._early_folds + max(columns, self._last_rows))

    @property
    def _last_rows(self) -> int:
        """Rows of the last fold."""
        folding = self._unit.folding
        return folding.rows - (folding.row_folds - 1) * folding.pe

    @property
    def _early_folds(self) -> int:
        """Cycles from the sums of a vector's first fold to those of its last."""
        folding = self._unit.folding
        return (folding.row_folds - 1) * max(folding.column_folds, folding.pe)

    @property
    def _sizes(self) -> list[int]:
        """Words of the parts of the load stream."""
        means = [self.geometry.token_elements] if self.geometry.has_means else []
        return [self._unit.load_count, *self._search.sizes, *means]

    def _connect_elements(self, m: Module, source: Any, router: LoadRouter) -> None:
        """From the gate to the matrices."""
        unit, d = self._unit, self.geometry.elements
        if not self._is_serial:
            m.d.comb += [
                Value.cast(unit.inputs.payload).eq(Cat(source.payload)),
                unit.inputs.valid.eq(source.valid),
                source.ready.eq(unit.inputs.ready),
            ]
            return
        m.submodules.serializer = serializer = Serializer(shape=ELEMENT, lanes=self._lanes, elements=d)
        m.submodules.gatherer = gatherer = Gatherer(shape=ELEMENT, lanes=unit.folding.simd, elements=d)
        connect(m, source, serializer.inputs)
        elements = serializer.outputs
        if self.geometry.has_means:
            m.submodules.means = means = SaturatingOffset(
                elements=self.geometry.token_elements, subtracts=True
            )
            connect(m, elements, means.inputs)
            m.d.comb += [
                means.write.eq(router.write[-1]),
                means.address.eq(router.address),
                means.word.eq(router.word),
            ]
            elements = means.outputs
        connect(m, elements, gatherer.inputs)
        m.d.comb += [
            Value.cast(unit.inputs.payload).eq(Value.cast(gatherer.outputs.payload)),
            unit.inputs.valid.eq(gatherer.outputs.valid),
            gatherer.outputs.ready.eq(unit.inputs.ready),
        ]
