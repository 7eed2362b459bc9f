"""Verilog text of a component, and what a reader of it must know."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import Shape, Value
from amaranth.lib import data, wiring

from quantizers.errors import BitfrontError, UsageError

MADE_BY = "// Made by bitfront"
"""How every file that is written for a Verilog user begins."""

# How Yosys writes netlists: buses in pieces, and operands that are extended or cut without saying so.
_LINT_OFF = "/* verilator lint_off WIDTH */\n/* verilator lint_off UNOPTFLAT */\n"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Attributes that Yosys leaves for itself; how a memory is to be made is said to the reader's tools.
_BOOKKEEPING = re.compile(r"^ *\(\* (?!ram_style\b).*?\*\)\n|\(\* (?!ram_style\b).*?\*\) ", re.MULTILINE)

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
        (Path(folder) / "design.il").write_text(rtlil.convert(component, name=name, emit_src=False))
        commands = [
            "read_rtlil design.il",
            f"hierarchy -check -top {name}",
            "proc",
            "flatten",
            "memory_collect",
            "opt_clean",
            "write_verilog design.v",
        ]
        command = [sys.executable, "-c", _CONVERT, *commands]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"Yosys could not convert {name}: {(done.stdout + done.stderr).strip()[-500:]}"
            raise VerilogError(msg)
        return _BOOKKEEPING.sub("", (Path(folder) / "design.v").read_text())


def documented_verilog(
    component: wiring.Component,
    *,
    name: str,
    title: str,
    facts: Mapping[str, str],
    streams: Mapping[str, str],
) -> str:
    """As :func:`to_verilog`, below a comment with all that its user must know.

    Args:
        component: elaborated once, so it cannot be used again.
        name: of the module.
        title: what it is, in a line.
        facts: further lines, such as latency, by their headings.
        streams: what each stream carries, by its name.

    Raises:
        UsageError: *name* is not a plain identifier.
        VerilogError: Yosys failed.
    """
    ports = ports_of(component)
    names = max(len(port.name) for port in ports)
    widths = max(len(str(port.width)) for port in ports)
    comment = [
        f"{name}: {title}",
        *(f"{heading}: {text}" for heading, text in facts.items()),
        "",
        "Streams; a payload is taken at a rising clock edge at which valid and ready are both 1:",
        *(f"  {stream}: {text}" for stream, text in streams.items()),
        "",
        "Ports (name, direction, width in bits, meaning):",
        *(
            f"  {port.name:{names}}  {port.direction:6}  {port.width:{widths}}  {port.meaning}"
            for port in ports
        ),
    ]
    lines = "".join(f"// {line}".rstrip() + "\n" for line in comment)
    return f"{made_by()}\n//\n{lines}\n{_LINT_OFF}\n{to_verilog(component, name=name)}"


@dataclass(frozen=True)
class Port:
    """A port of the Verilog module.

    Attributes:
        name: as in the Verilog text.
        direction: ``input`` or ``output``.
        width: in bits.
        meaning: one line; empty where it is not known.
    """

    name: str
    direction: str
    width: int
    meaning: str


def ports_of(component: wiring.Component) -> list[Port]:
    """The ports of :func:`to_verilog`, clock and reset first. Payloads say where their fields lie."""
    ports = [
        Port("clk", "input", 1, "clock; everything happens at its rising edge"),
        Port("rst", "input", 1, "synchronous reset, active high"),
    ]
    for path, member, value in component.signature.flatten(component):
        direction = "input" if member.flow is wiring.In else "output"
        width = Value.cast(value).shape().width
        ports.append(Port("__".join(path), direction, width, _meaning(path[-1], member.shape)))
    return ports


def made_by() -> str:
    """The line with which a file begins: which versions of which tools made it."""
    return f"{MADE_BY} {version('bitfront')}, Amaranth {version('amaranth')}, Yosys {version('pyosys')}"


def _meaning(name: str, shape: Any) -> str:
    match name, shape:
        case "valid", _:
            return "the payload is offered"
        case "ready", _:
            return "the payload is taken if it is offered"
        case _, data.StructLayout():
            return ", ".join(_field(str(key), field) for key, field in shape)
        case _, data.ArrayLayout():
            return f"{shape.length} elements of {_number(shape.elem_shape)}, element 0 in the low bits"
        case _:
            return _number(shape)


def _field(name: str, field: data.Field) -> str:
    if field.width == 1:
        return f"[{field.offset}] {name}"
    inner = f" ({_meaning('', field.shape)})" if isinstance(field.shape, data.Layout) else ""
    return f"[{field.offset + field.width - 1}:{field.offset}] {name}{inner}"


def _number(shape: Any) -> str:
    shape = Shape.cast(shape)
    return f"{'signed' if shape.signed else 'unsigned'}, {shape.width} bits"
