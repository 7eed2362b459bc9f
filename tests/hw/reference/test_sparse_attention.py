import numpy as np

from hw.reference.sparse_attention import pooled_scores, top_indices
from quantizers.sparse_attention import BlockSelection

SMALL = BlockSelection(kernel=4, stride=2, block=8, window=8, topk=4, dense_length=16)


def test_pooled_scores():
    """Of 40 tokens' 19 keys; block 1 also has the key that reaches into it."""
    weights = np.arange(19)[::-1]
    pooled = pooled_scores(weights, 39, SMALL, score_bits=6)
    assert pooled == [
        (63, False, False),
        (15, False, False),
        (11, False, False),
        (63, False, False),
        (63, True, False),
    ]


def test_dense_queries_take_all():
    assert pooled_scores([], 14, SMALL, score_bits=6) == [(63, False, True), (63, True, True)]


def test_top_indices():
    assert top_indices([4, 7, 4, 9, 4], 3) == [(0, False), (1, False), (3, True)]
    assert top_indices([4], 3) == [(0, True)]
