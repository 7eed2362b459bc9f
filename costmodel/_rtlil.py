"""RTLIL as text: made independent of where its sources lie and of when it was written."""

from __future__ import annotations

import re

_NOISE = re.compile(r"^(?:#.*|autoidx \d+|\s*attribute \\src \".*\")\n", re.MULTILINE)
_SERIAL = re.compile(r"\$(\d+)")
# ABC9's flow takes a wire named "port[1]" for a bit of the port, and dies (Yosys 0.70).
_INDEXED_NAME = re.compile(r"\\\S*\[\S*")
_MODULE = re.compile(r"^module \\?(\S+)", re.MULTILINE)


def normalize(rtlil: str) -> str:
    """*rtlil* without comments and source locations, its generated names numbered by appearance, and without
    brackets in names.

    Yosys numbers generated names (``$add$x.v:2$1098``) by a counter of the whole process, so one source
    read twice gives two texts; renumbered, they are equal.
    """
    serials: dict[str, str] = {}
    numbered = _SERIAL.sub(
        lambda match: "$" + serials.setdefault(match[1], str(len(serials) + 1)), _NOISE.sub("", rtlil)
    )
    return _INDEXED_NAME.sub(lambda match: match[0].replace("[", ".").replace("]", ""), numbered)


def module_names(rtlil: str) -> list[str]:
    """Names of the modules that an RTLIL text defines."""
    return _MODULE.findall(rtlil)
