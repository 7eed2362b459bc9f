import random

import pytest
from amaranth.hdl import signed, unsigned
from amaranth.sim import Simulator

from hw.arith import Aligner, KulischAccumulator
from quantizers.errors import UsageError


@pytest.mark.parametrize("product", [unsigned(3), signed(4)], ids=repr)
@pytest.mark.parametrize("shift_bits", [0, 1, 3])
def test_aligner_shifts_every_product_by_every_amount(product, shift_bits):
    dut = Aligner(product=product, shift_bits=shift_bits)
    values = range(-8, 8) if product.signed else range(8)
    wrong = []

    async def testbench(ctx):
        for value in values:
            for shift in range(1 << shift_bits):
                ctx.set(dut.product, value)
                ctx.set(dut.shift, shift)
                if ctx.get(dut.aligned) != value << shift:
                    wrong.append((value, shift))

    simulator = Simulator(dut)
    simulator.add_testbench(testbench)
    simulator.run()
    assert wrong == []


@pytest.mark.parametrize("is_registered", [False, True])
def test_accumulator_against_integers(is_registered):
    """Random addends, carries, pauses and clears; the 12-bit sum wraps many times."""
    dut = KulischAccumulator(bits=12, is_registered=is_registered)
    choice = random.Random(11)
    seen, expected = [], []

    async def testbench(ctx):
        register = 0
        for _ in range(2000):
            addend, carry = choice.randrange(-(1 << 11), 1 << 11), choice.randrange(2)
            enable, clear = choice.random() < 0.7, choice.random() < 0.02
            ctx.set(dut.addend, addend)
            ctx.set(dut.carry, carry)
            ctx.set(dut.enable, enable)
            ctx.set(dut.clear, clear)
            total = (register + addend + carry + (1 << 11)) % (1 << 12) - (1 << 11)
            seen.append(ctx.get(dut.total))
            expected.append(total)
            register = 0 if clear else total if enable else register
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    assert seen == expected


def test_wrong_accumulator():
    with pytest.raises(UsageError, match=r"^bits must be a positive integer, not 0$"):
        KulischAccumulator(bits=0)


def test_wrong_aligner():
    with pytest.raises(UsageError, match=r"^shift_bits must be a non-negative integer, not -1$"):
        Aligner(product=unsigned(4), shift_bits=-1)
