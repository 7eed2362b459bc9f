import numpy as np
import pytest
from amaranth.hdl import Shape, signed, unsigned

from hw.lut_kernel.activation_sums import ActivationSums
from hw.simulation import simulate_stream


def build(activation: Shape, *, length=4, words=3, terms=12) -> ActivationSums:
    return ActivationSums(activation=activation, length=length, words=words, terms=terms)


def problem(activation, *, length=4, words=3, blocks=20, is_extreme=False):
    """Words of codes, and the sums of the values of each block of words."""
    low = -(1 << (activation.width - 1)) if activation.signed else 0
    high = low + (1 << activation.width) - 1
    rng, size = np.random.default_rng(4), (blocks, words * length)
    values = np.full(size, low) if is_extreme else rng.integers(low, high + 1, size)
    codes = values & ((1 << activation.width) - 1)
    return codes.reshape(-1, length).tolist(), values.sum(axis=1).tolist()


@pytest.mark.parametrize("activation", [signed(8), unsigned(8), signed(2), unsigned(1)])
@pytest.mark.parametrize("words", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_sums(activation, words, length):
    items, sums = problem(activation, length=length, words=words)
    unit = build(activation, length=length, words=words, terms=words * length)
    assert simulate_stream(unit, items, output_count=20).outputs == sums


def test_smallest_activations():
    items, sums = problem(signed(8), is_extreme=True)
    assert sums[0] == -128 * 12
    assert simulate_stream(build(signed(8)), items, output_count=20).outputs == sums


def test_cycles():
    """A word a cycle, and a sum two cycles after the last one."""
    items, _ = problem(signed(8))
    assert simulate_stream(build(signed(8)), items, output_count=20).cycles == 20 * 3 + 2


@pytest.mark.parametrize("words", [1, 3])
@pytest.mark.parametrize(("valid", "ready"), [(0.5, 1.0), (1.0, 0.2), (0.6, 0.1)])
def test_back_pressure(words, valid, ready):
    items, sums = problem(signed(8), words=words, blocks=40)
    trace = simulate_stream(
        build(signed(8), words=words, terms=4 * words), items, output_count=40, seed=1,
        valid_probability=valid, ready_probability=ready,
    )  # fmt: skip
    assert trace.outputs == sums
