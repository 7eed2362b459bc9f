"""What goes into one linear layer of a language model, for hardware that is to compute it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dse.workloads.language.decoder import Decoder
from dse.workloads.language.language_model import LanguageModel
from quantizers.errors import unknown_choice
from quantizers.kv_store import KeyValueStore


@dataclass(frozen=True, eq=False)
class CapturedLinear:
    """One linear layer with its real inputs: ``inputs @ weight.T + bias`` is its output.

    Attributes:
        name: such as ``layers.0.feed_forward.down``.
        inputs: float32, shape (tokens, columns); the tokens of several sequences one after the other.
        weight: float32, shape (rows, columns).
        bias: float32, shape (rows,), or None.
    """

    name: str
    inputs: Tensor
    weight: Tensor
    bias: Tensor | None


def linear_names(model: LanguageModel | Decoder) -> list[str]:
    """The names of all linear layers, the output layer last."""
    decoder = model.decoder if isinstance(model, LanguageModel) else model
    return [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def capture_linear(
    model: LanguageModel | Decoder, tokens: Tensor, name: str, *, store: KeyValueStore | None = None
) -> CapturedLinear:
    """Run *tokens* through the model and keep what reaches the linear layer *name*.

    Args:
        model: or its decoder.
        tokens: int64, shape (batch, tokens).
        name: one of :func:`linear_names`.
        store: keys and values go through it, where given; it is reset first.

    Raises:
        UsageError: no linear layer has that name.
    """
    decoder = model.decoder if isinstance(model, LanguageModel) else model
    layers = {found: decoder.get_submodule(found) for found in linear_names(decoder)}
    if name not in layers:
        raise unknown_choice("linear layer", name, layers)
    layer = layers[name]
    kept: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].flatten(0, -2)))
    try:
        if store is not None:
            store.reset()
        decoder(tokens, store)
    finally:
        handle.remove()
    bias = layer.bias
    return CapturedLinear(
        name=name,
        inputs=kept[0].clone(),
        weight=layer.get_parameter("weight").detach().clone(),
        bias=bias.detach().clone() if isinstance(bias, Tensor) else None,
    )
