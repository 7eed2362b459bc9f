"""Verilog text of a component."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from amaranth.back import rtlil
from amaranth.lib import wiring

from quantizers.errors import BitfrontError, UsageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# A process of its own: Yosys writes its log to file descriptor 1 and ends the process on an error.
_CONVERT = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for command in sys.argv[1:]:
    libyosys.run_pass(command, design)
"""


class VerilogError(BitfrontError):
    """Yosys could not convert a design."""


def to_verilog(component: wiring.Component, *, name: str) -> str:
    """The component as one flat Verilog module.

    Args:
        component: elaborated once, so it cannot be used again.
        name: of the module; ports are named ``stream__payload``, ``stream__valid``, ..., ``clk``, ``rst``.

    Raises:
        UsageError: *name* is not a plain identifier.
        VerilogError: Yosys failed.
    """
    if not _NAME.fullmatch(name):
        msg = f"a module name is letters, digits and underscores, not {name!r}"
        raise UsageError(msg, given=name, expected=["my_mac"])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "design.il").write_text(rtlil.convert(component, name=name))
        commands = [
            "read_rtlil design.il",
            f"hierarchy -check -top {name}",
            "proc",
            "flatten",
            "memory_collect",
            "opt_clean",
            "write_verilog -noattr design.v",
        ]
        command = [sys.executable, "-c", _CONVERT, *commands]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"Yosys could not convert {name}: {(done.stdout + done.stderr).strip()[-500:]}"
            raise VerilogError(msg)
        return (Path(folder) / "design.v").read_text()
