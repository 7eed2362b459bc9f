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
from hw.arith.booth_tree import PipelinedBoothMultiplier
from hw.arith.decoder import check_format, has_separate_sign
from hw.arith.product import ScaledProduct, magnitude_products, magnitudes, scaled_product
from hw.arith.table import TruthTable, table_pieces
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import IntegerFormat, ScalarFormat

MULTIPLIERS = ("luts", "dsps")
"""What products are made of."""


MIN_DSP_PRODUCT_BITS = 9
"""Of the products that Yosys' ``synth_xilinx`` maps to a DSP48E1."""


class ProductAddend(Component):
    """``addend + carry`` is the product of a weight and an activation, modulo ``2**bits``.

    In units of ``2**(weights.grid.lsb_exponent + activations.grid.lsb_exponent)``.

    Ports: ``weight``, ``activation`` (codes) in; ``addend`` (signed, *bits* wide) and ``carry`` (0 or 1
    bit) out. One pair a cycle; registers free-run and are not reset.

    Attributes:
        latency: cycles from codes to addend.
        is_registered: whether ``addend`` is a register, not logic behind one.
        carry_is_sign: whether ``carry`` is also the sign of ``addend``, which then is in one's complement.
    """

    latency: int
    is_registered: bool = False
    carry_is_sign: bool = False

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
    weights: ScalarFormat,
    activations: ScalarFormat,
    *,
    bits: int,
    multipliers: str = "luts",
    pipelined: bool = False,
) -> ProductAddend:
    """The structure of the fewest LUT6 sites for a pair of formats and an adder of *bits* bits.

    Args:
        weights: any scalar format without codes for NaN or infinity.
        activations: likewise.
        bits: width of the adder; products wrap.
        multipliers: ``luts``, or ``dsps`` for a DSP slice a product, of integers only.
        pipelined: of products in LUTs that of the highest clock frequency: no logic is left to the adder.

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
    if _is_multiplied(weights, activations):
        return OpenBoothAddend(weights, activations, bits=bits, pipelined=pipelined)
    if magnitudes(weights) == magnitudes(activations) == list(_ENCODED_MAGNITUDES):
        addend: ProductAddend = EncodedAddend(weights, activations, bits=bits)
    else:
        addend = ScaledAddend(weights, activations, bits=bits, pipelined=pipelined)
    return RegisteredAddend(weights, activations, addend) if pipelined else addend


def _is_multiplied(weights: ScalarFormat, activations: ScalarFormat) -> bool:
    """Whether both are integers too wide for truth tables; one of them, at least, is signed."""
    if not isinstance(weights, IntegerFormat) or not isinstance(activations, IntegerFormat):
        return False
    a, b = Shape(weights.bits, weights.signed), Shape(activations.bits, activations.signed)
    return min(weights.bits, activations.bits) > 1 and 1 not in (table_pieces(a, b), table_pieces(b, a))


class ScaledAddend(ProductAddend):
    """From a :class:`hw.arith.product.ScaledProduct`: its sign, and what is left of its shift."""

    def __init__(
        self, weights: ScalarFormat, activations: ScalarFormat, *, bits: int, pipelined: bool = False
    ) -> None:
        self._product = scaled_product(weights, activations, pipelined=pipelined)
        self.latency = self._product.latency
        has_carry = len(self._product.negate) > 0
        _, largest = magnitude_products(weights, activations)
        is_magnitude = not self._product.term.shape().signed and bits > largest.bit_length()
        self.carry_is_sign = has_carry and is_magnitude
        super().__init__(weights, activations, bits=bits, carry=has_carry)

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

    def __init__(
        self, weights: ScalarFormat, activations: ScalarFormat, *, bits: int, pipelined: bool = False
    ) -> None:
        shapes = [Shape(fmt.bits, fmt.signed) for fmt in (weights, activations)]
        self._swapped = booth_rows(shapes[0]) < booth_rows(shapes[1])
        multiplicand, multiplier = reversed(shapes) if self._swapped else shapes
        structure = PipelinedBoothMultiplier if pipelined else BoothMultiplier
        self._multiplier = structure(multiplicand=multiplicand, multiplier=multiplier, is_open=True)
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


class RegisteredAddend(ProductAddend):
    """Another addend behind a register, so that the adder has nothing to wait for."""

    is_registered = True

    def __init__(self, weights: ScalarFormat, activations: ScalarFormat, addend: ProductAddend) -> None:
        self._addend = addend
        self.latency = addend.latency + 1
        bits, carry = len(addend.addend), len(addend.carry) > 0
        super().__init__(weights, activations, bits=bits, carry=carry)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.addend = addend = self._addend
        m.d.comb += [
            addend.weight.eq(self.weight),
            addend.activation.eq(self.activation),
            self.addend.eq(register(m, addend.addend)),
            self.carry.eq(register(m, addend.carry)),
        ]
        return m


# Four functions of the six bits of two magnitudes of e2m1, found by a SAT solver such that every bit of the
# product is a function of four of these and the six: with the sign and a running sum six inputs, one LUT;
# and such that two bits of the product each time need the same four, so that with the sign they are the two
# outputs of one LUT where there is no running sum. A table of the product itself takes eight LUTs.
_ENCODED_MAGNITUDES = (0, 1, 2, 3, 4, 6, 8, 12)
_ENCODERS = (0x75EFD9B566D848FE, 0x6FC6A50E143CD0F0, 0x24F592D3C2467EFE, 0x53B445CA9A2C9A00)
_OPERAND_BITS = 6
_USED = (
    (2, 6, 7, 9),
    (3, 6, 8, 9),
    (2, 5, 6, 7),
    (3, 6, 8, 9),
    (2, 6, 7, 8),
    (2, 6, 7, 9),
    (2, 5, 6, 7),
    (2, 6, 7, 8),
)


def _code(operands: int) -> int:
    """The bits of two magnitudes, the weight's low, and above them the encoders' functions of them."""
    encoded = sum((table >> operands & 1) << place for place, table in enumerate(_ENCODERS))
    return operands | encoded << _OPERAND_BITS


class EncodedAddend(ProductAddend):
    """e2m1 times e2m1, signed or not: the product is decoded in the LUTs of the adder."""

    latency = 1

    def __init__(self, weights: ScalarFormat, activations: ScalarFormat, *, bits: int) -> None:
        self._encoder = TruthTable(
            input_bits=_OPERAND_BITS,
            shape=Shape(len(_ENCODERS)),
            function=lambda operands: _code(operands) >> _OPERAND_BITS,
        )
        negate = has_separate_sign(weights) or has_separate_sign(activations)
        self.carry_is_sign = negate and bits > len(_USED)
        super().__init__(weights, activations, bits=bits, carry=negate)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.encoder = encoder = self._encoder
        magnitude_width = _OPERAND_BITS // 2
        operands = Cat(self.weight[:magnitude_width], self.activation[:magnitude_width])
        signs = Cat(self.weight[magnitude_width:], self.activation[magnitude_width:])
        code = register(m, Cat(operands, encoder.output))
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
    for operands in range(1 << _OPERAND_BITS):
        activation, weight = divmod(operands, len(_ENCODED_MAGNITUDES))
        product = _ENCODED_MAGNITUDES[weight] * _ENCODED_MAGNITUDES[activation]
        index = sum((_code(operands) >> place & 1) << k for k, place in enumerate(used))
        table |= (product >> bit & 1) << index
    return Const(table, 1 << len(used)).bit_select(Cat(*(code[place] for place in used)), 1)


class DspAddend(ProductAddend):
    """A product of integers as ``*``, which synthesis maps to a DSP slice with its register.

    Raises:
        UsageError: a format is not an integer, or the product has fewer than
            :data:`MIN_DSP_PRODUCT_BITS` bits.
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
        if weights.bits + activations.bits < MIN_DSP_PRODUCT_BITS:
            msg = (
                f"products of {weights} and {activations} are of {weights.bits + activations.bits} bits, and "
                f"synthesis gives those of fewer than {MIN_DSP_PRODUCT_BITS} no DSP slice of their own; the "
                "block dsp_mac packs several into one"
            )
            raise UsageError(msg, given=f"{weights}, {activations}", expected=["multipliers='luts'"])
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
