"""What queries see of the cache: versions of tokens in one pass, token by token, and in the plain decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dse.workloads.language import decode
from quantizers.errors import UsageError
from quantizers.kv_store import NEVER, HistoryStore, Seen, Version, replaced
from tests.dse.workloads_language.plain_decoder import Floats, logits
from tests.dse.workloads_language.tiny_decoder import random_decoder, random_tokens

GROUP, NEWEST = 4, 3


def coarse_keys(keys: Tensor) -> Tensor:
    """Every channel of a whole group of tokens rounded to its mean; an open group as it is."""
    full = keys.shape[2] // GROUP * GROUP
    groups = keys[:, :, :full].unflatten(2, (-1, GROUP))
    return torch.cat(
        [groups.mean(dim=3, keepdim=True).expand_as(groups).flatten(2, 3), keys[:, :, full:]], dim=2
    )


class GroupedStore(HistoryStore):
    """Keys in groups of tokens once a group is complete; values rounded to halves except the newest."""

    def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
        token = torch.arange(keys.shape[2])
        complete = (token // GROUP + 1) * GROUP - 1
        return Seen(
            replaced(keys, coarse_keys(keys), complete),
            replaced(values, (2 * values).round() / 2, token + NEWEST),
        )


def grouped_view(keys: Floats, values: Floats, position: int) -> tuple[Floats, Floats]:
    """What `GroupedStore` is to show one query, said for that query alone."""
    keys, values = keys.copy(), values.copy()
    for first in range(0, (position + 1) // GROUP * GROUP, GROUP):
        keys[:, first : first + GROUP] = keys[:, first : first + GROUP].mean(axis=1, keepdims=True)
    old = max(0, position - NEWEST + 1)
    values[:, :old] = np.round(2 * values[:, :old]) / 2
    return keys, values


def test_one_pass_equals_what_each_query_sees() -> None:
    decoder = random_decoder()
    tokens = random_tokens(2, 18)
    expected = np.stack([logits(decoder, row.tolist(), grouped_view) for row in tokens])
    mine = decoder(tokens, GroupedStore())
    assert (mine - decoder(tokens)).abs().max() > 0.5
    torch.testing.assert_close(mine.double(), torch.from_numpy(expected), rtol=0, atol=2e-4)


@pytest.mark.parametrize("step", [1, 5, 18])
@pytest.mark.parametrize("rope_before_store", [False, True])
def test_token_by_token_equals_one_pass(step: int, rope_before_store: bool) -> None:
    decoder = random_decoder()
    tokens = random_tokens(2, 18)
    store = GroupedStore()
    store.rope_before_store = rope_before_store
    in_one = decoder(tokens, store)
    torch.testing.assert_close(decode(decoder, tokens, store, step=step), in_one, rtol=0, atol=2e-5)


def test_keys_come_before_or_after_rope() -> None:
    """A mean of neighbours before RoPE is another one than after it."""
    decoder = random_decoder()
    tokens = random_tokens(1, 18)
    before, after = GroupedStore(), GroupedStore()
    after.rope_before_store = True
    assert (decoder(tokens, before) - decoder(tokens, after)).abs().max() > 0.05


class Window(HistoryStore):
    """Evicts all but the newest tokens."""

    def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
        until = torch.arange(keys.shape[2]) + NEWEST
        return Seen([Version(keys, until=until)], [Version(values, until=until)])


def test_evicted_tokens_are_not_there() -> None:
    decoder = random_decoder(layers=1)
    tokens = random_tokens(1, 12)
    other = tokens.clone()
    other[0, :5] = (other[0, :5] + 1) % 33
    windowed, changed = decoder(tokens, Window()), decoder(other, Window())
    # The query at 6 still sees token 4, the one at 7 does not.
    assert (windowed[0, 6] - changed[0, 6]).abs().max() > 1e-3
    torch.testing.assert_close(windowed[0, 7:], changed[0, 7:], rtol=0, atol=0)


def test_tokens_that_stay_as_they_are() -> None:
    decoder = random_decoder()
    tokens = random_tokens(1, 12)

    class Unused(HistoryStore):
        def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
            never = torch.full((keys.shape[2],), NEVER)
            garbage = torch.full_like(keys, 1e6)
            return Seen(replaced(keys, garbage, never), replaced(values, garbage, never))

    torch.testing.assert_close(decoder(tokens, Unused()), decoder(tokens), rtol=0, atol=2e-5)


class Wrong(HistoryStore):
    """Shows whatever the test wants."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
        nobody = torch.zeros(keys.shape[2], dtype=torch.int64)
        hidden_keys, hidden_values = Version(keys, until=nobody), Version(values, until=nobody)
        return {
            "twice": Seen([Version(keys), Version(keys)], [Version(values)]),
            "values twice": Seen([Version(keys)], [Version(values), Version(values), Version(values)]),
            "halves": Seen([Version(keys)], [hidden_values]),
            "nothing": Seen([hidden_keys], [hidden_values]),
            "shape": Seen.always(keys[:, :, :-1], values),
        }[self._kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("twice", "a query sees the key of one token in 2 versions, expected one"),
        ("values twice", "a query sees the value of one token in 3 versions, expected one"),
        ("halves", "a query sees the key of a token without its value, or a value without its key"),
        ("nothing", "a query sees no token at all, not even its own"),
        ("shape", "a store must show keys and values of shape (1, 2, 5, 8), not (1, 2, 4, 8)"),
    ],
)
def test_stores_that_contradict_themselves(kind: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        random_decoder()(random_tokens(1, 5), Wrong(kind))
    assert str(caught.value) == message


def test_finish_comes_after_all_layers() -> None:
    calls: list[str] = []

    class Noting(HistoryStore):
        def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
            calls.append(f"{layer}: {keys.shape[2]}")
            return Seen.always(keys, values)

        def finish(self) -> None:
            calls.append("finish")

    decode(random_decoder(), random_tokens(1, 5), Noting(), step=3)
    assert calls == ["0: 3", "1: 3", "finish", "0: 5", "1: 5", "finish"]
