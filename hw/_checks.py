"""Checks of arguments that several components share."""

from __future__ import annotations

from quantizers.errors import UsageError


def check_positive(name: str, value: object) -> None:
    """Raises :class:`UsageError` unless *value* is an integer above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"{name} must be a positive integer, not {value!r}"
        raise UsageError(msg, given=repr(value), expected=["1, 2, 3, ..."])


def check_natural(name: str, value: object) -> None:
    """Raises :class:`UsageError` unless *value* is an integer of at least zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        msg = f"{name} must be a non-negative integer, not {value!r}"
        raise UsageError(msg, given=repr(value), expected=["0, 1, 2, ..."])


def check_switch(name: str, value: object) -> None:
    """Raises :class:`UsageError` unless *value* is true or false."""
    if not isinstance(value, bool):
        msg = f"{name} must be true or false, not {value!r}"
        raise UsageError(msg, given=repr(value), expected=["true", "false"])
