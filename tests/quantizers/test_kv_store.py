"""Versions of tokens and who sees them; a store keeps what comes in order."""

from __future__ import annotations

import pytest
import torch

from quantizers.errors import UsageError
from quantizers.kv_store import NEVER, ExactStore, Seen, Version, replaced


def test_a_plain_version_is_causal() -> None:
    version = Version(torch.zeros(1, 1, 4, 2))
    assert version.always
    assert version.visible(torch.arange(2, 4)).tolist() == [[True, True, True, False], [True] * 4]


def test_since_and_until_bound_the_queries() -> None:
    since, until = torch.tensor([0, 3, 2, 0]), torch.tensor([2, NEVER, 1, NEVER])
    version = Version(torch.zeros(1, 1, 4, 2), since, until)
    assert not version.always
    assert version.visible(torch.arange(4)).int().tolist() == [
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 1, 0, 1],
    ]


def test_replaced_tokens_are_seen_once() -> None:
    at = torch.tensor([1, 1, NEVER, 3])
    exact, coded = (
        v.visible(torch.arange(4)).int()
        for v in replaced(torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 4, 2), at)
    )
    assert exact.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert torch.equal(exact + coded, torch.ones(4, 4, dtype=torch.int32).tril())


def _update(store: ExactStore, first: int, count: int, layer: int = 0) -> Seen:
    values = torch.arange(first, first + count, dtype=torch.float32)[None, None, :, None].expand(
        1, 2, count, 3
    )
    return store.update(layer, values, -values, torch.arange(first, first + count))


def test_history_grows_and_is_forgotten() -> None:
    store = ExactStore()
    _update(store, 0, 2)
    _update(store, 0, 3, layer=1)
    seen = _update(store, 2, 3)
    assert seen.keys[0].tensor[0, 1, :, 2].tolist() == [0, 1, 2, 3, 4]
    assert seen.values[0].tensor[0, 0, :, 0].tolist() == [0, -1, -2, -3, -4]
    store.reset()
    assert _update(store, 0, 1).keys[0].tensor.shape == (1, 2, 1, 3)


def test_tokens_must_come_in_order() -> None:
    store = ExactStore()
    _update(store, 0, 2)
    with pytest.raises(UsageError) as caught:
        _update(store, 3, 2)
    assert str(caught.value) == "layer 0 holds 2 tokens, so the next positions are 2 to 3, not 3 to 4"
