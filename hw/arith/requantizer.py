"""From the sums of one layer to the codes of the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from hw._checks import check_natural, check_positive
from hw._component import Component
from hw.arith._shapes import register
from hw.arith.decoder import check_format
from hw.arith.multiplier import Multiplier
from quantizers.errors import UsageError
from quantizers.formats import IntegerFormat, MinifloatFormat, ScalarFormat, TernaryFormat

MAX_OPERAND_BITS = 40
"""Widest operand of one multiplier; the products of the pieces of a wider one are added."""

MAX_THRESHOLD_BITS = 4
"""Of a code that thresholds make: one more bit takes twice the comparisons."""


@dataclass(frozen=True, kw_only=True)
class Requantization:
    """``round(sum * multiplier / 2**shift)`` in a format: to nearest, ties to the even code, saturating.

    The integer-only rescaling of B. Jacob et al., arXiv 1712.05877, section 2.2, but rounded once, from
    the exact product, to any scalar format.

    Attributes:
        format: of the codes; any scalar format without codes for NaN or infinity.
        multiplier_bits: of the multiplier, an unsigned number a channel; 0: there is none, scales are
            powers of two.
        shifts: the shifts that a channel may have; negative ones shift to the left.
        relu: negative sums become zero.

    Raises:
        UsageError: an attribute of the wrong kind or out of range.
    """

    format: ScalarFormat
    multiplier_bits: int = 16
    shifts: range = range(32)
    relu: bool = False

    def __post_init__(self) -> None:
        check_format("format", self.format)
        check_natural("multiplier_bits", self.multiplier_bits)
        if not isinstance(self.shifts, range) or self.shifts.step != 1 or not self.shifts:
            msg = f"shifts must be a range of at least one shift in steps of 1, not {self.shifts!r}"
            raise UsageError(msg, given=repr(self.shifts), expected=["range(0, 32)"])

    @property
    def multiplier_shape(self) -> Shape:
        """Of a channel's multiplier; no bits if there is none."""
        return unsigned(self.multiplier_bits)

    @property
    def shift_shape(self) -> Shape:
        """Of a channel's shift; no bits if there is only one."""
        return Shape.cast(self.shifts) if len(self.shifts) > 1 else unsigned(0)

    def requantizer(self, sum_bits: int) -> Requantizer:
        """The component for sums of so many bits."""
        return Requantizer(sum_bits=sum_bits, settings=self)


class Requantizer(Component):
    """Makes codes of sums as :class:`Requantization` says.

    Ports: ``sum`` (signed), ``multiplier`` (unsigned), ``shift`` in, the latter two without bits where there
    is nothing to choose; ``code`` out. A shift outside of the range must not come. Latency :attr:`latency`
    cycles; one sum a cycle. Registers free-run and are not reset; the rounding behind the last one is
    combinational.

    Structure: signed integers are scaled in two's complement, minifloats as sign and magnitude; multiplier;
    a right shift that keeps one bit below the least significant one of the format and the OR of all
    lower ones, which is all that exact rounding needs; for minifloats the leading one is searched, in the
    binades that the format has; the code, being in the order of magnitudes, is rounded as an integer.

    Args:
        sum_bits: width of ``sum``, at least 2.
        settings: see there.

    Raises:
        UsageError: *sum_bits* below 2.
    """

    def __init__(self, *, sum_bits: int, settings: Requantization) -> None:
        check_positive("sum_bits", sum_bits)
        if sum_bits < 2:
            msg = "sum_bits must be at least 2, not 1"
            raise UsageError(msg, given=1, expected=["2, 3, ..."])
        self._settings = settings
        fmt = settings.format
        self._is_minifloat = isinstance(fmt, MinifloatFormat)
        self._clamps = settings.relu or not fmt.signed
        self._negates = self._is_minifloat and not self._clamps
        self._operand_shape = (
            unsigned(sum_bits - 1)
            if self._clamps
            else unsigned(sum_bits)
            if self._negates
            else signed(sum_bits)
        )
        self._multipliers = (
            [Multiplier(a=piece, b=settings.multiplier_shape) for piece in _pieces(self._operand_shape)]
            if settings.multiplier_bits
            else []
        )
        super().__init__(
            {
                "sum": In(signed(sum_bits)),
                "multiplier": In(settings.multiplier_shape),
                "shift": In(settings.shift_shape),
                "code": Out(fmt.bits),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a sum to its code."""
        return self._operand_latency + self._product_latency + 1 + self._is_minifloat

    @property
    def _operand_latency(self) -> int:
        return int(self._clamps or self._negates)

    @property
    def _product_latency(self) -> int:
        return max((multiplier.latency for multiplier in self._multipliers), default=0) + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        settings = self._settings
        amount: Value = (self.shift - settings.shifts.start)[: (len(settings.shifts) - 1).bit_length()]
        sign = self.sum[-1] & self.multiplier.any() if self._multipliers else self.sum[-1]
        product = register(m, self._product(m))
        cycles = self._operand_latency + self._product_latency
        word, rest = self._shifted(m, product, _delayed(m, amount, cycles))
        word, rest, sign = (register(m, value) for value in (word, rest, _delayed(m, sign, cycles)))
        if isinstance(settings.format, MinifloatFormat):
            magnitude, below, is_beyond = _normalized(m, settings.format, word, rest)
            magnitude, below, is_beyond, sign = (
                register(m, value) for value in (magnitude, below, is_beyond, sign)
            )
            code = _rounded(magnitude, below[-1], below[:-1].any(), is_beyond)
            m.d.comb += self.code.eq(Cat(code, sign) if self._negates else code)
        elif self._clamps:
            bits = int(settings.format.maximum).bit_length()
            whole = _widened(m, word[1:], bits)
            m.d.comb += self.code.eq(_rounded(whole[:bits], word[0], rest, whole[bits:].any()))
        else:
            m.d.comb += self.code.eq(_rounded_signed(m, settings.format, word, rest))
        return m

    def _product(self, m: Module) -> Value:
        """The sum, or its magnitude, times the multiplier."""
        operand = Signal(self._operand_shape, reset_less=True)
        scale: Value = self.multiplier
        if self._operand_latency:
            m.d.sync += operand.eq(Mux(self.sum[-1], 0 if self._clamps else -self.sum, self.sum))
            scale = register(m, scale)
        else:
            m.d.comb += operand.eq(self.sum)
        if not self._multipliers:
            return operand
        total: Value | None = None
        for index, multiplier in enumerate(self._multipliers):
            m.submodules[f"multiplier{index}"] = multiplier
            low = index * MAX_OPERAND_BITS
            piece = operand[low:][: len(multiplier.a)]
            m.d.comb += [multiplier.a.eq(piece), multiplier.b.eq(scale)]
            late = _delayed(m, multiplier.product, self._product_latency - 1 - multiplier.latency)
            total = late if total is None else total + late.shift_left(low)
        return total

    def _shifted(self, m: Module, product: Value, amount: Value) -> tuple[Value, Value]:
        """The product in half steps of the format, rounded down, and whether anything was below them."""
        drop = self._settings.shifts.start + self._settings.format.grid.lsb_exponent - 1
        word: Value = _widened(m, product.shift_right(drop) if drop > 0 else product.shift_left(-drop), 2)
        rest: Value = product[:drop].any() if drop > 0 else C(0, 1)
        for stage in reversed(range(len(amount))):
            step = 1 << stage
            rest = rest | (word[:step].any() & amount[stage])
            word = Mux(amount[stage], word.shift_right(step), word)
        return word, rest


class Thresholds(Component):
    """``code`` = the smallest value of a format + the number of thresholds that are at most ``sum``.

    The activation of Y. Umuroglu et al., "FINN", FPGA 2017, section 4.2.2: any function that never falls,
    scale, bias and ReLU included, in a comparison for every step. Thresholds may come in any order.

    Ports: ``sum`` (signed), ``thresholds`` (array of signed numbers, one for each value of the format but
    the smallest) in; ``code`` out. Latency 1 cycle; one sum a cycle. The register free-runs and is not reset.

    Args:
        sum_bits: width of ``sum`` and of each threshold.
        output: an integer format of at most 4 bits, or ternary.

    Raises:
        UsageError: *sum_bits* is not positive, or *output* another format.
    """

    latency = 1

    def __init__(self, *, sum_bits: int, output: ScalarFormat) -> None:
        check_positive("sum_bits", sum_bits)
        if not isinstance(output, IntegerFormat | TernaryFormat) or output.bits > MAX_THRESHOLD_BITS:
            msg = f"thresholds make integers of at most {MAX_THRESHOLD_BITS} bits, not {output}"
            raise UsageError(msg, given=output, expected=["uint4", "int4", "ternary"])
        self._smallest = int(output.minimum)
        steps = int(output.maximum) - self._smallest
        super().__init__(
            {
                "sum": In(signed(sum_bits)),
                "thresholds": In(data.ArrayLayout(signed(sum_bits), steps)),
                "code": Out(output.bits),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        reached = register(m, Cat(self.sum >= threshold for threshold in self.thresholds))
        m.d.comb += self.code.eq(_ones(list(reached)) + self._smallest)
        return m


def _ones(bits: list[Value]) -> Value:
    """How many of the bits are set."""
    if len(bits) == 1:
        return bits[0]
    half = len(bits) // 2
    return _ones(bits[:half]) + _ones(bits[half:])


def _pieces(operand: Shape) -> list[Shape]:
    """Shapes of the pieces of a wide operand, the lowest first; only the top one has a sign."""
    whole, rest = divmod(operand.width - 1, MAX_OPERAND_BITS)
    return [unsigned(MAX_OPERAND_BITS)] * whole + [Shape(rest + 1, operand.signed)]


def _delayed(m: Module, value: Value, cycles: int) -> Value:
    for _ in range(cycles):
        value = register(m, value)
    return value


def _widened(m: Module, value: Value, bits: int) -> Value:
    """The value in *bits* bits, or more where it has more."""
    wide = Signal(Shape(max(len(value), bits), value.shape().signed))
    m.d.comb += wide.eq(value)
    return wide


def _rounded(code: Value, half: Value, rest: Value, is_beyond: Value) -> Value:
    """The code of a magnitude: *half* is the bit below it, *rest* whether there is more below that."""
    largest = C((1 << len(code)) - 1, len(code))
    up = half & (rest | code[0]) & (code != largest)
    return Mux(is_beyond, largest, (code + up)[: len(code)])


def _rounded_signed(m: Module, fmt: ScalarFormat, word: Value, rest: Value) -> Value:
    """The two's complement code of a number in half steps."""
    smallest, largest = int(fmt.minimum), int(fmt.maximum)
    bits = largest.bit_length()
    whole = _widened(m, word[1:].as_signed(), bits + 1)
    low, sign = whole[:bits], whole[-1]
    is_beyond = (whole[bits:] ^ sign.replicate(len(whole) - bits)).any()
    up = word[0] & (rest | low[0]) & (sign | (low != largest))
    if smallest == -largest:
        up = up | (sign & (low == 0))
    return Mux(is_beyond, Mux(sign, smallest, largest), Cat(low, sign).as_signed() + up)


def _normalized(m: Module, fmt: MinifloatFormat, word: Value, rest: Value) -> tuple[Value, Value, Value]:
    """Code of a magnitude in half steps, rounded down; the bits below it; whether it is too large."""
    bits = (1 << fmt.exponent_bits) - 1 + fmt.mantissa_bits
    whole = _widened(m, word[1:], bits)
    window: Value = Cat(rest, word[0], whole[:bits])
    field: list[Value] = []
    for stage in reversed(range(1, fmt.exponent_bits)):
        span = 1 << stage
        is_above = window[-span:].any()
        window = Mux(is_above, window, window << span)[: len(window)]
        field.insert(0, is_above)
    # The exponents of the lowest normal numbers and of the subnormal ones, with field 0, are the same.
    top = window[-1]
    window = Mux(top | ~Cat(field).any(), window, window << 1)[: len(window)]
    field.insert(0, top)
    cut = len(window) - 1 - fmt.mantissa_bits
    return Cat(window[cut:-1], *field), window[:cut], whole[bits:].any()
