import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.sparse_attention import (
    BlockSelection,
    FixedSoftmax,
    agreement,
    compressed_bits,
    compressed_keys,
    compressed_sums,
    head_scores,
    integer_keys,
    integer_queries,
    key_scales,
    select_blocks,
    select_blocks_integer,
)

SELECTION = BlockSelection(window=128, topk=8, dense_length=0)


def test_compressed_sums_are_sums():
    keys = np.random.default_rng(0).integers(-128, 128, (100, 3))
    sums = compressed_sums(keys, SELECTION, key_bits=8)
    assert sums.tolist() == [keys[16 * j : 16 * j + 32].sum(axis=0).tolist() for j in range(5)]


def test_means_are_rounded_to_nearest_ties_to_even():
    selection = BlockSelection(kernel=4, stride=4, block=4, window=4)
    keys = np.array([2, 2, 1, 1, 3, 3, 2, 2, -1, -1, 0, 0, 127, 127, 127, 127, 1, 1, 1, 0])[:, None]
    means = compressed_sums(keys, selection, key_bits=8, dropped_bits=2)
    assert means[:, 0].tolist() == [2, 2, 0, 127, 1]


def test_scores_round_and_saturate():
    softmax = FixedSoftmax(score_bits=8, fraction_bits=3, table_bits=3)
    scores = head_scores([[[1], [100]]], [[3], [5], [-6]], [[1, 2]], softmax)
    assert scores.tolist() == [[[2, 2, -3], [75, 125, -128]]]


def test_scores_are_binary_logarithms():
    """With enough bits they are q.mean(k) / sqrt(d) * log2(e), in units of 1/256, within the roundings."""
    rng = np.random.default_rng(1)
    keys, queries = 3 * rng.standard_normal((200, 16)), 3 * rng.standard_normal((2, 5, 16))
    scales = key_scales(keys, key_bits=11)
    codes = integer_keys(keys, scales, key_bits=11)
    softmax = FixedSoftmax()
    q = integer_queries(queries, scales, SELECTION, softmax, query_bits=16)
    scores = head_scores(q.codes, compressed_sums(codes, SELECTION, key_bits=11), q.shifts, softmax)
    exact = queries @ compressed_keys(keys, SELECTION).T / 4 * np.log2(np.e) * 256
    assert np.abs(scores - exact).max() < 2


@pytest.mark.parametrize(("bits", "dropped", "least"), [(8, 0, 0.95), (8, 5, 0.85), (11, 0, 0.97)])
def test_selected_blocks_agree_with_those_of_float64(bits, dropped, least):
    """Random keys with a common part in each block, so that blocks differ."""
    rng = np.random.default_rng(2)
    keys = np.repeat(rng.standard_normal((40, 32)), 64, axis=0) + rng.standard_normal((2560, 32))
    queries = 2 * rng.standard_normal((3, 200, 32))
    positions = rng.integers(1024, 2560, 200)
    exact = select_blocks(queries, keys, positions, SELECTION)
    scales, softmax = key_scales(keys, key_bits=bits), FixedSoftmax()
    codes = integer_queries(queries, scales, SELECTION, softmax, query_bits=bits, dropped_bits=dropped)
    taken = select_blocks_integer(
        codes,
        integer_keys(keys, scales, key_bits=bits),
        positions,
        SELECTION,
        softmax,
        key_bits=bits,
        dropped_bits=dropped,
    )
    assert taken.sum(axis=1).tolist() == [8] * 200
    own = (positions // 64)[:, None]
    forced = (np.arange(40) == 0) | ((np.arange(40) <= own) & (own <= np.arange(40) + 2))
    assert least <= agreement(taken, exact, forced) < 1


def test_agreement():
    expected = np.array([[True, True, True, False], [True, False, True, True]])
    taken = np.array([[True, True, False, True], [True, False, True, True]])
    forced = np.array([True, False, False, False])
    assert agreement(taken, expected, forced) == 0.75
    assert agreement(taken, expected, np.ones(4, bool)) == 1


def test_shifts_stay_in_their_range():
    softmax = FixedSoftmax()
    tiny = integer_queries(np.full((1, 1, 4), 1e-12), np.ones(4), SELECTION, softmax, query_bits=8)
    assert (tiny.shifts.tolist(), tiny.codes.tolist()) == ([[23]], [[[0, 0, 0, 0]]])
    huge = integer_queries(np.full((1, 1, 4), 1e12), np.ones(4), SELECTION, softmax, query_bits=8)
    assert (huge.shifts.tolist(), huge.codes.tolist()) == ([[-8]], [[[127, 127, 127, 127]]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((17, 0), "key_bits must be an integer from 2 to 16, not 17"),
        ((8, 6), "dropped_bits must be an integer from 0 to 5, not 6"),
        ((14, 0), "compressed keys of 19 bits are too wide: drop at least 3 of them, not 0"),
    ],
)
def test_wrong_widths(arguments, message):
    with pytest.raises(UsageError) as caught:
        compressed_bits(*arguments, SELECTION)
    assert str(caught.value) == message
