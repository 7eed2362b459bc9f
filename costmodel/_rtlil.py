"""RTLIL as text: made independent of where its sources lie and of when it was written."""

from __future__ import annotations

import re

_NOISE = re.compile(r"^(?:#.*|autoidx \d+|\s*attribute \\src \".*\")\n", re.MULTILINE)
_SERIAL = re.compile(r"\$(\d+)")
_MODULE = re.compile(r"^module \\?(\S+)", re.MULTILINE)


def normalize(rtlil: str) -> str:
    """*rtlil* without comments and source locations, its generated names numbered by appearance.

    Yosys numbers generated names (``$add$x.v:2$1098``) by a counter of the whole process, so one source
    read twice gives two texts; renumbered, they are equal.
    """
    serials: dict[str, str] = {}
    return _SERIAL.sub(
        lambda match: "$" + serials.setdefault(match[1], str(len(serials) + 1)), _NOISE.sub("", rtlil)
    )


def module_names(rtlil: str) -> list[str]:
    """Names of the modules that an RTLIL text defines."""
    return _MODULE.findall(rtlil)
