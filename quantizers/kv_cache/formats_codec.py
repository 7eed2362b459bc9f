"""Groups of channels in a number format of the project with a scale: minifloats, integers, OCP MX."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import MX_SCALE_BITS, BlockFormat, ScalarFormat, parse_format
from quantizers.kv_cache.codec import Code, Codec, IntegerArray, same_width
from quantizers.kv_cache.fixed_point import saturate
from quantizers.kv_cache.grouped import check_divides

Scale = Literal["half", "power"]

HALF_BITS = 16


class InFormat(Codec):
    """Each *group* consecutive channels of a token in a format, times a scale.

    Decoded elements are ``round_half_even(value * scale)``, saturated to 16 bits. Quotients and products
    are taken in float64 and are exact, or decided as the exact ones are: a scale has at most 11 significant
    bits and an element 16, so a quotient that is not a tie is much further from one than float64's error.

    Args:
        channels: of a token.
        format: name of the format (`quantizers.formats`). An MX block format has its own scale.
        group: channels; must divide *channels*. Of a block format: its block size.
        scale: "half": ``max |x| / format's maximum`` in IEEE half precision, 16 bits. "power": the power of
            two ``floor(log2 max |x|) - floor(log2 maximum)`` in 8 bits, as OCP MX takes it.
    """

    def __init__(self, *, channels: int, format: str, group: int = 32, scale: Scale = "half") -> None:
        fmt = parse_format(format)
        if scale not in get_args(Scale):
            raise unknown_choice("scale", scale, get_args(Scale))
        if isinstance(fmt, BlockFormat):
            if group != fmt.block_size:
                msg = f"blocks of {fmt} have {fmt.block_size} elements, not {group}"
                raise UsageError(msg, given=group, expected=[str(fmt.block_size)])
            self.block: BlockFormat | None = fmt
        elif isinstance(fmt, ScalarFormat):
            self.scalar = fmt
            self.block = BlockFormat(fmt, fmt.name, group) if scale == "power" else None
        check_divides("channels of a token", group, channels)
        self.channels, self.group = channels, group

    @property
    def _element_bits(self) -> int:
        return self.scalar.bits if self.block is None else self.block.element.bits

    def encode(self, x: IntegerArray) -> Code:
        self.check(x)
        groups = x.reshape(len(x), -1, self.group)
        if self.block is not None:
            scales, codes = self.block.encode(groups)
            return same_width(codes, self._element_bits), same_width(scales, MX_SCALE_BITS)
        scale = (np.abs(groups).max(axis=-1, keepdims=True) / self.scalar.maximum).astype(np.float16)
        # A scale that rounds to zero or to infinity would lose the group.
        scale = np.clip(scale, np.finfo(np.float16).smallest_subnormal, np.finfo(np.float16).max)
        codes = self.scalar.encode(groups / scale.astype(np.float64))
        return same_width(codes, self._element_bits), same_width(scale.view(np.uint16), HALF_BITS)

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        codes, scales = (field.values for field in code)
        shaped = codes.reshape(len(codes), -1, self.group)
        if self.block is not None:
            values = self.block.decode(scales[..., None], shaped)
        else:
            half = scales.astype(np.uint16).view(np.float16).astype(np.float64)
            values = self.scalar.decode(shaped) * half[..., None]
        return saturate(np.rint(values).astype(np.int64)).reshape(-1, 1, self.channels)

    @property
    def unit_bits(self) -> float:
        scale = HALF_BITS if self.block is None else MX_SCALE_BITS
        return float(self.channels * self._element_bits + self.channels // self.group * scale)
