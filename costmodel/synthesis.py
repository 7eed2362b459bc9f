"""What a design costs on a 7-series part, measured by synthesis with Yosys.

Two flows of ``synth_xilinx``, both without I/O pads and shift-register extraction, so that every design
is counted by the same ruler: the fast one leaves the memory mapping out, the full one maps memories to
LUT RAM and block RAM; a design whose RTLIL declares a memory takes the full one. Products become DSP
slices, all of a design, where one of its nets has the attribute ``use_dsp`` with the value ``yes``
(Vivado's, UG901), and logic elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel import packing
from costmodel._dsp48 import untimed_dsp
from costmodel._loops import has_combinational_loop
from costmodel._rtlil import module_names, normalize
from costmodel.cache import ContentCache
from costmodel.parts import find_part
from costmodel.yosys import SynthesisError, running_yosys, yosys_version
from quantizers.errors import UsageError, unknown_choice

if TYPE_CHECKING:
    from amaranth.hdl import Elaboratable

_TOP = "top"
_COMMON = "-noiopad -noclkbuf -flatten -nosrl"
_MEMORY = re.compile(r"^\s*(memory|cell \$mem\w*)\s", re.MULTILINE)
_USE_DSP = re.compile(r'^\s*attribute \\use_dsp "yes"$', re.MULTILINE)
_VERILOG_MODULE = re.compile(r"\bmodule\s+(?:static\s+|automatic\s+)?(\w+)")
_VERILOG_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_RULE_SOURCES = ("packing.py", "_loops.py", "_dsp48.py", "_yosys_worker.py", "synthesis.py")

_METRICS = (
    "lut_cells", "luts", "carries", "carry_positions", "ffs", "dsps", "brams", "lutrams", "logic_delay_ns",
)  # fmt: skip


@dataclass(frozen=True)
class Flow:
    """Options and stages of ``synth_xilinx``; the stages end before ``check``, where timing arcs go.

    With ``is_purged`` the names of internal nets are dropped after every stage.
    """

    options: str
    stages: tuple[str, ...]
    is_purged: bool = False


@dataclass(frozen=True, kw_only=True)
class Resources(packing.Counts):
    """What one design occupies; the counts are those of :class:`costmodel.packing.Counts`.

    Attributes:
        logic_delay_ns: longest path through LUTs, carry chains and flip-flops without any routing;
            None when the timing arcs of a cell are not known (LUT6_2), there is a combinational
            loop, or there is no path; a note says which.
        tools: Yosys' version, its options and the family of the part.
        wall_seconds: time that the synthesis took when it was made; not part of equality.
        notes: what a reader of the figures must know, a sentence each: why there is no logic delay,
            that there are latches, that there is no logic.
    """

    logic_delay_ns: float | None
    tools: Mapping[str, str] = field(hash=False)
    wall_seconds: float = field(compare=False)
    notes: tuple[str, ...] = ()

    def as_metrics(self) -> dict[str, dict[str, Any]]:
        """The metrics in the JSON shape of a result row; one that could not be had is left out."""
        values = {name: getattr(self, name) for name in _METRICS}
        return {
            name: {"value": value, "provenance": "measured"}
            for name, value in values.items()
            if value is not None
        }


def synthesize(
    design: Elaboratable | str,
    *,
    name: str,
    part: str = "xc7z020",
    cache: ContentCache | None = None,
    ports: Sequence[Any] | None = None,
) -> Resources:
    """Counts an Amaranth design or an RTLIL text.

    Args:
        design: an Amaranth component (or an elaboratable, with *ports*), or RTLIL as text.
        name: what error messages call the design; of an RTLIL text, its top module.
        part: a name of :data:`costmodel.parts.PARTS`.
        cache: where results are kept; without it the design is synthesised anew.
        ports: the ports of an elaboratable that is no component.

    Raises:
        UsageError: unknown part or module, or *design* is neither of the two.
        SynthesisError: Yosys rejects the design.
        PackingError: the mapped netlist has a cell without a counting rule.
    """
    family = find_part(part).family
    if isinstance(design, str):
        names = module_names(design)
        if name not in names:
            raise unknown_choice("module", name, names)
        return _synthesize_rtlil(normalize(design), top=name, label=name, family=family, cache=cache)
    return _synthesize_rtlil(_convert(design, ports), top=_TOP, label=name, family=family, cache=cache)


def synthesize_verilog(
    files: Sequence[str | PathLike[str]],
    *,
    top: str,
    part: str = "xc7z020",
    cache: ContentCache | None = None,
) -> Resources:
    """Counts anybody's Verilog or SystemVerilog, by the same rule.

    Files ending in ``.sv`` are read, with all others beside them, by the SystemVerilog front end slang;
    without one, by Yosys' own Verilog reader. Nothing of the files is executed.

    Args:
        files: source files, in compilation order.
        top: the module to count, with the default values of its parameters.
        part: a name of :data:`costmodel.parts.PARTS`.
        cache: where results are kept; the sources are read in any case.

    Raises:
        UsageError: unknown part or module, no file, or a file that cannot be read.
        SynthesisError: Yosys rejects the sources, or a net has more than one driver.
        PackingError: the mapped netlist has a cell without a counting rule.
    """
    family = find_part(part).family
    paths = [Path(file) for file in files]
    if not paths:
        msg = "no Verilog file was given"
        raise UsageError(msg)
    found = [name for path in paths for name in _modules_in(_read_text(path))]
    if not found:
        msg = f"no module in {', '.join(map(str, paths))}"
        raise UsageError(msg, given=paths[0])
    rtlil = _elaborate_verilog(paths, top, found)
    return _synthesize_rtlil(rtlil, top=top, label=top, family=family, cache=cache)


def _convert(design: Elaboratable, ports: Sequence[Any] | None) -> str:
    from amaranth.back import rtlil
    from amaranth.hdl import Elaboratable
    from amaranth.lib.wiring import Component

    if not isinstance(design, Elaboratable):
        msg = f"expected an Amaranth component or RTLIL text, not {type(design).__name__}"
        raise UsageError(msg, given=type(design).__name__)
    if ports is None and not isinstance(design, Component):
        msg = f"{type(design).__name__} is not a component, so its ports must be given"
        raise UsageError(msg, given=type(design).__name__)
    return normalize(rtlil.convert(design, name=_TOP, ports=ports, emit_src=False))


def _synthesize_rtlil(
    rtlil: str, *, top: str, label: str, family: str, cache: ContentCache | None
) -> Resources:
    flow = _choose_flow(rtlil, family)
    tools = {"yosys": yosys_version(), "flags": flow.options, "part": family}
    key = {"rtlil": rtlil, "top": top, "stages": flow.stages, "tools": tools, "rule": _rule_digest()}
    known = cache.get(key) if cache is not None else None
    if known is not None:
        return Resources(**{**known, "notes": tuple(known["notes"])})
    result = _run_flow(rtlil, top, label, flow, tools)
    if cache is not None:
        cache.put(key, asdict(result))
    return result


def _choose_flow(rtlil: str, family: str) -> Flow:
    has_memory = _MEMORY.search(rtlil) is not None
    if _USE_DSP.search(rtlil):
        # ABC9 names the bits of a net that the slices took from it, and ends where a name is taken:
        # https://github.com/YosysHQ/yosys/issues/4349
        stages = ("prepare:map_luts",) if has_memory else ("prepare:map_memory", "map_ffram:map_luts")
        memory = "" if has_memory else " -nobram -nolutram"
        return Flow(f"-family {family} {_COMMON}{memory}", (*stages, "map_luts:check"), is_purged=True)
    if has_memory:
        return Flow(f"-family {family} -nodsp {_COMMON}", ("prepare:check",))
    options = f"-family {family} -nodsp {_COMMON} -nobram -nolutram"
    return Flow(options, ("prepare:map_memory", "map_ffram:check"))


def _run_flow(rtlil: str, top: str, label: str, flow: Flow, tools: dict[str, str]) -> Resources:
    start = time.perf_counter()
    try:
        netlist, delay_ps, no_delay = _map(rtlil, top, flow)
        counts = packing.count_resources(netlist)
    except (SynthesisError, packing.PackingError) as error:
        msg = f"cannot synthesise {label!r}: {error}"
        raise type(error)(msg) from error
    return Resources(
        **asdict(counts),
        logic_delay_ns=None if delay_ps is None else delay_ps / 1000,
        tools=tools,
        wall_seconds=time.perf_counter() - start,
        notes=tuple(_notes(netlist, counts, no_delay)),
    )


def _notes(netlist: Mapping[str, Any], counts: packing.Counts, no_delay: str | None) -> Iterator[str]:
    if not any(asdict(counts).values()):
        yield "no logic: every output is an input, a constant or nothing at all"
    elif no_delay:
        yield f"no logic delay: {no_delay}"
    latches = sum(cell["type"] in packing.LATCHES for cell in netlist["cells"].values())
    if latches:
        yield f"{latches} of {counts.ffs} flip-flops {'is a latch' if latches == 1 else 'are latches'}"


def _map(rtlil: str, top: str, flow: Flow) -> tuple[dict[str, Any], int | None, str | None]:
    """The mapped module in the form of ``write_json``, and its logic delay in ps or why there is none."""
    with running_yosys() as yosys:
        source = yosys.work / "design.il"
        source.write_text(rtlil)
        yosys.request("map", rtlil=str(source), top=top, **asdict(flow))
        netlist = json.loads((yosys.work / "netlist.json").read_text())["modules"][top]
        no_delay = _untimed(netlist)
        timing = {} if no_delay else yosys.request("time")
    if "untimed" in timing:
        no_delay = f"no timing arcs for {', '.join(timing['untimed'])}"
    elif not no_delay and "delay_ps" not in timing:
        no_delay = "no path goes through logic"
    return netlist, timing.get("delay_ps"), no_delay


def _untimed(netlist: Mapping[str, Any]) -> str | None:
    """Why ``sta`` would not end, or would leave out a path; None when it can be asked."""
    if has_combinational_loop(netlist):
        return "there is a combinational loop"
    use = untimed_dsp(netlist)
    return f"no timing arcs for DSP48E1 with {use}" if use else None


def _rule_digest() -> str:
    """Digest of the code that turns a netlist into counts: a changed rule does not meet old results."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in _RULE_SOURCES)).hexdigest()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}"
        raise UsageError(msg, given=path) from error


def _modules_in(verilog: str) -> list[str]:
    return _VERILOG_MODULE.findall(_VERILOG_COMMENT.sub(" ", verilog))


def _elaborate_verilog(paths: Sequence[Path], top: str, found: Sequence[str]) -> str:
    reader = "slang" if any(path.suffix == ".sv" for path in paths) else "verilog"
    try:
        with running_yosys() as yosys:
            reply = yosys.request("elaborate", files=[f"{path}" for path in paths], top=top, reader=reader)
            text = "" if reply else (yosys.work / "rtlil").read_text()
    except SynthesisError as error:
        if top not in found:
            raise unknown_choice("module", top, found) from error
        raise SynthesisError(f"cannot read {top!r}: {error}") from error
    if "conflict" in reply:
        raise SynthesisError(f"cannot read {top!r}: {reply['conflict']}")
    if reply:
        raise unknown_choice("module", top, reply["modules"])
    for path in paths:
        text = text.replace(str(path), path.name)
    return normalize(text)
