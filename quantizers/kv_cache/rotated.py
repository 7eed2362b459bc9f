"""Vectors rotated by Hadamard matrices, their coefficients in a fixed codebook, one scale a vector.

The arithmetic is that of `quantizers.kv_cache.rotation` and `quantizers.kv_cache.codebook`; here vectors are
cut out of tokens, and each coefficient has as many bits as an offline table gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.codebook import MAX_BITS, Codebook, ScaleFormat, magnitude_sums
from quantizers.kv_cache.codec import Code, Codec, Field, IntegerArray, checked_means, same_width
from quantizers.kv_cache.fixed_point import HIGHEST, LOWEST
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
        bits: of each coefficient, :func:`padded_size` of them, 0 to *finest*; one of 0 bits is read as 0.
        finest: bits of the codes of which all codes are the highest bits, 1 to 6.
        signs: 1 or -1 for each (padded) element.
        means: 16-bit integers, taken from the elements before they are rotated; None: nothing.
        scale: format of the sum of magnitudes.

    Raises:
        UsageError: tables of the wrong length or range.
    """

    elements: int
    bits: tuple[int, ...]
    finest: int
    signs: tuple[int, ...]
    scale: ScaleFormat
    means: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        size = padded_size(self.elements)
        for name, table in {"bits": self.bits, "signs": self.signs}.items():
            if len(table) != size:
                msg = f"a vector of {self.elements} elements takes {size} {name}, not {len(table)}"
                raise UsageError(msg, given=len(table), expected=[str(size)])
        if self.means is not None and len(self.means) != self.elements:
            msg = f"a vector of {self.elements} elements takes {self.elements} means, not {len(self.means)}"
            raise UsageError(msg, given=len(self.means), expected=[str(self.elements)])
        wrong = sorted(set(self.signs) - {-1, 1})
        if wrong:
            msg = f"signs must be 1 or -1; one is {wrong[0]}"
            raise UsageError(msg, given=wrong[0], expected=["1", "-1"])
        check_integers("means", self.offsets, LOWEST, HIGHEST)
        check_range("finest", self.finest, 1, MAX_BITS)
        check_integers("bits", np.array(self.bits), 0, self.finest)

    @property
    def stored_bits(self) -> int:
        """Bits of the vector, its scale included."""
        return sum(self.bits) + self.scale.bits

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """The means, zeros where there are none, shape (elements,)."""
        return np.array(self.means or (0,) * self.elements, np.int64)

    def codebook(self, bits: int) -> Codebook:
        """Of the coefficients of so many bits."""
        return Codebook(bits=bits, size=len(self.bits), finest=self.finest)

    def encode(self, x: IntegerArray) -> Code:
        """Codes and scale of vectors ``(units, elements)``."""
        w = rotate(np.pad(x, [(0, 0), self._padding]), means=self._padded_means, signs=self.signs)
        scale_codes = self.scale.encode(magnitude_sums(w))
        scales = self.scale.decode(scale_codes)
        finest = self.codebook(self.finest).quantize(w, scales).astype(np.int64)
        codes = finest >> (self.finest - np.array(self.bits))
        return Field(codes, self.bits), same_width(scale_codes[:, None], self.scale.bits)

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        """The vectors ``(units, elements)``."""
        codes, scale_codes = (field.values for field in code)
        scales = self.scale.decode(scale_codes[:, 0])
        w = np.zeros(codes.shape, np.int64)
        for bits in set(self.bits) - {0}:
            places = np.flatnonzero(np.equal(self.bits, bits))
            w[:, places] = self.codebook(bits).dequantize(codes[:, places], scales)
        limited = np.clip(w, -MAX_COEFFICIENT, MAX_COEFFICIENT)
        x = unrotate(limited, means=self._padded_means, signs=self.signs)
        return x[:, : self.elements].astype(np.int64)

    @property
    def _padding(self) -> tuple[int, int]:
        return 0, len(self.bits) - self.elements

    @property
    def _padded_means(self) -> npt.NDArray[np.int64]:
        return np.pad(self.offsets, self._padding)


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

    def centred(self, means: Sequence[int] | IntegerArray) -> Rotated:
        """The vectors take the means away themselves: in one bit more, where a difference needs it."""
        ends = np.cumsum([vector.elements for vector in self.vectors])
        shares = np.split(checked_means(means, self.channels), ends[:-1])
        return Rotated(
            [
                replace(vector, means=tuple((vector.offsets + share).tolist()))
                for vector, share in zip(self.vectors, shares, strict=True)
            ]
        )

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
