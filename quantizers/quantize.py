"""A prepared model to a Brevitas model in given number formats."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import brevitas.nn as qnn
import torch
from torch import Tensor, nn

from quantizers.brevitas_quantizers import (
    activation_quantizer,
    bias_quantizer,
    weight_quantizer,
)
from quantizers.errors import UsageError, unknown_choice
from quantizers.folding import replace_modules
from quantizers.formats import Format, IntegerFormat, ScalarFormat, TernaryFormat
from quantizers.prepare import ComputeLayer, PreparedModel

_INT8 = IntegerFormat(8)


@dataclass(frozen=True)
class QuantizationSettings:
    """Which formats a model gets, and how scales are chosen.

    Attributes:
        weights, activations: signed scalar formats of all layers but the first and the last.
        edge_weights, edge_activations: those of the first and the last layer with weights.
        integer_weights: ``narrow`` leaves the most negative code of integer weights unused, ``full``
            uses it. The datapath is the same; narrow keeps the mean of low-bit weights.
        weight_scale: per output channel, the least squared error or the largest weight.
        activation_scale: per tensor, the least squared error or a percentile of the magnitude.
        percentile: in percent, for ``activation_scale="percentile"``.
        bias: ``fixed`` rounds to the accumulator's least significant bit; ``float`` leaves it. A
            fixed bias never needs more bits than the products of its channel can: where a channel
            is practically dead (weights near zero, as pruned by training), its scale is raised to
            ``|bias| / (dot length * largest weight * largest activation)``.
        unsigned_activations: whether inputs that cannot be negative get the unsigned counterpart.

    Raises:
        UsageError: a format or choice that cannot be used.
    """

    weights: ScalarFormat
    activations: ScalarFormat
    edge_weights: ScalarFormat = _INT8
    edge_activations: ScalarFormat = _INT8
    integer_weights: Literal["narrow", "full"] = "narrow"
    weight_scale: Literal["mse", "max"] = "mse"
    activation_scale: Literal["mse", "percentile"] = "mse"
    percentile: float = 99.999
    bias: Literal["fixed", "float"] = "fixed"
    unsigned_activations: bool = True

    def __post_init__(self) -> None:
        for role in ("weights", "edge_weights", "activations", "edge_activations"):
            _check_format(role, getattr(self, role))
        for choice, known in (
            ("integer_weights", ("narrow", "full")),
            ("weight_scale", ("mse", "max")),
            ("activation_scale", ("mse", "percentile")),
            ("bias", ("fixed", "float")),
        ):
            if getattr(self, choice) not in known:
                raise unknown_choice(choice, getattr(self, choice), known)
        if not 0 < self.percentile <= 100:
            msg = f"percentile must be above 0 and at most 100, not {self.percentile}"
            raise UsageError(msg, given=self.percentile, expected=["99.999"])


def _check_format(role: str, fmt: Format) -> None:
    if not isinstance(fmt, ScalarFormat):
        msg = f"{role} cannot be {fmt}: its scales are shared between elements; use a scalar format"
        raise UsageError(msg, given=fmt, expected=["int8", "e4m3"])
    if not fmt.signed:
        msg = f"{role} cannot be {fmt}: give the signed format; inputs never negative lose the sign bit"
        raise UsageError(msg, given=fmt, expected=["int8", "e4m3"])
    if isinstance(fmt, TernaryFormat) and role.endswith("activations"):
        msg = f"{role} cannot be {fmt}, which is for weights"
        raise UsageError(msg, given=fmt, expected=["int2", "e1m0"])


@dataclass(frozen=True)
class LayerSummary:
    """A quantized layer as the hardware sees it.

    Attributes:
        name, kind, weights, dot_length, macs: see :class:`quantizers.prepare.ComputeLayer`.
        weight_format: of the weights; of a matmul's second input.
        activation_format: of the input, with its sign bit only where it is needed.
        bias_terms: how many products of the largest codes the largest bias is worth, rounded up: what
            it adds to *dot_length* in the bound of the accumulator.
    """

    name: str
    kind: str
    weight_format: ScalarFormat
    activation_format: ScalarFormat
    weights: int
    bias_terms: int
    dot_length: int
    macs: int


class QuantMatMul(nn.Module):
    """The product of two activations, each with its own quantizer."""

    def __init__(self, left_quant: Any, right_quant: Any) -> None:
        super().__init__()
        self.left_quant = qnn.QuantIdentity(act_quant=left_quant)
        self.right_quant = qnn.QuantIdentity(act_quant=right_quant)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left_quant(left) @ self.right_quant(right)


class QuantizedModel(nn.Module):
    """The model with Brevitas layers, in eval mode, and what each layer became.

    Run it under ``torch.no_grad``; ``torch.inference_mode`` breaks Brevitas.
    """

    def __init__(self, network: nn.Module, settings: QuantizationSettings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.layers: list[LayerSummary] = []

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)


@torch.no_grad()
def quantize(prepared: PreparedModel, settings: QuantizationSettings) -> QuantizedModel:
    """A quantized copy of *prepared*; scales are found here and then frozen."""
    quantized = QuantizedModel(copy.deepcopy(prepared.model), settings)
    replacements: dict[nn.Module, nn.Module] = {}
    for layer in prepared.layers:
        module = quantized.network.get_submodule(layer.name)
        if layer.kind == "matmul":
            replacements[module], summary = _matmul(layer, prepared, settings)
        else:
            replacements[module], summary = _weighted(layer, module, prepared, settings)
        quantized.layers.append(summary)
    replace_modules(quantized.network, replacements)
    return quantized.eval()


def layer_summary(quantized: QuantizedModel) -> list[LayerSummary]:
    """The quantized layers, in the order in which they run."""
    return list(quantized.layers)


def _weighted(
    layer: ComputeLayer, module: nn.Module, prepared: PreparedModel, settings: QuantizationSettings
) -> tuple[nn.Module, LayerSummary]:
    fmt = _used_range(settings.edge_weights if layer.edge else settings.weights, settings)
    activation, scale = _activation(layer, 0, prepared, settings)
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    fixed = bias is not None and settings.bias == "fixed"
    scales = torch.from_numpy(prepared.weight_scales(layer.name, fmt, settings.weight_scale))
    if fixed and bias is not None:
        largest_sum = layer.dot_length * fmt.maximum * activation.maximum * scale
        needed = (bias.double().abs() / largest_sum).float()
        # Upwards, so that the bias is not a rounding error above the largest sum.
        scales = torch.maximum(scales, torch.where(needed > 0, needed.nextafter(torch.tensor(math.inf)), 0))
    steps = scales.double() * scale * 2.0 ** (fmt.grid.lsb_exponent + activation.grid.lsb_exponent)
    quantized = _layer_like(
        module,
        weight_quant=weight_quantizer(fmt, scales.reshape(-1, *[1] * (weight.dim() - 1))),
        input_quant=activation_quantizer(activation, scale),
        bias_quant=bias_quantizer(steps) if fixed else None,
    )
    if fixed:
        # A tensor is all that the layer needs, and what keeps Brevitas from comparing C x C scales.
        quantized.bias_quant.skip_create_quant_tensor = True  # type: ignore[union-attr]
    return quantized, _summary(layer, fmt, activation, _bias_terms(quantized, fmt, activation))


def weight_scale(layer: nn.Module) -> Tensor:
    """The scales of a quantized layer's weights, one per output channel, with as many axes as the weight."""
    scale: Tensor = layer.weight_quant.tensor_quant.scale  # type: ignore[union-attr, assignment]
    return scale.detach()


def input_scale(layer: nn.Module) -> float:
    """The scale of a quantized layer's input."""
    proxy = layer.input_quant.fused_activation_quant_proxy  # type: ignore[union-attr]
    return float(proxy.tensor_quant.scale)  # type: ignore[union-attr, arg-type]


def summarize(quantized: QuantizedModel) -> None:
    """Bring the summaries up to date with biases that have been changed since."""
    quantized.layers = [
        replace(layer, bias_terms=_bias_terms(module, layer.weight_format, layer.activation_format))
        if layer.weights
        else layer
        for layer in quantized.layers
        for module in [quantized.network.get_submodule(layer.name)]
    ]


def _bias_terms(layer: nn.Module, fmt: ScalarFormat, activation: ScalarFormat) -> int:
    if layer.bias is None:
        return 0
    steps = input_scale(layer) * weight_scale(layer).double().flatten()
    largest_product = fmt.maximum * activation.maximum * steps
    return math.ceil(float((layer.bias.double().abs() / largest_product).max()))  # type: ignore[operator]


def _used_range(stored: ScalarFormat, settings: QuantizationSettings) -> ScalarFormat:
    """The values that weights take in the format in which they are stored."""
    if isinstance(stored, IntegerFormat) and settings.integer_weights == "narrow":
        return replace(stored, narrow=True)
    return stored


def _matmul(
    layer: ComputeLayer, prepared: PreparedModel, settings: QuantizationSettings
) -> tuple[nn.Module, LayerSummary]:
    left, left_scale = _activation(layer, 0, prepared, settings)
    right, right_scale = _activation(layer, 1, prepared, settings)
    module = QuantMatMul(activation_quantizer(left, left_scale), activation_quantizer(right, right_scale))
    return module, _summary(layer, right, left, 0)


def _summary(
    layer: ComputeLayer, weight: ScalarFormat, activation: ScalarFormat, bias_terms: int
) -> LayerSummary:
    return LayerSummary(
        name=layer.name,
        kind=layer.kind,
        weight_format=weight,
        activation_format=activation,
        weights=layer.weights,
        bias_terms=bias_terms,
        dot_length=layer.dot_length,
        macs=layer.macs,
    )


def _activation(
    layer: ComputeLayer, operand: int, prepared: PreparedModel, settings: QuantizationSettings
) -> tuple[ScalarFormat, float]:
    """The format and scale of one input of a layer."""
    fmt = settings.edge_activations if layer.edge else settings.activations
    if settings.unsigned_activations and layer.nonnegative[operand]:
        fmt = fmt.unsigned_counterpart
    statistics = prepared.statistics[layer.name][operand]
    if settings.activation_scale == "percentile":
        return fmt, statistics.percentile_scale(fmt, settings.percentile)
    return fmt, statistics.mse_scale(fmt)


def _layer_like(module: nn.Module, **quantizers: Any) -> nn.Module:
    """The Brevitas layer of the shape of *module*, holding its parameters."""
    # On the meta device nothing is initialised, and the global random state is left alone.
    shape: dict[str, Any] = {"bias": module.bias is not None, "device": "meta"}
    if isinstance(module, nn.Linear):
        quantized: nn.Module = qnn.QuantLinear(module.in_features, module.out_features, **shape, **quantizers)
    else:
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            shape[name] = getattr(module, name)
        kinds = {nn.Conv1d: qnn.QuantConv1d, nn.Conv2d: qnn.QuantConv2d, nn.Conv3d: qnn.QuantConv3d}
        base = next(base for base in kinds if isinstance(module, base))
        quantized = kinds[base](padding_mode=module.padding_mode, **shape, **quantizers)
    quantized.weight, quantized.bias = module.weight, module.bias
    return quantized
