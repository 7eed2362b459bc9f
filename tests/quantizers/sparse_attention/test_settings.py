import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.sparse_attention import BlockSelection


def test_sizes_of_the_paper():
    selection = BlockSelection()
    assert (selection.local, selection.keys_per_block, selection.overlap) == (32, 4, 1)
    assert [selection.compressed_count(n) for n in (0, 31, 32, 47, 48, 131072)] == [0, 0, 1, 1, 2, 8191]
    # max(0, 4k - 1) : min(4k + 4, nK)
    assert [selection.key_range(k, 10) for k in (0, 1, 2, 3)] == [
        range(0, 4),
        range(3, 8),
        range(7, 10),
        range(11, 11),
    ]
    assert [selection.block_count(n) for n in (1, 64, 65)] == [1, 1, 2]


def test_a_query_sees_the_keys_whose_last_token_is_not_behind_it():
    selection = BlockSelection(kernel=8, stride=2, block=8, window=8)
    positions = np.arange(40)
    counts = selection.visible_counts(positions)
    assert counts.tolist() == [sum(2 * j + 7 <= i for j in range(40)) for i in positions]
    assert counts.tolist() == [selection.compressed_count(i + 1) for i in range(40)]


@pytest.mark.parametrize(("kernel", "stride", "block"), [(32, 16, 64), (8, 2, 8), (4, 4, 8), (6, 2, 8)])
def test_key_range_is_that_of_shared_tokens(kernel, stride, block):
    selection = BlockSelection(kernel=kernel, stride=stride, block=block, window=block)
    for k in range(6):
        tokens = set(range(block * k, block * (k + 1)))
        shared = [j for j in range(200) if tokens & set(range(stride * j, stride * j + kernel))]
        assert list(selection.key_range(k, 200)) == shared


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": 0}, "kernel must be an integer of at least 1, not 0"),
        ({"topk": 1.5}, "topk must be an integer of at least 1, not 1.5"),
        ({"initial": -1}, "initial must be an integer of at least 0, not -1"),
        ({"kernel": 40}, "kernel must be a multiple of the stride 16, not 40"),
        ({"block": 72}, "block must be a multiple of the stride 16, not 72"),
        ({"window": 100}, "window must be a multiple of the block 64, not 100"),
        ({"kernel": 128}, "kernel must be at most the block of 64 tokens, not 128"),
    ],
)
def test_wrong_sizes(changes, message):
    with pytest.raises(UsageError) as caught:
        BlockSelection(**changes)
    assert str(caught.value) == message
