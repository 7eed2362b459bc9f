"""Vectors rotated by Hadamard matrices, their coefficients in a fixed codebook, one scale a vector.

The arithmetic is that of `quantizers.kv_cache.rotation` and `quantizers.kv_cache.codebook`; here vectors are
cut out of tokens, and each coefficient has as many bits as an offline table gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.codebook import MAX_BITS, Codebook, Gains, ScaleFormat, magnitude_sums
from quantizers.kv_cache.codec import Code, Codec, Field, IntegerArray, same_width
from quantizers.kv_cache.fixed_point import saturate
from quantizers.kv_cache.integers import check_integers, check_range
from quantizers.kv_cache.rotation import MAX_COEFFICIENT, rotate, unrotate


def padded_size(elements: int) -> int:
    """The power of two to which a vector is filled up with zeros before it is rotated; at least 2."""
    check_range("elements", elements, 1, 1 << 12)
    return max(2, 1 << (elements - 1).bit_length())


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """One vector: the consecutive elements that are rotated together.

    A vector whose size is no power of two is filled up with zeros to the next; all coefficients of that are
    coded, and counted.

    Attributes:
        elements: of the vector.
        bits: of each coefficient, :func:`padded_size` of them, 0 to 6; a coefficient of 0 bits is read as 0.
        signs: 1 or -1 for each (padded) element.
        scale: format of the sum of magnitudes.
        gains: what coefficients are multiplied by before they are coded; None: nothing.

    Raises:
        UsageError: tables of the wrong length or range.
    """

    elements: int
    bits: tuple[int, ...]
    signs: tuple[int, ...]
    scale: ScaleFormat
    gains: Gains | None = None

    def __post_init__(self) -> None:
        size = padded_size(self.elements)
        multipliers = self.signs if self.gains is None else self.gains.multipliers
        for name, table in {"bits": self.bits, "signs": self.signs, "gains": multipliers}.items():
            if len(table) != size:
                msg = f"a vector of {self.elements} elements takes {size} {name}, not {len(table)}"
                raise UsageError(msg, given=len(table), expected=[str(size)])
        check_integers("bits", np.array(self.bits), 0, MAX_BITS)

    @property
    def stored_bits(self) -> int:
        """Bits of the vector, its scale included."""
        return sum(self.bits) + self.scale.bits

    @cached_property
    def _classes(self) -> list[tuple[Codebook, npt.NDArray[np.intp]]]:
        """The codebook of each width, and which coefficients have it."""
        size = len(self.bits)
        widths = sorted(set(self.bits) - {0})
        return [(Codebook(bits=b, size=size), np.flatnonzero(np.equal(self.bits, b))) for b in widths]

    def encode(self, x: IntegerArray) -> Code:
        """Codes and scale of vectors ``(units, elements)``."""
        padded = np.pad(x, [(0, 0), (0, len(self.bits) - self.elements)])
        w = rotate(padded, signs=self.signs)
        u = w if self.gains is None else self.gains.apply(w)
        scale_codes = self.scale.encode(magnitude_sums(u))
        scales = self.scale.decode(scale_codes)
        codes = np.zeros(u.shape, np.int64)
        for book, places in self._classes:
            codes[:, places] = book.quantize(u[:, places], scales)
        return Field(codes, self.bits), same_width(scale_codes[:, None], self.scale.bits)

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        """The vectors ``(units, elements)``."""
        codes, scale_codes = (field.values for field in code)
        scales = self.scale.decode(scale_codes[:, 0])
        u = np.zeros(codes.shape, np.int64)
        for book, places in self._classes:
            u[:, places] = book.dequantize(codes[:, places], scales)
        w = u if self.gains is None else self.gains.undo(u)
        limited = np.clip(w, -MAX_COEFFICIENT, MAX_COEFFICIENT)
        return saturate(unrotate(limited, signs=self.signs))[:, : self.elements].astype(np.int64)


class Rotated(Codec):
    """Each token as vectors that are rotated and coded one by one.

    Args:
        vectors: from channel 0 on, one after the other; usually one a head.
    """

    def __init__(self, vectors: Sequence[Rotation]) -> None:
        if not vectors:
            msg = "a token has at least one vector"
            raise UsageError(msg, given=0, expected=["1 or more"])
        self.vectors = tuple(vectors)
        self.channels = sum(vector.elements for vector in self.vectors)

    def encode(self, x: IntegerArray) -> Code:
        self.check(x)
        starts = np.cumsum([vector.elements for vector in self.vectors])[:-1]
        shares = np.split(x[:, 0], starts, axis=1)
        return tuple(
            field
            for vector, share in zip(self.vectors, shares, strict=True)
            for field in vector.encode(share)
        )

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        pairs = zip(self.vectors, code[::2], code[1::2], strict=True)
        return np.concatenate([vector.decode((f, s)) for vector, f, s in pairs], axis=1)[:, None]

    @property
    def unit_bits(self) -> float:
        return float(sum(vector.stored_bits for vector in self.vectors))
