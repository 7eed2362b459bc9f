"""The decoder once more, as the papers write it: one token, one head and one pair of channels at a time, in
double precision. What each query sees of the keys and values is a function, so that caches can be imitated."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dse.workloads.language import Decoder

Floats = NDArray[np.float64]
# (keys, values) before RoPE, (kv_heads, tokens, head_dim), and the query's position, to what it sees of them.
View = Callable[[Floats, Floats, int], tuple[Floats, Floats]]


def as_they_are(keys: Floats, values: Floats, position: int) -> tuple[Floats, Floats]:
    return keys, values


def rotated(x: Floats, position: int, theta: float, pairing: str) -> Floats:
    """One vector, turned pair by pair."""
    result = x.copy()
    half = len(x) // 2
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if pairing == "interleaved" else (i, i + half)
        angle = position * theta ** (-2 * i / len(x))
        result[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
        result[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
    return result


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def logits(decoder: Decoder, tokens: list[int], view: View = as_they_are) -> Floats:
    """(tokens, vocabulary)."""
    config = decoder.config
    weights = {name: tensor.double().numpy() for name, tensor in decoder.state_dict().items()}
    x = weights["embedding.weight"][tokens]
    for index in range(config.layers):
        of = {
            n.removeprefix(f"layers.{index}."): w
            for n, w in weights.items()
            if n.startswith(f"layers.{index}.")
        }
        x = x + _attention(decoder, of, _normed(x, of["attention_norm.weight"], config.norm_eps), view)
        y = _normed(x, of["feed_forward_norm.weight"], config.norm_eps)
        gate = y @ of["feed_forward.gate.weight"].T
        up = y @ of["feed_forward.up.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ of["feed_forward.down.weight"].T
    return np.asarray(_normed(x, weights["norm.weight"], config.norm_eps) @ weights["head.weight"].T)


def _normed(x: Floats, weight: Floats, eps: float) -> Floats:
    return np.asarray(x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * weight)


def _attention(decoder: Decoder, of: dict[str, Floats], x: Floats, view: View) -> Floats:
    config = decoder.config
    parts = {}
    for name, heads in (("query", config.query_heads), ("key", config.kv_heads), ("value", config.kv_heads)):
        y = x @ of[f"attention.{name}.weight"].T + of.get(f"attention.{name}.bias", np.zeros(1))
        parts[name] = y.reshape(len(x), heads, config.head_dim).transpose(1, 0, 2)
    rope = {"theta": config.rope_theta, "pairing": config.rope_pairing}
    context = np.zeros((len(x), config.query_heads, config.head_dim))
    for i in range(len(x)):
        keys, values = view(parts["key"][:, : i + 1], parts["value"][:, : i + 1], i)
        for head in range(config.query_heads):
            shared = head // (config.query_heads // config.kv_heads)
            query = rotated(parts["query"][head, i], i, **rope)
            scores = [query @ rotated(keys[shared, j], j, **rope) for j in range(i + 1)]
            probabilities = _softmax(np.array(scores) / math.sqrt(config.head_dim))
            context[i, head] = probabilities @ values[shared]
    return np.asarray(context.reshape(len(x), -1) @ of["attention.output.weight"].T)
