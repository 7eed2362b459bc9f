"""Groups of elements with a minimum and a span: along the tokens of a channel, or the channels of a token."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.codec import Code, Codec, IntegerArray, same_width, signed
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.uniform import (
    MAX_BITS,
    MIN_BITS,
    MINIMUM_BITS,
    SPAN_BITS,
    UniformGroups,
    dequantize,
    quantize,
)


def check_divides(what: str, group: int, channels: int) -> None:
    """Raises :class:`UsageError` unless groups of *group* fill *channels* evenly."""
    check_range("group", group, 1, 1 << 16)
    if channels % group:
        divisors = [str(g) for g in range(1, channels + 1) if channels % g == 0]
        nearest = min(divisors, key=lambda g: abs(int(g) - group))
        msg = f"groups of {group} do not divide the {channels} {what}; the nearest that do have {nearest}"
        raise UsageError(msg, given=group, expected=[nearest, *(g for g in divisors if g != nearest)])


class PerChannel(Codec):
    """Each channel of *group* consecutive tokens on an even grid (keys, in arXiv 2402.02750).

    Args:
        channels: of a token.
        bits: of a code, 2 to 8.
        group: tokens.
    """

    def __init__(self, *, channels: int, bits: int, group: int) -> None:
        check_range("bits", bits, MIN_BITS, MAX_BITS)
        check_range("group", group, 1, 1 << 16)
        self.channels, self.bits, self.tokens = channels, bits, group

    def encode(self, x: IntegerArray) -> Code:
        self.check(x)
        return _fields(quantize(x.transpose(0, 2, 1), self.bits), self.bits)

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        return (
            _elements(code, self.bits, self.tokens).reshape(-1, self.channels, self.tokens).transpose(0, 2, 1)
        )

    @property
    def unit_bits(self) -> float:
        return float(self.channels * (self.bits * self.tokens + MINIMUM_BITS + SPAN_BITS))


class PerToken(Codec):
    """Each *group* consecutive channels of a token on an even grid (values, in arXiv 2402.02750).

    Args:
        channels: of a token.
        bits: of a code, 2 to 8.
        group: channels; must divide *channels*.
    """

    def __init__(self, *, channels: int, bits: int, group: int) -> None:
        check_range("bits", bits, MIN_BITS, MAX_BITS)
        check_divides("channels of a token", group, channels)
        self.channels, self.bits, self.group = channels, bits, group

    def encode(self, x: IntegerArray) -> Code:
        self.check(x)
        return _fields(quantize(x.reshape(len(x), -1, self.group), self.bits), self.bits)

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        return _elements(code, self.bits, self.group).reshape(-1, 1, self.channels)

    @property
    def unit_bits(self) -> float:
        groups = self.channels // self.group
        return float(self.channels * self.bits + groups * (MINIMUM_BITS + SPAN_BITS))


def _fields(groups: UniformGroups, bits: int) -> Code:
    """Codes, minima and spans of groups (units, groups, elements)."""
    return (
        same_width(groups.codes, bits),
        same_width(groups.minimum, MINIMUM_BITS),
        same_width(groups.span, SPAN_BITS),
    )


def _elements(code: Code, bits: int, group: int) -> npt.NDArray[np.int64]:
    """The elements of all groups, shape (units, groups, group)."""
    codes, minimum, span = (field.values for field in code)
    shaped = codes.reshape(len(codes), -1, group)
    groups = UniformGroups(
        shaped.astype(np.uint8), signed(minimum, MINIMUM_BITS).astype(np.int16), span.astype(np.uint16)
    )
    return dequantize(groups, bits).astype(np.int64)
