"""Products in the form that an adder takes: the bits to add, and a carry.

An adder of two numbers has a LUT of six inputs at every carry position, of which the running sum takes
one, and a carry input. What is left can hold the last step of making the product: its sign, its shift, the
decoding of a table. Everything that a product's last register holds is combined here, right before the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import C, Cat, Const, Module, Shape, Signal, Value, signed
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import register
from hw.arith.booth import BoothMultiplier, booth_rows
from hw.arith.decoder import check_format, has_separate_sign
from hw.arith.product import ScaledProduct, magnitude_bits, magnitudes, scaled_product
from hw.arith.table import TruthTable, table_pieces
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import IntegerFormat, ScalarFormat

MULTIPLIERS = ("luts", "dsps")
"""What products are made of."""


class ProductAddend(Component):
    """``addend + carry`` is the product of a weight and an activation, modulo ``2**bits``.

    In units of ``2**(weights.grid.lsb_exponent + activations.grid.lsb_exponent)``.

    Ports: ``weight``, ``activation`` (codes) in; ``addend`` (signed, *bits* wide) and ``carry`` (0 or 1
    bit) out. One pair a cycle; registers free-run and are not reset.

    Attributes:
        latency: cycles from codes to addend.
        is_registered: whether ``addend`` is a register, not logic behind one.
    """

    latency: int
    is_registered: bool = False

    def __init__(self, weights: ScalarFormat, activations: ScalarFormat, *, bits: int, carry: bool) -> None:
        check_positive("bits", bits)
        super().__init__(
            {
                "weight": In(weights.bits),
                "activation": In(activations.bits),
                "addend": Out(signed(bits)),
                "carry": Out(int(carry)),
            }
        )


def product_addend(
    weights: ScalarFormat, activations: ScalarFormat, *, bits: int, multipliers: str = "luts"
) -> ProductAddend:
    """The structure of the fewest LUT6 sites for a pair of formats and an adder of *bits* bits.

    Args:
        multipliers: ``luts``, or ``dsps`` for a DSP slice a product, of integers only.

    Raises:
        UsageError: a format is no scalar format or has codes that are not finite numbers, *bits* is not
            positive, or *multipliers* is none of :data:`MULTIPLIERS` or not for these formats.
    """
    check_format("weights", weights)
    check_format("activations", activations)
    if multipliers not in MULTIPLIERS:
        raise unknown_choice("multipliers", multipliers, MULTIPLIERS)
    if multipliers == "dsps":
        return DspAddend(weights, activations, bits=bits)
    if magnitudes(weights) == magnitudes(activations) == list(_ENCODED_MAGNITUDES):
        return EncodedAddend(weights, activations, bits=bits)
    if _is_multiplied(weights, activations):
        return OpenBoothAddend(weights, activations, bits=bits)
    return ScaledAddend(weights, activations, bits=bits)


def _is_multiplied(weights: ScalarFormat, activations: ScalarFormat) -> bool:
    """Whether both are integers too wide for truth tables; one of them, at least, is signed."""
    if not isinstance(weights, IntegerFormat) or not isinstance(activations, IntegerFormat):
        return False
    a, b = Shape(weights.bits, weights.signed), Shape(activations.bits, activations.signed)
    return min(weights.bits, activations.bits) > 1 and 1 not in (table_pieces(a, b), table_pieces(b, a))


class ScaledAddend(ProductAddend):
    """From a :class:`hw.arith.product.ScaledProduct`: its sign, and what is left of its shift."""

    def __init__(self, weights: ScalarFormat, activations: ScalarFormat, *, bits: int) -> None:
        self._product = scaled_product(weights, activations)
        self.latency = self._product.latency
        super().__init__(weights, activations, bits=bits, carry=len(self._product.negate) > 0)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.product = product = self._product
        addend: Value = Cat(*(_shifted_bit(product, position) for position in range(len(self.addend))))
        if len(product.negate):
            addend = addend ^ product.negate.replicate(len(self.addend))
        m.d.comb += [
            product.weight.eq(self.weight),
            product.activation.eq(self.activation),
            self.addend.eq(addend),
            self.carry.eq(product.negate),
        ]
        return m


def _shifted_bit(product: ScaledProduct, position: int) -> Value:
    bit: Value = C(0, 1)
    for step in range(1 << len(product.select)):
        index = position + product.discarded_bits - (step << product.stride_bits)
        source = _extended_bit(index, product.term)
        if source is not None:
            bit = bit | (source & (product.select == step))
    return bit


def _extended_bit(index: int, term: Value) -> Value | None:
    """Bit *index* of a term that is extended without end: ``None`` where it is always zero."""
    if index < 0:
        return None
    if index < len(term):
        return term[index]
    return term[-1] if term.shape().signed else None


class OpenBoothAddend(ProductAddend):
    """Integers by Booth rows, the first row's carry left to the adder."""

    is_registered = True

    def __init__(self, weights: ScalarFormat, activations: ScalarFormat, *, bits: int) -> None:
        shapes = [Shape(fmt.bits, fmt.signed) for fmt in (weights, activations)]
        self._swapped = booth_rows(shapes[0]) < booth_rows(shapes[1])
        multiplicand, multiplier = reversed(shapes) if self._swapped else shapes
        self._multiplier = BoothMultiplier(multiplicand=multiplicand, multiplier=multiplier, is_open=True)
        self.latency = self._multiplier.latency + 1
        super().__init__(weights, activations, bits=bits, carry=True)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.multiplier = multiplier = self._multiplier
        codes = (self.activation, self.weight) if self._swapped else (self.weight, self.activation)
        m.d.comb += [
            multiplier.multiplicand.eq(codes[0]),
            multiplier.multiplier.eq(codes[1]),
            self.addend.eq(register(m, multiplier.product)),
            self.carry.eq(register(m, multiplier.missing)),
        ]
        return m


# The products of two magnitudes of e2m1 in codes of five bits, found by a SAT solver such that every bit
# of the product is a function of four of them: with the sign and the running sum six inputs, one LUT.
# Five LUTs make the code from the operands, where a table of the product itself takes eight.
_ENCODED_MAGNITUDES = (0, 1, 2, 3, 4, 6, 8, 12)
_CODES = {
    0: 0b00000, 1: 0b11001, 2: 0b11011, 3: 0b01100, 4: 0b10011, 6: 0b10100, 8: 0b01010,
    9: 0b10010, 12: 0b00001, 16: 0b10101, 18: 0b01101, 24: 0b11110, 32: 0b01110, 36: 0b01111,
    48: 0b01001, 64: 0b00010, 72: 0b00110, 96: 0b10110, 144: 0b11000,
}  # fmt: skip
_USED = (
    (0, 1, 2, 4),
    (0, 1, 2, 3),
    (0, 1, 2, 3),
    (0, 2, 3, 4),
    (0, 1, 3, 4),
    (1, 2, 3, 4),
    (1, 2, 3, 4),
    (0, 2, 3, 4),
)


class EncodedAddend(ProductAddend):
    """e2m1 times e2m1, signed or not: the product is decoded in the LUTs of the adder."""

    latency = 1

    def __init__(self, weights: ScalarFormat, activations: ScalarFormat, *, bits: int) -> None:
        self._weight_bits = magnitude_bits(weights)
        self._activation_bits = magnitude_bits(activations)
        mask = (1 << self._weight_bits) - 1
        self._encoder = TruthTable(
            input_bits=self._weight_bits + self._activation_bits,
            shape=Shape(5),
            function=lambda code: _CODES[
                magnitudes(weights)[code & mask] * magnitudes(activations)[code >> self._weight_bits]
            ],
        )
        negate = has_separate_sign(weights) or has_separate_sign(activations)
        super().__init__(weights, activations, bits=bits, carry=negate)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.encoder = encoder = self._encoder
        operands = Cat(self.weight[: self._weight_bits], self.activation[: self._activation_bits])
        signs = Cat(self.weight[self._weight_bits :], self.activation[self._activation_bits :])
        code = register(m, encoder.output)
        bits: list[Value] = [_decoded_bit(code, bit, used) for bit, used in enumerate(_USED)]
        addend: Value = Cat(*bits, C(0, max(0, len(self.addend) - len(bits))))[: len(self.addend)]
        if len(self.carry):
            negate = register(m, signs.xor())
            addend = addend ^ negate.replicate(len(self.addend))
            m.d.comb += self.carry.eq(negate)
        m.d.comb += [encoder.input.eq(operands), self.addend.eq(addend)]
        return m


def _decoded_bit(code: Signal, bit: int, used: Sequence[int]) -> Value:
    """Bit *bit* of the product, from the places *used* of its code."""
    table = 0
    for product, places in _CODES.items():
        index = sum(((places >> place) & 1) << k for k, place in enumerate(used))
        table |= ((product >> bit) & 1) << index
    return Const(table, 1 << len(used)).bit_select(Cat(*(code[place] for place in used)), 1)


class DspAddend(ProductAddend):
    """A product of integers as ``*``, which synthesis maps to a DSP slice with its register.

    Raises:
        UsageError: a format is not an integer.
    """

    latency = 1
    is_registered = True

    def __init__(self, weights: ScalarFormat, activations: ScalarFormat, *, bits: int) -> None:
        self._shapes: list[Shape] = []
        for name, fmt in (("weights", weights), ("activations", activations)):
            if not isinstance(fmt, IntegerFormat):
                msg = f"DSP slices multiply integers, and {name} are {fmt}; others take multipliers='luts'"
                raise UsageError(msg, given=fmt.name, expected=["an integer format", "multipliers='luts'"])
            self._shapes.append(Shape(fmt.bits, fmt.signed))
        super().__init__(weights, activations, bits=bits, carry=False)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        weight, activation = (Signal(shape) for shape in self._shapes)
        product = Signal((weight * activation).shape(), reset_less=True, attrs={"use_dsp": "yes"})
        m.d.comb += [
            weight.eq(self.weight),
            activation.eq(self.activation),
            self.addend.eq(product),
        ]
        m.d.sync += product.eq(weight * activation)
        return m
