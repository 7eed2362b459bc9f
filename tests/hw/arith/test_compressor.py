import itertools
import random

import pytest

from costmodel import synthesize
from hw.arith.adder_tree import AdderTree
from hw.arith.compressor import CompressorTree
from quantizers.errors import UsageError
from tests.hw.arith.test_adder_tree import sums


@pytest.mark.parametrize("terms", [1, 2, 3, 5, 8, 13, 32])
@pytest.mark.parametrize(("low", "high"), [(-5, 9), (0, 12), (-16, 15), (-7, -2)])
@pytest.mark.parametrize("has_carry", [False, True])
@pytest.mark.parametrize("levels_per_stage", [0, 1, 2])
def test_sums_are_exact(terms, low, high, has_carry, levels_per_stage):
    """Random terms and, in the first vectors, all at either end, which needs every bit of every chain."""
    dut = CompressorTree(
        terms=terms, low=low, high=high, has_carry=has_carry, levels_per_stage=levels_per_stage
    )
    choice = random.Random(2)

    def term(value):
        carry = choice.randrange(2) if has_carry else 0
        return value - carry, carry

    vectors = [[term(value) for _ in range(terms)] for value in (low, high, low, high)]
    vectors += [[term(choice.randint(low, high)) for _ in range(terms)] for _ in range(20)]
    assert sums(dut, vectors) == [sum(a + c for a, c in vector) for vector in vectors]


@pytest.mark.parametrize(("terms", "bits"), [(1, 3), (2, 3), (3, 2), (4, 2)])
@pytest.mark.parametrize("has_carry", [False, True])
def test_every_vector_of_small_terms(terms, bits, has_carry):
    half = 1 << bits - 1
    dut = CompressorTree(terms=terms, low=-half + has_carry, high=half - 1 + has_carry, has_carry=has_carry)
    addends = range(-half, half)
    values = list(itertools.product(addends, (0, 1) if has_carry else (0,)))
    vectors = [list(vector) for vector in itertools.product(values, repeat=terms)]
    assert sums(dut, vectors) == [sum(a + c for a, c in vector) for vector in vectors]


@pytest.mark.parametrize("terms", [1, 2, 3, 7, 16, 33])
@pytest.mark.parametrize("high", [1, 9, 144])
@pytest.mark.parametrize("levels_per_stage", [0, 1])
def test_signs_are_counted_apart(terms, high, levels_per_stage):
    """Terms in one's complement, which have two zeros."""
    dut = CompressorTree(
        terms=terms,
        low=-high,
        high=high,
        has_carry=True,
        carry_is_sign=True,
        levels_per_stage=levels_per_stage,
    )
    choice = random.Random(5)

    def term(magnitude, sign):
        return (~magnitude, 1) if sign else (magnitude, 0)

    vectors = [[term(magnitude, sign)] * terms for magnitude in (0, high) for sign in (0, 1)]
    vectors += [[term(choice.randint(0, high), choice.randrange(2)) for _ in range(terms)] for _ in range(40)]
    assert sums(dut, vectors) == [sum(a + c for a, c in vector) for vector in vectors]


@pytest.mark.parametrize(
    ("terms", "levels_per_stage", "depth", "latency"),
    [(1, 1, 0, 0), (2, 1, 1, 0), (6, 1, 2, 1), (16, 0, 3, 0), (16, 1, 3, 2), (16, 2, 3, 1), (32, 1, 5, 4)],
)
def test_depth_and_latency(terms, levels_per_stage, depth, latency):
    """From six terms of one weight two bits are left after a chain."""
    dut = CompressorTree(terms=terms, low=0, high=255, levels_per_stage=levels_per_stage)
    assert (dut.depth, dut.latency) == (depth, latency)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": 0}, "terms must be a positive integer, not 0"),
        ({"levels_per_stage": -1}, "levels_per_stage must be a non-negative integer, not -1"),
        ({"low": 3, "high": 2}, "low must not be above high, but 3 is above 2"),
        (
            {"carry_is_sign": True},
            "carry_is_sign needs has_carry: without carries there is no sign among them",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        CompressorTree(**{"terms": 2, "low": 0, "high": 1, **arguments})
    assert str(caught.value) == message


def test_cost():
    """Yosys 0.70: 159 sites for 16 numbers of 16 bits; binary adders take 254."""
    sizes = {"terms": 16, "low": -(1 << 15), "high": (1 << 15) - 1}
    assert synthesize(CompressorTree(**sizes), name="compressors").luts <= 170
    assert synthesize(AdderTree(**sizes), name="adders").luts >= 250
