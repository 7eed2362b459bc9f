"""What a reader of emitted Verilog is told, and what is true of the text."""

from importlib.metadata import version

import pytest
from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib import memory as lib_memory
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.mac import MultiplyAccumulate
from hw.verilog import MADE_BY, Port, documented_verilog, made_by, ports_of, to_verilog
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format

CLOCKING = [
    Port("clk", "input", 1, "clock; everything happens at its rising edge"),
    Port("rst", "input", 1, "synchronous reset, active high"),
]


def mac():
    weights, activations = parse_scalar_format("e2m1"), parse_scalar_format("int8")
    return MultiplyAccumulate(weights=weights, activations=activations, dot_length=64)


class Wide(Component):
    """Payloads of every kind."""

    vectors: In(stream.Signature(data.ArrayLayout(signed(4), 3)))
    words: In(stream.Signature(data.StructLayout({"row": data.ArrayLayout(signed(4), 2), "address": 5})))
    codes: Out(stream.Signature(unsigned(7)))

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.codes.payload.eq(self.codes.payload + self.vectors.payload.as_value())
        return m


def test_ports_are_those_of_the_module():
    assert ports_of(mac()) == [
        *CLOCKING,
        Port("pairs__payload", "input", 13, "[3:0] weight, [11:4] activation, [12] last"),
        Port("pairs__valid", "input", 1, "the payload is offered"),
        Port("pairs__ready", "output", 1, "the payload is taken if it is offered"),
        Port("sums__payload", "output", 18, "signed, 18 bits"),
        Port("sums__valid", "output", 1, "the payload is offered"),
        Port("sums__ready", "input", 1, "the payload is taken if it is offered"),
    ]
    text = to_verilog(mac(), name="mac")
    for port in ports_of(mac()):
        ends = f"[{port.width - 1}:0] " if port.width > 1 else ""
        sign = "signed " if port.meaning.startswith("signed") else ""
        assert f"  {port.direction} {sign}{ends}{port.name};\n" in text


def test_payloads_of_layouts():
    meanings = {port.name: (port.width, port.meaning) for port in ports_of(Wide())}
    assert meanings["vectors__payload"] == (12, "3 elements of signed, 4 bits, element 0 in the low bits")
    assert meanings["words__payload"] == (
        13,
        "[7:0] row (2 elements of signed, 4 bits, element 0 in the low bits), [12:8] address",
    )
    assert meanings["codes__payload"] == (7, "unsigned, 7 bits")


class Memory(Component):
    """Remembers the last eight items; gives the oldest."""

    items: In(stream.Signature(8))
    results: Out(stream.Signature(8))

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = lib_memory.Memory(
            shape=8, depth=8, init=[], attrs={"ram_style": "distributed"}
        )
        write, read = memory.write_port(), memory.read_port(domain="comb")
        position = Signal(3)
        # Yosys marks a switch without a default case.
        with m.Switch(self.results.ready):
            with m.Case(1):
                m.d.sync += position.eq(position + 1)
            with m.Case(0):
                m.d.sync += position.eq(0)
        m.d.comb += [
            *(port.addr.eq(position) for port in (write, read)),
            write.data.eq(self.items.payload),
            write.en.eq(self.items.valid),
            self.results.payload.eq(read.data),
        ]
        return m


def test_of_the_attributes_only_those_of_memories_are_left():
    lines = [line.strip() for line in to_verilog(Memory(), name="memory").splitlines() if "(*" in line]
    assert lines == ['(* ram_style = "distributed" *)']
    assert "(*" not in to_verilog(mac(), name="mac")


def test_every_file_begins_with_what_made_it():
    versions = (version(name) for name in ("bitfront", "amaranth", "pyosys"))
    assert made_by() == "// Made by bitfront {}, Amaranth {}, Yosys {}".format(*versions)
    assert made_by().startswith(MADE_BY)


HEADER = """\
{made_by}
//
// unit: what it is
// Latency: 3 cycles
//
// Streams; a payload is taken at a rising clock edge at which valid and ready are both 1:
//   pairs: two codes
//   sums: a sum
//
// Ports (name, direction, width in bits, meaning):
//   clk             input    1  clock; everything happens at its rising edge
//   rst             input    1  synchronous reset, active high
//   pairs__payload  input   13  [3:0] weight, [11:4] activation, [12] last
//   pairs__valid    input    1  the payload is offered
//   pairs__ready    output   1  the payload is taken if it is offered
//   sums__payload   output  18  signed, 18 bits
//   sums__valid     output   1  the payload is offered
//   sums__ready     input    1  the payload is taken if it is offered

/* verilator lint_off WIDTH */
/* verilator lint_off UNOPTFLAT */

"""


def test_documented_verilog_is_a_comment_and_the_module():
    streams = {"pairs": "two codes", "sums": "a sum"}
    texts = [
        documented_verilog(
            mac(), name="unit", title="what it is", facts={"Latency": "3 cycles"}, streams=streams
        )
        for _ in range(2)
    ]
    assert texts[0] == HEADER.format(made_by=made_by()) + to_verilog(mac(), name="unit")
    assert texts[0] == texts[1]


def test_wrong_module_name():
    with pytest.raises(UsageError) as caught:
        documented_verilog(mac(), name="2x", title="t", facts={}, streams={})
    assert str(caught.value) == "a module name is letters, digits and underscores, not '2x'"
