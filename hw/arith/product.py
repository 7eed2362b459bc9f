"""From a pair of codes to their exact product, ready to be accumulated."""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import C, Cat, Module, Shape, Value
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import register
from hw.arith.aligner import Aligner
from hw.arith.decoder import Decoder, check_format, has_separate_sign
from hw.arith.multiplier import Multiplier
from hw.arith.table import LUT_INPUTS, TruthTable
from quantizers.formats import ScalarFormat

MAX_TABULATED_BITS = 8
"""Widest product that is tabulated. Measured: a table of 8 bits takes 2 to 4 sites less than
multiplying and shifting, one of 10 takes 2 more (e2m1 x e2m1 34 and 36, e2m1 x e3m0 38 and 36)."""


class ScaledProduct(Component):
    """The product of a weight and an activation as term, sign and remaining shift.

    ``(-1)**negate * (term << (select << stride_bits) >> discarded_bits)`` is the product in units
    of ``2**(weights.grid.lsb_exponent + activations.grid.lsb_exponent)``.

    Ports: ``weight``, ``activation`` (codes) in; ``term``, ``negate`` (0 or 1 bit), ``select``
    (0 bits or more) out. One pair a cycle; registers free-run and are not reset.

    Attributes:
        latency: cycles from codes to term.
        stride_bits: log2 of the shift that one step of ``select`` stands for.
        discarded_bits: low bits of the shifted term that are always zero.
    """

    latency: int
    stride_bits: int = 0
    discarded_bits: int = 0

    def __init__(
        self, weights: ScalarFormat, activations: ScalarFormat, *, term: Shape, negate: bool, select_bits: int
    ) -> None:
        super().__init__(
            {
                "weight": In(weights.bits),
                "activation": In(activations.bits),
                "term": Out(term),
                "negate": Out(int(negate)),
                "select": Out(select_bits),
            }
        )


def scaled_product(
    weights: ScalarFormat, activations: ScalarFormat, *, pipelined: bool = False
) -> ScaledProduct:
    """The cheaper of the two structures for a pair of formats.

    Raises:
        UsageError: a format is no scalar format or has codes that are not finite numbers.
    """
    check_format("weights", weights)
    check_format("activations", activations)
    table_bits = magnitude_bits(weights) + magnitude_bits(activations)
    if table_bits <= LUT_INPUTS and magnitude_products(weights, activations)[1] < 1 << MAX_TABULATED_BITS:
        return TabulatedProduct(weights, activations)
    return ShiftedProduct(weights, activations, pipelined=pipelined)


def magnitude_bits(fmt: ScalarFormat) -> int:
    """Bits of a code without a sign that stands apart."""
    return fmt.bits - has_separate_sign(fmt)


def magnitudes(fmt: ScalarFormat) -> list[int]:
    """The fixed-point value of each code without its sign bit; 0 for a code that is not in use."""
    values = np.nan_to_num(fmt.values()[: 1 << magnitude_bits(fmt)])
    return [int(value) for value in np.ldexp(values, -fmt.grid.lsb_exponent)]


def magnitude_products(weights: ScalarFormat, activations: ScalarFormat) -> tuple[int, int]:
    """Smallest and largest product of codes without their sign bits."""
    products = [a * b for a in magnitudes(weights) for b in magnitudes(activations)]
    return min(products), max(products)


class TabulatedProduct(ScaledProduct):
    """Truth tables straight from the codes, for formats of together at most six bits beside signs."""

    latency = 1

    def __init__(self, weights: ScalarFormat, activations: ScalarFormat) -> None:
        weight_values, activation_values = magnitudes(weights), magnitudes(activations)
        low, high = magnitude_products(weights, activations)
        self._weight_bits = magnitude_bits(weights)
        self._activation_bits = magnitude_bits(activations)
        weight_mask = (1 << self._weight_bits) - 1
        self._table = TruthTable(
            input_bits=self._weight_bits + self._activation_bits,
            shape=Shape.cast(range(low, high + 1)),
            function=lambda code: (
                weight_values[code & weight_mask] * activation_values[code >> self._weight_bits]
            ),
        )
        negate = has_separate_sign(weights) or has_separate_sign(activations)
        super().__init__(weights, activations, term=self._table.output.shape(), negate=negate, select_bits=0)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.table = table = self._table
        magnitudes = Cat(self.weight[: self._weight_bits], self.activation[: self._activation_bits])
        signs = Cat(self.weight[self._weight_bits :], self.activation[self._activation_bits :])
        m.d.comb += [
            table.input.eq(magnitudes),
            self.term.eq(register(m, table.output)),
            self.negate.eq(register(m, signs.xor())),
        ]
        return m


class ShiftedProduct(ScaledProduct):
    """Decoders, multiplier and sum of the exponents; register; small shifts; register.

    As many large shifts as the LUT of an accumulator's carry position can still take are left over
    in ``select``; without small shifts the second register is left out too. *pipelined*: also a register
    after the decoders, and those of pipelined multiplier and aligner.
    """

    def __init__(self, weights: ScalarFormat, activations: ScalarFormat, *, pipelined: bool = False) -> None:
        self._weight = Decoder(weights)
        self._activation = Decoder(activations)
        self._multiplier = Multiplier(
            a=self._weight.significand.shape(), b=self._activation.significand.shape(), pipelined=pipelined
        )
        product = self._multiplier.product.shape()
        multi_binade = [d for d in (self._weight, self._activation) if len(d.exponent)]
        self._multi_binade = multi_binade
        self._decoded = pipelined
        self._shift_bits = sum(d.max_exponent for d in multi_binade).bit_length()
        negate = has_separate_sign(weights) or has_separate_sign(activations)
        select_bits = _foldable_bits(product, self._shift_bits, negate)
        self._aligner = Aligner(
            product=product, shift_bits=self._shift_bits - select_bits, pipelined=pipelined
        )
        self.stride_bits = len(self._aligner.shift)
        # Exponents count from 1.
        self.discarded_bits = len(multi_binade)
        self.latency = self._decoded + self._multiplier.latency + 1
        if self.stride_bits:
            self.latency += self._aligner.latency + 1
        super().__init__(
            weights,
            activations,
            term=self._aligner.aligned.shape(),
            negate=negate,
            select_bits=select_bits,
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.weight_decoder = weight = self._weight
        m.submodules.activation_decoder = activation = self._activation
        m.submodules.multiplier = multiplier = self._multiplier
        m.submodules.aligner = aligner = self._aligner
        operands: list[Value] = [weight.significand, activation.significand]
        exponents: list[Value] = [decoder.exponent for decoder in self._multi_binade]
        negate: Value = weight.sign ^ activation.sign
        if self._decoded:
            operands, exponents = ([register(m, v) for v in values] for values in (operands, exponents))
            negate = register(m, negate)
        shift = self._exponent_sum(m, exponents)
        for _ in range(multiplier.latency + 1):
            shift, negate = register(m, shift), register(m, negate)
        term: Value = aligner.aligned
        select: Value = shift[self.stride_bits :]
        m.d.comb += [
            weight.code.eq(self.weight),
            activation.code.eq(self.activation),
            multiplier.a.eq(operands[0]),
            multiplier.b.eq(operands[1]),
            aligner.product.eq(register(m, multiplier.product)),
            aligner.shift.eq(shift[: self.stride_bits]),
        ]
        for _ in range(aligner.latency):
            select, negate = register(m, select), register(m, negate)
        if self.stride_bits:
            term, select, negate = (register(m, value) for value in (term, select, negate))
        m.d.comb += [self.term.eq(term), self.select.eq(select), self.negate.eq(negate)]
        return m

    def _exponent_sum(self, m: Module, exponents: list[Value]) -> Value:
        """The shift; two short exponents are added by a truth table, cheaper than a carry chain."""
        match exponents:
            case []:
                return C(0, 0)
            case [exponent]:
                return exponent
            case [first, second] if len(first) + len(second) <= LUT_INPUTS:
                width = len(first)
                m.submodules.exponent_sum = table = TruthTable(
                    input_bits=width + len(second),
                    shape=Shape(self._shift_bits + 1),
                    function=lambda code: (code & ((1 << width) - 1)) + (code >> width),
                )
                m.d.comb += table.input.eq(Cat(first, second))
                return table.output[: self._shift_bits]
            case _:
                return (exponents[0] + exponents[1])[: self._shift_bits]


def _foldable_bits(product: Shape, shift_bits: int, negate: bool) -> int:
    """The most shift bits for which one LUT holds selection, sign and sum of an accumulator position."""
    for select_bits in range(shift_bits, 0, -1):
        stride = 1 << (shift_bits - select_bits)
        overlapping = min(-(-(product.width + stride - 1) // stride), 1 << select_bits) + product.signed
        if 1 + negate + select_bits + overlapping <= LUT_INPUTS:
            return select_bits
    return 0
