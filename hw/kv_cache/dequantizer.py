"""Groups of codes made 16-bit integers again."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, EnableInserter, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import accumulate, register
from hw.kv_cache.quantizer import ELEMENT_BITS, check_code_bits, group_word


class GroupDequantizer(Component):
    """``minimum + round(code * span / (2**bits - 1))``, exactly.

    :func:`quantizers.kv_cache.uniform.dequantize` is the model. The step ``span / (2**bits - 1)`` is the
    series ``span * 2**-bits * (1 + 2**-bits + 2**(-2 * bits) + ...)``, of which each addition doubles the
    terms; it is computed once a word, to ``2 * bits + 2`` places. Each lane adds the multiple of it that two
    bits of the code select, 0 to 3 times, in one carry chain a pair of bits.

    Why that is exact: what is cut off makes the step too small by less than the additions and one more, 4.1
    units at most where it matters (5.1 with 2 bits). With twice the largest code added to make up for it,
    the sum is off by less than ``2.1 * (2**bits - 1)`` units of ``2**(-2 * bits - 2)``, below the
    ``1 / (2 * (2**bits - 1))`` by which every exact quotient is away from a tie. The tests decode every code
    of every span.

    Ports:
        ``inputs``: stream of words of *lanes* ``codes`` with the ``minimum`` and ``span`` of their group.
        ``outputs``: stream of *lanes* signed 16-bit elements.

    A word a cycle; it is valid :attr:`latency` cycles after it was taken. Results that nobody takes stop
    the pipeline.

    Args:
        bits: of a code, 2 to 8.
        lanes: codes of a word.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(self, *, bits: int = 4, lanes: int = 8) -> None:
        check_code_bits(bits)
        check_positive("lanes", lanes)
        self.bits, self.lanes = bits, lanes
        self._places = 2 * bits + 2
        super().__init__(
            {
                "inputs": In(stream.Signature(group_word(bits, lanes))),
                "outputs": Out(stream.Signature(data.ArrayLayout(signed(ELEMENT_BITS), lanes))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the one in which a word is taken to the one with its elements."""
        return self._additions + 1 + self._rows

    @property
    def _additions(self) -> int:
        """That the series takes until its terms are below the lowest place."""
        terms = -(-(ELEMENT_BITS + self._places - self.bits) // self.bits)
        return (terms - 1).bit_length()

    @property
    def _rows(self) -> int:
        return -(-self.bits // 2)

    def elaborate(self, platform: Any) -> Module:
        m, pipeline = Module(), Module()
        advance = Signal()
        m.submodules.pipeline = EnableInserter(advance)(pipeline)
        marks = Signal(self.latency)
        with m.If(advance):
            m.d.sync += marks.eq(Cat(self.inputs.valid, marks[:-1]))
        m.d.comb += [
            self.outputs.valid.eq(marks[-1]),
            advance.eq(self.outputs.ready | ~self.outputs.valid),
            self.inputs.ready.eq(advance),
        ]
        steps = self._add_steps(pipeline)
        codes, minimum = Value.cast(self.inputs.payload.codes), self.inputs.payload.minimum
        for _ in range(self._additions + 1):
            codes, minimum = register(pipeline, codes), register(pipeline, minimum)
        base = Cat(C((1 << self._places - 1) + 2 * ((1 << self.bits) - 1), self._places), minimum)
        for lane in range(self.lanes):
            code = codes[lane * self.bits : (lane + 1) * self.bits]
            m.d.comb += self.outputs.payload[lane].eq(self._element(pipeline, code, steps, base))
        return m

    def _add_steps(self, m: Module) -> list[list[Value]]:
        """Step and three times the step, as they are to be added in each row."""
        value = self.inputs.payload.span << self._places - self.bits
        shift = self.bits
        width = len(value) + 1
        for _ in range(self._additions):
            value = register(m, (value + value[shift:])[:width])
            shift *= 2
        step, triple = register(m, value), register(m, (value + Cat(C(0, 1), value))[: width + 2])
        rows = [[step, triple]]
        for _ in range(self._rows - 1):
            rows.append([register(m, value) for value in rows[-1]])
        return rows

    def _element(self, m: Module, code: Value, steps: list[list[Value]], base: Value) -> Value:
        total, width = base, self._places + ELEMENT_BITS
        for row, (step, triple) in enumerate(steps):
            digit = code[2 * row : 2 * row + 2]
            odd = Mux(digit[-1], triple, step) if len(digit) == 2 else step
            even = Mux(digit[-1], step << 1, 0) if len(digit) == 2 else C(0, 1)
            done, upper = total[: 2 * row], total[2 * row :]
            added = accumulate(upper, Mux(digit[0], odd, even), C(0, 1), width=width - 2 * row)
            total = register(m, Cat(done, added))
            code = register(m, code)
        return total[self._places :]
