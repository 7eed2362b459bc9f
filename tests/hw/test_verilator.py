import numpy as np
import pytest
from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.simulation import SimulationError, simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from tests.hw.two_outputs import COUNTS, HIGHS, ITEMS, LOWS, Halves

PAIR = data.ArrayLayout(signed(21), 3)


class Adder(Component):
    """Adds arrays of two streams, element by element; *wide* payloads of the second come as plain bits."""

    def __init__(self) -> None:
        super().__init__(
            {
                "left": In(stream.Signature(PAIR)),
                "right": In(stream.Signature(unsigned(63))),
                "sums": Out(stream.Signature(data.ArrayLayout(signed(22), 3))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        free = Signal()
        both = Signal()
        m.d.comb += [
            free.eq(~self.sums.valid | self.sums.ready),
            both.eq(self.left.valid & self.right.valid),
            self.left.ready.eq(free & both),
            self.right.ready.eq(free & both),
        ]
        with m.If(free):
            m.d.sync += self.sums.valid.eq(both)
            for lane in range(3):
                right = self.right.payload[21 * lane :][:21].as_signed()
                m.d.sync += self.sums.payload[lane].eq(self.left.payload[lane] + right)
        return m


def problem(count=300):
    rng = np.random.default_rng(4)
    left, right = rng.integers(-(1 << 20), 1 << 20, (2, count, 3))
    left[0], right[0] = -(1 << 20), -(1 << 20)
    words = [sum((int(x) & 0x1FFFFF) << 21 * lane for lane, x in enumerate(row)) for row in right]
    return {"left": left, "right": words}, (left + right).tolist()


@pytest.fixture(scope="module")
def adder():
    return VerilatedStream(Adder())


@pytest.mark.parametrize(("valid", "ready"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.2), (0.5, 0.5)])
def test_two_input_streams_of_arrays(adder, valid, ready):
    items, sums = problem()
    settings = {"output_count": 300, "seed": 2, "valid_probability": valid, "ready_probability": ready}
    compiled = adder.run(items, **settings)
    assert compiled.outputs.tolist() == sums
    simulated = simulate_stream(Adder(), {**items, "left": items["left"].tolist()}, **settings)
    assert simulated.outputs == sums
    if valid == ready == 1.0:
        assert compiled.cycles == simulated.cycles == 301


def test_streams_that_go_first():
    """The 40 items of one stream, of which nothing depends on the other, then those of the other."""

    class Collector(Component):
        def __init__(self) -> None:
            ports = {name: In(stream.Signature(8)) for name in ("early", "late")}
            super().__init__({**ports, "seen": Out(stream.Signature(9))})

        def elaborate(self, platform):
            m = Module()
            take_early = self.early.valid
            m.d.comb += [
                self.early.ready.eq(self.seen.ready),
                self.late.ready.eq(self.seen.ready & ~take_early),
                self.seen.valid.eq(self.early.valid | self.late.valid),
                self.seen.payload.eq(self.late.payload | 256),
            ]
            with m.If(take_early):
                m.d.comb += self.seen.payload.eq(self.early.payload)
            return m

    items = {"late": list(range(30)), "early": list(range(40))}
    settings = {"output_count": 70, "seed": 3, "valid_probability": 0.5, "ready_probability": 0.6}
    ordered = [*range(40), *range(256, 286)]
    compiled = VerilatedStream(Collector())
    assert compiled.run(items, first=["early"], **settings).outputs.tolist() == ordered
    assert compiled.run(items, **settings).outputs.tolist() != ordered
    assert simulate_stream(Collector(), items, first=["early"], **settings).outputs == ordered
    assert simulate_stream(Collector(), items, **settings).outputs != ordered
    at_once = {"output_count": 70, "first": ["early"]}
    assert (
        compiled.run(items, **at_once).cycles == simulate_stream(Collector(), items, **at_once).cycles == 70
    )


class Wide(Component):
    """Passes on 150 bits, as three numbers of 50 or as one."""

    def __init__(self, layout) -> None:
        super().__init__({"items": In(stream.Signature(layout)), "results": Out(stream.Signature(layout))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [
            self.results.valid.eq(self.items.valid),
            self.items.ready.eq(self.results.ready),
            self.results.payload.eq(self.items.payload),
        ]
        return m


def test_wide_payloads():
    numbers = [0, 1, (1 << 150) - 1, 1 << 149, 3**94]
    wide = VerilatedStream(Wide(unsigned(150)))
    assert wide.run(numbers, output_count=5).outputs.tolist() == numbers
    signed_numbers = [-1, 1, -(1 << 149), (1 << 149) - 1, -(3**93)]
    wide = VerilatedStream(Wide(signed(150)))
    assert wide.run(signed_numbers, output_count=5).outputs.tolist() == signed_numbers


@pytest.mark.parametrize(
    "element", [signed(50), unsigned(7), signed(1), unsigned(33), signed(64), signed(70)], ids=repr
)
def test_arrays_of_all_widths(element):
    rng = np.random.default_rng(1)
    low = -(1 << element.width - 1) if element.signed else 0
    rows = [
        [low + int(x) * (1 << element.width) // 1000 for x in rng.integers(0, 1000, 5)] for _ in range(20)
    ]
    rows += [[low] * 5, [low + (1 << element.width) - 1] * 5]
    stream_of_arrays = VerilatedStream(Wide(data.ArrayLayout(element, 5)))
    items = np.array(rows, dtype=object if element.width > 63 else np.int64)
    assert stream_of_arrays.run(items, output_count=len(rows)).outputs.tolist() == rows
    words = [
        sum((x & (1 << element.width) - 1) << element.width * i for i, x in enumerate(row)) for row in rows
    ]
    assert stream_of_arrays.run(words, output_count=len(rows)).outputs.tolist() == rows


@pytest.mark.parametrize(
    ("items", "settings", "message"),
    [
        ([1, 2], {}, "the items need the names of the input streams: left, right"),
        ({"left": [1]}, {}, "the items must be for the input streams left, right, not left"),
        ({"left": [[1, 2]], "right": [1]}, {}, "items must be of shape (n, 3), not (1, 2)"),
        ({"left": [1], "right": [[1]]}, {}, "items must be of shape (n,), not (1, 1)"),
        ({"left": [1], "right": [0.5]}, {}, "items must be integers, not float64"),
        (
            {"left": [1], "right": [1]},
            {"first": ["lift"]},
            "unknown input stream 'lift' (did you mean 'left'?); expected one of: left, right",
        ),
        (
            {"left": [1], "right": [1]},
            {"valid_probability": 0},
            "valid_probability must be above 0 and at most 1, not 0",
        ),
    ],
)
def test_wrong_items(adder, items, settings, message):
    with pytest.raises(UsageError) as caught:
        adder.run(items, output_count=1, **settings)
    assert str(caught.value) == message


def test_the_limit_can_be_set(adder):
    items, _ = problem(3)
    with pytest.raises(SimulationError) as caught:
        adder.run(items, output_count=4, max_cycles=7)
    assert str(caught.value) == "the model gave 3 of 4 outputs in 7 cycles"
    with pytest.raises(SimulationError) as caught:
        simulate_stream(Adder(), {**items, "left": items["left"].tolist()}, output_count=4, max_cycles=7)
    assert str(caught.value) == "Adder gave 3 of 4 outputs in 7 cycles"


def test_waveforms(tmp_path):
    items, sums = problem(3)
    path = tmp_path / "adder.vcd"
    trace = simulate_stream(Adder(), {**items, "left": items["left"].tolist()}, output_count=3, trace=path)
    assert trace.outputs == sums
    text = path.read_text()
    assert "$enddefinitions" in text
    assert "sums__valid" in text
    # The clock rises every microsecond.
    assert max(int(line[1:]) for line in text.splitlines() if line.startswith("#")) >= 3_000_000


@pytest.fixture(scope="module")
def halves():
    return VerilatedStream(Halves())


@pytest.mark.parametrize(("valid", "ready"), [(1.0, 1.0), (0.4, 1.0), (1.0, 0.3), (0.5, 0.6)])
def test_two_output_streams(halves, valid, ready):
    chances = {"seed": 3, "valid_probability": valid, "ready_probability": ready}
    run = halves.run(ITEMS, output_count=COUNTS, **chances)
    assert {name: payloads.tolist() for name, payloads in run.streams.items()} == {
        "lows": LOWS,
        "highs": HIGHS,
    }
    trace = simulate_stream(Halves(), ITEMS, output_count=COUNTS, **chances)
    assert trace.streams == {"lows": LOWS, "highs": HIGHS}
    if valid == ready == 1:
        assert run.cycles == trace.cycles == len(ITEMS) + 1
    else:
        assert min(run.cycles, trace.cycles) > len(ITEMS) / min(valid, ready) * 0.9


def test_a_stream_of_which_all_have_come_is_taken_no_more_of(halves):
    """The third low half waits, and so no byte is taken that would give a high one."""
    message = "gave 2 of 2 lows, 0 of 1 highs in 50 cycles"
    counts = {"lows": 2, "highs": 1}
    with pytest.raises(SimulationError) as caught:
        halves.run(ITEMS, output_count=counts, max_cycles=50)
    assert str(caught.value) == f"the model {message}"
    with pytest.raises(SimulationError) as caught:
        simulate_stream(Halves(), ITEMS, output_count=counts, max_cycles=50)
    assert str(caught.value) == f"Halves {message}"


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (3, "the output counts need the names of the output streams: lows, highs"),
        ({"lows": 1}, "the output counts must be for the output streams lows, highs, not lows"),
        ({}, "the output counts must be for the output streams lows, highs, not none"),
    ],
)
def test_wrong_counts(halves, counts, message):
    for run in (halves.run, lambda *arguments, **more: simulate_stream(Halves(), *arguments, **more)):
        with pytest.raises(UsageError) as caught:
            run(ITEMS, output_count=counts)
        assert str(caught.value) == message
