import numpy as np
import pytest

from hw.reference.grouped_lookup import grouped_matrix_vector
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format

INT8 = parse_scalar_format("int8")


@pytest.mark.parametrize("weights", ["uint1", "uint3", "int2", "int4", "ternary"])
@pytest.mark.parametrize("block", [1, 5, 8, 23])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_is_the_sum_of_products(weights, block, has_zeros):
    fmt, rng = parse_scalar_format(weights), np.random.default_rng(block)
    codes = rng.choice(np.flatnonzero(np.isfinite(fmt.values())), (4, 23))
    inputs = rng.integers(0, 256, (3, 23))
    shape = (4, -(-23 // block))
    scales, zeros = rng.integers(0, 4096, shape), rng.integers(-8, 8, shape)
    columns = np.arange(23) // block
    steps = fmt.fixed_point(codes) - (zeros[:, columns] if has_zeros else 0)
    expected = INT8.fixed_point(inputs) @ (steps * scales[:, columns]).T
    results = grouped_matrix_vector(
        codes,
        inputs,
        scales,
        zeros if has_zeros else None,
        weights=fmt,
        activations=INT8,
        block=block,
        group=3,
    )
    assert results.tolist() == expected.tolist()


def test_by_hand():
    """Two blocks: 10 * ((1 - 1) * 5 + (3 - 1) * 6) + 100 * (2 - 3) * 7."""
    results = grouped_matrix_vector(
        [[1, 3, 2]], [[5, 6, 7]], [[10, 100]], [[1, 3]],
        weights=parse_scalar_format("uint2"), activations=INT8, block=2, group=2,
    )  # fmt: skip
    assert results.tolist() == [[120 - 700]]


@pytest.mark.parametrize(
    ("scales", "zeros", "message"),
    [
        ([[1]], None, "scales and zeros must be of shape (1, 2), not (1, 1) and (1, 1)"),
        ([[1, 2]], [[1]], "scales and zeros must be of shape (1, 2), not (1, 2) and (1, 1)"),
    ],
)
def test_wrong_shapes(scales, zeros, message):
    with pytest.raises(UsageError) as caught:
        grouped_matrix_vector(
            [[1, 3, 2]], [[5, 6, 7]], scales, zeros,
            weights=parse_scalar_format("uint2"), activations=INT8, block=2, group=2,
        )  # fmt: skip
    assert str(caught.value) == message
