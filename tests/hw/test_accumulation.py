import random

import pytest
from amaranth.hdl import signed, unsigned
from amaranth.sim import Simulator

from hw.arith import Aligner, KulischAccumulator
from quantizers.errors import UsageError


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("product", [unsigned(3), signed(4)], ids=repr)
@pytest.mark.parametrize(("shift_bits", "latency"), [(0, 0), (1, 0), (2, 0), (3, 1), (5, 2)])
def test_aligner_shifts_every_product_by_every_amount(product, shift_bits, latency, pipelined):
    dut = Aligner(product=product, shift_bits=shift_bits, pipelined=pipelined)
    assert dut.latency == (latency if pipelined else 0)
    values = range(-8, 8) if product.signed else range(8)
    chosen = [(value, shift) for value in values for shift in range(1 << shift_bits)]
    seen = []

    async def testbench(ctx):
        for value, shift in [*chosen, *([(0, 0)] * dut.latency)]:
            ctx.set(dut.product, value)
            ctx.set(dut.shift, shift)
            seen.append(ctx.get(dut.aligned))
            if dut.latency:
                await ctx.tick()

    simulator = Simulator(dut)
    if dut.latency:
        simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    assert seen[dut.latency :] == [value << shift for value, shift in chosen]


@pytest.mark.parametrize(
    ("is_registered", "segment_bits", "latency"),
    [(False, None, 0), (True, None, 0), (True, 12, 0), (True, 6, 1), (True, 5, 2), (True, 1, 11)],
)
def test_accumulator_against_integers(is_registered, segment_bits, latency):
    """Random addends, carries, pauses, clears and stops; the 12-bit sum wraps many times."""
    dut = KulischAccumulator(bits=12, is_registered=is_registered, segment_bits=segment_bits)
    assert dut.latency == latency
    choice = random.Random(11)
    seen, expected = [], []

    async def testbench(ctx):
        register = 0
        for _ in range(2000):
            addend, carry = choice.randrange(-(1 << 11), 1 << 11), choice.randrange(2)
            enable, clear = choice.random() < 0.7, choice.random() < 0.02
            advance = choice.random() < 0.8
            ctx.set(dut.addend, addend)
            ctx.set(dut.carry, carry)
            ctx.set(dut.enable, enable)
            ctx.set(dut.clear, clear)
            ctx.set(dut.advance, advance)
            if advance:
                total = (register + addend + carry + (1 << 11)) % (1 << 12) - (1 << 11)
                seen.append(ctx.get(dut.total))
                expected.append(total)
                register = 0 if clear else total if enable else register
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    assert seen[latency:] == expected[: len(expected) - latency]


def test_wrong_accumulator():
    with pytest.raises(UsageError, match=r"^bits must be a positive integer, not 0$"):
        KulischAccumulator(bits=0)


def test_wrong_aligner():
    with pytest.raises(UsageError, match=r"^shift_bits must be a non-negative integer, not -1$"):
        Aligner(product=unsigned(4), shift_bits=-1)


def test_wrong_segments():
    with pytest.raises(UsageError, match=r"^segment_bits must be a positive integer, not 0$"):
        KulischAccumulator(bits=8, segment_bits=0)
