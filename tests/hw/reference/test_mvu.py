import numpy as np
import pytest

from hw.reference import matrix_vector
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format


@pytest.mark.parametrize("names", ["int8 int8", "e4m3 uint4", "ternary e2m1", "e5m2 e5m2"])
def test_against_python_integers(names):
    weights, activations = map(parse_scalar_format, names.split())
    rng = np.random.default_rng(1)
    codes = [np.flatnonzero(np.isfinite(fmt.values())) for fmt in (weights, activations)]
    w, a = rng.choice(codes[0], (5, 30)), rng.choice(codes[1], (3, 30))
    biases = [100, -7, 1 << 61, -(1 << 62), 0]
    sums = matrix_vector(w, a, weights=weights, activations=activations, biases=biases)
    rows, vectors = weights.fixed_point(w).tolist(), activations.fixed_point(a).tolist()
    assert sums.tolist() == [
        [
            bias + sum(x * y for x, y in zip(row, vector, strict=True))
            for bias, row in zip(biases, rows, strict=True)
        ]
        for vector in vectors
    ]


def test_sums_wrap_with_their_bias():
    int8 = parse_scalar_format("int8")
    sums = matrix_vector(
        [[100], [1]], [[100]], weights=int8, activations=int8, biases=[-9900, 28], accumulator_bits=8
    )
    assert sums.tolist() == [[100, -128]]


@pytest.mark.parametrize(
    ("w", "a", "biases", "message"),
    [
        ([[1, 2]], [[1]], None, "codes must be of shapes (rows, n) and (vectors, n), not (1, 2) and (1, 1)"),
        ([1, 2], [[1, 2]], None, "codes must be of shapes (rows, n) and (vectors, n), not (2,) and (1, 2)"),
        (
            [[1, 2]],
            np.zeros((0, 2), int),
            None,
            "codes must be of shapes (rows, n) and (vectors, n), not (1, 2) and (0, 2)",
        ),
        ([[1]], [[1]], [1, 2], "biases must be of shape (1,), not (2,)"),
    ],
)
def test_wrong_shapes(w, a, biases, message):
    int8 = parse_scalar_format("int8")
    with pytest.raises(UsageError) as caught:
        matrix_vector(w, a, weights=int8, activations=int8, biases=biases)
    assert str(caught.value) == message
