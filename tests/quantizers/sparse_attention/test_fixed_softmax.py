from fractions import Fraction

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.sparse_attention import FixedSoftmax

WIDTHS = [
    FixedSoftmax(),
    FixedSoftmax(table_bits=5),
    FixedSoftmax(score_bits=8, fraction_bits=3, table_bits=3, mantissa_bits=6, weight_bits=9),
]


@pytest.mark.parametrize(
    ("softmax", "relative"),
    [(FixedSoftmax(), 2.5e-4), (FixedSoftmax(table_bits=5), 7e-5), (FixedSoftmax(mantissa_bits=12), 5e-4)],
)
def test_error_of_powers(softmax, relative):
    """Relative to the power, and what is dropped below the last bit."""
    x = np.arange(30 << softmax.fraction_bits)
    exact = np.exp2(softmax.weight_bits - x / 2.0**softmax.fraction_bits)
    error = np.abs(softmax.power(x) - exact)
    assert (error <= relative * exact + 1).all()
    assert softmax.power(0) == 1 << softmax.weight_bits


@pytest.mark.parametrize("softmax", WIDTHS)
def test_powers_never_rise(softmax):
    assert (np.diff(softmax.power(np.arange(1 << 14))) <= 0).all()
    assert softmax.power(1 << 20) == 0


@pytest.mark.parametrize("softmax", [FixedSoftmax(), FixedSoftmax(table_bits=5)])
def test_error_of_logarithms(softmax):
    """Half a unit of rounding, and what the table and the dropped bits add to it; never above by more."""
    unit = 1 << softmax.weight_bits
    sums = np.concatenate(
        [np.random.default_rng(0).integers(unit, 8192 * unit, 100_000), unit + np.arange(3000)]
    )
    error = softmax.logarithm(sums) - np.log2(sums / unit) * 2**softmax.fraction_bits
    assert error.min() > -0.95
    assert error.max() < 0.55


def test_logarithms_of_powers_of_two_are_exact():
    softmax = FixedSoftmax()
    places = np.arange(24, 56)
    assert softmax.logarithm(1 << places).tolist() == ((places - 24) << 8).tolist()
    # A float64 would round this up to the next power.
    assert softmax.logarithm((1 << 60) - 1) == (60 - 24) << 8


@pytest.mark.parametrize("keys", [1, 2, 127, 511])
def test_error_of_weights(keys):
    """Against the softmax of the same scores: 0.2 % of a query's largest weight."""
    softmax, rng = FixedSoftmax(), np.random.default_rng(keys)
    scores = rng.integers(-2000, 2000, (3, 100, keys))
    weights = softmax.weights(scores, np.ones((100, keys), bool)) / 2.0**softmax.weight_bits
    powers = np.exp2(scores / 256)
    exact = (powers / powers.sum(axis=-1, keepdims=True)).sum(axis=0)
    assert (np.abs(weights - exact).max(axis=1) / exact.max(axis=1)).max() < 0.002


def test_weights_by_hand():
    softmax = FixedSoftmax(score_bits=8, fraction_bits=3, table_bits=3, mantissa_bits=6, weight_bits=9)
    scores = np.array([[[8, 0, -128]]])
    powers = [int(softmax.power(8 - t)) for t in (8, 0, -128)]
    assert powers == [512, 256, 0]
    # log2(1.5) = 0.585 is 5 eighths; the tables hold 64 * 2**(-a/8).
    assert int(softmax.logarithm(768)) == 5
    table = [round(Fraction(64) * Fraction(2 ** (-a / 8)).limit_denominator(10**9)) for a in range(9)]
    assert softmax.exp_table.tolist() == table
    assert softmax.weights(scores, np.ones((1, 3), bool)).tolist() == [
        [table[5] << 3, (table[5] << 3) >> 1, 0]
    ]


def test_keys_that_are_not_visible_count_for_nothing():
    softmax, rng = FixedSoftmax(), np.random.default_rng(3)
    scores = rng.integers(-3000, 3000, (2, 4, 9))
    visible = np.arange(9) < np.array([0, 1, 5, 9])[:, None]
    weights = softmax.weights(scores, visible)
    assert (weights[~visible] == 0).all()
    for query, count in enumerate((0, 1, 5, 9)):
        alone = softmax.weights(scores[:, query : query + 1, :count], np.ones((1, count), bool))
        assert weights[query, :count].tolist() == alone[0].tolist()


def test_a_weight_is_at_most_one_a_head():
    """However the logarithm is rounded: the hardware's words have no room for more."""
    for softmax in WIDTHS:
        half = 1 << (softmax.score_bits - 1)
        for keys in (1, 3, 64):
            for spread in (1, half):
                scores = np.random.default_rng(keys).integers(-spread, spread, (2, 200, keys))
                weights = softmax.weights(scores, np.ones((200, keys), bool))
                assert weights.max() <= 2 << softmax.weight_bits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_bits": 17}, "score_bits must be an integer from 4 to 16, not 17"),
        ({"table_bits": 0}, "table_bits must be an integer from 1 to 6, not 0"),
        ({"score_bits": 8}, "fraction_bits must be at most 7 beside the other widths, not 8"),
        ({"fraction_bits": 3}, "table_bits must be at most 3 beside the other widths, not 4"),
        ({"weight_bits": 12}, "mantissa_bits must be at most 12 beside the other widths, not 16"),
    ],
)
def test_wrong_widths(changes, message):
    with pytest.raises(UsageError) as caught:
        FixedSoftmax(**changes)
    assert str(caught.value) == message
