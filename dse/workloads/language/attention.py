"""Grouped-query attention (arXiv 2305.13245) with rotary positions (RoPE, arXiv 2104.09864), computed from
what a store of keys and values shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.errors import UsageError
from quantizers.kv_store import KeyValueStore, Seen, SelectsTokens, Version

Pairing = Literal["interleaved", "half"]
PAIRINGS: tuple[Pairing, ...] = ("interleaved", "half")


@dataclass(frozen=True, eq=False)
class Rotation:
    """RoPE at positions 0 to n-1.

    Attributes:
        cosine: shape (n, head_dim / 2), of position * theta**(-2i / head_dim) for pair i.
        sine: the same shape.
        pairing: which channels make pair i: ``interleaved`` 2i and 2i+1 (as in the paper, llama2.c and GGUF
            files), ``half`` i and i + head_dim/2 (as in Hugging Face models).
    """

    cosine: Tensor
    sine: Tensor
    pairing: Pairing

    @classmethod
    def of(cls, count: int, frequencies: Tensor, pairing: Pairing) -> Rotation:
        """For positions 0 to *count* - 1 and the angles a position of each pair, (head_dim / 2,)."""
        angles = torch.outer(torch.arange(count, dtype=torch.float32), frequencies)
        return cls(angles.cos(), angles.sin(), pairing)

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """*x*, shape (..., tokens, head_dim), whose first token is at position *start*."""
        stop = start + x.shape[-2]
        cosine, sine = self.cosine[start:stop], self.sine[start:stop]
        half = x.shape[-1] // 2
        if self.pairing == "half":
            a, b = x[..., :half], x[..., half:]
            return torch.cat([a * cosine - b * sine, a * sine + b * cosine], dim=-1)
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).flatten(-2)


def rope_frequencies(head_dim: int, theta: float) -> Tensor:
    """theta**(-2i / head_dim) for each pair i of channels: float32, shape (head_dim / 2,)."""
    return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


class Attention(nn.Module):
    """Causal attention of *query_heads* over *kv_heads* heads of keys and values; heads of *head_dim*."""

    def __init__(
        self, *, hidden: int, query_heads: int, kv_heads: int, head_dim: int, bias: bool = False
    ) -> None:
        super().__init__()
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.query = nn.Linear(hidden, query_heads * head_dim, bias=bias)
        self.key = nn.Linear(hidden, kv_heads * head_dim, bias=bias)
        self.value = nn.Linear(hidden, kv_heads * head_dim, bias=bias)
        self.output = nn.Linear(query_heads * head_dim, hidden, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        layer: int,
        store: KeyValueStore | None,
        start: int,
    ) -> Tensor:
        """*x*, shape (batch, new, hidden), at positions from *start* on; the result has the same shape."""
        queries, keys, values = (self._heads(f(x)) for f in (self.query, self.key, self.value))
        queries = rotation.rotate(queries, start)
        if store is None:
            context = attend(queries, Seen.always(rotation.rotate(keys, start), values), start)
        else:
            seen = self._stored(store, layer, keys, values, rotation, start)
            chosen = store.select(layer, queries, seen, start) if isinstance(store, SelectsTokens) else None
            context = attend(queries, seen, start, chosen)
        return self.output(context.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, tokens, heads * head_dim) as (batch, heads, tokens, head_dim)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _stored(
        self,
        store: KeyValueStore,
        layer: int,
        keys: Tensor,
        values: Tensor,
        rotation: Rotation,
        start: int,
    ) -> Seen:
        """What the store shows, with rotated keys."""
        positions = torch.arange(start, start + keys.shape[2])
        if store.rope_before_store:
            seen = store.update(layer, rotation.rotate(keys, start), values, positions)
        else:
            seen = store.update(layer, keys, values, positions)
        shape = (keys.shape[0], self.kv_heads, start + keys.shape[2], self.head_dim)
        for version in (*seen.keys, *seen.values):
            if tuple(version.tensor.shape) != shape:
                msg = f"a store must show keys and values of shape {shape}, not {tuple(version.tensor.shape)}"
                raise UsageError(msg, given=tuple(version.tensor.shape), expected=[str(shape)])
        if store.rope_before_store:
            return seen
        rotated = [Version(rotation.rotate(v.tensor, 0), v.since, v.until) for v in seen.keys]
        return Seen(rotated, seen.values)


def attend(queries: Tensor, seen: Seen, start: int, chosen: Tensor | None = None) -> Tensor:
    """softmax(q.k / sqrt(head_dim)) . v over what each query sees.

    Args:
        queries: shape (batch, query_heads, new, head_dim), rotated; a KV head serves consecutive query heads.
        seen: rotated keys, and values.
        start: position of the first query.
        chosen: the tokens that count, of those that a query sees: bool (batch, kv_heads, new, tokens); all
            where it is None.

    Returns:
        Shape of *queries*.

    Raises:
        UsageError: a query sees a token in two versions, sees a key without its value, or sees nothing.
    """
    if _is_plain(seen):
        return _attend_plain(queries, seen, start, chosen)
    positions = torch.arange(start, start + queries.shape[2])
    key_masks = [version.visible(positions) for version in seen.keys]
    value_masks = [version.visible(positions) for version in seen.values]
    _check_masks(key_masks, value_masks)
    batch, heads, new, head_dim = queries.shape
    kv_heads = seen.keys[0].tensor.shape[1]
    grouped = queries.reshape(batch, kv_heads, heads // kv_heads, new, head_dim) / math.sqrt(head_dim)
    scores = _scores(grouped, seen.keys, key_masks)
    if chosen is not None:
        _check_chosen(chosen, torch.stack(key_masks).any(dim=0))
        scores = scores.masked_fill(~chosen[:, :, None], -math.inf)
    weights = scores.softmax(dim=-1)
    return _weighted_sum(weights, seen.values, value_masks).reshape(queries.shape)


def _is_plain(seen: Seen) -> bool:
    return all(len(versions) == 1 and versions[0].always for versions in (seen.keys, seen.values))


def _attend_plain(queries: Tensor, seen: Seen, start: int, chosen: Tensor | None) -> Tensor:
    """One form of everything, for which torch has a fused kernel."""
    keys, values = seen.keys[0].tensor, seen.values[0].tensor
    grouped = queries.shape[1] != keys.shape[1]
    if chosen is not None:
        visible = seen.keys[0].visible(torch.arange(start, start + queries.shape[2]))
        _check_chosen(chosen, visible)
        mask = (chosen & visible).repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=grouped)
    if start == 0:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
    mask = seen.keys[0].visible(torch.arange(start, start + queries.shape[2]))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=grouped)


def _scores(queries: Tensor, versions: Sequence[Version], masks: Sequence[Tensor]) -> Tensor:
    """q.k of each pair that is visible, minus infinity elsewhere: (batch, kv_heads, group, new, tokens)."""
    tokens = versions[0].tensor.shape[2]
    scores = torch.full((*queries.shape[:-1], tokens), -math.inf)
    for version, mask in zip(versions, masks, strict=True):
        rows, columns = _extent(mask)
        keys = version.tensor[:, :, None, columns].transpose(-1, -2)
        block = scores[..., rows, columns]
        block.copy_(torch.where(mask[rows, columns], queries[..., rows, :] @ keys, block))
    return scores


def _weighted_sum(weights: Tensor, versions: Sequence[Version], masks: Sequence[Tensor]) -> Tensor:
    context = weights.new_zeros((*weights.shape[:-1], versions[0].tensor.shape[-1]))
    for version, mask in zip(versions, masks, strict=True):
        rows, columns = _extent(mask)
        visible = weights[..., rows, columns] * mask[rows, columns]
        context[..., rows, :] += visible @ version.tensor[:, :, None, columns]
    return context


def _extent(mask: Tensor) -> tuple[slice, slice]:
    """The queries and the tokens from the first to the last that a version is visible for."""
    ends = []
    for dimension in (1, 0):
        used = mask.any(dim=dimension).nonzero()
        ends.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0))
    return ends[0], ends[1]


def _check_chosen(chosen: Tensor, visible: Tensor) -> None:
    if not bool((chosen & visible).any(dim=-1).all()):
        msg = "a query chooses none of the tokens that it sees"
        raise UsageError(msg)


def _check_masks(key_masks: Sequence[Tensor], value_masks: Sequence[Tensor]) -> None:
    unions = []
    for kind, masks in (("key", key_masks), ("value", value_masks)):
        times = torch.stack(list(masks)).sum(dim=0)
        if int(times.max()) > 1:
            msg = f"a query sees the {kind} of one token in {int(times.max())} versions, expected one"
            raise UsageError(msg, given=int(times.max()), expected=["1"])
        unions.append(times.bool())
    if not torch.equal(*unions):
        msg = "a query sees the key of a token without its value, or a value without its key"
        raise UsageError(msg)
    if not bool(unions[0].any(dim=1).all()):
        msg = "a query sees no token at all, not even its own"
        raise UsageError(msg)
