"""One decoder for all models of the Llama family (arXiv 2302.13971): RMSNorm, RoPE, grouped-query attention,
SwiGLU.

Its keys and values pass through a `quantizers.kv_store.KeyValueStore`, its linear layers are plain
``nn.Linear`` modules under names such as ``layers.0.attention.key`` and ``layers.0.feed_forward.down``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dse.workloads.language.attention import (
    PAIRINGS,
    Attention,
    Pairing,
    Rotation,
    rope_frequencies,
)
from quantizers.errors import UsageError, unknown_choice
from quantizers.kv_store import KeyValueStore, Pass, steps


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The geometry of a decoder.

    Attributes:
        layers: attention and feed-forward pairs.
        hidden: width of the residual stream.
        ffn: width inside the feed-forward layers.
        query_heads: a multiple of *kv_heads*.
        kv_heads: heads of keys and values.
        head_dim: channels of a head; even.
        vocabulary: tokens.
        context: largest number of tokens of a sequence.
        rope_theta: base of the rotary frequencies.
        rope_pairing: which channels are rotated together, see :class:`~.attention.Rotation`.
        norm_eps: added to the mean square.
        tied_embeddings: whether the output layer is the embedding matrix.
        attention_bias: whether query, key and value have biases (Qwen2).

    Raises:
        UsageError: a value is out of range, or *rope_pairing* is unknown.
    """

    layers: int
    hidden: int
    ffn: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    rope_theta: float = 10000.0
    rope_pairing: Pairing = "half"
    norm_eps: float = 1e-5
    tied_embeddings: bool = True
    attention_bias: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                msg = f"{field.name} of a decoder must be a positive integer, not {value!r}"
                raise UsageError(msg, given=value)
        if self.rope_pairing not in PAIRINGS:
            raise unknown_choice("rope pairing", self.rope_pairing, PAIRINGS)
        if self.query_heads % self.kv_heads:
            msg = f"query heads must be a multiple of the {self.kv_heads} KV heads, not {self.query_heads}"
            raise UsageError(msg, given=self.query_heads)
        if self.head_dim % 2:
            msg = f"head_dim must be even, since RoPE turns pairs of channels, not {self.head_dim}"
            raise UsageError(msg, given=self.head_dim)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, ffn, bias=False)
        self.up = nn.Linear(hidden, ffn, bias=False)
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nn.Module):
    """Attention and feed-forward network, each after a norm and beside a shortcut."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.attention = Attention(
            hidden=config.hidden,
            query_heads=config.query_heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=config.attention_bias,
        )
        self.feed_forward_norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.feed_forward = FeedForward(config.hidden, config.ffn)

    def forward(
        self, x: Tensor, rotation: Rotation, layer: int, store: KeyValueStore | None, start: int
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, layer, store, start)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Decoder(nn.Module):
    """Token ids to logits, in float32 on the CPU.

    Weights are random until they are loaded, see :func:`~.loading.decoder_of`.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.head = nn.Linear(config.hidden, config.vocabulary, bias=False)
        self.tie()

    def tie(self) -> None:
        """Makes the output layer share the embedding matrix, where the configuration says so."""
        if self.config.tied_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, store: KeyValueStore | None = None, start: int = 0) -> Tensor:
        """Logits, float32 (batch, new, vocabulary), of the token after each of *tokens*.

        Args:
            tokens: int64, shape (batch, new).
            store: sees the keys and values of every layer and decides what the queries see of them; without
                one they are used as they are.
            start: position of the first token. Where it is not 0, *store* has been updated with all tokens
                before it.

        Raises:
            UsageError: the tokens go beyond the context, an id is not in the vocabulary, or *start* is not 0
                without a store.
        """
        self._check(tokens, store, start)
        frequencies = rope_frequencies(self.config.head_dim, self.config.rope_theta)
        rotation = Rotation.of(start + tokens.shape[1], frequencies, self.config.rope_pairing)
        x = self.embedding(tokens)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, index, store, start)
        if store is not None:
            store.finish()
        return self.head(self.norm(x))

    def _check(self, tokens: Tensor, store: KeyValueStore | None, start: int) -> None:
        if tokens.dim() != 2 or tokens.shape[1] == 0:
            msg = f"tokens must have shape (batch, new) with new >= 1, not {tuple(tokens.shape)}"
            raise UsageError(msg, given=tuple(tokens.shape))
        stop = start + tokens.shape[1]
        if start < 0 or stop > self.config.context:
            msg = f"tokens {start} to {stop - 1} do not fit the context of {self.config.context}"
            raise UsageError(msg, given=stop, expected=[f"at most {self.config.context}"])
        if start and store is None:
            msg = f"tokens from position {start} on need a store that holds those before"
            raise UsageError(msg, given=start, expected=["0"])
        low, high = (int(end) for end in tokens.aminmax())
        if low < 0 or high >= self.config.vocabulary:
            wrong = low if low < 0 else high
            msg = f"token {wrong} is not in the vocabulary of {self.config.vocabulary}"
            raise UsageError(msg, given=wrong)


def decode(decoder: Decoder, tokens: Tensor, store: KeyValueStore, *, step: int = 1) -> Tensor:
    """Logits as `Decoder.forward` gives, computed *step* new tokens at a time; *store* is reset first.

    With one token a step this is what hardware does; it is slow, and equals one pass over all tokens where
    the store is honest about time, see `quantizers.kv_store`.
    """
    return run_passes(decoder, tokens, store, steps(tokens.shape[1], step))


def run_passes(decoder: Decoder, tokens: Tensor, store: KeyValueStore, passes: Sequence[Pass]) -> Tensor:
    """Logits of the passes that count, one after the other; *store* is reset first.

    Args:
        decoder: sees the tokens of one pass at a time.
        tokens: int64, shape (batch, length).
        store: holds those of earlier passes.
        passes: at least one of them counts.

    Returns:
        Shape (batch, tokens of the passes that count, vocabulary).
    """
    store.reset()
    logits = []
    for each in passes:
        found = decoder(tokens[:, each.start : each.stop], store, each.start)
        if each.counts:
            logits.append(found)
    return torch.cat(logits, dim=1)
