"""The real inputs of one linear layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dse.workloads.language import capture_linear, linear_names
from quantizers.errors import UsageError
from quantizers.kv_store import HistoryStore, Seen
from tests.dse.workloads_language.tiny_decoder import random_decoder, random_tokens, tiny_model


def test_inputs_of_the_first_projection_are_the_normed_embeddings() -> None:
    decoder = random_decoder(attention_bias=True)
    tokens = random_tokens(2, 9)
    captured = capture_linear(decoder, tokens, "layers.0.attention.key")
    x = decoder.embedding(tokens).flatten(0, 1)
    normed = (
        x
        / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        * decoder.state_dict()["layers.0.attention_norm.weight"]
    )
    torch.testing.assert_close(captured.inputs, normed)
    assert torch.equal(captured.weight, decoder.state_dict()["layers.0.attention.key.weight"])
    assert captured.bias is not None
    assert torch.equal(captured.bias, decoder.state_dict()["layers.0.attention.key.bias"])


@pytest.mark.parametrize("name", linear_names(random_decoder()))
def test_the_layer_computes_its_output_from_what_is_captured(name: str) -> None:
    decoder = random_decoder()
    tokens = random_tokens(2, 9)
    outputs: list[Tensor] = []
    handle = decoder.get_submodule(name).register_forward_hook(
        lambda *arguments: outputs.append(arguments[2])
    )
    decoder(tokens)
    handle.remove()
    captured = capture_linear(decoder, tokens, name)
    assert captured.inputs.shape == (18, captured.weight.shape[1])
    torch.testing.assert_close(
        F.linear(captured.inputs, captured.weight, captured.bias), outputs[0].flatten(0, 1)
    )


def test_a_store_changes_what_later_layers_get() -> None:
    class Zeros(HistoryStore):
        def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
            return Seen.always(keys, torch.zeros_like(values))

    tokens = random_tokens(1, 9)
    captured = capture_linear(tiny_model(), tokens, "layers.1.attention.output", store=Zeros())
    assert not captured.inputs.any()


def test_hooks_are_gone_and_tensors_are_copies() -> None:
    model = tiny_model()
    captured = capture_linear(model, random_tokens(1, 9), "head")
    captured.weight.zero_()
    assert model.decoder.head.weight.any()
    assert not model.decoder.head._forward_pre_hooks


def test_wrong_layer() -> None:
    with pytest.raises(UsageError) as caught:
        capture_linear(random_decoder(layers=1), random_tokens(1, 3), "layers.0.feed_forward.dwn")
    assert str(caught.value) == (
        "unknown linear layer 'layers.0.feed_forward.dwn' (did you mean 'layers.0.feed_forward.down'?); "
        "expected one of: layers.0.attention.query, layers.0.attention.key, layers.0.attention.value, "
        "layers.0.attention.output, layers.0.feed_forward.gate, layers.0.feed_forward.up, "
        "layers.0.feed_forward.down, head"
    )
