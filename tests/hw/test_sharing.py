import re

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.sharing import SharedModules, add_alike
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream


class Counted(Component):
    """Its input, plus the number of times that it was asked."""

    enable: In(1)
    number: In(8)
    result: Out(8)

    def elaborate(self, platform):
        m = Module()
        count = Signal(8)
        with m.If(self.enable):
            m.d.sync += count.eq(count + 1)
        m.d.comb += self.result.eq(self.number + count)
        return m


class Doubled(Component):
    number: In(8)
    result: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.result.eq(self.number << 1)
        return m


class Lanes(Component):
    def __init__(self) -> None:
        array = data.ArrayLayout(8, 4)
        super().__init__({"items": In(stream.Signature(array)), "results": Out(stream.Signature(array))})

    def elaborate(self, platform):
        m = Module()
        counted, doubled = [Counted() for _ in range(4)], [Doubled() for _ in range(4)]
        add_alike(m, "counted", counted, platform)
        add_alike(m, "doubled", doubled, platform)
        m.d.comb += [self.results.valid.eq(self.items.valid), self.items.ready.eq(self.results.ready)]
        for lane, (first, second) in enumerate(zip(counted, doubled, strict=True)):
            m.d.comb += [
                first.enable.eq(self.items.valid & self.items.ready & (lane > 1)),
                first.number.eq(self.items.payload[lane]),
                second.number.eq(first.result),
                self.results.payload[lane].eq(second.result),
            ]
        return m


def test_alike_components_become_one_module():
    modules = re.findall(r"^module (\S+)", SharedModules().convert(Lanes(), name="lanes"), re.MULTILINE)
    assert sorted(modules) == ["\\counted", "\\doubled", "\\lanes"]
    separate = re.findall(r"^module (\S+)", rtlil.convert(Lanes(), name="lanes"), re.MULTILINE)
    assert len(separate) == 9


def test_instances_keep_their_own_state():
    """Lanes 2 and 3 count, 0 and 1 do not; with shared modules and without."""
    items = np.arange(40).reshape(10, 4)
    counts = np.arange(10)[:, None] * [0, 0, 1, 1]
    expected = (2 * (items + counts)).tolist()
    assert simulate_stream(Lanes(), items.tolist(), output_count=10).outputs == expected
    assert VerilatedStream(Lanes()).run(items, output_count=10).outputs.tolist() == expected


@pytest.mark.parametrize("name", ["counted", "doubled"])
def test_clock_and_reset_go_where_they_are_needed(name):
    text = SharedModules().convert(Lanes(), name="lanes")
    cells = re.findall(rf"cell \\{name} .*?end\n", text, re.DOTALL)
    assert len(cells) == 4
    assert all(("\\clk" in cell and "\\rst" in cell) == (name == "counted") for cell in cells)
