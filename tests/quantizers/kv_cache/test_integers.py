import numpy as np

from quantizers.kv_cache.integers import divide_half_even


def test_every_quotient_of_small_numbers() -> None:
    numerators, denominators = np.arange(-300, 301), np.arange(1, 60)
    found = divide_half_even(numerators[:, None], denominators)
    np.testing.assert_array_equal(found, np.rint(numerators[:, None] / denominators))
    unsigned = divide_half_even(numerators[300:, None].astype(np.uint32), denominators.astype(np.uint32))
    assert unsigned.dtype == np.uint32
    np.testing.assert_array_equal(unsigned, found[300:])


def test_beyond_what_floats_hold() -> None:
    odd = 2**60 + 1
    assert divide_half_even(np.array([odd, odd + 2, -odd]), 2).tolist() == [2**59, 2**59 + 2, -(2**59)]
