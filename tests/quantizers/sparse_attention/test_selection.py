import math

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.sparse_attention import (
    BlockSelection,
    best_blocks,
    block_indices,
    block_scores,
    compressed_keys,
    group_scores,
    select_blocks,
    token_mask,
)

SMALL = BlockSelection(kernel=4, stride=2, block=8, window=8, topk=4, dense_length=0)


def plain_selection(queries, keys, position, selection):
    """The definition, a query at a time, in loops."""
    kernel, stride, block = selection.kernel, selection.stride, selection.block
    count = (position + 1 - kernel) // stride + 1 if position + 1 >= kernel else 0
    means = [keys[stride * j : stride * j + kernel].sum(axis=0) / kernel for j in range(count)]
    scores = [0.0] * count
    for query in queries:
        logits = [float(query @ mean) / math.sqrt(len(query)) for mean in means]
        powers = [math.exp(logit - max(logits)) for logit in logits]
        scores = [s + p / sum(powers) for s, p in zip(scores, powers, strict=True)]
    own = position // block
    if position + 1 < selection.dense_length:
        return list(range(own + 1))
    best = []
    for k in range(own + 1):
        if k < selection.initial or own <= k + selection.local:
            best.append(math.inf)
        else:
            touching = [
                s
                for j, s in enumerate(scores)
                if stride * j < block * (k + 1) and stride * j + kernel > block * k
            ]
            best.append(max(touching, default=-math.inf))
    order = sorted(range(own + 1), key=lambda k: (-best[k], k))
    return sorted(order[: selection.topk])


@pytest.mark.parametrize(
    "selection",
    [
        SMALL,
        BlockSelection(kernel=8, stride=2, block=8, window=16, initial=2, topk=6, dense_length=40),
        BlockSelection(kernel=4, stride=4, block=8, window=0, initial=0, topk=2, dense_length=0),
        BlockSelection(kernel=4, stride=2, block=4, window=4, topk=1, dense_length=0),
    ],
)
def test_every_query_of_a_sequence(selection):
    rng = np.random.default_rng(0)
    keys, queries = rng.standard_normal((90, 6)), 2 * rng.standard_normal((3, 90, 6))
    positions = np.arange(90)
    taken = block_indices(select_blocks(queries, keys, positions, selection))
    for i in positions:
        assert taken[i].tolist() == plain_selection(queries[:, i], keys, int(i), selection)


def test_in_decoding_as_in_one_pass():
    """What comes after a query changes nothing."""
    rng = np.random.default_rng(1)
    keys, queries = rng.standard_normal((80, 4)), rng.standard_normal((2, 80, 4))
    at_once = block_indices(select_blocks(queries, keys, np.arange(80), SMALL))
    for i in (0, 3, 4, 40, 79):
        one = select_blocks(queries[:, i : i + 1], keys[: i + 1], [i], SMALL)
        assert block_indices(one)[0].tolist() == at_once[i].tolist()


def test_scores_are_softmaxes_added_over_the_heads():
    rng = np.random.default_rng(2)
    compressed = compressed_keys(rng.standard_normal((41, 4)), SMALL)
    scores = group_scores(rng.standard_normal((3, 41, 4)), compressed, np.arange(41), SMALL)
    assert compressed.shape == (19, 4)
    assert (scores[:3] == 0).all()
    assert scores[3:].sum(axis=1) == pytest.approx(3)
    assert (scores[3, 1:] == 0).all()


def test_ties_go_to_the_smaller_index():
    scores = np.array([[5, 1, 2, 2, 2, 1, 9]])
    selection = BlockSelection(kernel=4, stride=2, block=8, window=0, topk=4, dense_length=0)
    assert np.flatnonzero(best_blocks(scores, [55], selection)).tolist() == [0, 2, 3, 6]


def test_forced_blocks_beyond_topk_go_by_index_too():
    selection = BlockSelection(kernel=4, stride=2, block=8, window=32, topk=3, dense_length=0)
    pooled = block_scores(np.zeros((1, 40)), [63], selection)
    assert np.isposinf(pooled[0]).tolist() == [True, False, False, True, True, True, True, True]
    assert np.flatnonzero(best_blocks(pooled, [63], selection)).tolist() == [0, 3, 4]


def test_paper_sizes_force_34_blocks():
    """The first block, the query's own and the 32 before it: the stated condition gives one more than 32."""
    pooled = block_scores(np.zeros((1, 8191)), [131071], BlockSelection())
    assert np.isposinf(pooled).sum() == 34
    assert best_blocks(pooled, [131071], BlockSelection()).sum() == 96


def test_token_mask():
    taken = np.array([[True, False, False], [True, False, True]])
    mask = token_mask(taken, [7, 18], 20, SMALL)
    assert [np.flatnonzero(row).tolist() for row in mask] == [
        list(range(8)),
        [*range(8), 16, 17, 18],
    ]


def test_wrong_shapes():
    with pytest.raises(UsageError) as caught:
        compressed_keys(np.zeros((2, 3, 4)), SMALL)
    assert str(caught.value) == "keys must be of shape (tokens, head_dim), not (2, 3, 4)"
    with pytest.raises(UsageError) as caught:
        group_scores(np.zeros((2, 3, 4)), np.zeros((5, 3)), np.arange(3), SMALL)
    assert str(caught.value) == (
        "queries, compressed keys and positions must be of shapes (heads, queries, head_dim), "
        "(compressed, head_dim) and (queries,), not (2, 3, 4), (5, 3) and (3,)"
    )
