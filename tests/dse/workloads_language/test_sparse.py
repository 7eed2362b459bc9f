import numpy as np
import pytest
import torch

from dse.workloads.language import decode
from dse.workloads.language.attention import attend
from dse.workloads.language.sparse import IntegerSelection, SelectedBlocks, sliding_window
from quantizers.errors import UsageError
from quantizers.kv_store import ExactStore, Seen, Version
from quantizers.sparse_attention import BlockSelection, select_blocks, token_mask
from tests.dse.workloads_language.tiny_decoder import random_decoder, random_tokens

SMALL = BlockSelection(kernel=4, stride=2, block=4, window=4, topk=4, dense_length=0)


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def plain_attention(queries, keys, values, mask):
    heads, kv_heads = queries.shape[1], keys.shape[1]
    context = torch.zeros_like(queries)
    for h in range(heads):
        g = h // (heads // kv_heads)
        scores = queries[0, h] @ keys[0, g].T / queries.shape[-1] ** 0.5
        context[0, h] = scores.masked_fill(~mask[g], -torch.inf).softmax(dim=-1) @ values[0, g]
    return context


@pytest.mark.parametrize("has_versions", [False, True])
def test_only_chosen_tokens_count(has_versions):
    queries, keys, values = draw(1, 4, 10, 6), draw(1, 2, 10, 6, seed=1), draw(1, 2, 10, 6, seed=2)
    causal = torch.ones(10, 10, dtype=torch.bool).tril()
    chosen = torch.from_numpy(np.random.default_rng(3).random((1, 2, 10, 10)) < 0.5)
    chosen |= torch.eye(10, dtype=torch.bool)
    seen = Seen.always(keys, values)
    if has_versions:
        since = torch.arange(10)
        seen = Seen([Version(keys, since=since)], [Version(values, since=since)])
    context = attend(queries, seen, 0, chosen)
    torch.testing.assert_close(context, plain_attention(queries, keys, values, chosen[0] & causal))


@pytest.mark.parametrize("has_versions", [False, True])
def test_a_query_must_choose_a_token(has_versions):
    queries, keys = draw(1, 2, 3, 4), draw(1, 1, 3, 4)
    since = torch.arange(3) if has_versions else None
    seen = Seen([Version(keys, since=since)], [Version(keys, since=since)])
    chosen = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    chosen[0, 0, 1, :2] = False
    with pytest.raises(UsageError) as caught:
        attend(queries, seen, 0, chosen)
    assert str(caught.value) == "a query chooses none of the tokens that it sees"


def test_a_store_selects_for_each_kv_head():
    store = SelectedBlocks(SMALL)
    queries, keys = draw(1, 4, 40, 8), draw(1, 2, 40, 8, seed=1)
    mask = store.select(0, queries, Seen.always(keys, keys), 0)
    assert mask.shape == (1, 2, 40, 40)
    for head in range(2):
        heads = queries[0, 2 * head : 2 * head + 2].numpy()
        taken = select_blocks(heads, keys[0, head].numpy(), np.arange(40), SMALL)
        expected = token_mask(taken, np.arange(40), 40, SMALL)
        assert (mask[0, head].numpy() == expected).all()
    assert not torch.equal(mask[0, 0], mask[0, 1])
    # 40 queries of 2 heads: all of the first 16 tokens' own, then 3 whole blocks and a part of the fourth.
    assert store.kept == (2 * (136 + 6 * (4 * 12 + 10)), 2 * 820)


def test_integers_choose_nearly_the_same():
    store = SelectedBlocks(SMALL, IntegerSelection())
    queries, keys = draw(1, 4, 80, 8), draw(1, 2, 80, 8, seed=1)
    mask = store.select(0, queries, Seen.always(keys, keys), 0)
    exact = SelectedBlocks(SMALL).select(0, queries, Seen.always(keys, keys), 0)
    assert 0.9 < store.agreement < 1
    assert 0 < (mask != exact).float().mean() < 0.05
    assert (mask.sum(dim=-1) == exact.sum(dim=-1)).all()
    store.reset_counts()
    assert store.agreement is None


def test_a_sliding_window_is_as_large():
    window = sliding_window(SMALL)
    assert (window.local, window.topk) == (2, 4)
    store = SelectedBlocks(window)
    mask = store.select(0, draw(1, 1, 40, 8), Seen.always(draw(1, 1, 40, 8), draw(1, 1, 40, 8)), 0)
    assert mask[0, 0, 38].nonzero()[:, 0].tolist() == [*range(4), *range(28, 39)]


@pytest.mark.parametrize("start_topk", [3, 100])
def test_one_pass_is_decoding(start_topk):
    """Selected blocks of the whole window are those of token-by-token decoding; all blocks are no change."""
    selection = BlockSelection(kernel=4, stride=2, block=4, window=4, topk=start_topk, dense_length=0)
    decoder, tokens = random_decoder(), random_tokens(1, 40)
    with torch.no_grad():
        exact = decoder(tokens, ExactStore())
        store = SelectedBlocks(selection)
        whole = decoder(tokens, store)
        store.reset()
        stepped = decode(decoder, tokens, store)
    torch.testing.assert_close(whole, stepped, rtol=1e-4, atol=1e-4)
    assert torch.allclose(whole, exact, atol=1e-4) == (start_topk == 100)
