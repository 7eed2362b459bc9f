import random

import numpy as np
import pytest
from amaranth.hdl import signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In

from costmodel import synthesize
from costmodel.place_and_route import place_and_route
from hw.mac import MultiplyAccumulate
from hw.reference import multiply_accumulate
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.formats import IntegerFormat, parse_format, parse_scalar_format, signed_formats

# One of each structure: tables, Booth rows, Kulisch with and without small shifts, signed and not.
KINDS = [
    "int4 int4",
    "int8 int8",
    "int8 uint8",
    "e2m1 e2m1",
    "e4m3 e4m3",
    "e5m0 e5m0",
    "e4m3 uint8",
    "ternary e3m2",
]


def formats_of(pair):
    return tuple(parse_scalar_format(name) for name in pair.split())


def dut_of(pair, dot_length=64, **arguments):
    weights, activations = formats_of(pair)
    return MultiplyAccumulate(weights=weights, activations=activations, dot_length=dot_length, **arguments)


def random_codes(fmt, shape, rng):
    valid = [code for code, value in enumerate(fmt.values()) if np.isfinite(value)]
    return rng.choice(valid, shape)


def random_dots(pair, lengths, seed=1):
    """Stream items for dot products of the given lengths, and their exact sums."""
    weights, activations = formats_of(pair)
    rng = np.random.default_rng(seed)
    items, sums = [], []
    for length in lengths:
        w, a = random_codes(weights, length, rng), random_codes(activations, length, rng)
        items += [
            {"weight": int(x), "activation": int(y), "last": int(i == length - 1)}
            for i, (x, y) in enumerate(zip(w, a, strict=True))
        ]
        sums.append(int(multiply_accumulate(w, a, weights=weights, activations=activations)))
    return items, sums


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("pair", KINDS)
@pytest.mark.parametrize(("valid", "ready"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.1), (0.4, 0.3)])
def test_dot_products_under_back_pressure(pair, valid, ready, pipelined):
    lengths = [1, 1, 1, 2, 9, 1, 30, 1, 1, 5]
    items, sums = random_dots(pair, lengths)
    trace = simulate_stream(
        dut_of(pair, pipelined=pipelined),
        items,
        output_count=len(sums),
        seed=5,
        valid_probability=valid,
        ready_probability=ready,
    )
    assert trace.outputs == sums


@pytest.mark.parametrize(
    ("pair", "pipelined", "latency"),
    [
        ("int4 int4", False, 2),
        ("e2m1 e2m1", False, 2),
        ("int8 int8", False, 2),
        ("e4m3 e4m3", False, 3),
        ("e2m5 e2m5", False, 4),
        ("ternary int8", False, 2),
        ("int4 int4", True, 4),
        ("e2m1 e2m1", True, 4),
        ("int8 int8", True, 6),
        ("e4m3 e4m3", True, 11),
        ("e2m5 e2m5", True, 10),
        ("ternary int8", True, 5),
    ],
)
def test_latency_and_one_pair_a_cycle(pair, pipelined, latency):
    items, sums = random_dots(pair, [3, 1, 1, 20, 7])
    dut = dut_of(pair, pipelined=pipelined)
    assert dut.latency == latency
    trace = simulate_stream(dut, items, output_count=len(sums))
    assert trace.outputs == sums
    assert trace.cycles == len(items) + latency


def test_a_waiting_sum_does_not_stop_the_next_dot_product():
    """The consumer takes its first sum late; the second one is ready the cycle after."""
    items, sums = random_dots("int4 int4", [1, 20, 1])
    wait = next(seed for seed in range(1000) if _first_ready(seed + 1, 0.05) == 15)
    trace = simulate_stream(dut_of("int4 int4"), items, output_count=1, seed=wait, ready_probability=0.05)
    assert (trace.outputs, trace.cycles) == (sums[:1], 16)


def _first_ready(seed, probability):
    choice = random.Random(seed)
    return next(cycle for cycle in range(1000) if choice.random() < probability)


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("pair", ["int4 int4", "e3m2 e3m2"])
def test_narrow_accumulators_wrap(pair, bits, pipelined):
    items, sums = random_dots(pair, [40, 40, 40])
    wrapped = [(value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1) for value in sums]
    dut = dut_of(pair, accumulator_bits=bits, pipelined=pipelined)
    assert dut.accumulator_bits == bits
    assert simulate_stream(dut, items, output_count=3).outputs == wrapped
    assert wrapped != sums


def test_ports():
    dut = dut_of("e4m3 int5", dot_length=100)
    pair = data.StructLayout({"weight": 8, "activation": 5, "last": 1})
    assert dut.signature.members["pairs"] == In(stream.Signature(pair))
    assert dut.signature.members["sums"].signature == stream.Signature(signed(dut.accumulator_bits))


ALL_PAIRS = [
    *("e2m1 e2m1", "e3m2 e3m2", "e4m3 e4m3", "e5m2 e5m2", "int4 int4", "int8 int8"),
    *("int4 int8", "e2m1 int8", "e2m1 e4m3", "int8 uint8", "e4m3 uint8", "int8 e4m3", "e4m3 e5m2"),
    *("ternary int8", "e1m6 e2m5", "e5m0 ue3m4", "uint8 uint8"),
    *("int3n uint3", "int4n uint4", "e2m1 ue2m2", "e4m3 ue4m4"),
]


def assert_every_pair_is_exact(weights, activations, *, pipelined=False):
    """Each pair of codes is a dot product of its own; one a cycle, in compiled simulation."""
    codes = [np.flatnonzero(np.isfinite(fmt.values())) for fmt in (weights, activations)]
    w, a = (grid.ravel() for grid in np.meshgrid(*codes, indexing="ij"))
    dut = MultiplyAccumulate(weights=weights, activations=activations, dot_length=4608, pipelined=pipelined)
    latency = dut.latency
    items = w | a << weights.bits | 1 << weights.bits + activations.bits
    trace = VerilatedStream(dut).run(items, output_count=len(items))
    expected = multiply_accumulate(w[:, None], a[:, None], weights=weights, activations=activations)
    assert np.array_equal(trace.outputs, expected)
    assert trace.cycles == len(items) + latency


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("pair", ALL_PAIRS)
def test_every_operand_pair(pair, pipelined):
    assert_every_pair_is_exact(*formats_of(pair), pipelined=pipelined)


@pytest.mark.slow
@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("fmt", [f for bits in range(2, 9) for f in signed_formats(bits)], ids=str)
def test_every_operand_pair_of_every_format(fmt, pipelined):
    assert_every_pair_is_exact(fmt, fmt, pipelined=pipelined)
    assert_every_pair_is_exact(fmt, fmt.unsigned_counterpart, pipelined=pipelined)


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("pair", ["int8 int8", "e4m3 e4m3", "e5m2 e5m2", "int8 uint8", "e4m3 ue4m4"])
def test_longest_dot_products_of_extreme_codes(pair, pipelined):
    """The exact width is just enough: sums of 4608 extreme products, then random ones, and back-pressure."""
    weights, activations = formats_of(pair)
    largest, smallest = (int(pick(weights.values())) for pick in (np.argmax, np.argmin))
    w = np.repeat([[largest], [smallest], [smallest]], 4608, axis=1)
    a = np.repeat([[largest], [largest], [smallest]], 4608, axis=1)
    rng = np.random.default_rng(2)
    w, a = (np.concatenate([c, rng.integers(0, 1 << 8, (5, 4608))]) for c in (w, a))
    last = np.arange(4608) == 4607
    items = (w | a << 8 | last[None] << 16).ravel()
    dut = dut_of(pair, dot_length=4608, pipelined=pipelined)
    trace = VerilatedStream(dut).run(
        items, output_count=8, seed=1, valid_probability=0.9, ready_probability=0.001
    )
    expected = multiply_accumulate(w, a, weights=weights, activations=activations)
    assert trace.outputs.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dot_length": -1}, "dot_length must be a positive integer, not -1"),
        ({"dot_length": 2.5}, "dot_length must be a positive integer, not 2.5"),
        ({"dot_length": True}, "dot_length must be a positive integer, not True"),
        ({"accumulator_bits": 0}, "accumulator_bits must be a positive integer, not 0"),
        ({"accumulator_bits": "wide"}, "accumulator_bits must be a positive integer, not 'wide'"),
        ({"pipelined": 2}, "pipelined must be true or false, not 2"),
        (
            {"weights": "int8"},
            "weights must be a scalar number format, such as parse_format('e4m3'), not 'int8'",
        ),
        (
            {"activations": parse_format("mxfp4")},
            "activations must be a scalar number format, such as parse_format('e4m3'), not mxfp4",
        ),
        (
            {"activations": parse_format("e4m3fn")},
            "activations has codes for NaN or infinity, which this datapath cannot carry: e4m3fn",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    int8 = IntegerFormat(8)
    with pytest.raises(UsageError) as caught:
        MultiplyAccumulate(**{"weights": int8, "activations": int8, "dot_length": 64, **arguments})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "most_luts"),
    [("int8", 69), ("e1m6", 72), ("e2m1", 33), ("e3m0", 40), ("e4m3", 92), ("e5m2", 121)],
)
def test_cost_at_the_anchor_dot_length(name, most_luts):
    """Measured with Yosys 0.70: 67, 68, 31, 36, 88, 117 sites; the noise of its mapper is about 4."""
    resources = synthesize(dut_of(f"{name} {name}", dot_length=4608), name="mac")
    assert resources.luts <= most_luts
    assert resources.dsps == 0
    assert resources.logic_delay_ns < 4.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least_mhz", "most_luts"),
    [("int4", 265, 43), ("int8", 255, 99), ("e2m1", 262, 43), ("e4m3", 250, 130), ("e5m2", 250, 171)],
)
def test_clock_frequency_of_the_pipelined_unit(name, least_mhz, most_luts):
    """Measured on an ECP5: 279, 269, 275, 264, 257 MHz, mean of five seeds; 39, 95, 39, 126, 167 sites."""
    dut = dut_of(f"{name} {name}", dot_length=4608, pipelined=True)
    assert synthesize(dut, name="mac").luts <= most_luts
    assert place_and_route(dut, name="mac").fmax_mhz >= least_mhz
