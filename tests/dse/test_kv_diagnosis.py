"""The diagnosis of a small model against its attention written out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from dse.kv_diagnosis import FIRST_QUERY, diagnose_cache
from dse.workloads.language import Text, windows_of
from dse.workloads.language.attention import Rotation, rope_frequencies
from quantizers.errors import UsageError
from quantizers.kv_cache.diagnosis import diagnose
from quantizers.kv_store import HistoryStore, Seen
from tests.dse.workloads_language.tiny_decoder import tiny_model

TEXT = Text("fox", "the quick brown fox jumps over the lazy dog.\nTHE THE, " * 3)


class Recorder(HistoryStore):
    """Rotated keys, or keys before RoPE, and values of every layer."""

    def __init__(self, rope_before_store):
        super().__init__()
        self.rope_before_store = rope_before_store
        self.keys, self.values = {}, {}

    def see(self, layer, keys, values):
        self.keys[layer], self.values[layer] = keys, values
        return Seen.always(keys, values)


def test_keys_and_values_are_those_of_the_model():
    model = tiny_model()
    windows = windows_of(model, TEXT, length=24, count=2)
    found = diagnose_cache(model, windows)
    assert (found.windows, found.window_tokens, found.text) == (2, 24, "fox")
    layers = range(model.decoder.config.layers)
    runs = []
    for tokens in windows.tokens:
        runs.append(Recorder(rope_before_store=False))
        model.decoder(tokens[None], runs[-1])
    for kind, measured in (("keys", found.keys), ("values", found.values)):
        tensors = np.stack(
            [np.concatenate([getattr(run, kind)[layer].detach().numpy() for run in runs]) for layer in layers]
        )
        assert measured == diagnose(tensors, kind=kind)


def test_attention_to_the_first_token_is_that_of_rotated_keys():
    model = tiny_model()
    windows = windows_of(model, TEXT, length=24, count=1)
    found = diagnose_cache(model, windows)
    config, decoder = model.decoder.config, model.decoder
    run = Recorder(rope_before_store=True)
    queries = []
    handle = decoder.layers[0].attention.query.register_forward_hook(lambda *call: queries.append(call[2]))
    decoder(windows.tokens, run)
    handle.remove()
    rotation = Rotation.of(24, rope_frequencies(config.head_dim, config.rope_theta), config.rope_pairing)
    shares = []
    for head in range(config.query_heads):
        columns = slice(head * config.head_dim, (head + 1) * config.head_dim)
        query = rotation.rotate(queries[0][0, :, columns], 0)
        key = run.keys[0][0, head * config.kv_heads // config.query_heads]
        for position in range(FIRST_QUERY, 24):
            scores = key[: position + 1] @ query[position] / math.sqrt(config.head_dim)
            shares.append(float(torch.softmax(scores, 0)[0]))
    assert found.sink_attention[0] == pytest.approx(np.mean(shares), rel=1e-5)
    assert len(found.sink_attention) == config.layers


def test_the_document_and_the_verdict():
    model = tiny_model()
    found = diagnose_cache(model, windows_of(model, TEXT, length=24, count=1))
    document = json.loads(json.dumps(found.as_json()))
    assert document["verdict"] == found.verdict()
    assert len(found.verdict()) == 11
    share = f"{found.mean_sink_attention:.1%}"
    kept = "it pays to keep it exactly, whatever codes the rest"
    advice = kept if found.mean_sink_attention >= 0.1 else "no reason to treat it apart"
    assert found.verdict()[-1] == f"sinks: the first token gets {share} of the attention: {advice}"


def test_short_windows():
    model = tiny_model()
    with pytest.raises(UsageError) as caught:
        diagnose_cache(model, windows_of(model, TEXT, length=16, count=1))
    assert str(caught.value) == "windows must have more than 16 tokens, not 16"
