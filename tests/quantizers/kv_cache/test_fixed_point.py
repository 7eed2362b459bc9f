"""Floats to 16-bit integers and back."""

from __future__ import annotations

import numpy as np
import pytest

from quantizers.errors import BitfrontError, UsageError
from quantizers.kv_cache.fixed_point import NotFiniteError, fraction_bits, to_floats, to_integers


@pytest.mark.parametrize(("largest", "bits"), [(1.0, 13), (0.99, 14), (1000.0, 4), (2.0**20, -7), (0.0, 40)])
def test_fraction_bits_leave_one_bit_of_headroom(largest: float, bits: int) -> None:
    assert fraction_bits(largest) == bits
    if largest:
        assert 2**13 <= largest * 2**bits <= 2**14
        assert fraction_bits(largest, headroom=0) == bits + 1


@pytest.mark.parametrize("largest", [-1.0, np.inf, np.nan])
def test_the_largest_magnitude_must_be_a_number(largest: float) -> None:
    with pytest.raises(UsageError) as caught:
        fraction_bits(largest)
    assert str(caught.value) == (
        f"the largest magnitude must be a finite number that is not negative, not {largest}"
    )


def test_rounding_is_half_even_and_saturates() -> None:
    x = np.array([[0.25, 0.75, 1.25, -0.25, -0.75, 1e9, -1e9, 16383.75]])
    assert to_integers(x, 1).tolist() == [[0, 2, 2, 0, -2, 32767, -32768, 32767]]
    assert to_integers(x[:, :1] * 1024, -8).tolist() == [[1]]


def test_integers_come_back_as_floats_exactly() -> None:
    integers = np.arange(-32768, 32768)
    floats = to_floats(integers, 7)
    assert floats.dtype == np.float32
    assert np.array_equal(to_integers(floats[None], 7)[0], integers)


def test_what_is_not_finite_is_named_by_layer_and_position() -> None:
    x = np.zeros((3, 5, 4), np.float32)
    x[0, 4, 0], x[2, 3, 1] = np.nan, -np.inf
    with pytest.raises(NotFiniteError) as caught:
        to_integers(x, 3, what="values", layer=7)
    assert str(caught.value) == "values of layer 7 hold -inf at position 3"
    assert (caught.value.layer, caught.value.position) == (7, 3)
    assert isinstance(caught.value, BitfrontError)
