"""Synthesis with the installed Yosys: figures, inputs, errors, cache, clean standard output."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.back import rtlil
from amaranth.hdl import ClockSignal, Const, Elaboratable, Instance, Module, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from costmodel import ContentCache, PackingError, Resources, SynthesisError, synthesize, synthesize_verilog
from costmodel import yosys as yosys_module
from costmodel._rtlil import normalize
from hw.mac import MultiplyAccumulate
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format

ROOT = Path(__file__).parents[2]


class Multiplier(wiring.Component):
    def __init__(self, width: int) -> None:
        super().__init__({"a": In(signed(width)), "b": In(signed(width)), "p": Out(signed(2 * width))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.p.eq(self.a * self.b)
        return m


class Adder(wiring.Component):
    a: In(8)
    b: In(8)
    y: Out(8)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.sync += self.y.eq(self.a + self.b)
        return m


class Wires(wiring.Component):
    a: In(4)
    y: Out(4)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.y.eq(self.a)
        return m


class Memory(wiring.Component):
    def __init__(self, depth: int, width: int, read_domain: str) -> None:
        self._shape = {"shape": width, "depth": depth, "init": []}
        self._read_domain = read_domain
        super().__init__({"address": In(range(depth)), "data": In(width), "enable": In(1), "q": Out(width)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = words = memory.Memory(**self._shape)
        write, read = words.write_port(), words.read_port(domain=self._read_domain)
        m.d.comb += [write.addr.eq(self.address), write.data.eq(self.data), write.en.eq(self.enable)]
        m.d.comb += [read.addr.eq(self.address), self.q.eq(read.data)]
        return m


class Square(wiring.Component):
    """A product of which the net may carry attributes, on request beside a memory."""

    def __init__(self, attributes: dict[str, str], *, has_memory: bool = False) -> None:
        self._attributes = attributes
        self._memory = Memory(32, 6, "comb") if has_memory else None
        super().__init__({"a": In(signed(8)), "y": Out(signed(16)), "q": Out(6)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        square = Signal(signed(16), attrs=self._attributes)
        m.d.sync += square.eq(self.a * self.a)
        m.d.comb += self.y.eq(square)
        if self._memory is not None:
            m.submodules.memory = self._memory
            m.d.comb += [self._memory.address.eq(self.a), self._memory.data.eq(self.a)]
            m.d.comb += [self._memory.enable.eq(1), self.q.eq(self._memory.q)]
        return m


class TiedRam(wiring.Component):
    """A RAM32M with one address for reading and writing, as the exponent-indexed accumulators use."""

    address: In(5)
    data: In(2)
    q: Out(2)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        addresses = {f"i_ADDR{port}": self.address for port in "ABCD"}
        m.submodules.ram = Instance(
            "RAM32M", **addresses, i_DIA=self.data, i_WE=Const(1), i_WCLK=ClockSignal(), o_DOA=self.q
        )
        return m


class Stranger(Wires):
    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.x = Instance("NO_SUCH_CELL", i_a=self.a, o_y=self.y)
        return m


def test_adder_figures() -> None:
    resources = synthesize(Adder(), name="adder")
    assert resources == Resources(
        lut_cells=8, luts=8, carries=2, carry_positions=8, ffs=8, dsps=0, brams=0, lutrams=0,
        logic_delay_ns=resources.logic_delay_ns, tools=resources.tools, wall_seconds=0,
    )  # fmt: skip
    assert resources.logic_delay_ns is not None
    assert 0.5 < resources.logic_delay_ns < 2.0
    assert resources.wall_seconds > 0
    assert resources.tools == {
        "yosys": yosys_module.yosys_version(),
        "flags": "-family xc7 -nodsp -noiopad -noclkbuf -flatten -nosrl -nobram -nolutram",
        "part": "xc7",
    }


def test_bare_multiplier_keeps_its_anchor() -> None:
    """134 cells is the anchor of facts/cost-data.md section 1; ABC's noise is about 4 sites."""
    resources = synthesize(Multiplier(8), name="multiplier")
    assert abs(resources.lut_cells - 134) <= 6
    assert abs(resources.luts - 81) <= 6
    assert (resources.carries, resources.ffs) == (4, 0)


def test_metrics_have_the_shape_of_a_result_row() -> None:
    metrics = synthesize(Adder(), name="adder").as_metrics()
    assert list(metrics) == [
        "lut_cells", "luts", "carries", "carry_positions", "ffs", "dsps", "brams", "lutrams",
        "logic_delay_ns",
    ]  # fmt: skip
    assert metrics["luts"] == {"value": 8, "provenance": "measured"}
    json.dumps(metrics)


def test_missing_delay_is_left_out() -> None:
    resources = synthesize(Wires(), name="wires")
    assert (resources.luts, resources.logic_delay_ns) == (0, None)
    assert "logic_delay_ns" not in resources.as_metrics()
    assert resources.as_metrics()["luts"]["value"] == 0


def test_memory_takes_the_full_flow() -> None:
    distributed = synthesize(Memory(32, 6, "comb"), name="lutram")
    assert (distributed.luts, distributed.lutrams, distributed.lut_cells) == (4, 4, 0)
    assert distributed.tools["flags"] == "-family xc7 -nodsp -noiopad -noclkbuf -flatten -nosrl"
    block = synthesize(Memory(2048, 18, "sync"), name="bram")
    assert (block.brams, block.lutrams, block.ffs) == (1.0, 0, 0)


@pytest.mark.parametrize(
    ("attributes", "dsps"), [({"use_dsp": "yes"}, 1), ({"use_dsp": "no"}, 0), ({"keep": "yes"}, 0), ({}, 0)]
)
def test_products_become_dsp_slices_where_the_design_asks(attributes: dict[str, str], dsps: int) -> None:
    resources = synthesize(Square(attributes), name="square")
    assert (resources.dsps, resources.luts == 0) == (dsps, dsps == 1)
    nodsp = "" if dsps else "-nodsp "
    assert (
        resources.tools["flags"] == f"-family xc7 {nodsp}-noiopad -noclkbuf -flatten -nosrl -nobram -nolutram"
    )


def test_dsp_slices_and_a_memory() -> None:
    resources = synthesize(Square({"use_dsp": "yes"}, has_memory=True), name="square")
    assert (resources.dsps, resources.luts, resources.lutrams) == (1, 4, 4)
    assert resources.tools["flags"] == "-family xc7 -noiopad -noclkbuf -flatten -nosrl"


def test_verilog_asks_for_dsp_slices_likewise(tmp_path: Path) -> None:
    product = (
        "module m(input clk, input signed [7:0] a, b, output signed [15:0] y);\n"
        "  %s reg signed [15:0] p; always @(posedge clk) p <= a * b; assign y = p;\nendmodule"
    )
    for attribute, dsps in (('(* use_dsp = "yes" *)', 1), ("", 0)):
        source = _write(tmp_path, "m.v", product % attribute)
        assert synthesize_verilog([source], top="m").dsps == dsps


def test_memory_primitive_stays_on_the_fast_flow() -> None:
    resources = synthesize(TiedRam(), name="ram")
    assert (resources.luts, resources.lutrams) == (4, 4)
    assert "-nolutram" in resources.tools["flags"]


def test_rtlil_text_and_component_agree() -> None:
    text = rtlil.convert(Adder(), name="adder")
    assert "attribute \\src" in text
    assert synthesize(text, name="adder") == synthesize(Adder(), name="x")


def test_plain_elaboratable_needs_ports() -> None:
    class Plain(Elaboratable):
        def __init__(self) -> None:
            self.a, self.y = Signal(6), Signal()

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.d.comb += self.y.eq(self.a.all())
            return m

    plain = Plain()
    assert synthesize(plain, name="all", ports=[plain.a, plain.y]).luts == 1
    with pytest.raises(UsageError) as caught:
        synthesize(plain, name="all")
    assert str(caught.value) == "Plain is not a component, so its ports must be given"


def test_wrong_inputs_are_answered_before_yosys_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = rtlil.convert(Adder(), name="adder")
    monkeypatch.setattr(yosys_module, "Yosys", None)
    with pytest.raises(UsageError, match=r"^unknown part 'xcku060'"):
        synthesize(text, name="adder", part="xcku060")
    with pytest.raises(UsageError) as caught:
        synthesize(8, name="eight")
    assert str(caught.value) == "expected an Amaranth component or RTLIL text, not int"
    with pytest.raises(UsageError) as caught:
        synthesize(text, name="addr")
    assert str(caught.value) == "unknown module 'addr' (did you mean 'adder'?); expected one of: adder"


def test_yosys_error_is_one_typed_line_and_does_not_stop_the_next() -> None:
    with pytest.raises(SynthesisError) as caught:
        synthesize(Stranger(), name="stranger")
    assert str(caught.value) == (
        "cannot synthesise 'stranger': Yosys: ERROR: Module `\\NO_SUCH_CELL' referenced in module `\\top' "
        "in cell `\\x' is not part of the design."
    )
    assert synthesize(Adder(), name="adder").luts == 8


def test_killed_yosys_is_reported_and_replaced() -> None:
    synthesize(Adder(), name="adder")
    assert yosys_module._process is not None
    os.kill(yosys_module._process._process.pid, signal.SIGKILL)
    with pytest.raises(SynthesisError) as caught:
        synthesize(Adder(), name="adder")
    assert str(caught.value) == "cannot synthesise 'adder': Yosys was ended by SIGKILL"
    assert synthesize(Adder(), name="adder").luts == 8


def test_endless_yosys_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    yosys_module.close_yosys()
    monkeypatch.setattr(yosys_module, "TIME_LIMIT_S", 1)
    try:
        with pytest.raises(SynthesisError) as caught:
            synthesize(Multiplier(24), name="large")
    finally:
        yosys_module.close_yosys()
    assert str(caught.value) == "cannot synthesise 'large': Yosys did not finish within 1 s"


def test_forked_child_has_its_own_yosys() -> None:
    expected = synthesize(Adder(), name="adder")
    child = os.fork()
    if child == 0:
        same = synthesize(Adder(), name="adder") == expected
        yosys_module.close_yosys()
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert synthesize(Adder(), name="adder") == expected


def test_second_synthesis_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ContentCache(tmp_path)
    first = synthesize(Adder(), name="adder", cache=cache)
    monkeypatch.setattr(yosys_module, "Yosys", None)
    second = synthesize(Adder(), name="another name", part="xc7a35t", cache=ContentCache(tmp_path))
    assert second == first
    assert second.wall_seconds == first.wall_seconds


def test_rule_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ContentCache(tmp_path)
    synthesize(Wires(), name="wires", cache=cache)
    monkeypatch.setattr("costmodel.synthesis._rule_digest", lambda: "another rule")
    synthesize(Wires(), name="wires", cache=cache)
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_figures_do_not_depend_on_the_designs_before() -> None:
    names = ["e4m3", "int8", "e3m2", "e5m2"]
    alone = {}
    for name in names:
        yosys_module.close_yosys()
        alone[name] = synthesize(_mac(name), name="mac")
    for name in [*reversed(names), *names]:
        assert synthesize(_mac(name), name="mac") == alone[name]


def _mac(name: str) -> MultiplyAccumulate:
    fmt = parse_scalar_format(name)
    return MultiplyAccumulate(weights=fmt, activations=fmt, dot_length=4608)


def test_normalized_rtlil_has_no_brackets_in_names() -> None:
    text = "wire \\payload[1][2]\nwire \\payload\nconnect \\payload[1][2] \\payload [3:2]\n"
    assert normalize(text) == "wire \\payload.1.2\nwire \\payload\nconnect \\payload.1.2 \\payload [3:2]\n"


def test_normalized_rtlil_depends_on_neither_path_nor_history() -> None:
    source = '  attribute \\src "{}"\n'
    body = "module \\top\n  wire $add$x.v:2${}_Y\n" + source + "  cell $add $add$x.v:2${}\n  end\nend\n"
    first = normalize("# Generated by Yosys\n\nautoidx 9\n" + body.format(7, "/a/x.v:1", 7))
    second = normalize(body.format(1098, "/b/x.v:1", 1098))
    assert first.strip() == second.strip() == body.replace(source, "").format(1, 1).strip()


# --- Verilog -------------------------------------------------------------------------------------

ADDER_V = """\
module adder(input clk, input [7:0] a, b, output reg [7:0] y);
  always @(posedge clk) y <= a + b;
endmodule
"""


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_verilog_is_counted_by_the_same_rule(tmp_path: Path) -> None:
    resources = synthesize_verilog([_write(tmp_path, "adder.v", ADDER_V)], top="adder")
    assert (resources.luts, resources.ffs, resources.carries) == (8, 8, 2)


def test_systemverilog_with_a_package_in_another_file(tmp_path: Path) -> None:
    pair = "typedef struct packed {logic [3:0] a; logic [3:0] b;} pair;"
    package = _write(tmp_path, "p.sv", f"package p; {pair} endpackage")
    top = _write(
        tmp_path,
        "s.sv",
        "module s import p::*; (input logic clk, input pair i, output logic [3:0] q);\n"
        "  always_ff @(posedge clk) q <= i.a + i.b;\nendmodule",
    )
    resources = synthesize_verilog([package, top], top="s")
    assert (resources.luts, resources.ffs) == (4, 4)


def test_same_source_in_another_folder_is_the_same_entry(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path / "cache")
    for folder in ("one", "two"):
        synthesize_verilog([_write(tmp_path / folder, "adder.v", ADDER_V)], top="adder", cache=cache)
    assert len(list(cache.folder.rglob("*.json"))) == 1


def test_relative_paths_and_blanks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "my designs/the adder.v", ADDER_V)
    synthesize(Wires(), name="wires")  # Yosys runs already, in another folder
    monkeypatch.chdir(tmp_path)
    assert synthesize_verilog(["my designs/the adder.v"], top="adder").luts == 8


@pytest.mark.parametrize("suffix", [".v", ".sv"])
def test_unknown_top_lists_the_modules(tmp_path: Path, suffix: str) -> None:
    source = "// module commented(input x); endmodule\n" + ADDER_V + "module other(input a); endmodule"
    with pytest.raises(UsageError) as caught:
        synthesize_verilog([_write(tmp_path, "adder" + suffix, source)], top="ader")
    assert str(caught.value) == "unknown module 'ader' (did you mean 'adder'?); expected one of: adder, other"


def test_unreadable_sources(tmp_path: Path) -> None:
    missing = tmp_path / "none.v"
    for files, message in [
        ([], "no Verilog file was given"),
        ([missing], f"cannot read {missing}: No such file or directory"),
        ([tmp_path], f"cannot read {tmp_path}: Is a directory"),
        ([_write(tmp_path, "empty.v", "// nothing\n")], f"no module in {tmp_path / 'empty.v'}"),
    ]:
        with pytest.raises(UsageError) as caught:
            synthesize_verilog(files, top="top")
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (
            "m.v",
            "module m(input a)\nassign a = 1;\nendmodule",
            "m.v:2: ERROR: syntax error, unexpected TOK_ASSIGN",
        ),
        (
            "m.sv",
            "module m(output b);\nassign b = c;\nendmodule",
            "m.sv:2: ERROR: use of undeclared identifier 'c'",
        ),
        (
            "m.v",
            "module m(input a); none x(a); endmodule",
            "ERROR: Module `\\none' referenced in module `\\m'",
        ),
        ("m.v", '`include "none.vh"\nmodule m; endmodule', "ERROR: Can't open include file `none.vh'!"),
    ],
)
def test_bad_verilog_is_one_message(tmp_path: Path, name: str, source: str, message: str) -> None:
    with pytest.raises(SynthesisError) as caught:
        synthesize_verilog([_write(tmp_path, name, source)], top="m")
    text = str(caught.value)
    assert text.startswith("cannot read 'm': Yosys: ")
    assert message in text
    assert "\n" not in text


def test_cell_without_a_rule_is_an_error(tmp_path: Path) -> None:
    xorcy = "module m(input a, b, output y); XORCY x(.LI(a), .CI(b), .O(y)); endmodule"
    source = _write(tmp_path, "m.v", xorcy)
    with pytest.raises(PackingError) as caught:
        synthesize_verilog([source], top="m")
    assert str(caught.value) == (
        "cannot synthesise 'm': no counting rule for these cells of the mapped netlist: XORCY (1)"
    )


DSP_V = """\
module m(input clk, e, input [7:0] a, b, output [15:0] y);
  wire [47:0] p;
  DSP48E1 #(.CREG(0), .DREG(0), .ADREG(0), .ALUMODEREG(0), .CARRYINREG(0), .CARRYINSELREG(0), .INMODEREG(0),
    .OPMODEREG(0), %s) d(.CLK(clk), .A({22'b0, a}), .B({10'b0, b}), .C({32'b0, %s}), .D(25'b0),
    .OPMODE({6'b000010, %s}), .ALUMODE(4'b0), .INMODE(5'b0), .CARRYINSEL(3'b0), .CARRYIN(1'b0),
    .CEA2(1'b1), .CEB2(1'b1), .CEM(1'b1), .CEP(1'b1), .RSTA(1'b0), .RSTB(1'b0), .RSTM(1'b0), .RSTP(1'b0), .P(p));
  assign y = p[15:0] + 1;
endmodule
"""
WIRES = ".AREG(0), .BREG(0), .MREG(0), .PREG(0), .ACASCREG(0), .BCASCREG(0)"


@pytest.mark.parametrize(
    ("source", "luts", "notes"),
    [
        (
            "module m(input a, output y); assign y = !(y & a); endmodule",
            1,
            ("no logic delay: there is a combinational loop",),
        ),
        (
            "module m(input a, b, c, output y, z);\n"
            "  LUT6_2 #(.INIT(64'h8)) x(.I0(a), .I1(b), .I2(0), .I3(0), .I4(0), .I5(1), .O6(y), .O5(w));\n"
            "  assign z = w & c;\nendmodule",
            2,
            ("no logic delay: no timing arcs for LUT6_2",),
        ),
        (
            "module m(input clk, we, d, input [5:0] a, output y); wire q; assign y = q ^ d;\n"
            "  RAM64X1S r(.A0(a[0]), .A1(a[1]), .A2(a[2]), .A3(a[3]), .A4(a[4]), .A5(a[5]),\n"
            "    .D(d), .WE(we), .WCLK(clk), .O(q));\nendmodule",
            2,
            ("no logic delay: no timing arcs for RAM64X1S",),
        ),
        (
            "module m(input e, input [2:0] a, output reg [2:0] y); always @* if (e) y = a; endmodule",
            0,
            ("no logic delay: no timing arcs for LDCE", "3 of 3 flip-flops are latches"),
        ),
        (
            "module m(input clk, e, a, output reg y, q);\n"
            "  always @* if (e) y = a;\n  always @(posedge clk) q <= a;\nendmodule",
            0,
            ("no logic delay: no timing arcs for LDCE", "1 of 2 flip-flops is a latch"),
        ),
        (
            "module m(input a, output y, z); assign y = a; assign z = 1'b0; endmodule",
            0,
            ("no logic: every output is an input, a constant or nothing at all",),
        ),
        (
            DSP_V % (WIRES, "y", "1'b1"),
            16,
            ("no logic delay: there is a combinational loop",),
        ),
        (
            DSP_V % (WIRES, "16'b0", "e"),
            16,
            ("no logic delay: no timing arcs for DSP48E1 with pins OPMODE",),
        ),
        (
            DSP_V % (WIRES + ', .USE_MULT("DYNAMIC")', "16'b0", "1'b1"),
            16,
            ("no logic delay: no timing arcs for DSP48E1 with USE_MULT=DYNAMIC",),
        ),
        (
            DSP_V % (WIRES + ', .USE_DPORT("TRUE")', "16'b0", "1'b1"),
            16,
            ("no logic delay: no timing arcs for DSP48E1 with USE_DPORT=TRUE",),
        ),
        (
            (DSP_V % (WIRES, "16'b0", "1'b1")).replace(".ADREG(0)", ".ADREG(1)"),
            16,
            ("no logic delay: no timing arcs for DSP48E1 with ADREG=1 with AREG=0, MREG=0 and PREG=0",),
        ),
        (
            (DSP_V % (".MREG(0), .PREG(0)", "16'b0", "1'b1")).replace(".CREG(0)", ".CREG(1)"),
            16,
            ("no logic delay: no timing arcs for DSP48E1 with CREG=1 with MREG=0 and PREG=0",),
        ),
    ],
)  # fmt: skip
def test_notes_say_what_the_figures_do_not(
    tmp_path: Path, source: str, luts: int, notes: tuple[str, ...]
) -> None:
    cache = ContentCache(tmp_path / "cache")
    path = _write(tmp_path, "m.v", source)
    for _ in range(2):
        resources = synthesize_verilog([path], top="m", cache=cache)
        assert (resources.luts, resources.logic_delay_ns, resources.notes) == (luts, None, notes)


@pytest.mark.parametrize(
    ("settings", "delay_ns"),
    [
        (WIRES, 2.823 + 1.197),  # A to P, then the carry chain
        (".AREG(1), .BREG(1), .MREG(1), .PREG(1)", 0.329 + 1.197),  # the clock to P
        (".AREG(1), .BREG(1), .MREG(0), .PREG(0)", 2.952 + 1.197),  # through the multiplier
        (WIRES.replace(".PREG(0)", '.PREG(1), .USE_DPORT("TRUE")'), 0.329 + 1.197),  # the clock to P
    ],
)
def test_delay_through_a_dsp_slice_follows_its_registers(
    tmp_path: Path, settings: str, delay_ns: float
) -> None:
    source = _write(tmp_path, "m.v", DSP_V % (settings, "16'b0", "1'b1"))
    resources = synthesize_verilog([source], top="m")
    assert (resources.luts, resources.dsps, resources.notes) == (16, 1, ())
    assert resources.logic_delay_ns == pytest.approx(delay_ns, abs=1e-9)


TWO_RINGS = "module ring(input i, output o); assign o = !i; endmodule\n"


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("m.v", "module m(input a, b, output y); assign y = a; assign y = b; endmodule", "net b of m has 2 drivers"),
        ("m.sv", "module m(input a, b, output y); assign y = a; assign y = b; endmodule", "net y of m has 2 drivers"),
        (
            "m.v",
            "module m(input clk, a, b, output reg [1:0] y);\n"
            "  always @(posedge clk) y[1] <= a;\n  always @(posedge clk) y <= {b, a};\nendmodule",
            "net y[1] of m has 2 drivers",
        ),
        (
            "m.v",
            TWO_RINGS + "module m(input a, b, output [1:0] y); ring u(.i(a), .o(y[1])), v(.i(b), .o(y[1])); endmodule",
            "net y[1] of m has 2 drivers",
        ),
        (
            "m.v",
            "module m(input a, b, output y); wire w; assign w = !a; assign w = !b & a; assign y = !w; endmodule",
            "net w of m has 2 drivers",
        ),
        (
            "m.v",
            "module m(input a, b, output [1:0] y); assign y[0] = a & b; assign y[0] = 1'b0; endmodule",
            "net y[0] has a constant and another driver",
        ),
    ],
)  # fmt: skip
def test_net_with_two_drivers_is_an_error(tmp_path: Path, name: str, source: str, message: str) -> None:
    with pytest.raises(SynthesisError) as caught:
        synthesize_verilog([_write(tmp_path, name, source)], top="m")
    assert str(caught.value) == f"cannot read 'm': {message}"


def test_tristate_bus_is_not_a_net_with_two_drivers(tmp_path: Path) -> None:
    bus = (
        "module m(input e, a, b, output y); wire t;\n"
        "  assign t = e ? a : 1'bz; assign t = e ? 1'bz : b; assign y = t; endmodule"
    )
    with pytest.raises(SynthesisError) as caught:
        synthesize_verilog([_write(tmp_path, "m.v", bus)], top="m")
    assert str(caught.value) == (
        "cannot synthesise 'm': Yosys: ERROR: Tristate buffers are unsupported without the '-iopad' option."
    )


def _run_python(script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )


def test_standard_output_is_left_alone() -> None:
    wire = "module \\t\n  wire input 1 \\a\n  wire output 2 \\y\n  connect \\y \\a\nend\n"
    script = (
        "from costmodel import synthesize\n"
        f"text = {wire!r}\n"
        "print(synthesize(text, name='t').luts)\n"
        "try:\n    synthesize(text.replace('connect', 'conect'), name='t')\n"
        "except Exception as error:\n    print(error)\n"
    )
    result = _run_python(script)
    lines = result.stdout.splitlines()
    assert lines[0] == "0"
    assert lines[1].startswith("cannot synthesise 't': Yosys: ")
    assert len(lines) == 2
    assert result.stderr == ""


def test_import_is_light() -> None:
    heavy = ("torch", "brevitas", "pyosys", "amaranth", "dse")
    result = _run_python(f"import sys, costmodel; print([m for m in {heavy} if m in sys.modules])")
    assert result.stdout == "[]\n"
