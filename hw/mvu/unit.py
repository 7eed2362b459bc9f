"""The matrix-vector unit."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._checks import check_positive
from hw._component import Component
from hw.arith.requantizer import Requantization
from hw.mvu._counter import step
from hw.mvu.folding import Folding
from hw.mvu.input_buffer import InputBuffer
from hw.mvu.loader import Loader
from hw.mvu.processing_element import LUTRAM, ProcessingElement
from hw.reference.widths import exact_accumulator_bits
from hw.sharing import add_alike
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import ScalarFormat

MEMORIES = {"lutram": LUTRAM, "bram": {"ram_style": "block"}, "registers": {"ram_style": "registers"}}
"""Kinds of memory for the weights, and what synthesis is told of them."""

OVERFLOWS = ("error", "wrap")
"""What an accumulator does that is too narrow for some sums: it is refused, or they wrap."""

_MARKS = data.StructLayout({"is_valid": 1, "is_first": 1, "is_last": 1})


class MatrixVectorUnit(Component):
    """Products of a matrix that it holds with a stream of vectors.

    The processing elements of Y. Umuroglu et al., "FINN", FPGA 2017, section 4.3 (its MVTU): *pe* rows
    are worked on at a time, *simd* columns a cycle, the rest in turns (folds). Rows and columns need not
    be multiples: what is missing from the last fold counts as zero, whatever is sent there.

    Ports:
        ``load``: input stream that fills the memories, row by row: the words of the row's weights (*simd*
        codes, the first column in the low bits), then, if there are any, its parameters in one word
        (:attr:`parameter_layout`): bias, multiplier, shift. Only the *rows* real rows. See
        :func:`hw.mvu.load_words`. A load is taken when the vector being computed, if any, has left
        the pipeline, and no vector starts before it is complete.
        ``inputs``: input stream of vectors, *simd* activation codes a transfer.
        ``outputs``: output stream, *pe* results a transfer: signed sums in units of
        ``2**(weights.grid.lsb_exponent + activations.grid.lsb_exponent)``, or codes of the output
        format. The lanes beyond the last row are zero. See :func:`hw.reference.matrix_vector`.

    Initiation interval :attr:`interval` = ceil(rows / pe) * ceil(columns / simd) cycles a vector, without
    a gap between vectors. The first results of a vector are valid :attr:`latency` cycles after its last
    word was taken (where the unit is idle), then *pe* more every ceil(columns / simd) cycles. The next
    vector can stream in meanwhile. Results that nobody takes stop the unit only when the next ones
    are complete.

    Args:
        weights: any scalar format without codes for NaN or infinity.
        activations: likewise; the two are independent.
        rows: of the matrix: results of a vector.
        columns: of the matrix: elements of a vector.
        pe: processing elements; at most *rows*.
        simd: lanes of each; at most *columns*.
        accumulator_bits: width of the sums; by default what no sum overflows, with one bit more if there
            are biases, which then may use all but that bit.
        overflow: ``wrap`` allows *accumulator_bits* too narrow for some sums; they wrap, two's complement.
        memory: of the weights: ``lutram``, ``bram`` or ``registers``.
        multipliers: ``luts``, or ``dsps``: a DSP slice a lane, for integers.
        has_bias: each row's sum starts at a bias, a signed number of *accumulator_bits*, in units of the
            sums.
        output: how sums become codes; without it, the sums come out.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        weights: ScalarFormat,
        activations: ScalarFormat,
        rows: int,
        columns: int,
        pe: int,
        simd: int,
        accumulator_bits: int | None = None,
        overflow: str = "error",
        memory: str = "lutram",
        multipliers: str = "luts",
        has_bias: bool = False,
        output: Requantization | None = None,
    ) -> None:
        self._folding = Folding(rows=rows, columns=columns, pe=pe, simd=simd)
        if memory not in MEMORIES:
            raise unknown_choice("memory", memory, MEMORIES)
        bits = _accumulator_bits(weights, activations, columns, has_bias, accumulator_bits, overflow)
        self._weight_bits = weights.bits
        self._parameters = _parameter_layout(bits if has_bias else 0, output)
        self._accumulator_bits = bits
        self._elements = [
            ProcessingElement(
                self._folding,
                weights=weights,
                activations=activations,
                accumulator_bits=bits,
                parameters=self._parameters,
                memory_attrs=MEMORIES[memory],
                output=output,
                multipliers=multipliers,
            )
            for _ in range(pe)
        ]
        word_bits = simd * weights.bits
        result = unsigned(output.format.bits) if output else signed(bits)
        super().__init__(
            {
                "load": In(stream.Signature(max(word_bits, self._parameters.size))),
                "inputs": In(stream.Signature(data.ArrayLayout(activations.bits, simd))),
                "outputs": Out(stream.Signature(data.ArrayLayout(result, pe))),
            }
        )

    @property
    def folding(self) -> Folding:
        """How the matrix is cut."""
        return self._folding

    @property
    def weight_bits(self) -> int:
        """Width of a weight code."""
        return self._weight_bits

    @property
    def accumulator_bits(self) -> int:
        """Width of the sums."""
        return self._accumulator_bits

    @property
    def parameter_layout(self) -> data.StructLayout:
        """The fields of a row's parameter word: those of ``bias``, ``multiplier``, ``shift`` in use."""
        return self._parameters

    @property
    def interval(self) -> int:
        """Initiation interval: cycles from vector to vector."""
        return self._folding.cycles

    @property
    def latency(self) -> int:
        """Cycles from the one in which a vector's last word is taken to the first with results of it."""
        return self._elements[0].result_cycle + 2

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        folding = self._folding
        advance = Signal()
        m.submodules.loader = loader = Loader(
            folding, weight_bits=self._weight_bits, parameter_bits=self._parameters.size
        )
        m.submodules.buffer = buffer = InputBuffer(
            word=self.inputs.payload.shape(), depth=folding.column_folds, attrs=LUTRAM
        )
        connect(m, flipped(self.load), loader.load)
        connect(m, flipped(self.inputs), buffer.inputs)

        address = Signal(range(folding.cycles))
        column = Signal.like(buffer.column)
        now = Signal(_MARKS)
        issues = now.is_valid & advance
        m.d.comb += [
            now.is_valid.eq(buffer.available & (loader.may_start | (address != 0))),
            now.is_first.eq(column == 0),
            now.is_last.eq(step(m, column, folding.column_folds, issues)),
            buffer.column.eq(column),
            buffer.enable.eq(advance),
            buffer.release.eq(step(m, address, folding.cycles, issues)),
        ]
        element = self._elements[0]
        marks = [now, *_delayed(m, now, element.result_cycle, advance)]
        sum_marks, before_sum = marks[element.sum_cycle], marks[element.sum_cycle - 1]
        fold = Signal(range(folding.row_folds))
        step(m, fold, folding.row_folds, before_sum.is_valid & before_sum.is_last & advance)
        add_alike(m, "element", self._elements, platform)
        for lane, element in enumerate(self._elements):
            m.d.comb += [
                element.advance.eq(advance),
                element.read_address.eq(address),
                element.activations.eq(buffer.word),
                element.fold.eq(fold),
                element.is_first.eq(sum_marks.is_first),
                element.enable.eq(sum_marks.is_valid),
                element.write_address.eq(loader.address),
                element.word.eq(loader.word),
                element.write_weights.eq(loader.write_weights[lane]),
                element.write_fold.eq(loader.fold),
                element.parameters.eq(loader.parameters),
                element.write_parameters.eq(loader.write_parameters[lane]),
            ]
        m.d.comb += loader.is_idle.eq((address == 0) & ~Cat(mark.is_valid for mark in marks[1:]).any())
        self._keep_results(m, marks[-1].is_valid & marks[-1].is_last, advance)
        return m

    def _keep_results(self, m: Module, finished: Value, advance: Signal) -> None:
        """Results wait in registers of their own; the pipeline stops only if the next ones are finished."""
        waits = self.outputs.valid & ~self.outputs.ready
        results = Signal.like(self.outputs.payload, reset_less=True)
        with m.If(finished & ~waits):
            m.d.sync += Value.cast(results).eq(Cat(element.result for element in self._elements))
        m.d.sync += self.outputs.valid.eq(finished | waits)
        m.d.comb += [self.outputs.payload.eq(results), advance.eq(~(finished & waits))]


def _delayed(m: Module, marks: Any, cycles: int, advance: Value) -> list[Any]:
    """The marks of the last cycles, the latest first."""
    kept = [Signal(_MARKS, name=f"marks{cycle}") for cycle in range(1, cycles + 1)]
    with m.If(advance):
        m.d.sync += [later.eq(earlier) for earlier, later in zip([marks, *kept], kept, strict=False)]
    return kept


def _parameter_layout(bias_bits: int, output: Requantization | None) -> data.StructLayout:
    fields = {"bias": Shape(bias_bits, signed=bias_bits > 0)}
    if output:
        fields |= {"multiplier": output.multiplier_shape, "shift": output.shift_shape}
    return data.StructLayout({name: shape for name, shape in fields.items() if shape.width})


def _accumulator_bits(
    weights: ScalarFormat,
    activations: ScalarFormat,
    columns: int,
    has_bias: bool,
    given: int | None,
    overflow: str,
) -> int:
    if overflow not in OVERFLOWS:
        raise unknown_choice("overflow", overflow, OVERFLOWS)
    exact = exact_accumulator_bits(weights, activations, columns) + has_bias
    if given is None:
        return exact
    check_positive("accumulator_bits", given)
    if given < exact and overflow == "error":
        msg = (
            f"accumulator_bits must be at least {exact} for sums of {columns} products of {weights} and "
            f"{activations}{' and a bias' if has_bias else ''}, not {given}; or ask for overflow='wrap'"
        )
        raise UsageError(msg, given=given, expected=[str(exact), "overflow='wrap'"])
    return given
