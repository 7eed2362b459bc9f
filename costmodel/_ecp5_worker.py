"""Maps one design to ECP5: run by path from ``costmodel.place_and_route``, imports nothing of this project.

Arguments: the RTLIL file, its top module, the file for the netlist (JSON), then the options of
``synth_ecp5``. Yosys' log goes to standard output; on an error it ends the process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def _map(rtlil: str, top: str, netlist: str, options: Sequence[str]) -> None:
    from pyosys import libyosys

    design = libyosys.Design()
    for words in (
        ("read_rtlil", rtlil),
        ("synth_ecp5", "-top", top, *options),
        ("write_json", "-noscopeinfo", netlist),
    ):
        design.run_pass(libyosys.StringVector(list(words)))


if __name__ == "__main__":
    _map(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
