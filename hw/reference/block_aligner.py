"""Integer-exact model of the block aligner."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.table_lookup.alignment import align
from quantizers.table_lookup.wide_float import WideFloat


class AlignedWords(NamedTuple):
    """What the block aligner gives.

    Attributes:
        codes: signed integers, shape ``(n, lanes)``.
        exponents: the exponent field that the block of each word shares, at least 1, shape ``(n,)``.
    """

    codes: npt.NDArray[np.int64]
    exponents: npt.NDArray[np.int64]


def align_words(
    words: npt.ArrayLike, *, activations: WideFloat, words_per_block: int, bits: int
) -> AlignedWords:
    """Aligns blocks of words as :class:`hw.lut_kernel.block_aligner.BlockAligner` does.

    The value of an integer is ``code * 2.0**(exponent - activations.exponent_bias + 2 - bits)``.

    Args:
        words: codes of finite numbers, shape ``(n, lanes)``, whole blocks.
        activations: their format.
        words_per_block: words that share an exponent.
        bits: of an integer.

    Raises:
        UsageError: another shape, a code that is none, or as :func:`quantizers.table_lookup.alignment.align`.
    """
    array = np.asarray(words)
    if array.ndim != 2 or len(array) % words_per_block:
        msg = f"words must be of shape (n, lanes), n a multiple of {words_per_block}, not {array.shape}"
        raise UsageError(msg, given=array.shape, expected=[f"(n * {words_per_block}, lanes)"])
    blocks = activations.decode(array).reshape(-1, words_per_block * array.shape[1])
    aligned = align(blocks, bits=bits, fmt=activations)
    exponents = np.repeat(aligned.exponents[:, 0] + activations.exponent_bias, words_per_block)
    return AlignedWords(aligned.codes.reshape(array.shape), exponents)
