"""A quantized network as fast to run as it can be: the same numbers, without Brevitas' bookkeeping."""

from __future__ import annotations

import copy
from typing import Any

import brevitas.nn as qnn
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from quantizers.folding import PaddedConvolution, with_replacements
from quantizers.formats import ScalarFormat
from quantizers.quantize import QuantizedModel, input_scale
from quantizers.rounding import round_scaled

_CONVOLUTIONS = (qnn.QuantConv1d, qnn.QuantConv2d, qnn.QuantConv3d)


@torch.no_grad()
def for_inference(quantized: QuantizedModel) -> QuantizedModel:
    """The same function, bit for bit, whose weights and biases are rounded once.

    Brevitas rounds them again at every forward pass and works out formats and scales of its quantized
    tensors. Here the rounded inputs of all layers go into the same memory in turn, which stays in the
    cache: one batch runs at a time, without gradients. Layers whose input scales are found at run time,
    products of two activations and layers on exact accumulators stay as they are, and what is only read
    is shared with *quantized*.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    memory = _Memory()
    for summary in quantized.layers:
        layer = quantized.network.get_submodule(summary.name)
        if isinstance(layer, (qnn.QuantLinear, *_CONVOLUTIONS)) and summary.input_scales == "tensor":
            replacements[layer] = _RoundedLayer(layer, summary.activation_format, memory)
    _take_padding_over(quantized.network, replacements)
    result = copy.copy(quantized)
    result._modules = {"network": with_replacements(quantized.network, replacements)}
    return result.eval()


def _take_padding_over(network: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Let layers round straight into the inside of their padded input: zero is a value of every format."""
    for module in network.modules():
        if isinstance(module, PaddedConvolution):
            padding, rounded = module[0], replacements.get(module[1])
            if isinstance(rounded, _RoundedLayer):
                rounded.padding = tuple(padding.padding)  # type: ignore[arg-type]
                replacements[padding] = nn.Identity()


class _Memory:
    """Room for the input of one layer; the next layer's takes its place."""

    def __init__(self) -> None:
        # From numpy, not torch: it comes in huge pages.
        self._room = np.empty(0, np.float32)

    def like(self, tensor: Tensor) -> Tensor:
        """Uninitialised memory of the shape and layout of a dense *tensor*."""
        if self._room.size < tensor.numel():
            self._room = np.empty(tensor.numel(), np.float32)
        strides = torch.empty_like(tensor, device="meta").stride()
        return torch.from_numpy(self._room).as_strided(tensor.shape, strides)


class _RoundedLayer(nn.Module):
    def __init__(self, layer: nn.Module, activation_format: ScalarFormat, memory: _Memory) -> None:
        super().__init__()
        self._layer = layer
        self._format = activation_format
        self._memory = memory
        self.padding: tuple[int, ...] = ()
        self._padded = torch.zeros(0)
        self._scale = np.float32(input_scale(layer))
        self._weight: Tensor = layer.weight_quant.tensor_quant(layer.weight)[0].detach()  # type: ignore[union-attr, operator]
        self._bias: Tensor | None = None
        if layer.bias is not None:
            fixed = layer.bias_quant.is_quant_enabled  # type: ignore[union-attr]
            bias = layer.bias_quant.tensor_quant(layer.bias)[0] if fixed else layer.bias  # type: ignore[union-attr, operator]
            self._bias = bias.detach()  # type: ignore[operator]

    def __getattr__(self, name: str) -> Any:
        # A model's own code may ask its layers for more than their outputs.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_layer"), name)

    def forward(self, inputs: Tensor) -> Tensor:
        rounded = inside = self._memory.like(inputs)
        if self.padding:
            rounded, inside = self._with_padding(inputs)
        round_scaled(inputs.numpy(), self._format, self._scale, out=inside.numpy())
        if isinstance(self._layer, nn.Linear):
            return functional.linear(rounded, self._weight, self._bias)
        result: Tensor = self._layer._conv_forward(rounded, self._weight, self._bias)  # type: ignore[operator]
        return result

    def _with_padding(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Memory with the padding around *inputs*, kept for inputs of the same size, and its inside."""
        shape = functional.pad(inputs.to("meta"), self.padding)
        if self._padded.shape != shape.shape or self._padded.stride() != shape.stride():
            self._padded = torch.zeros_like(shape, device="cpu")
        inside = self._padded
        for axis, before in zip(range(inputs.dim() - 1, 1, -1), self.padding[::2], strict=True):
            inside = inside.narrow(axis, before, inputs.shape[axis])
        return self._padded, inside
