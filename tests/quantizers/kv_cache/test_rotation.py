from fractions import Fraction

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.kv_cache import rotation
from quantizers.kv_cache.integers import divide_half_even
from quantizers.kv_cache.rotation import (
    hadamard,
    halvings,
    largest_sum,
    random_signs,
    rotate,
    shift_half_even,
    unrotate,
)


def sylvester(size):
    """By the definition: the matrix of two rows, again and again in the blocks of itself."""
    matrix = [[1]]
    while len(matrix) < size:
        matrix = [row + row for row in matrix] + [row + [-e for e in row] for row in matrix]
    return matrix


@pytest.mark.parametrize("size", [2, 4, 8, 16, 64, 128, 256])
def test_the_transform_is_the_product_with_the_matrix(size):
    x = np.random.default_rng(size).integers(-32768, 32768, (3, 5, size))
    wanted = x @ np.array(sylvester(size)).T
    assert np.array_equal(hadamard(x.astype(np.int16)), wanted)
    assert np.array_equal(hadamard(x * 2**32), wanted * 2**32)
    assert np.array_equal(hadamard(hadamard(x)), size * x)
    assert np.array_equal(hadamard(x[0, 0]), wanted[0, 0])


def test_butterflies_and_products_of_matrices_agree(monkeypatch):
    rng = np.random.default_rng(2)
    x, means = rng.integers(-32768, 32768, (5000, 64)), rng.integers(-32768, 32768, 64)
    wide = rng.integers(-rotation.MAX_COEFFICIENT, rotation.MAX_COEFFICIENT + 1, (5000, 64))
    x[0], means[:] = 32767, -32768
    wide[0] = rotation.MAX_COEFFICIENT
    fast = rotate(x, means=means), unrotate(wide)
    monkeypatch.setattr(rotation, "_MATRIX_SIZE", 0)
    assert np.array_equal(fast[0], rotate(x, means=means))
    assert np.array_equal(fast[1], unrotate(wide))


@pytest.mark.parametrize("size", [2, 8, 32, 64, 128])
def test_both_directions_by_their_definition(size):
    rng = np.random.default_rng(size)
    x = rng.integers(-32768, 32768, (2, 3, 4, size)).astype(np.int16)
    means = rng.integers(-32768, 32768, (3, 1, size))
    signs = random_signs(size, 5)
    h = halvings(size)
    w = rotate(x, means=means, signs=signs)
    assert w.dtype == np.int32
    exact = ((x.astype(np.int64) - means) * signs) @ np.array(sylvester(size))
    assert np.array_equal(w, exact // 2**h)
    back = unrotate(w, means=means, signs=signs)
    for place in np.ndindex(2, 3, 4):
        sums = np.array(sylvester(size)) @ w[place].astype(np.int64)
        elements = [round(Fraction(2**h * int(s), size)) for s in sums]
        wanted = np.clip(means[place[1], 0] + signs * elements, -32768, 32767)
        assert np.array_equal(back[place], wanted)


def test_rotating_there_and_back_costs_no_more_than_rounding():
    x = np.random.default_rng(1).normal(0, 3000, (2000, 64)).astype(np.int16)
    signs = random_signs(64, 1)
    error = unrotate(rotate(x, signs=signs), signs=signs) - x.astype(np.int64)
    # What is dropped of a coefficient is uniform from 0 to 7/8, and so 7/16 on average, which all goes
    # into element 0, with a gain of sqrt(64).
    assert error[:, 0].mean() == pytest.approx(-8 * 7 / 16 * signs[0], abs=0.1)
    assert np.square(error[:, 1:]).mean() < 0.25


def test_a_vector_equal_to_the_means_is_nothing():
    means = np.random.default_rng(1).integers(-32768, 32768, 64)
    assert not rotate(means[None], means=means).any()
    assert np.array_equal(unrotate(np.zeros((1, 64), int), means=means), means[None])


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_the_largest_sum_is_that_of_a_bent_function(pairs):
    """O. S. Rothaus, "On bent functions" (1976): x0 x1 + x2 x3 + ... has a flat spectrum."""
    index = np.arange(4**pairs)
    parity = sum((index >> 2 * pair) & (index >> (2 * pair + 1)) & 1 for pair in range(pairs)) & 1
    x, means = np.where(parity, 32767, -32768), np.where(parity, -32768, 32767)
    assert np.abs(rotate(x, means=means)).sum() == largest_sum(4**pairs)


def test_halves_go_to_even_numbers():
    x = np.arange(-70, 70)
    for shift in range(5):
        wanted = [round(Fraction(int(e), 2**shift)) for e in x]
        assert shift_half_even(x, shift).tolist() == wanted
        assert divide_half_even(x, 2**shift).tolist() == wanted


def test_signs_are_the_same_for_the_same_seed():
    assert random_signs(8, 1).tolist() == random_signs(8, 1).tolist()
    assert set(random_signs(64, 1).tolist()) == {-1, 1}
    assert random_signs(64, 1).tolist() != random_signs(64, 2).tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hadamard(np.zeros(4)), "x must be integers, not float64"),
        (
            lambda: rotate(np.zeros((2, 48), int)),
            "a Hadamard rotation takes vectors of a power of two of elements, 2 to 4096, not 48; "
            "the nearest is 32",
        ),
        (
            lambda: hadamard(np.array(3)),
            "a Hadamard rotation takes vectors of a power of two of elements, 2 to 4096, not 0; "
            "the nearest is 2",
        ),
        (lambda: rotate(np.full((1, 4), 32768)), "x must be from -32768 to 32767; one is 32768"),
        (
            lambda: rotate(np.zeros((1, 4), int), means=[1, 2]),
            "means of shape (2,) do not fit vectors of shape (1, 4)",
        ),
        (lambda: rotate(np.zeros((1, 4), int), signs=[1, 1, 0, 1]), "signs must be 1 or -1; one is 0"),
        (lambda: unrotate(np.full((1, 4), 1 << 24)), "w must be from -16777215 to 16777215; one is 16777216"),
    ],
)
def test_what_cannot_be_rotated_is_refused(call, message):
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value) == message
