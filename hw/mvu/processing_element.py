"""What works on one row of the matrix at a time."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, EnableInserter, Module, Shape, Value, signed, unsigned
from amaranth.lib import data, memory
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import register
from hw.arith.requantizer import Requantization
from hw.mvu.dot_accumulator import DotAccumulator
from hw.mvu.folding import Folding
from quantizers.formats import ScalarFormat

LUTRAM = {"ram_style": "distributed"}


class ProcessingElement(Component):
    """The weights of its rows, their parameters, the arithmetic of the sums and that of the codes.

    Ports, and the cycle in which each counts, ``read_address`` being given in cycle 0:
        ``read_address`` of the weights, in cycle 0; ``activations``, in cycle 1.
        ``fold`` (the turn, and so the row), in cycle :attr:`sum_cycle` - 1.
        ``is_first``, ``enable``: of the sum, in cycle :attr:`sum_cycle`.
        ``result``: in cycle :attr:`result_cycle`.
        ``write_address``, ``word``, ``write_weights``, ``write_fold``, ``parameters``,
        ``write_parameters``: writing.
        ``advance``: without it everything stands still, writing too.

    One step a cycle; registers are not reset.

    Args:
        parameters: ``bias``, ``multiplier``, ``shift``, as far as there are any.
        memory_attrs: of the memory of the weights, for synthesis.
        output: how sums become codes, if they do.
        multipliers: see :func:`hw.arith.addend.product_addend`.
    """

    def __init__(
        self,
        folding: Folding,
        *,
        weights: ScalarFormat,
        activations: ScalarFormat,
        accumulator_bits: int,
        parameters: data.StructLayout,
        memory_attrs: dict[str, str],
        output: Requantization | None,
        multipliers: str,
    ) -> None:
        self._folding = folding
        self._parameters = parameters
        self._memory_attrs = memory_attrs
        self._sum = DotAccumulator(
            weights=weights,
            activations=activations,
            simd=folding.simd,
            accumulator_bits=accumulator_bits,
            multipliers=multipliers,
        )
        self._requantizer = output.requantizer(accumulator_bits) if output else None
        address, fold = (Shape.cast(range(n)) for n in (folding.cycles, folding.row_folds))
        super().__init__(
            {
                "advance": In(1),
                "read_address": In(address),
                "activations": In(data.ArrayLayout(activations.bits, folding.simd)),
                "fold": In(fold),
                "is_first": In(1),
                "enable": In(1),
                "result": Out(unsigned(output.format.bits) if output else signed(accumulator_bits)),
                "write_address": In(address),
                "word": In(folding.simd * weights.bits),
                "write_weights": In(1),
                "write_fold": In(fold),
                "parameters": In(parameters),
                "write_parameters": In(1),
            }
        )

    @property
    def sum_cycle(self) -> int:
        """Cycle of the sum."""
        return 1 + self._sum.latency

    @property
    def result_cycle(self) -> int:
        """Cycle of the result."""
        return self.sum_cycle + (1 + self._requantizer.latency if self._requantizer else 0)

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        m.submodules.sum = total = self._sum
        m.submodules.weights = weights = _RowMemory(
            unsigned(len(self.word)), depth=self._folding.cycles, attrs=self._memory_attrs
        )
        m.d.comb += [
            weights.write_enable.eq(self.write_weights),
            weights.write_address.eq(self.write_address),
            weights.write_value.eq(self.word),
            weights.read_address.eq(self.read_address),
            total.weights.eq(weights.value),
            total.activations.eq(self.activations),
            total.start.eq(self._parameter(m, "bias", self.fold)),
            total.is_first.eq(self.is_first),
            total.enable.eq(self.enable),
        ]
        if self._requantizer is None:
            m.d.comb += self.result.eq(total.total)
            return EnableInserter(self.advance)(m)
        m.submodules.requantizer = requantizer = self._requantizer
        fold = register(m, self.fold)
        m.d.comb += [
            requantizer.sum.eq(register(m, total.total)),
            requantizer.multiplier.eq(self._parameter(m, "multiplier", fold)),
            requantizer.shift.eq(self._parameter(m, "shift", fold)),
            self.result.eq(requantizer.code),
        ]
        return EnableInserter(self.advance)(m)

    def _parameter(self, m: Module, name: str, fold: Value) -> Value:
        """A parameter of the row of a turn, in the cycle after that; 0 where there is none."""
        if name not in self._parameters.members:
            return C(0, 1)
        field = self.parameters[name]
        m.submodules[name] = rows = _RowMemory(field.shape(), depth=self._folding.row_folds, attrs=LUTRAM)
        m.d.comb += [
            rows.write_enable.eq(self.write_parameters),
            rows.write_address.eq(self.write_fold),
            rows.write_value.eq(field),
            rows.read_address.eq(fold),
        ]
        return rows.value


class _RowMemory(Component):
    """A memory, zero at first, with one port to write and one to read, a cycle after the address."""

    def __init__(self, shape: Shape, *, depth: int, attrs: dict[str, str]) -> None:
        self._attrs = attrs
        self._depth = depth
        address = Shape.cast(range(depth))
        super().__init__(
            {
                "write_enable": In(1),
                "write_address": In(address),
                "write_value": In(shape),
                "read_address": In(address),
                "value": Out(shape),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.rows = rows = memory.Memory(
            shape=self.value.shape(), depth=self._depth, init=[], attrs=self._attrs
        )
        write, read = rows.write_port(), rows.read_port()
        m.d.comb += [
            write.en.eq(self.write_enable),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_value),
            read.en.eq(1),
            read.addr.eq(self.read_address),
            self.value.eq(read.data),
        ]
        return m
