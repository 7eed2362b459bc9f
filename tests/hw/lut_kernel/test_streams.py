import numpy as np
import pytest

from hw.lut_kernel import TableLookupEngine, activation_words, vector_results, weight_indices, weight_words
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format
from quantizers.table_lookup.planes import (
    bit_planes,
    codes_of_planes,
    plane_indices,
    plane_of_indices,
    ternary_indices,
    ternary_weights,
)


def engine(weights="int3", **arguments):
    sizes = {"rows": 5, "columns": 13, "lanes": 2, "groups": 2, **arguments}
    formats = {"weights": parse_scalar_format(weights), "activations": parse_scalar_format("int8")}
    return TableLookupEngine(**formats, **sizes)


@pytest.mark.parametrize("group", [2, 3, 4, 5])
def test_packed_planes_read_back(group):
    unit = engine(group=group)
    codes = np.random.default_rng(1).integers(0, 8, (5, 13))
    indices = weight_indices(unit, weight_words(unit, codes))
    assert indices.tolist() == [plane_indices(plane, group).tolist() for plane in bit_planes(codes, 3)]
    planes = [plane_of_indices(plane, group, 13) for plane in indices]
    assert codes_of_planes(planes).tolist() == codes.tolist()


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize("table", ["full", "mirrored"])
def test_packed_ternary_weights_read_back(group, table):
    unit = engine("ternary", group=group, table=table)
    weights = np.random.default_rng(1).integers(-1, 2, (5, 13))
    [indices] = weight_indices(unit, weight_words(unit, weights & 3))
    bits = unit.encoding.address_bits
    if table == "mirrored":
        magnitudes, signs = indices & ((1 << bits) - 1), indices >> bits
    else:
        signs = indices >> (bits - 1)
        magnitudes = np.where(signs, (1 << bits) - indices, indices)
    assert [magnitudes.tolist(), signs.tolist()] == [x.tolist() for x in ternary_indices(weights, group)]
    assert ternary_weights(magnitudes, signs, 13, group).tolist() == weights.tolist()


def test_order_of_weight_words():
    """Chunk by chunk, in each all rows; in a word lane by lane, plane by plane, group by group."""
    unit = engine("uint1", rows=3, columns=8, lanes=2, groups=2, group=2)
    codes = [[1, 0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 1, 0, 0]]
    words = [[1, 2, 0, 3], [3, 1, 0, 0], [3, 0, 1, 2], [2, 0, 0, 0]]
    assert weight_words(unit, codes).tolist() == words


def test_order_of_activation_words():
    unit = engine(columns=5, groups=2, writers=1, group=2)
    words = [[1, 2], [3, 4], [5, 0], [0, 0], [6, 7], [8, 9], [10, 0], [0, 0]]
    assert activation_words(unit, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]).tolist() == words


def test_results_without_the_lanes_beyond_the_last_row():
    assert vector_results(engine(rows=3), [[1, 2], [3, 0], [4, 5], [6, 0]]).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("function", "array", "message"),
    [
        (weight_words, np.zeros((5, 12), int), "weight_codes must be of shape (5, 13), not (5, 12)"),
        (weight_indices, np.zeros((6, 11), int), "words must be of shape (6, 12), not (6, 11)"),
        (activation_words, np.zeros((2, 14), int), "activation_codes must be of shape (2, 13), not (2, 14)"),
        (vector_results, np.zeros((4, 2), int), "outputs must be of shape (3, 2), not (4, 2)"),
    ],
)
def test_wrong_shapes(function, array, message):
    with pytest.raises(UsageError) as caught:
        function(engine(), array)
    assert str(caught.value) == message
