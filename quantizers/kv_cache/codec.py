"""What every codec is: integers of some tokens in, numbers of few bits out, and back.

A codec works on *units*: `tokens` consecutive tokens of `channels` elements each, all heads side by side. It
turns a unit into fields, which are what is stored, and it has nothing else to decode them from than its own
tables (means, codebooks, matrices), which are the same for all tokens and not counted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.fixed_point import HIGHEST, LOWEST, saturate
from quantizers.kv_cache.integers import check_integers
from quantizers.kv_cache.packing import pack

IntegerArray = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Field:
    """Numbers that are stored side by side in each unit.

    Attributes:
        values: shape (units, n), from 0 to ``2**width - 1``.
        widths: bits of each of the n numbers.
        present: bool, shape (units, n): which of them a unit stores; None where all.
    """

    values: IntegerArray
    widths: tuple[int, ...]
    present: npt.NDArray[np.bool_] | None = None

    @property
    def bits(self) -> npt.NDArray[np.int64]:
        """Bits of each unit, shape (units,)."""
        widths = np.array(self.widths, dtype=np.int64)
        stored = np.ones(self.values.shape, np.bool_) if self.present is None else self.present
        return stored @ widths

    def unit(self, index: int) -> tuple[list[int], list[int]]:
        """What one unit stores: numbers and their widths."""
        stored = slice(None) if self.present is None else self.present[index]
        return self.values[index][stored].tolist(), np.array(self.widths)[stored].tolist()


Code = tuple[Field, ...]


def same_width(values: IntegerArray, width: int, present: npt.NDArray[np.bool_] | None = None) -> Field:
    """A field of numbers of one width, shape (units, ...); signed ones in two's complement."""
    flat = values.astype(np.int64).reshape(len(values), -1) & ((1 << width) - 1)
    stored = None if present is None else present.reshape(flat.shape)
    return Field(flat, (width,) * flat.shape[1], stored)


def signed(values: IntegerArray, width: int) -> npt.NDArray[np.int64]:
    """Numbers that were stored in two's complement."""
    wrap = 1 << width
    return np.where(values >= wrap >> 1, values - wrap, values).astype(np.int64)


def code_bits(code: Code) -> npt.NDArray[np.int64]:
    """Bits of each unit, shape (units,)."""
    return np.sum([field.bits for field in code], axis=0)


def code_bytes(code: Code) -> bytes:
    """All units of a code, one after the other without a gap; the last byte is filled up with zeros."""
    numbers: list[int] = []
    widths: list[int] = []
    for index in range(len(code[0].values)):
        for field in code:
            some, their = field.unit(index)
            numbers += some
            widths += their
    return pack(np.array(numbers, dtype=np.int64), widths, word_bits=8).astype(np.uint8).tobytes()


class Codec(ABC):
    """Codes units of tokens; immutable, and equal inputs give equal codes.

    Attributes:
        channels: elements of a token.
        tokens: of a unit.
    """

    channels: int
    tokens: int = 1

    @abstractmethod
    def encode(self, x: IntegerArray) -> Code:
        """The fields of units ``(units, tokens, channels)`` of 16-bit integers."""

    @abstractmethod
    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        """The units, 16-bit integers of shape ``(units, tokens, channels)``, from their fields alone."""

    @property
    @abstractmethod
    def unit_bits(self) -> float:
        """Bits of a unit; the mean on the calibration text where it depends on the data."""

    @property
    def bits_per_element(self) -> float:
        """Stored bits of an element, all metadata counted."""
        return self.unit_bits / (self.tokens * self.channels)

    def centred(self, means: Sequence[int] | IntegerArray) -> Codec:
        """This codec on what is left when each channel's mean, a 16-bit integer, is taken away.

        Raises:
            UsageError: there is not one 16-bit integer a channel.
        """
        return Centred(self, means=means)

    def check(self, x: IntegerArray) -> None:
        """Raises :class:`UsageError` unless *x* is of shape (units, tokens, channels), 16-bit integers."""
        if x.ndim != 3 or x.shape[1:] != (self.tokens, self.channels):
            expected = f"(units, {self.tokens}, {self.channels})"
            msg = f"{type(self).__name__} codes integers of shape {expected}, not {x.shape}"
            raise UsageError(msg, given=x.shape, expected=[expected])
        check_integers("x", x, LOWEST, HIGHEST)


class Exact(Codec):
    """Every element in 16 bits: the cache that is not compressed."""

    def __init__(self, *, channels: int) -> None:
        self.channels = channels

    def encode(self, x: IntegerArray) -> Code:
        self.check(x)
        return (same_width(x, 16),)

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        return signed(code[0].values, 16).reshape(-1, 1, self.channels)

    @property
    def unit_bits(self) -> float:
        return 16.0 * self.channels


def checked_means(means: Sequence[int] | IntegerArray, channels: int) -> IntegerArray:
    """As an array.

    Raises:
        UsageError: there is not one 16-bit integer a channel.
    """
    array = np.asarray(means)
    if array.shape != (channels,):
        msg = f"there must be {channels} means, a channel one, not {array.shape}"
        raise UsageError(msg, given=array.shape, expected=[f"({channels},)"])
    check_integers("means", array, LOWEST, HIGHEST)
    return array


class Centred(Codec):
    """Another codec, on what is left when each channel's offline mean is taken away.

    The difference saturates to 16 bits, and so does the sum.

    Args:
        inner: codes the differences.
        means: 16-bit integers, shape (channels,).
    """

    def __init__(self, inner: Codec, *, means: Sequence[int] | IntegerArray) -> None:
        self._means = checked_means(means, inner.channels)
        self.inner = inner
        self.channels, self.tokens = inner.channels, inner.tokens

    @property
    def means(self) -> IntegerArray:
        """A copy."""
        return self._means.copy()

    def encode(self, x: IntegerArray) -> Code:
        self.check(x)
        return self.inner.encode(saturate(x.astype(np.int64) - self._means))

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        return saturate(self.inner.decode(code) + self._means)

    @property
    def unit_bits(self) -> float:
        return self.inner.unit_bits
