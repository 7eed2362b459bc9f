import numpy as np
import pytest

from hw.lut_kernel import weight_indices
from hw.lut_kernel.grouped import GroupedLookupEngine
from hw.lut_kernel.grouped_streams import (
    activation_words,
    format_codes,
    scale_words,
    vector_results,
    weight_words,
)
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format
from quantizers.table_lookup.planes import bit_planes, codes_of_planes, plane_of_indices
from quantizers.table_lookup.weights import GroupedWeights, quantize_groups, quantize_ternary


def engine(weights="uint3", **arguments):
    sizes = {"rows": 5, "columns": 13, "block": 6, "lanes": 2, "groups": 2, "scale_bits": 8, **arguments}
    formats = {"weights": parse_scalar_format(weights), "activations": parse_scalar_format("int8")}
    return GroupedLookupEngine(**formats, **sizes)


def grouped_weights(codes, zeros):
    codes = np.array(codes, np.uint8)
    scales = np.ones((len(codes), 1), np.float16)
    return GroupedWeights(
        codes=codes, bits=2, scales=scales, zeros=np.array(zeros, np.uint8), block=codes.shape[1]
    )


def test_weights_block_by_block():
    """The words of a block are those of the inner engine, of which the last one has zeros at the end."""
    unit, codes = engine(), np.random.default_rng(1).integers(0, 8, (5, 13))
    words = weight_words(unit, codes).reshape(3, -1, unit.engine.lookups)
    padded = np.pad(codes, [(0, 0), (0, 5)])
    for number, block in enumerate(words):
        indices = weight_indices(unit.engine, block)
        planes = [plane_of_indices(plane, 4, 6) for plane in indices]
        expected = padded[:, 6 * number : 6 * number + 6]
        assert codes_of_planes(planes).tolist() == expected.tolist()
        assert len(bit_planes(expected, 3)) == len(planes)


def test_activations_block_by_block():
    """Two words a block of six activations in tables of two, which is filled up to eight."""
    unit = engine(columns=8, group=2, writers=2)
    words = activation_words(unit, [[1, 2, 3, 4, 5, 6, 7, 8]])
    assert words.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 0, 0], [0, 0, 0, 0]]


def test_scales_lane_by_lane():
    """Scales below zero points; block by block, in each all rows."""
    unit = engine(rows=3, columns=7)
    words = scale_words(unit, [[1, 2], [3, 4], [5, 255]], [[7, 0], [1, 2], [0, 7]])
    assert words.tolist() == [[1 + 7 * 256, 3 + 256], [5, 0], [2, 4 + 2 * 256], [255 + 7 * 256, 0]]


def test_negative_zero_points():
    unit = engine("int3", rows=1, columns=6, has_zeros=True)
    assert scale_words(unit, [[9]], [[-4]]).tolist() == [[9 + 4 * 256, 0]]


def test_scales_alone():
    unit = engine("int3", rows=1, columns=6)
    assert scale_words(unit, [[9]]).tolist() == [[9, 0]]


def test_results_without_the_lanes_beyond_the_last_row():
    assert vector_results(engine(rows=3), [[1, 2], [3, 0], [4, 5], [6, 0]]).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_codes_of_grouped_weights():
    weights = grouped_weights([[0, 1, 2, 3]], [[3]])
    codes, zeros = format_codes(weights, parse_scalar_format("uint2"))
    assert (codes.tolist(), zeros.tolist()) == ([[0, 1, 2, 3]], [[3]])
    codes, zeros = format_codes(weights, parse_scalar_format("int2"))
    assert (codes.tolist(), zeros.tolist()) == ([[2, 3, 0, 1]], [[1]])


@pytest.mark.parametrize("fmt", ["uint3", "int3"])
def test_codes_stand_for_the_weights(fmt):
    weights = quantize_groups(np.random.default_rng(2).standard_normal((4, 9)), 3, block=9)
    codes, zeros = format_codes(weights, parse_scalar_format(fmt))
    values = parse_scalar_format(fmt).fixed_point(codes) - zeros
    assert (values * weights.scale_matrix).tolist() == weights.dequantized().tolist()


def test_codes_of_ternary_weights():
    weights = quantize_ternary([[1.0, -1.0, 0.1]])
    codes, zeros = format_codes(weights, parse_scalar_format("ternary"))
    assert (codes.tolist(), zeros.tolist()) == ([[1, 3, 0]], [[0]])


@pytest.mark.parametrize(
    ("fmt", "message"),
    [
        ("uint3", "uint3 weights have 3 bits, and these have 2"),
        ("int2n", "int2n has no code for the weight -2"),
        ("ternary", "ternary has no code for the weight -2"),
    ],
)
def test_formats_without_the_codes(fmt, message):
    with pytest.raises(UsageError) as caught:
        format_codes(grouped_weights([[1, 0, 3]], [[2]]), parse_scalar_format(fmt))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("weights", "scales", "zeros", "message"),
    [
        ("uint3", np.zeros((5, 2)), np.zeros((5, 3)), "scales must be of shape (5, 3), not (5, 2)"),
        ("uint3", np.zeros((5, 3)), None, "zeros must be of shape (5, 3), not ()"),
        ("uint3", np.full((5, 3), 256), np.zeros((5, 3)), "scales must be from 0 to 255, not 256"),
        ("uint3", np.full((5, 3), 0.5), np.zeros((5, 3)), "scales must be integers, not float64"),
        ("uint3", np.zeros((5, 3), int), np.full((5, 3), 8), "zeros must be from 0 to 7, not 8"),
        (
            "int3",
            np.zeros((5, 3), int),
            np.full((5, 3), 1),
            "int3 weights of this engine have no zero points",
        ),
    ],
)
def test_wrong_scales(weights, scales, zeros, message):
    scales = scales.astype(int) if scales.max() != 0.5 else scales
    with pytest.raises(UsageError) as caught:
        scale_words(engine(weights), scales, zeros if zeros is None else zeros.astype(int))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("function", "array", "message"),
    [
        (weight_words, np.zeros((5, 12), int), "weight_codes must be of shape (5, 13), not (5, 12)"),
        (activation_words, np.zeros((2, 14), int), "activation_codes must be of shape (2, 13), not (2, 14)"),
        (vector_results, np.zeros((4, 2), int), "outputs must be of shape (3, 2), not (4, 2)"),
    ],
)
def test_wrong_shapes(function, array, message):
    with pytest.raises(UsageError) as caught:
        function(engine(), array)
    assert str(caught.value) == message
