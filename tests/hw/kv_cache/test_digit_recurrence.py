import math
import random

import pytest
from amaranth.sim import Simulator

from costmodel import synthesize
from hw.kv_cache.digit_recurrence import DigitRecurrence
from quantizers.errors import UsageError


def computed(component, jobs):
    """Results of jobs ``(is_root, remainder, low, divisor)``, each started in the cycle of the last result."""
    results, waits = [], []

    async def drive(ctx):
        for is_root, remainder, low, divisor in jobs:
            ctx.set(component.is_root, is_root)
            ctx.set(component.remainder, remainder)
            ctx.set(component.low, low)
            ctx.set(component.divisor, divisor)
            ctx.set(component.start, 1)
            await ctx.tick()
            ctx.set(component.start, 0)
            wait = 1
            while not ctx.get(component.done):
                await ctx.tick()
                wait += 1
            waits.append(wait)
            results.append(ctx.get(component.result))

    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.run()
    return results, waits


@pytest.mark.parametrize(("digits", "low_bits"), [(6, 12), (6, 8), (9, 4), (29, 38)])
def test_random_roots_and_quotients(digits, low_bits):
    choice = random.Random(digits)
    jobs, want = [], []
    for index in range(150):
        if index % 2:
            low = choice.getrandbits(low_bits) >> choice.randrange(low_bits)
            jobs.append((1, 0, low, choice.getrandbits(digits)))
            want.append(math.isqrt(low << (2 * digits - low_bits)))
        else:
            divisor = choice.randrange(1, 1 << digits)
            remainder, low = choice.randrange(divisor), choice.getrandbits(low_bits)
            jobs.append((0, remainder, low, divisor))
            fine = ((remainder << digits) << low_bits) + (low << digits)
            want.append((fine // divisor) >> low_bits)
    component = DigitRecurrence(digits=digits, low_bits=low_bits)
    results, waits = computed(component, jobs)
    assert results == want
    assert set(waits) == {component.latency} == {digits + 1}


def test_every_root_and_quotient_of_few_digits():
    jobs = [(1, 0, low, 0) for low in range(256)]
    jobs += [(0, r, low << 5, d) for d in range(1, 8) for r in range(d) for low in range(8)]
    want = [math.isqrt(low) for low in range(256)]
    want += [(r * 16 + low * 2) // d for d in range(1, 8) for r in range(d) for low in range(8)]
    assert computed(DigitRecurrence(digits=4, low_bits=8), jobs)[0] == want


def test_a_quotient_by_zero_has_all_bits_set():
    assert computed(DigitRecurrence(digits=7, low_bits=2), [(0, 0, 3, 0)])[0] == [127]


def test_its_size():
    assert synthesize(DigitRecurrence(digits=29, low_bits=38), name="recurrence").luts <= 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"digits": 0, "low_bits": 2}, "digits must be a positive integer, not 0"),
        ({"digits": 4, "low_bits": 3}, "low_bits must be even and at most 8, not 3"),
        ({"digits": 4, "low_bits": 10}, "low_bits must be even and at most 8, not 10"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        DigitRecurrence(**arguments)
    assert str(caught.value) == message
