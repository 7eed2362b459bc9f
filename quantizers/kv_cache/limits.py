"""What the parameters of the calibrated codecs may be, whatever the model is: known before there is one."""

from __future__ import annotations

from quantizers.errors import UsageError
from quantizers.kv_cache.allocation import WIDEST
from quantizers.kv_cache.codebook import MAX_BITS, MIN_BITS
from quantizers.kv_cache.fixed_point import BITS
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.transform import MAX_ENTRY_BITS

_MIN_SCALE_BITS, _MAX_SCALE_BITS = 5, 16
_MIN_ENTRY_BITS = 4
_LARGEST_SEED = (1 << 32) - 1

# From there on all errors are alike to six digits.
_LARGEST_FLOOR = 1_000_000


def check_number(name: str, value: float, low: int, high: int) -> None:
    """Raises :class:`UsageError` unless *value* is a number from *low* to *high*; NaN is none."""
    if not low <= value <= high:
        msg = f"{name} must be from {low} to {high}, not {value!r}"
        raise UsageError(msg, given=repr(value), expected=[f"{low} to {high}"])


def check_rotations(
    *, bits: float, scale_bits: int, seed: int, allocated: bool, lowest: int, highest: int, tempering: float
) -> None:
    """Of :func:`~.fitting.rotations`.

    Raises:
        UsageError: one is out of range, *lowest* is above *highest*, or *bits* is no integer without
            *allocated*.
    """
    check_range("scale_bits", scale_bits, _MIN_SCALE_BITS, _MAX_SCALE_BITS)
    check_range("seed", seed, 0, _LARGEST_SEED)
    check_range("lowest", lowest, 0, MAX_BITS)
    check_range("highest", highest, 1, MAX_BITS)
    if lowest > highest:
        msg = f"lowest must be at most highest, not {lowest} with a highest of {highest}"
        raise UsageError(msg, given=lowest, expected=[f"0 to {highest}"])
    check_number("tempering", tempering, 0, 1)
    if allocated:
        # The model sets narrower limits: see the account of `fitting`.
        check_number("bits", bits, lowest, BITS)
    else:
        _check_alike(bits)


def check_transforms(*, bits: float, entry_bits: int, tempering: float, floor: float) -> None:
    """Of :func:`~.fitting.transforms`.

    Raises:
        UsageError: one is out of range.
    """
    check_number("bits", bits, 0, WIDEST)
    check_range("entry_bits", entry_bits, _MIN_ENTRY_BITS, MAX_ENTRY_BITS)
    check_number("tempering", tempering, 0, 1)
    check_number("floor", floor, 0, _LARGEST_FLOOR)


def _check_alike(bits: float) -> None:
    check_number("bits", bits, MIN_BITS, MAX_BITS)
    if bits != int(bits):
        msg = f"codes that are all alike have a whole number of bits, not {bits}"
        raise UsageError(msg, given=bits, expected=[str(int(bits)), str(int(bits) + 1)])
