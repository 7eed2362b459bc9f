"""Integer merging against float64, at every angle and length."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.kv_cache.merge_arithmetic import (
    ERROR_BOUND,
    MergeArithmetic,
    angle_distance,
    merge,
    products,
    restore,
    slerp,
    weights_of,
)
from tests.quantizers.kv_cache.merge_samples import at_angles, special, unrelated

KINDS = ("unrelated", "angles", "antiparallel", "parallel", "short")


def pairs_of(kind, count, channels, rng):
    if kind == "unrelated":
        return unrelated(count, channels, rng)
    omega = {
        "angles": rng.uniform(0, math.pi, count),
        "antiparallel": math.pi - 2.0 ** rng.uniform(-6, 0, count),
        "parallel": 2.0 ** rng.uniform(-20, 0, count),
        "short": rng.uniform(0, math.pi, count),
    }[kind]
    return at_angles(omega, channels, rng, largest=7 if kind == "short" else 15)


def is_clear(x, y):
    """Not within rounding of where interpolation ends."""
    norms = [np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9) for v in (x, y)]
    half = np.linalg.norm(x / norms[0] + y / norms[1], axis=1) / 2
    return np.abs(half - 1 / 16) > 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [2, 8, 64, 192])
@pytest.mark.parametrize("t", [0.6, 0.4, 0.5, 0.0, 1.0, 0.9])
def test_directions_are_those_of_float64(kind, channels, t):
    x, y = pairs_of(kind, 1000, channels, np.random.default_rng(channels))
    merged = merge(x, y, MergeArithmetic(channels=channels, t=t))
    wanted = slerp(x, y, t)
    clear = is_clear(x, y)
    error = np.abs(merged.direction / 2**15 - wanted)[clear]
    assert error.max() <= ERROR_BOUND == 2**-12
    # Of the largest element of the direction, which of 64 channels is about a third of its length.
    largest = np.abs(wanted[clear]).max(axis=1, keepdims=True)
    assert (error <= 2**-11 * np.where(largest == 0, 1, largest)).all()
    assert np.abs(merged.distance / 2**16 - angle_distance(x, y)).max() <= 2**-12
    for vectors, magnitude in ((x, merged.first_magnitude), (y, merged.second_magnitude)):
        np.testing.assert_array_equal(magnitude, np.rint(np.linalg.norm(vectors, axis=1)))


@pytest.mark.parametrize("channels", [1, 5, 64, 1024])
def test_special_vectors(channels):
    x, y = special(channels)
    arithmetic = MergeArithmetic(channels=channels)
    merged = merge(x, y, arithmetic)
    np.testing.assert_allclose(merged.direction / 2**15, slerp(x, y, 0.6), atol=ERROR_BOUND)
    restored = restore(merged.direction, merged.second_magnitude)
    # Zero vectors come back as they are; the direction is then the other one's.
    np.testing.assert_array_equal(restored[1], 0)
    np.testing.assert_allclose(restored[0], y[0], atol=2 + np.abs(y[0]).max() * 2**-11)
    assert merged.distance[[0, 1, 2, 3, 5, 6, 10]].tolist() == [7] * 7
    # -32768 only: the length is a power of two, or its root, and saturates at the most at full scale.
    assert merged.first_magnitude[3] == min(
        round(32768 * math.sqrt(channels)), 2**arithmetic.magnitude_bits - 1
    )


def test_antiparallel_vectors_take_the_heavier_layer():
    x = np.array([[3000, 4000, 0, 0, 0]])
    for t, wanted in ((0.6, [-0.6, -0.8]), (0.5, [-0.6, -0.8]), (0.4, [0.6, 0.8])):
        direction = merge(x, -x, MergeArithmetic(channels=5, t=t)).direction
        np.testing.assert_allclose(direction[0, :2] / 2**15, wanted, atol=2**-14)
    assert merge(x, -x, MergeArithmetic(channels=5)).distance == 2**16 - 7


@pytest.mark.parametrize("t", [0.0, 0.3, 0.6])
def test_small_angles_are_interpolated_linearly(t):
    u, v = np.array([1.0, 0, 0]), np.array([math.cos(1e-12), math.sin(1e-12), 0])
    np.testing.assert_allclose(slerp(u, v, t), (1 - t) * u + t * v, atol=1e-15)
    x, y = np.array([20000, 20000, 0, 0, 1]), np.array([10000, 10001, 0, 0, 0])
    want = (1 - t) * x / np.linalg.norm(x) + t * y / np.linalg.norm(y)
    got = merge(x, y, MergeArithmetic(channels=5, t=t)).direction / 2**15
    np.testing.assert_allclose(got, want, atol=2**-14)


def test_slerp_is_the_formula_of_the_paper():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 50, 16))
    u, v = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    omega = np.arccos((u * v).sum(axis=1, keepdims=True))
    want = (np.sin(0.4 * omega) * u + np.sin(0.6 * omega) * v) / np.sin(omega)
    np.testing.assert_allclose(slerp(x, y, 0.6), want, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(slerp(x, y, 0.6), axis=1), 1)
    np.testing.assert_allclose(angle_distance(x, y), omega[:, 0] / math.pi)


def test_a_restored_vector_is_off_by_its_part_of_the_angle():
    omega = np.full(200, 0.3)
    x, y = at_angles(omega, 64, np.random.default_rng(1), smallest=12)
    merged = merge(x, y, MergeArithmetic(channels=64))
    for vectors, magnitude, part in ((x, merged.first_magnitude, 0.6), (y, merged.second_magnitude, 0.4)):
        difference = restore(merged.direction, magnitude) - vectors
        relative = np.linalg.norm(difference, axis=1) / np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(relative, 2 * math.sin(part * 0.3 / 2), rtol=0.01)


def test_restore_rounds_to_even_and_saturates():
    direction = np.array([[1, 3, -1, -3, 32767, -32768]])
    assert restore(direction, [2**14]).tolist() == [[0, 2, 0, -2, 16384, -16384]]
    assert restore(direction, [2**17]).tolist() == [[4, 12, -4, -12, 32767, -32768]]
    assert restore(direction, [0]).tolist() == [[0] * 6]


def test_weights_come_from_the_three_products_alone():
    x, y = unrelated(40, 64, np.random.default_rng(3))
    arithmetic = MergeArithmetic(channels=64)
    weights = weights_of(*products(x, y), arithmetic)
    assert set(weights.first_shift) == {0, 4, 8, 12}
    norm = np.linalg.norm(x, axis=1) * 2.0**weights.first_shift
    parts = weights.first * norm / 2**32
    omega = angle_distance(x, y) * math.pi
    np.testing.assert_allclose(parts[norm > 0], (np.sin(0.4 * omega) / np.sin(omega))[norm > 0], rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MergeArithmetic(channels=0), "channels must be an integer from 1 to 1024, not 0"),
        (lambda: MergeArithmetic(channels=4, t=1.5), "t must be from 0 to 1, not 1.5"),
        (
            lambda: merge([1, 2], [3, 4], MergeArithmetic(channels=3)),
            "x must be of shape (..., 3), not (2,)",
        ),
        (
            lambda: merge([[1, 2]], [3, 4], MergeArithmetic(channels=2)),
            "x and y must have one shape, not (1, 2) and (2,)",
        ),
        (
            lambda: merge([1, 40000], [3, 4], MergeArithmetic(channels=2)),
            "x must be from -32768 to 32767; one is 40000",
        ),
        (lambda: merge([1.0], [1], MergeArithmetic(channels=1)), "x must be integers, not float64"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value) == message
