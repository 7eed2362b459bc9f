import random

import pytest
from amaranth.hdl import Shape, signed, unsigned
from amaranth.sim import Simulator

from hw.arith import BoothMultiplier, Multiplier, TableMultiplier, TruthTable
from hw.arith.booth_tree import PipelinedBoothMultiplier
from quantizers.errors import UsageError

SMALL = [signed(2), signed(3), signed(5), unsigned(1), unsigned(2), unsigned(4), unsigned(5)]
WIDE_PAIRS = [
    (signed(8), signed(8)),
    (unsigned(8), signed(8)),
    (unsigned(8), unsigned(8)),
    (signed(8), unsigned(4)),
    (unsigned(1), signed(8)),
    (signed(16), signed(2)),
    (unsigned(3), signed(12)),
    (signed(16), unsigned(16)),
]


def values_of(shape):
    low = -(1 << (shape.width - 1)) if shape.signed else 0
    return range(low, low + (1 << shape.width))


def pairs_of(a, b, limit=500):
    if a.width + b.width <= 10:
        return [(x, y) for x in values_of(a) for y in values_of(b)]
    choice = random.Random(7)
    corners = [
        (x, y) for x in (values_of(a)[0], -1, values_of(a)[-1]) for y in (values_of(b)[0], values_of(b)[-1])
    ]
    corners = [(x, y) for x, y in corners if x in values_of(a)]
    return corners + [(choice.choice(values_of(a)), choice.choice(values_of(b))) for _ in range(limit)]


def products(dut, first, second, pairs):
    """The outputs for one pair a cycle, in step with the inputs."""
    results = []

    async def testbench(ctx):
        for x, y in [*pairs, *([(0, 0)] * dut.latency)]:
            ctx.set(first, x)
            ctx.set(second, y)
            results.append(ctx.get(dut.product))
            await ctx.tick()

    async def combinational(ctx):
        for x, y in pairs:
            ctx.set(first, x)
            ctx.set(second, y)
            results.append(ctx.get(dut.product))

    simulator = Simulator(dut)
    if dut.latency:
        simulator.add_clock(1e-6)
    simulator.add_testbench(testbench if dut.latency else combinational)
    simulator.run()
    return results[dut.latency :]


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("a", SMALL, ids=repr)
@pytest.mark.parametrize("b", SMALL, ids=repr)
def test_small_products_are_exact(a, b, pipelined):
    dut = Multiplier(a=a, b=b, pipelined=pipelined)
    pairs = pairs_of(a, b)
    assert products(dut, dut.a, dut.b, pairs) == [x * y for x, y in pairs]


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize(("a", "b"), WIDE_PAIRS, ids=repr)
def test_wide_products_are_exact(a, b, pipelined):
    dut = Multiplier(a=a, b=b, pipelined=pipelined)
    pairs = pairs_of(a, b)
    assert products(dut, dut.a, dut.b, pairs) == [x * y for x, y in pairs]


@pytest.mark.parametrize("structure", [BoothMultiplier, PipelinedBoothMultiplier])
@pytest.mark.parametrize("multiplicand", [signed(1), signed(4), unsigned(2), unsigned(5)], ids=repr)
@pytest.mark.parametrize(
    "multiplier", [signed(2), signed(5), unsigned(2), unsigned(4), unsigned(5)], ids=repr
)
def test_booth_rows_are_exact_in_either_role(multiplicand, multiplier, structure):
    dut = structure(multiplicand=multiplicand, multiplier=multiplier)
    pairs = pairs_of(multiplicand, multiplier)
    assert products(dut, dut.multiplicand, dut.multiplier, pairs) == [x * y for x, y in pairs]


@pytest.mark.parametrize(("multiplicand", "multiplier"), [(signed(8), signed(8)), (unsigned(3), unsigned(6))])
def test_open_products_miss_what_they_say(multiplicand, multiplier):
    dut = PipelinedBoothMultiplier(multiplicand=multiplicand, multiplier=multiplier, is_open=True)
    pairs = pairs_of(multiplicand, multiplier)
    seen = []

    async def testbench(ctx):
        for x, y in [*pairs, *([(0, 0)] * dut.latency)]:
            ctx.set(dut.multiplicand, x)
            ctx.set(dut.multiplier, y)
            seen.append(ctx.get(dut.product) + ctx.get(dut.missing))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    assert seen[dut.latency :] == [x * y for x, y in pairs]


@pytest.mark.parametrize(
    ("shape", "is_open", "latency"),
    [
        (signed(2), True, 0),
        (signed(2), False, 1),
        (signed(4), True, 1),
        (signed(8), True, 2),
        (signed(8), False, 3),
        (unsigned(8), True, 3),
        (signed(16), True, 3),
    ],
    ids=repr,
)
def test_pipelined_booth_rows_are_added_in_pairs(shape, is_open, latency):
    assert (
        PipelinedBoothMultiplier(multiplicand=signed(4), multiplier=shape, is_open=is_open).latency == latency
    )


def test_pipelined_booth_needs_a_digit():
    with pytest.raises(UsageError) as caught:
        PipelinedBoothMultiplier(multiplicand=signed(4), multiplier=unsigned(1))
    assert str(caught.value) == "a Booth multiplier needs a multiplier of at least 2 bits, not unsigned(1)"


@pytest.mark.parametrize(
    ("shape", "rows", "latency"),
    [
        (signed(2), 1, 0),
        (signed(6), 3, 0),
        (unsigned(5), 3, 0),
        (signed(8), 4, 1),
        (unsigned(8), 5, 1),
        (signed(16), 8, 2),
    ],
    ids=repr,
)
def test_booth_rows_and_latency(shape, rows, latency):
    dut = BoothMultiplier(multiplicand=signed(4), multiplier=shape)
    assert (dut.rows, dut.latency) == (rows, latency)
    products(dut, dut.multiplicand, dut.multiplier, [(1, 1)])


@pytest.mark.parametrize(
    ("a", "b", "product"),
    [
        (signed(8), signed(8), signed(16)),
        (unsigned(4), unsigned(4), unsigned(8)),
        (unsigned(1), signed(8), signed(8)),
    ],
    ids=repr,
)
def test_product_has_the_narrowest_shape(a, b, product):
    dut = Multiplier(a=a, b=b)
    assert dut.product.shape() == product
    products(dut, dut.a, dut.b, [(0, 0)])


def test_truth_table():
    dut = TruthTable(input_bits=4, shape=signed(6), function=lambda code: code - code**2 // 6)
    seen = []

    async def testbench(ctx):
        for code in range(16):
            ctx.set(dut.input, code)
            seen.append(ctx.get(dut.output))

    simulator = Simulator(dut)
    simulator.add_testbench(testbench)
    simulator.run()
    assert seen == [code - code**2 // 6 for code in range(16)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Multiplier(a=8, b=signed(8)), "a must be a shape of at least one bit, not 8"),
        (
            lambda: Multiplier(a=signed(8), b=Shape(0)),
            "b must be a shape of at least one bit, not unsigned(0)",
        ),
        (
            lambda: BoothMultiplier(multiplicand=signed(8), multiplier=unsigned(1)),
            "a Booth multiplier needs a multiplier of at least 2 bits, not unsigned(1)",
        ),
        (
            lambda: TableMultiplier(multiplicand=signed(8), multiplier=signed(8)),
            "signed(8) times signed(8) needs more than 2 truth tables",
        ),
        (
            lambda: TruthTable(input_bits=7, shape=unsigned(1), function=lambda code: 0),
            "a truth table has 1 to 6 input bits, not 7",
        ),
        (
            lambda: TruthTable(input_bits=2, shape=unsigned(2), function=lambda code: code + 1),
            "the table holds 4, which does not fit unsigned(2) (0 to 3)",
        ),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(UsageError) as caught:
        build()
    assert str(caught.value) == message
