"""Matrices and vectors as the words of the streams of a table-lookup engine, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hw.lut_kernel.engine import TableLookupEngine
from quantizers.errors import UsageError


def weight_words(engine: TableLookupEngine, weight_codes: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The transfers of the ``weights`` stream for one vector.

    Args:
        engine: for which they are.
        weight_codes: shape ``(rows, columns)``.

    Returns:
        Indices of shape ``(chunks * row_folds * passes, lanes * planes * groups)``.

    Raises:
        UsageError: a shape that is not the engine's.
    """
    codes = np.asarray(weight_codes)
    check_shape("weight_codes", codes, (engine.rows, engine.columns))
    wide = engine.chunks * engine.groups * engine.encoding.group
    padded = np.pad(codes, [(0, engine.row_folds * engine.lanes - engine.rows), (0, wide - engine.columns)])
    indices = engine.encoding.indices(padded)
    shape = engine.passes, engine.planes, engine.row_folds, engine.lanes, engine.chunks, engine.groups
    parts = indices.reshape(shape)[::-1]
    return parts.transpose(4, 2, 0, 3, 1, 5).reshape(-1, engine.lookups)


def weight_indices(engine: TableLookupEngine, words: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Transfers of the ``weights`` stream for one vector as the indices of the matrix, shape
    ``(planes, rows, ceil(columns / group))``.

    Raises:
        UsageError: not the transfers of one vector.
    """
    array = np.asarray(words)
    check_shape("words", array, (engine.chunks * engine.lookup_cycles, engine.lookups))
    shape = engine.chunks, engine.row_folds, engine.passes, engine.lanes, engine.planes, engine.groups
    parts = array.reshape(shape).transpose(2, 4, 1, 3, 0, 5)[::-1]
    indices = parts.reshape(engine.encoding.planes, engine.row_folds * engine.lanes, -1)
    return indices[:, : engine.rows, : -(-engine.columns // engine.encoding.group)]


def activation_words(engine: TableLookupEngine, activation_codes: npt.ArrayLike) -> npt.NDArray[Any]:
    """The transfers of the ``activations`` stream, for codes ``(vectors, columns)``.

    Raises:
        UsageError: a shape that is not the engine's.
    """
    codes = np.asarray(activation_codes)
    check_shape("activation_codes", codes, (len(codes), engine.columns))
    wide = engine.chunks * engine.groups * engine.encoding.group
    padded = np.pad(codes, [(0, 0), (0, wide - engine.columns)])
    return padded.reshape(-1, engine.writers * engine.encoding.group)


def vector_results(engine: TableLookupEngine, outputs: npt.ArrayLike) -> npt.NDArray[Any]:
    """Transfers of the ``outputs`` stream, ``(n, lanes)``, as sums, ``(vectors, rows)``.

    Raises:
        UsageError: transfers of another width, or not those of whole vectors.
    """
    transfers = np.asarray(outputs)
    whole = len(transfers) // engine.row_folds
    check_shape("outputs", transfers, (whole * engine.row_folds, engine.lanes))
    return transfers.reshape(whole, engine.row_folds * engine.lanes)[:, : engine.rows]


def check_shape(name: str, array: npt.NDArray[Any], wanted: tuple[int, ...]) -> None:
    if array.shape != wanted:
        msg = f"{name} must be of shape {wanted}, not {array.shape}"
        raise UsageError(msg, given=array.shape, expected=[str(wanted)])
