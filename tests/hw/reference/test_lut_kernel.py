import numpy as np
import pytest

from hw.reference import matrix_vector
from hw.reference.lut_kernel import table_lookup_matrix_vector
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format

INT8 = parse_scalar_format("int8")


def test_hand_made_sums():
    codes = [[1, 0, 3, 2], [2, 2, 2, 2]]
    weights = {"weights": parse_scalar_format("int2"), "activations": INT8}
    sums = table_lookup_matrix_vector(codes, [[1, 2, 3, 4], [255, 128, 127, 0]], **weights, group=3)
    assert sums.tolist() == [[1 - 3 - 8, -20], [-1 - 127, 2 + 256 - 254]]


@pytest.mark.parametrize("name", ["uint1", "uint3", "int2", "int3", "int4", "ternary"])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5])
def test_equals_the_sum_of_products(name, group):
    formats = {"weights": parse_scalar_format(name), "activations": INT8}
    rng = np.random.default_rng(group)
    codes = rng.choice(np.flatnonzero(np.isfinite(formats["weights"].values())), (6, 23))
    inputs = rng.integers(0, 256, (4, 23))
    sums = table_lookup_matrix_vector(codes, inputs, **formats, group=group)
    assert sums.tolist() == matrix_vector(codes, inputs, **formats).tolist()


def test_shapes_that_do_not_fit():
    formats = {"weights": parse_scalar_format("int2"), "activations": INT8}
    with pytest.raises(UsageError) as caught:
        table_lookup_matrix_vector([[1, 2]], [[1, 2, 3]], **formats, group=2)
    assert str(caught.value) == "codes must be of shapes (rows, n) and (vectors, n), not (1, 2) and (1, 3)"
