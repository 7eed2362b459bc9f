"""Products of several matrices, in turn, with a stream of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._checks import check_positive
from hw._component import Component
from hw.mvu._counter import step
from hw.mvu.folding import Folding
from hw.mvu.input_buffer import InputBuffer
from hw.mvu.loader import Loader
from hw.mvu.processing_element import LUTRAM, ProcessingElement
from hw.mvu.unit import MEMORIES
from hw.reference.widths import exact_accumulator_bits
from hw.sharing import add_alike
from quantizers.errors import unknown_choice
from quantizers.formats import ScalarFormat

_MARKS = data.StructLayout({"is_valid": 1, "is_first": 1, "is_last": 1})


class MatricesInTurn(Component):
    """:class:`hw.mvu.MatrixVectorUnit` with a matrix for each head: the first vector meets the first matrix.

    Its parts, with the matrices on top of each other: a vector is kept for the rows of its own matrix only.

    Ports: ``load``, ``inputs``, ``outputs`` as there; the load stream is the words of all rows of all
    matrices, see :meth:`load_words`, and it is taken only between the last matrix and the first.

    Initiation interval :attr:`interval` = ceil(rows / pe) * ceil(columns / simd) cycles a vector. The first
    results of a vector are valid :attr:`latency` cycles after its last word was taken (where the unit is
    idle), then *pe* more every ceil(columns / simd) cycles, or when the last ones were taken.

    Args:
        weights, activations: integer formats.
        matrices: how many.
        rows, columns: of each.
        pe: rows worked on at a time.
        simd: columns of a cycle.
        memory: of the weights: ``lutram``, ``bram`` or ``registers``.
        multipliers: ``luts`` or ``dsps``.
        name: of the modules of its processing elements: another one for each unit of a design.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        weights: ScalarFormat,
        activations: ScalarFormat,
        matrices: int,
        rows: int,
        columns: int,
        pe: int,
        simd: int,
        memory: str = "bram",
        multipliers: str = "luts",
        name: str = "element",
    ) -> None:
        check_positive("matrices", matrices)
        self.folding = Folding(rows=rows, columns=columns, pe=pe, simd=simd)
        if memory not in MEMORIES:
            raise unknown_choice("memory", memory, MEMORIES)
        self._name, self._weight_bits = name, weights.bits
        # Each matrix begins a new fold.
        stacked_rows = matrices * self.folding.row_folds * pe
        self._stacked = Folding(rows=stacked_rows, columns=columns, pe=pe, simd=simd)
        bits = exact_accumulator_bits(weights, activations, columns)
        self.sum_shape = signed(bits)
        self._elements = [
            ProcessingElement(
                self._stacked,
                weights=weights,
                activations=activations,
                accumulator_bits=bits,
                parameters=data.StructLayout({}),
                memory_attrs=MEMORIES[memory],
                output=None,
                multipliers=multipliers,
            )
            for _ in range(pe)
        ]
        super().__init__(
            {
                "load": In(stream.Signature(simd * weights.bits)),
                "inputs": In(stream.Signature(data.ArrayLayout(activations.bits, simd))),
                "outputs": Out(stream.Signature(data.ArrayLayout(self.sum_shape, pe))),
            }
        )

    @property
    def load_count(self) -> int:
        """Words of the load stream."""
        return self._stacked.rows * self.folding.column_folds

    @property
    def interval(self) -> int:
        """Cycles from vector to vector."""
        return self.folding.cycles

    @property
    def latency(self) -> int:
        """Cycles from the one in which a vector's last word is taken to the first with results of it."""
        return self._elements[0].result_cycle + 2

    def load_words(self, matrices: npt.ArrayLike) -> list[int]:
        """The load stream's words for integers of shape (matrices, rows, columns)."""
        folding, bits = self.folding, self._weight_bits
        rows = folding.row_folds * folding.pe - folding.rows
        padded = np.pad(np.asarray(matrices), [(0, 0), (0, rows), (0, folding.spare_lanes)])
        mask = (1 << bits) - 1
        return [
            sum((code & mask) << bits * lane for lane, code in enumerate(word))
            for word in padded.reshape(-1, folding.simd).tolist()
        ]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        folding = self.folding
        advance = Signal()
        m.submodules.loader = loader = Loader(self._stacked, weight_bits=self._weight_bits, parameter_bits=0)
        m.submodules.buffer = buffer = InputBuffer(
            word=self.inputs.payload.shape(), depth=folding.column_folds, attrs=LUTRAM
        )
        connect(m, flipped(self.load), loader.load)
        connect(m, flipped(self.inputs), buffer.inputs)
        address = Signal(range(self._stacked.cycles))
        column, fold = Signal.like(buffer.column), Signal(range(folding.row_folds))
        now = Signal(_MARKS)
        issues = now.is_valid & advance
        m.d.comb += [
            now.is_valid.eq(buffer.available & (loader.may_start | (address != 0))),
            now.is_first.eq(column == 0),
            now.is_last.eq(step(m, column, folding.column_folds, issues)),
            buffer.column.eq(column),
            buffer.enable.eq(advance),
            buffer.release.eq(step(m, fold, folding.row_folds, now.is_last)),
        ]
        step(m, address, self._stacked.cycles, issues)
        marks = self._marks(m, now, advance)
        add_alike(m, self._name, self._elements, platform)
        for lane, element in enumerate(self._elements):
            m.d.comb += [
                element.advance.eq(advance),
                element.read_address.eq(address),
                element.activations.eq(buffer.word),
                element.is_first.eq(marks[element.sum_cycle].is_first),
                element.enable.eq(marks[element.sum_cycle].is_valid),
                element.write_address.eq(loader.address),
                element.word.eq(loader.word),
                element.write_weights.eq(loader.write_weights[lane]),
            ]
        m.d.comb += loader.is_idle.eq((address == 0) & ~Cat(mark.is_valid for mark in marks[1:]).any())
        self._keep_results(m, marks[-1].is_valid & marks[-1].is_last, advance)
        return m

    def _marks(self, m: Module, now: Any, advance: Value) -> list[Any]:
        """Those of this and of the last cycles."""
        marks = [now]
        for cycle in range(1, self._elements[0].result_cycle + 1):
            later = Signal(_MARKS, name=f"marks{cycle}")
            with m.If(advance):
                m.d.sync += later.eq(marks[-1])
            marks.append(later)
        return marks

    def _keep_results(self, m: Module, finished: Value, advance: Signal) -> None:
        """Results wait in registers of their own; the pipeline stops only if the next ones are finished."""
        waits = self.outputs.valid & ~self.outputs.ready
        results = Signal.like(Value.cast(self.outputs.payload), reset_less=True)
        with m.If(finished & ~waits):
            m.d.sync += results.eq(Cat(element.result for element in self._elements))
        m.d.sync += self.outputs.valid.eq(finished | waits)
        m.d.comb += [Value.cast(self.outputs.payload).eq(results), advance.eq(~(finished & waits))]
