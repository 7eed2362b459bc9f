import random
from itertools import product

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.arith.requantizer import Requantization, Requantizer, Thresholds
from hw.reference import count_thresholds, requantize
from quantizers.errors import UsageError
from quantizers.formats import IntegerFormat, parse_format, parse_scalar_format

FORMATS = [
    *("int2", "int2n", "int3", "int4n", "int6", "int8", "int8n", "uint1", "uint4", "uint8", "ternary"),
    *("e2m1", "ue2m2", "e1m3", "e3m0", "ue3m0", "e3m2", "e4m3", "e5m2", "e2m1b-3", "e2m1b6"),
]


def settings_of(name, **arguments):
    return Requantization(format=parse_scalar_format(name), **arguments)


def codes_of(dut, cases):
    """The codes for one sum, multiplier and shift a cycle, in step with the inputs."""
    codes = []

    async def testbench(ctx):
        for number, multiplier, shift in [*cases, *([cases[0]] * dut.latency)]:
            ctx.set(dut.sum, number)
            if len(dut.multiplier):
                ctx.set(dut.multiplier, multiplier)
            if len(dut.shift):
                ctx.set(dut.shift, shift)
            codes.append(ctx.get(dut.code))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return codes[dut.latency :]


def assert_exact(settings, sum_bits, cases):
    sums, multipliers, shifts = (np.array(column, dtype=object) for column in zip(*cases, strict=True))
    expected = requantize(sums, multipliers, shifts, output=settings.format, relu=settings.relu)
    assert codes_of(Requantizer(sum_bits=sum_bits, settings=settings), cases) == expected.tolist()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_sum_multiplier_and_shift(name, relu):
    settings = settings_of(name, multiplier_bits=3, shifts=range(6), relu=relu)
    assert_exact(settings, 5, list(product(range(-16, 16), range(8), range(6))))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shifts", [range(-3, 5), range(4), range(7, 8), range(9, 14), range(40, 44)])
def test_powers_of_two(name, shifts):
    """Shifts to the left, one shift only, and shifts beyond the word."""
    settings = settings_of(name, multiplier_bits=0, shifts=shifts)
    assert_exact(settings, 6, list(product(range(-32, 32), [1], shifts)))


@pytest.mark.parametrize("name", ["int8", "uint8", "int4n", "e4m3", "e5m2", "ue4m4"])
@pytest.mark.parametrize(("sum_bits", "multiplier_bits"), [(30, 16), (20, 24), (41, 3), (81, 16)])
def test_wide_sums(name, sum_bits, multiplier_bits):
    """Random numbers of every length, so that all of the format is reached; both ends; ties."""
    rng, choice = np.random.default_rng(3), random.Random(3)
    shifts = range(sum_bits + multiplier_bits)
    lengths, factors = rng.integers(0, sum_bits, 300), rng.integers(0, 1 << multiplier_bits, 300)
    cases = [
        (choice.randrange(-(1 << n), 1 << n), int(factor), int(rng.integers(len(shifts))))
        for n, factor in zip(lengths.tolist(), factors, strict=True)
    ]
    largest, top = (1 << sum_bits - 1) - 1, (1 << multiplier_bits) - 1
    ends = product((-largest - 1, -1, 0, 1, largest), (0, 1, top), (0, len(shifts) // 2, len(shifts) - 1))
    ties = ((sign * (2 * step + 1), 4, 3) for step in range(60) for sign in (-1, 1))
    settings = settings_of(name, multiplier_bits=multiplier_bits, shifts=shifts)
    assert_exact(settings, sum_bits, [*cases, *ends, *ties])


@pytest.mark.parametrize(
    ("name", "arguments", "latency"),
    [
        ("int8", {}, 4),
        ("uint8", {}, 5),
        ("int8", {"relu": True}, 5),
        ("e4m3", {}, 6),
        ("int8", {"multiplier_bits": 0}, 2),
        ("e4m3", {"multiplier_bits": 0}, 4),
    ],
)
def test_latency(name, arguments, latency):
    """That the codes come then is what every test here relies on."""
    assert Requantizer(sum_bits=30, settings=settings_of(name, **arguments)).latency == latency


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Requantization(format=parse_format("e4m3fn")),
            "format has codes for NaN or infinity, which this datapath cannot carry: e4m3fn",
        ),
        (
            lambda: settings_of("int8", multiplier_bits=-1),
            "multiplier_bits must be a non-negative integer, not -1",
        ),
        (
            lambda: settings_of("int8", shifts=range(0)),
            "shifts must be a range of at least one shift in steps of 1, not range(0, 0)",
        ),
        (
            lambda: settings_of("int8", shifts=8),
            "shifts must be a range of at least one shift in steps of 1, not 8",
        ),
        (
            lambda: Requantizer(sum_bits=0, settings=settings_of("int8")),
            "sum_bits must be a positive integer, not 0",
        ),
        (
            lambda: Requantizer(sum_bits=1, settings=settings_of("int8")),
            "sum_bits must be at least 2, not 1",
        ),
        (
            lambda: Thresholds(sum_bits=8, output=IntegerFormat(5)),
            "thresholds make integers of at most 4 bits, not int5",
        ),
        (
            lambda: Thresholds(sum_bits=8, output=parse_format("e2m1")),
            "thresholds make integers of at most 4 bits, not e2m1",
        ),
        (
            lambda: Thresholds(sum_bits=-1, output=IntegerFormat(4)),
            "sum_bits must be a positive integer, not -1",
        ),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(UsageError) as caught:
        build()
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["uint1", "uint2", "uint4", "int3", "int4n", "ternary"])
def test_thresholds(name):
    """Every sum, with random thresholds: in no order, some of them equal."""
    fmt = parse_scalar_format(name)
    dut = Thresholds(sum_bits=6, output=fmt)
    thresholds = np.random.default_rng(9).integers(-32, 32, (8, int(fmt.maximum - fmt.minimum)))
    codes = []

    async def testbench(ctx):
        for row in thresholds.tolist():
            ctx.set(dut.thresholds, row)
            for number in range(-32, 32):
                ctx.set(dut.sum, number)
                await ctx.tick()
                codes.append(ctx.get(dut.code))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    sums = np.repeat(np.arange(-32, 32)[:, None], 8, axis=1)
    assert codes == count_thresholds(sums, thresholds, output=fmt).T.ravel().tolist()
