"""A cache behind a codec: append tokens, read them, count the bits; with tokens kept exact at both ends.

The first *sinks* tokens stay exact, and so do the newest *residual* ones and those of a unit that is not
complete. A unit is coded as soon as its last token is not among the newest *residual*; with none of these,
and units of one token, a token is coded before its own query sees it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.codec import Code, Codec, Exact, IntegerArray, code_bits, code_bytes
from quantizers.kv_cache.fixed_point import BITS
from quantizers.kv_cache.integers import check_range

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Kept:
    """Which tokens stay exact beside those of an open unit.

    Attributes:
        sinks: the first tokens, for ever: the model's attention rests on them.
        residual: the newest tokens, until newer ones come.
    """

    sinks: int = 0
    residual: int = 0

    def __post_init__(self) -> None:
        check_range("sinks", self.sinks, 0, 1 << 16)
        check_range("residual", self.residual, 0, 1 << 16)

    def coded_units(self, tokens: int, unit: int) -> int:
        """How many units of *unit* tokens are coded when *tokens* have been appended."""
        return max(0, tokens - self.sinks - self.residual) // unit

    def coded_at(self, tokens: int, unit: int) -> npt.NDArray[np.int64]:
        """Position of the first query that sees each of *tokens* tokens coded; :data:`NEVER` for sinks."""
        token = np.arange(tokens)
        last = self.sinks + ((token - self.sinks) // unit + 1) * unit - 1
        return np.where(token < self.sinks, NEVER, last + self.residual)


class Cache:
    """The tokens of one sequence, in one layer, behind one codec.

    Args:
        codec: of all units.
        kept: what stays exact.
    """

    def __init__(self, codec: Codec, kept: Kept | None = None) -> None:
        self._codec, self._kept = codec, kept or Kept()
        self._exact = Exact(channels=codec.channels)
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        empty = np.zeros((0, self._codec.channels), np.int64)
        self._sinks, self._open = empty, empty
        self._codes: list[Code] = []

    @property
    def tokens(self) -> int:
        """How many were appended."""
        coded = sum(len(code[0].values) for code in self._codes) * self._codec.tokens
        return len(self._sinks) + coded + len(self._open)

    def append(self, x: IntegerArray) -> None:
        """Append tokens ``(new, channels)`` of 16-bit integers.

        Raises:
            UsageError: another shape, or elements of more than 16 bits.
        """
        if x.ndim != 2 or x.shape[1] != self._codec.channels:
            expected = f"(new, {self._codec.channels})"
            msg = f"the cache takes tokens of shape {expected}, not {x.shape}"
            raise UsageError(msg, given=x.shape, expected=[expected])
        self._exact.check(x[:, None])
        room = max(0, self._kept.sinks - len(self._sinks))
        self._sinks = np.concatenate([self._sinks, x[:room]])
        self._open = np.concatenate([self._open, x[room:]])
        self._close()

    def _close(self) -> None:
        """Code the units that are complete and old enough."""
        unit = self._codec.tokens
        units = max(0, len(self._open) - self._kept.residual) // unit
        if units:
            self._codes.append(self._codec.encode(self._open[: units * unit].reshape(units, unit, -1)))
            self._open = self._open[units * unit :]

    def read(self) -> npt.NDArray[np.int64]:
        """All tokens as they are now, ``(tokens, channels)``."""
        coded = [self._codec.decode(code).reshape(-1, self._codec.channels) for code in self._codes]
        return np.concatenate([self._sinks, *coded, self._open])

    @property
    def bits_used(self) -> int:
        """Bits stored, open units and sinks included."""
        exact = (len(self._sinks) + len(self._open)) * self._codec.channels * BITS
        return exact + sum(int(code_bits(code).sum()) for code in self._codes)

    def to_bytes(self) -> list[bytes]:
        """What is stored: the sinks, the coded units in the order in which they came, the open tokens.

        Each entry begins at a byte of its own; numbers inside are packed without gaps.
        """
        exact = [self._exact.encode(part[:, None]) for part in (self._sinks, self._open) if len(part)]
        first = exact[:1] if len(self._sinks) else []
        last = exact[len(first) :]
        return [code_bytes(code) for code in (*first, *self._codes, *last)]


def bits_used(codec: Codec, tokens: int, kept: Kept | None = None) -> float:
    """Bits of a cache of *tokens* tokens: exact, but for codecs whose bits depend on the data a mean."""
    units = (kept or Kept()).coded_units(tokens, codec.tokens)
    return units * codec.unit_bits + (tokens - units * codec.tokens) * codec.channels * BITS
