"""From keys or values to rotated codes, and back: the whole data paths of the rotated cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Value
from amaranth.lib import data

from hw.kv_cache.codebook import DequantizerStage, QuantizerStage
from hw.kv_cache.hadamard import HadamardStage, check_hadamard_size
from hw.kv_cache.lane_table import LaneTable
from hw.kv_cache.lockstep import Lockstep, word_count
from hw.kv_cache.rotated_stages import (
    CENTRING_FIELD,
    DIFFERENCE,
    RESTORING_FIELD,
    CentringStage,
    Chain,
    RestoringStage,
    centring_rows,
    restoring_rows,
)
from quantizers.errors import UsageError
from quantizers.kv_cache.codebook import ScaleFormat
from quantizers.kv_cache.fixed_point import HIGHEST, LOWEST
from quantizers.kv_cache.integers import check_integers
from quantizers.kv_cache.rotation import halvings

IntegerArray = npt.NDArray[Any]


class KvRotatedWriter(Lockstep):
    """Keys or values of some heads to codes and scales.

    ``rotate``, ``magnitude_sums``, ``ScaleFormat.encode`` and ``Codebook.quantize`` of
    :mod:`quantizers.kv_cache`, one after the other, bit for bit.

    Ports:
        ``inputs``: stream of words of *lanes* 16-bit elements; a vector for each head, the heads of a
            token in turn.
        ``outputs``: stream of words of *lanes* ``codes`` and the ``scale`` of their vector. The codes of a
            vector come in the order of :func:`hw.kv_cache.hadamard.exchanged_order`.

    One word a cycle, :attr:`latency` cycles.

    Args:
        means: of the channels of each head, 16-bit integers, shape (heads, size): a table in the design.
        signs: 1 and -1, of the same shape, or (size,) for all heads.
        lanes: elements of a word, a power of two.
        bits: of a code.
        scale: format of the scales; by default 8 bits that reach every vector.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        means: npt.ArrayLike,
        signs: npt.ArrayLike,
        lanes: int,
        bits: int,
        scale: ScaleFormat | None = None,
    ) -> None:
        offsets, flips = _checked_tables(means, signs)
        size = offsets.shape[1]
        word_count(size, lanes)  # checks them
        rows = centring_rows(offsets, flips, lanes)
        table = LaneTable(field=data.StructLayout(CENTRING_FIELD), lanes=lanes, depth=len(rows), rows=rows)
        stages = [
            CentringStage(size=size, table=table),
            HadamardStage(size=size, lanes=lanes, input_bits=DIFFERENCE.width, halvings=halvings(size)),
            QuantizerStage(size=size, lanes=lanes, bits=bits, scale=scale),
        ]
        super().__init__(Chain(stages))


class KvRotatedReader(Lockstep):
    """Codes and scales to keys or values: ``Codebook.dequantize`` and ``unrotate``, bit for bit.

    Ports: ``inputs``: what :class:`KvRotatedWriter` gives; ``outputs``: stream of words of *lanes* 16-bit
    elements. One word a cycle, :attr:`latency` cycles.

    Args:
        means, signs, lanes, bits, scale: as of the writer.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        means: npt.ArrayLike,
        signs: npt.ArrayLike,
        lanes: int,
        bits: int,
        scale: ScaleFormat | None = None,
    ) -> None:
        offsets, flips = _checked_tables(means, signs)
        size = offsets.shape[1]
        levels = DequantizerStage(size=size, lanes=lanes, bits=bits, scale=scale)
        transform = HadamardStage(size=size, lanes=lanes, input_bits=len(Value.cast(levels.outputs[0])))
        output_bits = len(Value.cast(transform.outputs[0]))
        rows = restoring_rows(offsets, flips, lanes)
        table = LaneTable(field=data.StructLayout(RESTORING_FIELD), lanes=lanes, depth=len(rows), rows=rows)
        restoring = RestoringStage(size=size, table=table, input_bits=output_bits)
        super().__init__(Chain([levels, transform, restoring]))


def _checked_tables(means: npt.ArrayLike, signs: npt.ArrayLike) -> tuple[IntegerArray, IntegerArray]:
    """The means as int64, and where signs are negative, both of shape (heads, size)."""
    offsets, factors = np.asarray(means), np.asarray(signs)
    if offsets.ndim != 2 or not offsets.size:
        msg = f"means must be of shape (heads, size), not {offsets.shape}"
        raise UsageError(msg, given=offsets.shape, expected=["(heads, size)"])
    check_hadamard_size(offsets.shape[1])
    check_integers("means", offsets, LOWEST, HIGHEST)
    if factors.shape not in (offsets.shape, offsets.shape[1:]):
        msg = f"signs must be of shape {offsets.shape} or {offsets.shape[1:]}, not {factors.shape}"
        raise UsageError(msg, given=factors.shape, expected=[str(offsets.shape), str(offsets.shape[1:])])
    check_integers("signs", factors, -1, 1)
    if not factors.all():
        msg = "signs must be 1 or -1; one is 0"
        raise UsageError(msg, given=0, expected=["1", "-1"])
    return offsets.astype(np.int64), np.broadcast_to(factors < 0, offsets.shape)
