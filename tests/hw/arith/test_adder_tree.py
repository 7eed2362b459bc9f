import random

import pytest
from amaranth.hdl import signed
from amaranth.sim import Simulator

from hw.arith.adder_tree import AdderTree, sum_shape
from quantizers.errors import UsageError


def sums(dut, vectors):
    """``sum + carry`` for one vector of (addend, carry) a cycle, in step with the inputs."""
    results = []

    async def drive(ctx, vector):
        addends, carries = zip(*vector, strict=True)
        ctx.set(dut.addends, addends)
        if len(dut.carries):
            ctx.set(dut.carries, sum(carry << i for i, carry in enumerate(carries)))

    def result(ctx):
        return ctx.get(dut.sum) + (ctx.get(dut.carry) if len(dut.carry) else 0)

    async def testbench(ctx):
        for vector in [*vectors, *([vectors[0]] * dut.latency)]:
            await drive(ctx, vector)
            results.append(result(ctx))
            if dut.latency:
                await ctx.tick()

    simulator = Simulator(dut)
    if dut.latency:
        simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return results[dut.latency :]


@pytest.mark.parametrize("terms", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize(("low", "high"), [(-5, 9), (0, 12), (-16, 15), (-7, -2)])
@pytest.mark.parametrize("has_carry", [False, True])
@pytest.mark.parametrize("levels_per_stage", [0, 1, 2])
def test_sums_are_exact(terms, low, high, has_carry, levels_per_stage):
    """Random terms and, in the first vectors, all at either end, which needs every bit of every adder."""
    dut = AdderTree(terms=terms, low=low, high=high, has_carry=has_carry, levels_per_stage=levels_per_stage)
    choice = random.Random(2)

    def term(value):
        carry = choice.randrange(2) if has_carry else 0
        return value - carry, carry

    vectors = [[term(value) for _ in range(terms)] for value in (low, high, low, high)]
    vectors += [[term(choice.randint(low, high)) for _ in range(terms)] for _ in range(40)]
    assert sums(dut, vectors) == [sum(a + c for a, c in vector) for vector in vectors]


@pytest.mark.parametrize(
    ("terms", "levels_per_stage", "depth", "latency"),
    [(1, 1, 0, 0), (2, 1, 1, 1), (16, 0, 4, 0), (16, 1, 4, 4), (16, 2, 4, 2), (17, 2, 5, 2), (16, 3, 4, 1)],
)
def test_depth_and_latency(terms, levels_per_stage, depth, latency):
    dut = AdderTree(terms=terms, low=-1, high=1, levels_per_stage=levels_per_stage)
    assert (dut.depth, dut.latency) == (depth, latency)


@pytest.mark.parametrize(
    ("terms", "low", "high", "has_carry", "shape"),
    [
        (1, -128, 127, False, signed(8)),
        (1, -128, 127, True, signed(9)),
        (16, -128 * 127, 128 * 128, True, signed(20)),
        (1, 0, 15, False, signed(5)),
        (4, 0, 15, False, signed(7)),
    ],
)
def test_width(terms, low, high, has_carry, shape):
    assert sum_shape(terms, low=low, high=high, has_carry=has_carry) == shape
    assert AdderTree(terms=terms, low=low, high=high, has_carry=has_carry).sum.shape() == shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": 0}, "terms must be a positive integer, not 0"),
        ({"levels_per_stage": -1}, "levels_per_stage must be a non-negative integer, not -1"),
        ({"low": 3, "high": 2}, "low must not be above high, but 3 is above 2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        AdderTree(**{"terms": 2, "low": 0, "high": 1, **arguments})
    assert str(caught.value) == message
