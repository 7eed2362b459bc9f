"""Bit planes of weight codes, the indices that look tables up, and the tables themselves.

Conventions of T-MAC (arXiv 2407.00088, section 3): a code u in [0, 2**bits) stands for the weight
u - 2**(bits-1). Bit i of u is the sign s_i (1 -> +1, 0 -> -1), and

    u - 2**(bits-1) = sum_i alpha_i * s_i - 1/2,  alpha = (1/2, 1, 2, 4).

`group` consecutive columns share a table. Where the columns are no multiple of the group, the last
group is filled up with zero bits (zero weights for ternary) and the activations with zeros: a zero
activation adds nothing whichever sign it takes, so products stay exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantizers.errors import UsageError

MAX_BITS = 4
MAX_GROUP = 8
MAX_TERNARY_GROUP = 5
ACTIVATION_LIMIT = 2**31
"""Integer activations lie in [-ACTIVATION_LIMIT, ACTIVATION_LIMIT): sums of up to 2**31 of them fit int64."""
FLOAT_LIMIT = float(np.finfo(np.float32).max)
"""Magnitudes of floats stay in the range of float32, so that no sum in float64 overflows."""


def bit_planes(codes: ArrayLike, bits: int) -> NDArray[np.uint8]:
    """The bits of unsigned weight codes, least significant plane first.

    Args:
        codes: integers in [0, 2**bits), shape (rows, columns).
        bits: bits per code, 1 to 4.

    Returns:
        Zeros and ones of shape (bits, rows, columns); plane i holds bit i.

    Raises:
        UsageError: *bits* is out of range, or *codes* is no integer matrix or holds a value outside.
    """
    check_integer("bits", bits, 1, MAX_BITS)
    matrix = check_matrix("codes", codes, 0, 2**bits - 1)
    shifts = np.arange(bits, dtype=np.uint8)[:, None, None]
    return (matrix.astype(np.uint8)[None] >> shifts) & np.uint8(1)


def codes_of_planes(planes: ArrayLike) -> NDArray[np.uint8]:
    """The codes of which `bit_planes` gives *planes* (bits, rows, columns); shape (rows, columns).

    Raises:
        UsageError: the shape is wrong, or an entry is neither 0 nor 1.
    """
    array = np.asarray(planes)
    if array.ndim != 3 or not 1 <= array.shape[0] <= MAX_BITS:
        msg = f"planes must have shape (1 to {MAX_BITS}, rows, columns), not {array.shape}"
        raise UsageError(msg, given=array.shape)
    for plane in array:
        check_matrix("plane", plane, 0, 1)
    shifts = np.arange(array.shape[0], dtype=np.uint8)[:, None, None]
    return (array.astype(np.uint8) << shifts).sum(axis=0, dtype=np.uint8)


def plane_indices(plane: ArrayLike, group: int) -> NDArray[np.uint8]:
    """The table index of every group: idx[m, k] = sum_j plane[m, group*k + j] << j.

    Args:
        plane: zeros and ones, shape (rows, columns).
        group: columns that share a table, 1 to 8.

    Returns:
        Indices in [0, 2**group), shape (rows, ceil(columns/group)); columns missing from the last
        group count as zero bits.

    Raises:
        UsageError: *group* is out of range, or *plane* is no matrix of zeros and ones.
    """
    check_integer("group", group, 1, MAX_GROUP)
    bits = _grouped(check_matrix("plane", plane, 0, 1).astype(np.uint8), group)
    return (bits << np.arange(group, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)


def plane_of_indices(indices: ArrayLike, group: int, columns: int) -> NDArray[np.uint8]:
    """The plane (rows, columns) of which `plane_indices` gives *indices*.

    Raises:
        UsageError: *group* is out of range, an index is not below 2**group, or the number of groups
            is not ceil(columns/group).
    """
    check_integer("group", group, 1, MAX_GROUP)
    matrix = check_matrix("indices", indices, 0, 2**group - 1).astype(np.uint8)
    _check_groups(matrix, group, columns)
    bits = (matrix[..., None] >> np.arange(group, dtype=np.uint8)) & np.uint8(1)
    return bits.reshape(matrix.shape[0], -1)[:, :columns]


def ternary_indices(weights: ArrayLike, group: int = 3) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Base-3 groups with their mirror sign (TL2 of bitnet.cpp, arXiv 2502.11880, for group 3).

    The value of a group is v = sum_j 3**(group-1-j) * w_j, so 9*w0 + 3*w1 + w2 for three. Weights of
    opposite sign have opposite values and share a table entry.

    Args:
        weights: integers in {-1, 0, 1}, shape (rows, columns).
        group: weights that share a table, 1 to 5.

    Returns:
        |v|, in [0, (3**group - 1) / 2], and the sign (1 where v < 0), each of shape
        (rows, ceil(columns/group)); weights missing from the last group count as zero.

    Raises:
        UsageError: *group* is out of range, or *weights* is no matrix of -1, 0 and 1.
    """
    check_integer("group", group, 1, MAX_TERNARY_GROUP)
    digits = _grouped(check_matrix("weights", weights, -1, 1).astype(np.int16), group)
    values = digits @ _powers_of_three(group)
    return np.abs(values).astype(np.uint8), (values < 0).astype(np.uint8)


def ternary_weights(indices: ArrayLike, signs: ArrayLike, columns: int, group: int = 3) -> NDArray[np.int8]:
    """The weights (rows, columns) of which `ternary_indices` gives *indices* and *signs*.

    Raises:
        UsageError: *group* is out of range, an index or a sign is, or the shapes do not fit.
    """
    check_integer("group", group, 1, MAX_TERNARY_GROUP)
    matrix = check_matrix("indices", indices, 0, (3**group - 1) // 2)
    negative = check_matrix("signs", signs, 0, 1)
    if matrix.shape != negative.shape:
        msg = f"indices and signs must have the same shape, not {matrix.shape} and {negative.shape}"
        raise UsageError(msg, given=negative.shape)
    _check_groups(matrix, group, columns)
    digits = _ternary_digits(group)[matrix.astype(np.int64)]
    signed = np.where(negative[..., None] == 1, -digits, digits)
    return signed.reshape(matrix.shape[0], -1)[:, :columns]


def table(activations: ArrayLike, group: int) -> NDArray[Any]:
    """All signed sums of each group of activations: T[c] = sum_j (+x_j if bit j of c else -x_j).

    Args:
        activations: integers, or finite floats; shape (..., columns).
        group: activations that share a table, 1 to 8.

    Returns:
        Shape (..., ceil(columns/group), 2**group): int64, exact, for integers; float64, summed from
        j = 0 upward, for floats. T[2**group - 1 - c] = -T[c] holds exactly for both.

    Raises:
        UsageError: *group* is out of range, or the activations are not finite, too large or empty.
    """
    check_integer("group", group, 1, MAX_GROUP)
    bits = (np.arange(2**group)[:, None] >> np.arange(group)) & 1
    return _combinations(activations, 2 * bits - 1)


def ternary_table(activations: ArrayLike, group: int = 3) -> NDArray[Any]:
    """The sums that `ternary_indices` looks up: T[v] = sum_j w_j * x_j for the weights of value v >= 0.

    Args:
        activations: integers, or finite floats; shape (..., columns).
        group: activations that share a table, 1 to 5.

    Returns:
        Shape (..., ceil(columns/group), (3**group + 1) / 2), 14 entries for three; the entry of a
        negative value is the negated entry of its magnitude. Types as in `table`.

    Raises:
        UsageError: as `table`.
    """
    check_integer("group", group, 1, MAX_TERNARY_GROUP)
    return _combinations(activations, _ternary_digits(group).astype(np.int64))


def check_integer(name: str, value: int, low: int, high: int) -> None:
    """Raise UsageError unless *value* is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        msg = f"{name} must be an integer from {low} to {high}, not {value!r}"
        raise UsageError(msg, given=value)


def checked_activations(activations: ArrayLike) -> NDArray[Any]:
    """*activations* (..., columns) as int64 or float64.

    Raises:
        UsageError: they are no numbers, empty, not finite, or too large for 32 bits; the first wrong
            one is named by its position.
    """
    array = np.asarray(activations)
    if array.ndim < 1 or array.size == 0 or array.dtype.kind not in "iuf":
        msg = f"activations must be a non-empty array of numbers, not {array.dtype} of shape {array.shape}"
        raise UsageError(msg, given=array.shape)
    if array.dtype.kind == "f":
        if not (usable := np.abs(array) <= FLOAT_LIMIT).all():
            position = first_position(~usable)
            msg = (
                f"activations must be finite float32 values; {array[position]} at {_named(position)} is none"
            )
            raise UsageError(msg, given=array[position])
        return array.astype(np.float64)
    if (outside := (array < -ACTIVATION_LIMIT) | (array >= ACTIVATION_LIMIT)).any():
        position = first_position(outside)
        msg = f"integer activations must fit 32 bits; {array[position]} at {_named(position)} does not"
        raise UsageError(msg, given=array[position])
    return array.astype(np.int64)


def first_position(wrong: NDArray[np.bool_]) -> tuple[int, ...]:
    """The index of the first true entry of *wrong*, in row-major order."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))


def _named(position: tuple[int, ...]) -> str:
    if len(position) == 1:
        return f"position {position[0]}"
    return f"position {position}"


def check_matrix(name: str, values: ArrayLike, low: int, high: int) -> NDArray[Any]:
    """*values* as an array.

    Raises:
        UsageError: they are no integer matrix, or one lies outside [low, high]; the first is named.
    """
    matrix = np.asarray(values)
    if matrix.ndim != 2 or matrix.size == 0 or matrix.dtype.kind not in "iub":
        msg = f"{name} must be a non-empty integer matrix, not {matrix.dtype} of shape {matrix.shape}"
        raise UsageError(msg, given=matrix.shape)
    if (outside := (matrix < low) | (matrix > high)).any():
        row, column = first_position(outside)
        msg = (
            f"{name} must lie from {low} to {high}; "
            f"{int(matrix[row, column])} at row {row}, column {column} does not"
        )
        raise UsageError(msg, given=int(matrix[row, column]))
    return matrix


def _check_groups(matrix: NDArray[Any], group: int, columns: int) -> None:
    if columns < 1 or matrix.shape[1] != -(-columns // group):
        needed = -(-columns // group)
        msg = f"{columns} columns in groups of {group} need {needed} indices a row, not {matrix.shape[1]}"
        raise UsageError(msg, given=matrix.shape[1])


def _grouped(array: NDArray[Any], group: int) -> NDArray[Any]:
    """(..., columns) -> (..., ceil(columns/group), group), filled up with zeros."""
    missing = -array.shape[-1] % group
    padded = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])
    return padded.reshape(*array.shape[:-1], -1, group)


def _combinations(activations: ArrayLike, coefficients: NDArray[np.int64]) -> NDArray[Any]:
    """Every row of *coefficients* (entries, group) times every group; (..., groups, entries)."""
    groups = _grouped(checked_activations(activations), coefficients.shape[1])
    entries = np.zeros((*groups.shape[:-1], coefficients.shape[0]), groups.dtype)
    for j in range(coefficients.shape[1]):
        entries += groups[..., j, None] * coefficients[:, j].astype(groups.dtype)
    return entries


def _powers_of_three(group: int) -> NDArray[np.int16]:
    return (3 ** np.arange(group - 1, -1, -1)).astype(np.int16)


def _ternary_digits(group: int) -> NDArray[np.int8]:
    """The weights of the values 0 to (3**group - 1) / 2, first weight most significant."""
    offset = (3**group - 1) // 2
    values = np.arange(offset + 1) + offset
    digits: NDArray[np.int8] = (values[:, None] // _powers_of_three(group) % 3 - 1).astype(np.int8)
    return digits
