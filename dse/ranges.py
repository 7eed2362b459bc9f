"""Ranges of bit widths as they are written on the command line."""

from __future__ import annotations

import re

from quantizers.errors import UsageError

_RANGE = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", re.ASCII)


def bit_range(text: str, smallest: int, largest: int) -> range:
    """The widths written as ``8`` or ``3-8``.

    Raises:
        UsageError: not written so, or a width beyond *smallest* and *largest*.
    """
    written = _RANGE.fullmatch(text)
    widths = range(int(written[1]), int(written[2] or written[1]) + 1) if written else range(0)
    if not widths or widths[0] < smallest or widths[-1] > largest:
        msg = (
            f"--bits must be a width or a range within {smallest}-{largest}, "
            f"such as {smallest + 1}-{largest}, not {text!r}"
        )
        raise UsageError(msg, given=text, expected=[str(largest), f"{smallest + 1}-{largest}"])
    return widths
