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


@pytest.mark.parametrize("term", [unsigned(5), signed(5)], ids=repr)
@pytest.mark.parametrize("has_negate", [False, True])
def test_accumulator_against_integers(term, has_negate):
    """Random terms, shifts, signs, pauses and clears; the 16-bit sum wraps many times."""
    dut = KulischAccumulator(
        bits=16, term=term, has_negate=has_negate, select_bits=2, stride_bits=2, discarded_bits=1
    )
    choice = random.Random(11)
    seen, expected = [], []

    async def testbench(ctx):
        register = 0
        for _ in range(2000):
            # Callers promise that the discarded bit is zero.
            select = choice.randrange(4)
            value = choice.randrange(-16, 16) if term.signed else choice.randrange(32)
            value &= -2 if select == 0 else -1
            negate = choice.randrange(2) if has_negate else 0
            enable, clear = choice.random() < 0.7, choice.random() < 0.02
            for port, setting in (
                (dut.term, value),
                (dut.select, select),
                (dut.enable, enable),
                (dut.clear, clear),
            ):
                ctx.set(port, setting)
            if has_negate:
                ctx.set(dut.negate, negate)
            total = register + (-1) ** negate * ((value << (select << 2)) >> 1)
            total = (total + (1 << 15)) % (1 << 16) - (1 << 15)
            seen.append(ctx.get(dut.total))
            expected.append(total)
            register = 0 if clear else total if enable else register
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    assert seen == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "bits must be a positive integer, not 0"),
        ({"bits": 8, "term": 3}, "term must be a shape of at least one bit, not 3"),
        ({"bits": 8, "select_bits": -1}, "select_bits must be a non-negative integer, not -1"),
        ({"bits": 8, "stride_bits": 1.5}, "stride_bits must be a non-negative integer, not 1.5"),
        ({"bits": 8, "discarded_bits": True}, "discarded_bits must be a non-negative integer, not True"),
    ],
)
def test_wrong_accumulators(arguments, message):
    with pytest.raises(UsageError) as caught:
        KulischAccumulator(**{"term": unsigned(4), **arguments})
    assert str(caught.value) == message


def test_wrong_aligner():
    with pytest.raises(UsageError, match=r"^shift_bits must be a non-negative integer, not -1$"):
        Aligner(product=unsigned(4), shift_bits=-1)
