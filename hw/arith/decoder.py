"""Codes of a number format taken apart: sign, significand, exponent."""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import Cat, Module, Shape, unsigned
from amaranth.lib.wiring import In, Out

from hw._component import Component
from quantizers.errors import UsageError
from quantizers.formats import Format, IntegerFormat, MinifloatFormat, ScalarFormat, TernaryFormat


def check_format(name: str, fmt: object) -> None:
    """Raises :class:`UsageError` unless *fmt* is a scalar format whose codes are all numbers.

    Hardware without a path for NaN and infinity would answer such codes with a wrong finite sum.
    """
    if not isinstance(fmt, ScalarFormat):
        given = fmt.name if isinstance(fmt, Format) else repr(fmt)
        msg = f"{name} must be a scalar number format, such as parse_format('e4m3'), not {given}"
        raise UsageError(msg, given=given, expected=["int8", "e4m3"])
    if isinstance(fmt, MinifloatFormat) and not np.isfinite(fmt.values()).all():
        plain = MinifloatFormat(fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, fmt.signed)
        msg = f"{name} has codes for NaN or infinity, which this datapath cannot carry: {fmt.name}"
        raise UsageError(msg, given=fmt.name, expected=[plain.name])


def has_separate_sign(fmt: ScalarFormat) -> bool:
    """Whether codes are sign and magnitude, rather than two's complement or unsigned."""
    return fmt.signed and not isinstance(fmt, IntegerFormat)


class Decoder(Component):
    """The fields of a code; its value is ``(-1)**sign * significand * 2**(exponent - 1)`` LSBs.

    The LSB is ``2**fmt.grid.lsb_exponent``. Two's complement integers come as a signed significand
    without sign; minifloats and ternary as sign and magnitude. ``exponent`` counts from 1, the
    exponent of subnormals, so a format has an exponent only if it has more than one binade:
    ``e1mY`` is an integer in sign and magnitude. Combinational.

    Ports: ``code`` in; ``sign`` (0 or 1 bit), ``significand``, ``exponent`` (0 bits or more) out.

    Raises:
        UsageError: *fmt* is not a scalar format or has codes that are not finite numbers. (Code 2 of
            ``ternary``, which encoding never makes, counts as zero.)
    """

    def __init__(self, fmt: ScalarFormat) -> None:
        check_format("fmt", fmt)
        self._format = fmt
        super().__init__(
            {
                "code": In(fmt.bits),
                "sign": Out(int(has_separate_sign(fmt))),
                "significand": Out(self._significand_shape),
                "exponent": Out(self.max_exponent.bit_length() if self.max_exponent > 1 else 0),
            }
        )

    @property
    def max_exponent(self) -> int:
        """The largest value of ``exponent``; 1 where there is none."""
        return (1 << self._format.exponent_bits) - 1 if isinstance(self._format, MinifloatFormat) else 1

    @property
    def _significand_shape(self) -> Shape:
        match self._format:
            case MinifloatFormat(mantissa_bits=mantissa_bits):
                return unsigned(mantissa_bits + 1)
            case TernaryFormat():
                return unsigned(1)
            case fmt:
                return Shape(fmt.bits, fmt.signed)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        fmt = self._format
        if len(self.sign):
            m.d.comb += self.sign.eq(self.code[-1])
        if not isinstance(fmt, MinifloatFormat):
            m.d.comb += self.significand.eq(self.code)
            return m
        mantissa = self.code[: fmt.mantissa_bits]
        field = self.code[fmt.mantissa_bits :][: fmt.exponent_bits]
        normal = field.any()
        m.d.comb += self.significand.eq(Cat(mantissa, normal))
        if self.max_exponent > 1:
            # Without a mantissa the only subnormal is zero, whose exponent does not matter.
            lowest = field[0] | ~normal if fmt.mantissa_bits else field[0]
            m.d.comb += self.exponent.eq(Cat(lowest, field[1:]))
        return m
