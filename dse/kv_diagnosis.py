"""A look at a language model's keys and values that says which codecs of its cache can pay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dse.workloads.language.attention import Rotation, rope_frequencies
from dse.workloads.language.decoder import Decoder
from dse.workloads.language.language_model import LanguageModel
from dse.workloads.language.text import Windows
from quantizers.errors import UsageError
from quantizers.kv_cache.diagnosis import TensorDiagnosis, diagnose
from quantizers.kv_cache.merging import MergeSettings
from quantizers.kv_store import HistoryStore, Seen

FIRST_QUERY = 16
"""The first query that counts for the attention to the first token: earlier ones have little else to see."""

SINK_ATTENTION = 0.1
"""From this mean attention to the first token on, its error is in every result."""


@dataclass(frozen=True)
class CacheDiagnosis:
    """What a model's cache looks like on some windows of text.

    Attributes:
        keys, values: see :mod:`quantizers.kv_cache.diagnosis`.
        sink_attention: for each layer, the mean attention weight of the first token, over all heads and the
            queries from position 16 on.
        windows, window_tokens: on how much text.
        text, text_sha256: which.
    """

    keys: TensorDiagnosis
    values: TensorDiagnosis
    sink_attention: tuple[float, ...]
    windows: int
    window_tokens: int
    text: str
    text_sha256: str

    @property
    def mean_sink_attention(self) -> float:
        """Over all layers."""
        return float(np.mean(self.sink_attention))

    def verdict(self) -> list[str]:
        """Plain sentences with the figures, one for each kind of codec."""
        share = f"the first token gets {self.mean_sink_attention:.1%} of the attention"
        advice = (
            "it pays to keep it exactly, whatever codes the rest"
            if self.mean_sink_attention >= SINK_ATTENTION
            else "no reason to treat it apart"
        )
        return [*self.keys.verdict(), *self.values.verdict(), f"sinks: {share}: {advice}"]

    def as_json(self) -> dict[str, Any]:
        """All figures, and the verdict."""
        return {
            "text": self.text,
            "text_sha256": self.text_sha256,
            "windows": self.windows,
            "window_tokens": self.window_tokens,
            "keys": self.keys.as_json(),
            "values": self.values.as_json(),
            "sink_attention": list(self.sink_attention),
            "mean_sink_attention": self.mean_sink_attention,
            "verdict": self.verdict(),
        }


class _Recorder(HistoryStore):
    """Keeps keys and values, and the queries that hooks give it."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[tuple[int, str], Tensor] = {}

    def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
        self.tensors[layer, "keys"], self.tensors[layer, "values"] = keys, values
        return Seen.always(keys, values)


@torch.no_grad()
def diagnose_cache(
    model: LanguageModel | Decoder, windows: Windows, *, settings: MergeSettings | None = None
) -> CacheDiagnosis:
    """Runs the model as it is over *windows* and measures its keys, values and attention to the first token.

    Args:
        model: or its decoder.
        windows: text; a few hundred tokens suffice. All keys and values are held at once.
        settings: of the merging.

    Raises:
        UsageError: windows of at most 16 tokens, or a model of one layer.
    """
    decoder = model.decoder if isinstance(model, LanguageModel) else model
    length = windows.tokens.shape[1]
    if length <= FIRST_QUERY:
        msg = f"windows must have more than {FIRST_QUERY} tokens, not {length}"
        raise UsageError(msg, given=length, expected=[f"at least {FIRST_QUERY + 1}"])
    recorders = [_recorded(decoder, tokens[None]) for tokens in windows.tokens]
    layers = range(decoder.config.layers)
    sinks = [
        float(np.mean([_sink_attention(decoder, recorder, layer) for recorder in recorders]))
        for layer in layers
    ]
    keys, values = (
        diagnose(_stacked(recorders, kind, layers), kind=kind, settings=settings)
        for kind in ("keys", "values")
    )
    return CacheDiagnosis(
        keys=keys,
        values=values,
        sink_attention=tuple(sinks),
        windows=len(windows.tokens),
        window_tokens=length,
        text=windows.text.name,
        text_sha256=windows.text.sha256,
    )


def _recorded(decoder: Decoder, tokens: Tensor) -> _Recorder:
    recorder = _Recorder()
    handles = [
        decoder.get_submodule(f"layers.{layer}.attention.query").register_forward_hook(
            partial(_keep_queries, recorder, layer)
        )
        for layer in range(decoder.config.layers)
    ]
    try:
        decoder(tokens, recorder)
    finally:
        for handle in handles:
            handle.remove()
    return recorder


def _keep_queries(recorder: _Recorder, layer: int, _module: Any, _inputs: Any, queries: Tensor) -> None:
    recorder.tensors[layer, "queries"] = queries


def _stacked(recorders: list[_Recorder], kind: str, layers: range) -> npt.NDArray[np.float32]:
    """Shape (layers, windows, heads, tokens, channels)."""
    return np.stack(
        [
            np.concatenate([recorder.tensors[layer, kind].numpy() for recorder in recorders])
            for layer in layers
        ]
    )


def _sink_attention(decoder: Decoder, recorder: _Recorder, layer: int) -> float:
    """Mean attention weight of token 0."""
    config = decoder.config
    keys = recorder.tensors[layer, "keys"]
    tokens = keys.shape[2]
    frequencies = rope_frequencies(config.head_dim, config.rope_theta)
    rotate: Callable[[Tensor, int], Tensor] = Rotation.of(tokens, frequencies, config.rope_pairing).rotate
    queries = recorder.tensors[layer, "queries"].reshape(1, tokens, config.query_heads, config.head_dim)
    group = config.query_heads // config.kv_heads
    rotated = rotate(keys, 0).repeat_interleave(group, dim=1)
    scores = rotate(queries.transpose(1, 2), 0) @ rotated.transpose(-1, -2) / config.head_dim**0.5
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return float(weights[0, :, FIRST_QUERY:, 0].mean())
