"""The decoder computes what the papers say, in all its variants, and refuses what it cannot do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dse.workloads.language import Decoder, DecoderConfig, decode
from quantizers.errors import UsageError
from quantizers.kv_store import ExactStore
from tests.dse.workloads_language.plain_decoder import logits
from tests.dse.workloads_language.tiny_decoder import SETTINGS, random_decoder, random_tokens

VARIANTS: list[dict[str, Any]] = [
    {},
    {"rope_pairing": "interleaved"},
    {"rope_theta": 100.0, "norm_eps": 0.1},
    {"kv_heads": 6},
    {"kv_heads": 1},
    {"head_dim": 6},
    {"tied_embeddings": False},
    {"attention_bias": True},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_equals_the_plain_implementation(changes: dict[str, Any]) -> None:
    decoder = random_decoder(**changes)
    tokens = random_tokens(2, 19)
    mine = decoder(tokens)
    expected = torch.from_numpy(np.stack([logits(decoder, row.tolist()) for row in tokens]))
    assert mine.shape == (2, 19, SETTINGS["vocabulary"])
    assert expected.std() > 0.5
    torch.testing.assert_close(mine.double(), expected, rtol=0, atol=2e-4)


def test_pairings_and_norms_matter() -> None:
    tokens = random_tokens(1, 19)
    base = random_decoder()(tokens)
    for changes in ({"rope_pairing": "interleaved"}, {"rope_theta": 100.0}, {"norm_eps": 0.1}):
        assert (random_decoder(**changes)(tokens) - base).abs().max() > 0.01


@pytest.mark.parametrize("rope_before_store", [False, True])
@pytest.mark.parametrize("step", [1, 3, 7, 19, 40])
def test_pieces_of_a_sequence_equal_the_whole(step: int, rope_before_store: bool) -> None:
    decoder = random_decoder()
    tokens = random_tokens(2, 19)
    store = ExactStore()
    store.rope_before_store = rope_before_store
    for _ in range(2):  # the second time after a reset
        torch.testing.assert_close(
            decode(decoder, tokens, store, step=step), decoder(tokens), rtol=0, atol=2e-5
        )


def test_the_output_layer_is_the_embedding_where_it_says_so() -> None:
    tied, own = random_decoder(), random_decoder(tied_embeddings=False)
    assert tied.head.weight is tied.embedding.weight
    assert own.head.weight is not own.embedding.weight
    difference = sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in tied.parameters())
    assert difference == SETTINGS["vocabulary"] * SETTINGS["hidden"]


def test_linear_layers_have_plain_names() -> None:
    names = [
        n for n, module in random_decoder(layers=1).named_modules() if isinstance(module, torch.nn.Linear)
    ]
    assert names == [
        "layers.0.attention.query",
        "layers.0.attention.key",
        "layers.0.attention.value",
        "layers.0.attention.output",
        "layers.0.feed_forward.gate",
        "layers.0.feed_forward.up",
        "layers.0.feed_forward.down",
        "head",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers of a decoder must be a positive integer, not 0"),
        ({"hidden": 24.0}, "hidden of a decoder must be a positive integer, not 24.0"),
        ({"kv_heads": 4}, "query heads must be a multiple of the 4 KV heads, not 6"),
        ({"head_dim": 7}, "head_dim must be even, since RoPE turns pairs of channels, not 7"),
        (
            {"rope_pairing": "halves"},
            "unknown rope pairing 'halves' (did you mean 'half'?); expected one of: interleaved, half",
        ),
    ],
)
def test_wrong_geometries(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        DecoderConfig(**{**SETTINGS, **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("tokens", "start", "message"),
    [
        ([[1, 33]], 0, "token 33 is not in the vocabulary of 33"),
        ([[-1, 32]], 0, "token -1 is not in the vocabulary of 33"),
        ([[]], 0, "tokens must have shape (batch, new) with new >= 1, not (1, 0)"),
        ([1, 2], 0, "tokens must have shape (batch, new) with new >= 1, not (2,)"),
        ([[1, 2]], 63, "tokens 63 to 64 do not fit the context of 64"),
        ([[1, 2]], 5, "tokens from position 5 on need a store that holds those before"),
    ],
)
def test_wrong_tokens(tokens: list[Any], start: int, message: str) -> None:
    decoder: Decoder = random_decoder()
    with pytest.raises(UsageError) as caught:
        decoder(torch.tensor(tokens, dtype=torch.int64), start=start)
    assert str(caught.value) == message
