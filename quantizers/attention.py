"""Multi-head attention taken apart, so that each product the hardware does is a module of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from quantizers.errors import UsageError


class MatMul(nn.Module):
    """The matrix product of two activations; leading axes are batches."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


class ExplicitAttention(nn.Module):
    """``nn.MultiheadAttention`` as four ``nn.Linear`` and two :class:`MatMul`, without masks or dropout.

    Computes softmax(q k^T / sqrt(head size)) v. The factor 1 / sqrt(head size) is part of the query
    projection's weights, where it costs nothing in hardware.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if attention.bias_k is not None or attention.bias_v is not None or attention.add_zero_attn:
            msg = "attention with add_bias_kv or add_zero_attn cannot be quantized"
            raise UsageError(msg, given="add_bias_kv or add_zero_attn", expected=["plain attention"])
        self.num_heads = attention.num_heads
        self.batch_first = attention.batch_first
        # nn.TransformerEncoderLayer asks for these two before it takes its fused path, which would
        # bypass the layers below.
        self._qkv_same_embed_dim = False
        self.in_proj_bias = None
        query, key, value = _projections(attention)
        factor = 1 / math.sqrt(attention.head_dim)
        self.query = _linear(query[0] * factor, None if query[1] is None else query[1] * factor)
        self.key = _linear(*key)
        self.value = _linear(*value)
        self.scores = MatMul()
        self.mix = MatMul()
        self.out_proj = _linear(attention.out_proj.weight.detach(), _detached(attention.out_proj.bias))
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Same arguments, shapes and results as ``nn.MultiheadAttention``.

        Raises:
            UsageError: a mask was given, or the inputs have no batch axis.
        """
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            msg = "attention masks are not supported in a quantized model"
            raise UsageError(msg, given="an attention mask", expected=["no mask"])
        if query.dim() != 3:
            msg = f"attention needs (batch, token, feature) inputs, not {query.dim()} axes"
            raise UsageError(msg, given=query.dim(), expected=["3 axes"])
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        heads = [self._split(layer(x)) for layer, x in self._inputs(query, key, value)]
        weights = torch.softmax(self.scores(heads[0], heads[1].transpose(-1, -2)), dim=-1)
        mixed = self.mix(weights, heads[2]).transpose(1, 2).flatten(2)
        output = self.out_proj(mixed)
        if not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        return output, weights.mean(dim=1) if average_attn_weights else weights

    def _inputs(self, query: Tensor, key: Tensor, value: Tensor) -> list[tuple[nn.Module, Tensor]]:
        return [(self.query, query), (self.key, key), (self.value, value)]

    def _split(self, x: Tensor) -> Tensor:
        """(batch, token, feature) -> (batch, head, token, feature of the head)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def unfold_attention(model: nn.Module) -> None:
    """Replace every ``nn.MultiheadAttention`` of *model*, in place.

    Raises:
        UsageError: an attention uses an option that :class:`ExplicitAttention` lacks.
    """
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, nn.MultiheadAttention):
                module._modules[name] = ExplicitAttention(child)


def _projections(attention: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.detach().chunk(3)
    else:
        separate = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        weights = tuple(weight.detach() for weight in separate)
    if attention.in_proj_bias is None:
        return [(weight, None) for weight in weights]
    return list(zip(weights, attention.in_proj_bias.detach().chunk(3), strict=True))


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer
