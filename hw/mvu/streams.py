"""Matrices and vectors as the words of the streams of a matrix-vector unit, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Shape

from hw.arith._shapes import shape_range
from hw.mvu.unit import MatrixVectorUnit
from quantizers.errors import UsageError


def load_words(unit: MatrixVectorUnit, weight_codes: npt.ArrayLike, **parameters: npt.ArrayLike) -> list[int]:
    """The words of the ``load`` stream.

    Args:
        unit: for which they are.
        weight_codes: shape ``(rows, columns)``.
        parameters: ``bias``, ``multiplier`` and ``shift``, those that the unit has, one integer a row.

    Raises:
        UsageError: a shape that is not the unit's, a parameter too many or missing, or one that its field
            does not hold.
    """
    folding, layout = unit.folding, unit.parameter_layout
    codes = np.asarray(weight_codes)
    _check_shape("weight_codes", codes, (folding.rows, folding.columns))
    if set(parameters) != set(layout.members):
        wanted = ", ".join(layout.members) or "no parameters"
        msg = f"this unit takes {wanted}, not {', '.join(parameters) or 'no parameters'}"
        raise UsageError(msg, given=", ".join(parameters), expected=list(layout.members))
    words = _packed(_folded(codes, folding.simd), unit.weight_bits)
    if not layout.size:
        return words
    last_words = _parameter_words(unit, parameters)
    return [
        word
        for row, last in enumerate(last_words)
        for word in (*words[row * folding.column_folds : (row + 1) * folding.column_folds], last)
    ]


def input_words(unit: MatrixVectorUnit, activation_codes: npt.ArrayLike) -> npt.NDArray[Any]:
    """The transfers of the ``inputs`` stream, shape ``(n, simd)``, for codes ``(vectors, columns)``.

    Raises:
        UsageError: a shape that is not the unit's.
    """
    codes = np.asarray(activation_codes)
    _check_shape("activation_codes", codes, (len(codes), unit.folding.columns))
    return _folded(codes, unit.folding.simd)


def output_count(unit: MatrixVectorUnit, vectors: int) -> int:
    """Transfers of the ``outputs`` stream for so many vectors."""
    return vectors * unit.folding.row_folds


def vector_results(unit: MatrixVectorUnit, outputs: npt.ArrayLike) -> npt.NDArray[Any]:
    """Transfers of the ``outputs`` stream, ``(n, pe)``, as results, ``(vectors, rows)``.

    Raises:
        UsageError: transfers of another width, or not those of whole vectors.
    """
    transfers = np.asarray(outputs)
    folding = unit.folding
    whole = len(transfers) // folding.row_folds
    _check_shape("outputs", transfers, (output_count(unit, whole), folding.pe))
    return transfers.reshape(whole, folding.row_folds * folding.pe)[:, : folding.rows]


def _check_shape(name: str, array: npt.NDArray[Any], wanted: tuple[int, ...]) -> None:
    if array.shape != wanted:
        msg = f"{name} must be of shape {wanted}, not {array.shape}"
        raise UsageError(msg, given=array.shape, expected=[str(wanted)])


def _folded(codes: npt.NDArray[Any], simd: int) -> npt.NDArray[Any]:
    """Rows cut into words, shape ``(rows * words, simd)``; zeros behind the last column."""
    padded = np.pad(codes, [(0, 0), (0, -codes.shape[1] % simd)])
    return padded.reshape(-1, simd)


def _packed(codes: npt.NDArray[Any], bits: int) -> list[int]:
    """A word for each row of codes, the first code in the low bits."""
    planes = (codes[..., None] >> np.arange(bits)) & 1
    rows = np.packbits(planes.reshape(len(codes), -1).astype(np.uint8), axis=-1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in rows]


def _parameter_words(unit: MatrixVectorUnit, parameters: Mapping[str, npt.ArrayLike]) -> list[int]:
    words = [0] * unit.folding.rows
    for name, field in unit.parameter_layout:
        values, shape = np.asarray(parameters[name]), Shape.cast(field.shape)
        _check_shape(name, values, (unit.folding.rows,))
        low, high = shape_range(shape)
        for row, value in enumerate(values.tolist()):
            if not low <= value <= high:
                msg = f"the {name} of row {row} is {value}: expected {low} to {high}"
                raise UsageError(msg, given=value, expected=[f"{low}..{high}"])
            words[row] |= (value & ((1 << shape.width) - 1)) << field.offset
    return words
