import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.sparse_attention.fixed_point import Interpolation, Logarithm, Power
from quantizers.sparse_attention import FixedSoftmax

SMALL = FixedSoftmax(score_bits=8, fraction_bits=3, table_bits=3, mantissa_bits=6, weight_bits=9)
MIDDLE = FixedSoftmax(score_bits=10, fraction_bits=5, table_bits=2, mantissa_bits=10, weight_bits=12)


def run(component, process):
    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()


@pytest.mark.parametrize("softmax", [SMALL, MIDDLE])
def test_every_power(softmax):
    component = Power(softmax=softmax, bits=softmax.score_bits + 1)
    values = np.arange(1 << (softmax.score_bits + 1))
    got = []

    async def process(ctx):
        for x in [*values.tolist(), *[0] * component.latency]:
            ctx.set(component.x, x)
            *_, value = await ctx.tick().sample(component.value)
            got.append(value)

    run(component, process)
    assert got[component.latency :] == softmax.power(values).tolist()


def test_powers_of_the_default_widths():
    softmax = FixedSoftmax()
    component = Power(softmax=softmax, bits=18)
    values = np.random.default_rng(0).integers(0, 1 << 18, 500)
    values[:300] %= 26 << 8
    got = []

    async def process(ctx):
        for x in [*values.tolist(), *[0] * component.latency]:
            ctx.set(component.x, x)
            *_, value = await ctx.tick().sample(component.value)
            got.append(value)

    run(component, process)
    assert got[component.latency :] == softmax.power(values).tolist()


@pytest.mark.parametrize("softmax", [SMALL, MIDDLE, FixedSoftmax()])
def test_logarithms(softmax):
    unit = 1 << softmax.weight_bits
    component = Logarithm(softmax=softmax, bits=(300 * unit).bit_length())
    rng = np.random.default_rng(1)
    sums = [
        unit,
        unit + 1,
        2 * unit - 1,
        2 * unit,
        300 * unit,
        *(unit * 2 ** rng.uniform(0, 8.2, 60)).astype(int).tolist(),
    ]
    got, cycles = [], set()

    async def process(ctx):
        for total in sums:
            ctx.set(component.start, 1)
            ctx.set(component.total, total)
            await ctx.tick()
            ctx.set(component.start, 0)
            ctx.set(component.total, 0)
            count = 1
            while not ctx.get(component.is_done):
                await ctx.tick()
                count += 1
            got.append(ctx.get(component.value))
            cycles.add(count)
            await ctx.tick()

    run(component, process)
    assert got == softmax.logarithm(sums).tolist()
    assert cycles == {component.latency}


@pytest.mark.parametrize("rest_bits", [0, 1, 4, 9])
@pytest.mark.parametrize("falls", [False, True])
def test_every_interpolation(rest_bits, falls):
    table = np.array([0, 900, 1000, 2000, 2000]) * (-1 if falls else 1) + 2500 * falls
    component = Interpolation(table=table, rest_bits=rest_bits)
    fractions = np.arange(4 << rest_bits)
    got = []

    async def process(ctx):
        for fraction in [*fractions.tolist(), *[0] * component.latency]:
            ctx.set(component.fraction, fraction)
            *_, value = await ctx.tick().sample(component.value)
            got.append(value)

    run(component, process)
    place, rest = fractions >> rest_bits, fractions & ((1 << rest_bits) - 1)
    steps = (table[place + 1] - table[place]) * rest >> rest_bits
    assert got[component.latency :] == (table[place] + steps).tolist()
