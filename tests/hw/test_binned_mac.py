import numpy as np
import pytest

from costmodel import synthesize
from costmodel.place_and_route import place_and_route
from hw.binned_mac import BinnedMultiplyAccumulate
from hw.reference import multiply_accumulate
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.formats import IntegerFormat, parse_scalar_format
from tests.hw.test_mac import formats_of, random_dots

# One of each kind: bins of one and of two exponents, one operand without exponents, no mantissa, more
# than 32 bins, a multiplier with a register, signed significands, unsigned formats.
KINDS = [
    "e4m3 e4m3",
    "e5m2 e5m2",
    "e4m3 int8",
    "int4 e3m0",
    "e4m0 e4m0",
    "e5m0 e5m0",
    "e2m5 e2m5",
    "e3m2 ue4m2",
    "ternary e3m2",
    "ue3m1 ue3m1",
]


def dut_of(pair, dot_length=64, **arguments):
    weights, activations = formats_of(pair)
    return BinnedMultiplyAccumulate(
        weights=weights, activations=activations, dot_length=dot_length, **arguments
    )


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("pair", KINDS)
@pytest.mark.parametrize(("valid", "ready"), [(1.0, 1.0), (0.4, 0.3), (1.0, 0.01)])
def test_dot_products_under_back_pressure(pair, valid, ready, pipelined):
    items, sums = random_dots(pair, [1, 1, 9, 64, 1, 5])
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
    ("pair", "pipelined", "span", "bins", "multiplier_latency", "late"),
    [
        ("e4m3 e4m3", False, 1, 29, 0, 0),
        ("e5m2 e5m2", False, 2, 31, 0, 0),
        ("e4m3 int8", False, 1, 15, 0, 0),
        ("e5m0 e5m0", False, 1, 61, 0, 0),
        ("e2m5 e2m5", False, 1, 5, 1, 1),
        ("e4m3 e4m3", True, 1, 29, 1, 2),
        ("e5m2 e5m2", True, 2, 31, 0, 1),
        ("e4m3 int8", True, 1, 15, 3, 4),
        ("e5m0 e5m0", True, 1, 61, 0, 0),
        ("e2m5 e2m5", True, 1, 5, 3, 4),
    ],
)
def test_cycles(pair, pipelined, span, bins, multiplier_latency, late):
    """*late*: cycles after reset before the exponent of code zero, by which bins are counted, is there."""
    lengths = [3, 1, 20]
    items, sums = random_dots(pair, lengths)
    dut = dut_of(pair, pipelined=pipelined)
    assert (dut.span, dut.bins) == (span, bins)
    assert dut.pause == multiplier_latency + 2 + pipelined + 2 * bins
    assert dut.latency == multiplier_latency + 3 + 2 * pipelined + bins
    trace = simulate_stream(dut, items, output_count=len(sums))
    assert trace.outputs == sums
    # After reset the bins are cleared once.
    assert trace.cycles == bins + late + sum(lengths) + 2 * dut.pause + dut.latency


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("pair", ["e4m3 e4m3", "e5m2 e5m2", "e3m2 e4m1", "e4m3 int8", "e3m4 ue3m4"])
def test_every_operand_pair(pair, pipelined):
    weights, activations = formats_of(pair)
    codes = [np.flatnonzero(np.isfinite(fmt.values())) for fmt in (weights, activations)]
    w, a = (grid.ravel() for grid in np.meshgrid(*codes, indexing="ij"))
    # Every pair with three others, so that bins hold sums of both signs.
    rng = np.random.default_rng(4)
    orders = [np.arange(len(w)), *(rng.permutation(len(w)) for _ in range(3))]
    w, a = np.stack([w[o] for o in orders], axis=1), np.stack([a[o] for o in orders], axis=1)
    last = np.array([0, 0, 0, 1]) << weights.bits + activations.bits
    items = (w | a << weights.bits | last).ravel()
    trace = VerilatedStream(dut_of(pair, pipelined=pipelined)).run(
        items, output_count=len(w), seed=1, ready_probability=1.0
    )
    expected = multiply_accumulate(w, a, weights=weights, activations=activations)
    assert np.array_equal(trace.outputs, expected)


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("pair", ["e4m3 e4m3", "e5m2 e5m2", "e4m3 ue4m4", "e5m2 int8"])
def test_longest_dot_products_of_extreme_codes(pair, pipelined):
    """The widths of bins and sums are just enough: 4608 extreme products, all in one bin, then random ones."""
    weights, activations = formats_of(pair)
    largest, smallest = (int(pick(weights.values())) for pick in (np.argmax, np.argmin))
    top = int(np.argmax(activations.values()))
    rng = np.random.default_rng(2)
    w = np.concatenate([np.repeat([[largest], [smallest]], 4608, axis=1), rng.integers(0, 256, (3, 4608))])
    a = np.concatenate([np.full((2, 4608), top), rng.integers(0, 256, (3, 4608))])
    last = np.arange(4608) == 4607
    items = (w | a << 8 | last[None] << 16).ravel()
    dut = dut_of(pair, dot_length=4608, pipelined=pipelined)
    trace = VerilatedStream(dut).run(
        items, output_count=5, seed=1, valid_probability=0.9, ready_probability=0.001
    )
    expected = multiply_accumulate(w, a, weights=weights, activations=activations)
    assert trace.outputs.tolist() == expected.tolist()


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("bits", [6, 12])
def test_narrow_sums_wrap(bits, pipelined):
    items, sums = random_dots("e3m2 e3m2", [40, 40])
    dut = dut_of("e3m2 e3m2", accumulator_bits=bits, pipelined=pipelined)
    half = 1 << bits - 1
    assert dut.accumulator_bits == bits
    assert simulate_stream(dut, items, output_count=2).outputs == [
        (v + half) % (2 * half) - half for v in sums
    ]


def test_integers_are_refused():
    int8 = IntegerFormat(8)
    with pytest.raises(UsageError) as caught:
        BinnedMultiplyAccumulate(weights=int8, activations=parse_scalar_format("e1m6"), dot_length=64)
    assert str(caught.value) == "bins need exponents, and neither int8 nor e1m6 has more than one binade"
    assert caught.value.expected == ["the exact accumulator"]


def test_takes_fewer_sites_than_the_exact_accumulator_of_wide_formats():
    """Yosys 0.70, n = 4608: 63 sites for e4m3, 61 for e5m2; the exact accumulator takes 88 and 117."""
    for name, most_luts in (("e4m3", 65), ("e5m2", 63)):
        resources = synthesize(dut_of(f"{name} {name}", dot_length=4608), name="mac")
        assert resources.luts <= most_luts
        assert resources.lutrams == 12


def test_only_a_switch_is_a_switch():
    with pytest.raises(UsageError) as caught:
        dut_of("e4m3 e4m3", pipelined="yes")
    assert str(caught.value) == "pipelined must be true or false, not 'yes'"


@pytest.mark.slow
@pytest.mark.parametrize(("pipelined", "least_mhz", "most_luts"), [(False, 120, 65), (True, 190, 103)])
def test_clock_frequency(pipelined, least_mhz, most_luts):
    """Measured for e4m3 on an ECP5: 128 and 200 MHz, mean of five seeds; 62 and 99 sites."""
    dut = dut_of("e4m3 e4m3", dot_length=4608, pipelined=pipelined)
    assert synthesize(dut, name="mac").luts <= most_luts
    assert place_and_route(dut, name="mac").fmax_mhz >= least_mhz
