from itertools import product

import pytest

from hw.lut_kernel.walk import binary_walk, ternary_walk


def check(walk, entries):
    """Every entry but that of zero comes once, and each step adds or subtracts its operand."""
    assert sorted(step.digits for step in walk) == sorted(entries)
    before = None
    for step in walk:
        start = list(before) if before and not step.restarts else [0] * len(step.digits)
        start[step.operand] += -1 if step.is_negative else 1
        assert tuple(start) == step.digits
        before = step.digits


@pytest.mark.parametrize("group", range(1, 7))
def test_binary_walk(group):
    check(binary_walk(group), [digits for digits in product((0, 1), repeat=group) if any(digits)])


@pytest.mark.parametrize("group", range(1, 6))
def test_ternary_walk(group):
    digits = [digits for digits in product((-1, 0, 1), repeat=group) if any(digits)]
    check(ternary_walk(group, is_mirrored=False), digits)
    check(ternary_walk(group, is_mirrored=True), [d for d in digits if d > (0,) * group])


def test_restarts():
    assert [step.restarts for step in binary_walk(2)] == [True, False, False]
    assert [s.restarts for s in ternary_walk(2, is_mirrored=False)] == [
        True,
        *[False] * 3,
        True,
        *[False] * 3,
    ]
