"""Ranges of bit widths as they are written on the command line."""

from __future__ import annotations

from quantizers.errors import UsageError


def bit_range(text: str, smallest: int, largest: int) -> range:
    """The widths written as ``8`` or ``3-8``.

    Raises:
        UsageError: not written so, or a width beyond *smallest* and *largest*.
    """
    low, dash, high = text.partition("-")
    try:
        widths = range(int(low), int(high if dash else low) + 1)
    except ValueError:
        widths = range(0)
    if not widths or widths[0] < smallest or widths[-1] > largest:
        msg = (
            f"--bits must be a width or a range within {smallest}-{largest}, "
            f"such as {smallest + 1}-{largest}, not {text!r}"
        )
        raise UsageError(msg, given=text, expected=[str(largest), f"{smallest + 1}-{largest}"])
    return widths
