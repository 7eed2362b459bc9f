"""The sizes of InfLLM v2's block selection."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from quantizers.errors import UsageError

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class BlockSelection:
    """Which blocks of earlier tokens a query may attend to (MiniCPM4, arXiv 2506.07900, section 2.2).

    Token positions count from 0; the query at position i belongs to block ``i // block`` and is one of the
    tokens that it may see.

    Attributes:
        kernel: tokens of which a compressed key is the mean; a multiple of *stride*.
        stride: tokens from one compressed key to the next.
        block: tokens of a block; a multiple of *stride*, at least *kernel*.
        initial: blocks at the beginning that every query takes.
        window: tokens; a query takes its own block and the ``window / block`` ones before it. A multiple of
            *block*.
        topk: blocks that a query takes at most, the forced ones among them.
        dense_length: a query that sees fewer tokens than this takes all blocks.

    Raises:
        UsageError: a size is no integer, out of range, or no multiple.
    """

    kernel: int = 32
    stride: int = 16
    block: int = 64
    initial: int = 1
    window: int = 2048
    topk: int = 96
    dense_length: int = 8192

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name in ("initial", "window", "dense_length") else 1
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                msg = f"{field.name} must be an integer of at least {least}, not {value!r}"
                raise UsageError(msg, given=repr(value))
        for name, unit in (("kernel", "stride"), ("block", "stride"), ("window", "block")):
            size, step = getattr(self, name), getattr(self, unit)
            if size % step:
                near = [str(step * max(size // step + up, 1)) for up in (0, 1)]
                msg = f"{name} must be a multiple of the {unit} {step}, not {size}"
                raise UsageError(msg, given=size, expected=near)
        if self.kernel > self.block:
            msg = f"kernel must be at most the block of {self.block} tokens, not {self.kernel}"
            raise UsageError(msg, given=self.kernel, expected=[str(self.block)])

    @property
    def local(self) -> int:
        """Blocks before its own that a query takes in any case."""
        return self.window // self.block

    @property
    def keys_per_block(self) -> int:
        """Compressed keys that begin in a block."""
        return self.block // self.stride

    @property
    def overlap(self) -> int:
        """Compressed keys that reach from a block into the next one."""
        return self.kernel // self.stride - 1

    def compressed_count(self, tokens: int) -> int:
        """Compressed keys of so many tokens: those whose last token is there."""
        return max((tokens - self.kernel) // self.stride + 1, 0)

    def visible_counts(self, positions: Integers) -> Integers:
        """How many compressed keys queries at these positions see: int64 of the same shape."""
        return np.maximum((positions + 1 - self.kernel) // self.stride + 1, 0)

    def block_count(self, tokens: int) -> int:
        """Blocks of so many tokens, the last one perhaps not full."""
        return -(-tokens // self.block)

    def key_range(self, block: int, keys: int) -> range:
        """The compressed keys, of the first *keys* ones, that share a token with a block."""
        first = max(self.keys_per_block * block - self.overlap, 0)
        return range(first, max(min(self.keys_per_block * (block + 1), keys), first))

    def is_dense(self, positions: Integers) -> NDArray[np.bool_]:
        """Whether queries at these positions take all blocks."""
        return positions + 1 < self.dense_length
