import numpy as np
import pytest

from hw.arith.requantizer import Requantization
from hw.mvu import MatrixVectorUnit, input_words, load_words, output_count, vector_results
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format

INT4 = parse_scalar_format("int4")
CODES = Requantization(format=INT4, multiplier_bits=4, shifts=range(4))


def unit_of(rows=3, columns=5, pe=2, simd=2, **arguments):
    return MatrixVectorUnit(
        weights=INT4, activations=INT4, rows=rows, columns=columns, pe=pe, simd=simd, **arguments
    )


def test_weights_row_by_row():
    weights = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]
    assert load_words(unit_of(), weights) == [0x21, 0x43, 0x05, 0x76, 0x98, 0x0A, 0xCB, 0xED, 0x0F]


def test_parameters_behind_the_weights_of_a_row():
    """Accumulators of int4 x int4, 3 columns, have 9 bits, and one for the bias."""
    unit = unit_of(rows=2, columns=3, has_bias=True, output=CODES)
    assert unit.accumulator_bits == 10
    words = load_words(unit, [[1, 2, 3], [4, 5, 6]], bias=[5, -1], multiplier=[15, 3], shift=[0, 2])
    assert words == [0x21, 0x3, 5 | 15 << 10, 0x54, 0x6, 0x3FF | 3 << 10 | 2 << 14]


def test_vectors_in_words_and_results_back():
    unit = unit_of()
    assert input_words(unit, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]).tolist() == [
        *([1, 2], [3, 4], [5, 0]),
        *([6, 7], [8, 9], [10, 0]),
    ]
    assert output_count(unit, 2) == 4
    results = vector_results(unit, [[1, 2], [3, 0], [-4, 5], [6, 0]])
    assert results.tolist() == [[1, 2, 3], [-4, 5, 6]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_words(unit_of(), [[1, 2]]), "weight_codes must be of shape (3, 5), not (1, 2)"),
        (
            lambda: load_words(unit_of(), np.zeros((3, 5), int), bias=[1, 2, 3]),
            "this unit takes no parameters, not bias",
        ),
        (
            lambda: load_words(unit_of(has_bias=True, output=CODES), np.zeros((3, 5), int)),
            "this unit takes bias, multiplier, shift, not no parameters",
        ),
        (
            lambda: load_words(unit_of(has_bias=True), np.zeros((3, 5), int), bias=[1, 2]),
            "bias must be of shape (3,), not (2,)",
        ),
        (
            lambda: load_words(unit_of(has_bias=True), np.zeros((3, 5), int), bias=[0, 1024, 1]),
            "the bias of row 1 is 1024: expected -1024 to 1023",
        ),
        (
            lambda: input_words(unit_of(), [[1, 2, 3]]),
            "activation_codes must be of shape (1, 5), not (1, 3)",
        ),
        (
            lambda: vector_results(unit_of(), [[1, 2], [3, 4], [5, 6]]),
            "outputs must be of shape (2, 2), not (3, 2)",
        ),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value) == message
