"""Matrices, scales and vectors as the words of the streams of a grouped table-lookup engine, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Shape, unsigned

from hw.arith._shapes import shape_range
from hw.lut_kernel import streams
from hw.lut_kernel.grouped import GroupedLookupEngine
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat
from quantizers.table_lookup.weights import GroupedWeights


def format_codes(
    weights: GroupedWeights, fmt: ScalarFormat
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The codes and zero points of grouped weights in the format of an engine's weights.

    Of an unsigned format they are the same codes, of a signed one or of ternary weights those less
    ``2**(bits-1)``, in two's complement; zero points, signed numbers, are moved by as much.

    Returns:
        Codes of shape (rows, columns), zero points of shape (rows, blocks).

    Raises:
        UsageError: a format of other bits, or in which a weight has no code.
    """
    if fmt.bits != weights.bits:
        msg = f"{fmt} weights have {fmt.bits} bits, and these have {weights.bits}"
        raise UsageError(msg, given=str(fmt), expected=[f"uint{weights.bits}", f"int{weights.bits}"])
    middle = 1 << (weights.bits - 1)
    codes = weights.codes.astype(np.int64)
    if fmt.signed:
        codes ^= middle
    if not np.isfinite(fmt.values()[codes]).all():
        wrong = int(weights.codes[~np.isfinite(fmt.values()[codes])][0]) - middle
        msg = f"{fmt} has no code for the weight {wrong}"
        raise UsageError(msg, given=wrong, expected=[f"int{weights.bits}"])
    return codes, weights.zero_matrix + (0 if fmt.signed else middle)


def weight_words(engine: GroupedLookupEngine, weight_codes: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The transfers of the ``weights`` stream for one vector.

    Args:
        engine: for which they are.
        weight_codes: shape ``(rows, columns)``.

    Returns:
        Those of the inner engine for each block, one after the other, as :func:`hw.lut_kernel.weight_words`
        gives them.

    Raises:
        UsageError: a shape that is not the engine's.
    """
    codes = np.asarray(weight_codes)
    streams.check_shape("weight_codes", codes, (engine.rows, engine.columns))
    parts = np.split(_filled(engine, codes), engine.blocks, axis=1)
    return np.concatenate([streams.weight_words(engine.engine, part) for part in parts])


def activation_words(engine: GroupedLookupEngine, activation_codes: npt.ArrayLike) -> npt.NDArray[Any]:
    """The transfers of the ``activations`` stream, for codes ``(vectors, columns)``.

    Raises:
        UsageError: a shape that is not the engine's.
    """
    codes = np.asarray(activation_codes)
    streams.check_shape("activation_codes", codes, (len(codes), engine.columns))
    return streams.activation_words(engine.engine, _filled(engine, codes).reshape(-1, engine.block))


def scale_words(
    engine: GroupedLookupEngine, scales: npt.ArrayLike, zeros: npt.ArrayLike | None = None
) -> npt.NDArray[np.int64]:
    """The transfers of the ``scales`` stream for one vector.

    Args:
        engine: for which they are.
        scales: multiples of the unit, shape ``(rows, blocks)``.
        zeros: zero points, of the same shape; not where the engine has none.

    Returns:
        Codes of shape ``(blocks * row_folds, lanes)``; lanes beyond the last row are 0.

    Raises:
        UsageError: a shape that is not the engine's, a value that does not fit, or zero points where
            there are none.
    """
    if zeros is not None and not engine.has_zeros:
        msg = f"{engine.weight_format} weights of this engine have no zero points"
        raise UsageError(msg, given="zeros", expected=["no zeros", "an engine with has_zeros=True"])
    codes = _checked(engine, "scales", scales, unsigned(engine.scale_bits))
    if engine.has_zeros:
        mask = (1 << engine.zero_shape.width) - 1
        points = _checked(engine, "zeros", 0 if zeros is None else zeros, engine.zero_shape)
        codes = codes | (points & mask) << engine.scale_bits
    padded = np.pad(codes, [(0, engine.row_folds * engine.lanes - engine.rows), (0, 0)])
    return padded.T.reshape(-1, engine.lanes)


def vector_results(engine: GroupedLookupEngine, outputs: npt.ArrayLike) -> npt.NDArray[Any]:
    """Transfers of the ``outputs`` stream, ``(n, lanes)``, as results, ``(vectors, rows)``.

    Raises:
        UsageError: transfers of another width, or not those of whole vectors.
    """
    return streams.vector_results(engine.engine, outputs)


def _filled(engine: GroupedLookupEngine, codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """With zeros up to the end of the last block."""
    return np.pad(codes, [(0, 0), (0, engine.blocks * engine.block - engine.columns)])


def _checked(
    engine: GroupedLookupEngine, name: str, values: npt.ArrayLike, shape: Shape
) -> npt.NDArray[np.int64]:
    """Numbers of a shape, one for each row and block."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        msg = f"{name} must be integers, not {array.dtype}"
        raise UsageError(msg, given=str(array.dtype), expected=["an integer dtype"])
    streams.check_shape(name, array, (engine.rows, engine.blocks))
    low, high = shape_range(shape)
    if (wrong := (array < low) | (array > high)).any():
        value = int(array[wrong][0])
        msg = f"{name} must be from {low} to {high}, not {value}"
        raise UsageError(msg, given=value, expected=[f"{low}..{high}"])
    return array.astype(np.int64)
