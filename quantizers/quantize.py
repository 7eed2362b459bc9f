"""A prepared model to a Brevitas model in given number formats."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import brevitas.nn as qnn
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from quantizers.brevitas_quantizers import (
    Injector,
    activation_quantizer,
    bias_quantizer,
    block_quantizer,
    token_quantizer,
    weight_quantizer,
)
from quantizers.calibration import TensorStatistics
from quantizers.errors import UsageError, unknown_choice
from quantizers.folding import replace_modules
from quantizers.formats import (
    MX_SCALE_BITS,
    BlockFormat,
    Format,
    IntegerFormat,
    ScalarFormat,
    TernaryFormat,
)
from quantizers.prepare import ComputeLayer, PreparedModel
from quantizers.residuals import QuantAddition
from quantizers.scales import scales_of_weights

_INT8 = IntegerFormat(8)
_WEIGHT_SCALES = ("mse", "max", "mse_power_of_two", "mean")
_ACTIVATION_SCALES = ("mse", "percentile", "mse_power_of_two")
# Of a group of weights: float32, as everywhere.
_GROUP_SCALE_BITS = 32
# (batch, token, feature) and more.
_AXES_WITH_TOKENS = 3


@dataclass(frozen=True)
class QuantizationSettings:
    """Which formats a model gets, and how scales are chosen.

    Attributes:
        weights, activations: signed scalar formats or block formats of all layers but the first and the
            last. Blocks of weights run as those of *weight_group* do; their scales come from the float
            weights. Blocks of activations run along the dot product: the last axis of a linear layer's
            input, the channels (axis 1) of a convolution's, the last axis of a matmul's first input
            and the last but one of its second; their scales are found at run time.
        edge_weights, edge_activations: signed scalar formats of the first and the last layer with
            weights; *weight_group* and *activation_granularity* leave these two layers alone.
        integer_weights: ``narrow`` leaves the most negative code of integer weights unused, ``full``
            uses it. The datapath is the same; narrow keeps the mean of low-bit weights.
        weight_scale: per output channel or group of features; see
            :func:`quantizers.scales.weight_scales`. ``mean`` is for ternary weights; layers with
            weights in other formats get ``mse`` then. A block format has a rule of its own.
        weight_group: how many features of an output channel share a scale, the last group of a channel
            possibly fewer; all of them if not given. Groups run through the flattened features with the
            input channels fastest, one place of a convolution's kernel after the other.
        activation_scale: per tensor, the least squared error, the same among powers of two, or a
            percentile of the magnitude.
        percentile: in percent, for ``activation_scale="percentile"``.
        activation_granularity: ``tensor`` for scales per tensor, found in advance; ``token`` for one per
            row of the last axis, found at run time: the row's largest magnitude becomes the largest
            value. Rows are tokens in the inputs of linear layers with three axes or more, and in the
            first input of a matmul; its second input, and layers without tokens (convolutions, linear
            layers with two axes) keep a scale per tensor.
        bias: ``fixed`` rounds to the accumulator's least significant bit; ``float`` leaves it. It is
            left in float, too, where the sum has no least significant bit known in advance: in layers
            with several weight scales in a channel or with input scales found at run time. A
            fixed bias never needs more bits than the products of its channel can: where a channel
            is practically dead (weights near zero, as pruned by training), its scale is raised to
            ``|bias| / (dot length * largest weight * largest activation)``.
        unsigned_activations: whether inputs that cannot be negative get the unsigned counterpart.
        residuals: signed scalar format of both operands where two activations are added, with one scale for
            both, chosen by *activation_scale*; they are added in float if not given. The model is traced
            for it, see :mod:`quantizers.residuals`.

    Raises:
        UsageError: a format or choice that cannot be used.
    """

    weights: Format
    activations: Format
    edge_weights: ScalarFormat = _INT8
    edge_activations: ScalarFormat = _INT8
    integer_weights: Literal["narrow", "full"] = "narrow"
    weight_scale: Literal["mse", "max", "mse_power_of_two", "mean"] = "mse"
    weight_group: int | None = None
    activation_scale: Literal["mse", "percentile", "mse_power_of_two"] = "mse"
    percentile: float = 99.999
    activation_granularity: Literal["tensor", "token"] = "tensor"
    bias: Literal["fixed", "float"] = "fixed"
    unsigned_activations: bool = True
    residuals: ScalarFormat | None = None

    def __post_init__(self) -> None:
        for role in ("weights", "edge_weights", "activations", "edge_activations"):
            _check_format(role, getattr(self, role))
        if self.residuals is not None:
            _check_format("residuals", self.residuals)
        for choice, known in (
            ("integer_weights", ("narrow", "full")),
            ("weight_scale", _WEIGHT_SCALES),
            ("activation_scale", _ACTIVATION_SCALES),
            ("activation_granularity", ("tensor", "token")),
            ("bias", ("fixed", "float")),
        ):
            if getattr(self, choice) not in known:
                raise unknown_choice(choice, getattr(self, choice), known)
        if not 0 < self.percentile <= 100:
            msg = f"percentile must be above 0 and at most 100, not {self.percentile}"
            raise UsageError(msg, given=self.percentile, expected=["99.999"])
        self._check_scales()

    def _check_scales(self) -> None:
        group = self.weight_group
        if group is not None and (type(group) is not int or group < 1):
            msg = f"weight_group must be a positive number of features, not {group!r}"
            raise UsageError(msg, given=group, expected=["32", "64", "128"])
        if group is not None and isinstance(self.weights, BlockFormat):
            size = self.weights.block_size
            msg = (
                f"weight_group {group} does not go with weights {self.weights}: "
                f"its blocks of {size} have scales of their own"
            )
            raise UsageError(msg, given=group, expected=["no weight_group", "a scalar format"])
        if self.activation_granularity == "token" and isinstance(self.activations, BlockFormat):
            size = self.activations.block_size
            msg = (
                "activation_granularity 'token' does not go with activations "
                f"{self.activations}: its blocks of {size} have scales of their own"
            )
            raise UsageError(msg, given="token", expected=["tensor", "a scalar format"])
        if self.weight_scale == "mean" and not isinstance(self.weights, TernaryFormat):
            msg = f"weight_scale 'mean' is for ternary weights, not {self.weights}"
            raise UsageError(msg, given="mean", expected=["mse", "ternary weights"])


def _check_format(role: str, fmt: Format) -> None:
    if isinstance(fmt, BlockFormat) and role in ("weights", "activations"):
        return
    if not isinstance(fmt, ScalarFormat):
        msg = f"{role} cannot be {fmt}: its scales are shared between elements; use a scalar format"
        raise UsageError(msg, given=fmt, expected=["int8", "e4m3"])
    if not fmt.signed:
        msg = f"{role} cannot be {fmt}: give the signed format; inputs never negative lose the sign bit"
        raise UsageError(msg, given=fmt, expected=["int8", "e4m3"])
    if isinstance(fmt, TernaryFormat) and not role.endswith("weights"):
        msg = f"{role} cannot be {fmt}, which is for weights"
        raise UsageError(msg, given=fmt, expected=["int2", "e1m0"])


@dataclass(frozen=True)
class LayerSummary:
    """A quantized layer as the hardware sees it.

    Attributes:
        name, kind, weights, dot_length, macs: see :class:`quantizers.prepare.ComputeLayer`.
        weight_format: of the weights; of a matmul's second input. Of a block format, its elements.
        activation_format: of the input, with its sign bit only where it is needed; likewise.
        bias_terms: how many products of the largest codes the largest bias is worth, rounded up: what
            it adds to *dot_length* in the bound of the accumulator. 0 where the products have no scale
            known in advance: there the bias is added after the scales.
        weight_group: features that share a weight scale; ``None`` where all of a channel do.
        weight_scale_bits: bits of all scales that are stored with the weights, beyond one per channel.
        input_scales: ``tensor``: known in advance; ``token`` or ``block``: found at run time. A matmul's
            second input has ``tensor`` where its first has ``token``.
    """

    name: str
    kind: str
    weight_format: ScalarFormat
    activation_format: ScalarFormat
    weights: int
    bias_terms: int
    dot_length: int
    macs: int
    weight_group: int | None = None
    weight_scale_bits: int = 0
    input_scales: Literal["tensor", "token", "block"] = "tensor"

    @property
    def has_integer_sums(self) -> bool:
        """Whether the products of one output are integers of one unit: what one accumulator can add."""
        return self.weight_group is None and self.input_scales != "block"

    @property
    def has_known_step(self) -> bool:
        """Whether that unit is known in advance, too."""
        return self.weight_group is None and self.input_scales == "tensor"


@dataclass(frozen=True)
class _Input:
    """How one input of a layer is quantized: *scale* is ``None`` where it is found at run time."""

    fmt: ScalarFormat
    quantizer: Injector
    scale: float | None
    scales: Literal["tensor", "token", "block"]


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

    ``layers`` are the layers with products; ``residual_adds`` gives the format of each quantized addition.
    Run it under ``torch.no_grad``; ``torch.inference_mode`` breaks Brevitas.
    """

    def __init__(self, network: nn.Module, settings: QuantizationSettings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.layers: list[LayerSummary] = []
        self.residual_adds: dict[str, ScalarFormat] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)


@torch.no_grad()
def quantize(prepared: PreparedModel, settings: QuantizationSettings) -> QuantizedModel:
    """A quantized copy of *prepared*; scales are found here and then frozen."""
    model = prepared.model if settings.residuals is None else prepared.residuals.model
    quantized = QuantizedModel(copy.deepcopy(model), settings)
    replacements: dict[nn.Module, nn.Module] = {}
    for layer in prepared.layers:
        module = quantized.network.get_submodule(layer.name)
        if layer.kind == "matmul":
            replacements[module], summary = _matmul(layer, prepared, settings)
        else:
            replacements[module], summary = _weighted(layer, module, prepared, settings)
        quantized.layers.append(summary)
    if settings.residuals is not None:
        for add in prepared.residuals.adds:
            unsigned = settings.unsigned_activations and add.nonnegative
            fmt = settings.residuals.unsigned_counterpart if unsigned else settings.residuals
            scale = _tensor_scale(add.statistics, fmt, settings)
            replacements[quantized.network.get_submodule(add.name)] = QuantAddition(fmt, scale)
            quantized.residual_adds[add.name] = fmt
    replace_modules(quantized.network, replacements)
    return quantized.eval()


def layer_summary(quantized: QuantizedModel) -> list[LayerSummary]:
    """The quantized layers, in the order in which they run."""
    return list(quantized.layers)


def _weighted(
    layer: ComputeLayer, module: nn.Module, prepared: PreparedModel, settings: QuantizationSettings
) -> tuple[nn.Module, LayerSummary]:
    stored = settings.edge_weights if layer.edge else settings.weights
    fmt = _used_range(stored, settings)
    inputs = _input(layer, 0, prepared, settings)
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    scales, group = _weight_scales(layer, prepared, settings)
    grouped = scales.shape[1] > 1
    fixed = bias is not None and settings.bias == "fixed" and inputs.scale is not None and not grouped
    per_weight = torch.from_numpy(scales_of_weights(scales, group, tuple(weight.shape)))
    channel_scales = torch.from_numpy(scales[:, 0])
    bias_quant = None
    if fixed and bias is not None and inputs.scale is not None:
        largest_sum = layer.dot_length * fmt.maximum * inputs.fmt.maximum * inputs.scale
        needed = (bias.double().abs() / largest_sum).float()
        # Upwards, so that the bias is not a rounding error above the largest sum.
        needed = torch.where(needed > 0, needed.nextafter(torch.tensor(math.inf)), 0)
        if settings.weight_scale == "mse_power_of_two" or isinstance(stored, BlockFormat):
            needed = torch.where(needed > 0, needed.log2().ceil().exp2(), 0)
        channel_scales = torch.maximum(channel_scales, needed)
        lsb = 2.0 ** (fmt.grid.lsb_exponent + inputs.fmt.grid.lsb_exponent)
        bias_quant = bias_quantizer(channel_scales.double() * inputs.scale * lsb)
    broadcast = channel_scales.reshape(-1, *[1] * (weight.dim() - 1))
    quantized: Any = _layer_like(
        module,
        weight_quant=weight_quantizer(fmt, per_weight if grouped else broadcast),
        input_quant=inputs.quantizer,
        bias_quant=bias_quant,
    )
    # Brevitas computes a scale of the output from quantized tensors: C x C of them for a fixed bias,
    # and none that means anything for groups and scales of run time. Tensors are all the layer needs.
    quantized.bias_quant.skip_create_quant_tensor = fixed
    quantized.weight_quant.skip_create_quant_tensor = grouped or inputs.scale is None
    scale_bits = MX_SCALE_BITS if isinstance(stored, BlockFormat) else _GROUP_SCALE_BITS
    summary = replace(
        _summary(layer, fmt, inputs),
        weight_group=group if grouped else None,
        weight_scale_bits=scales.size * scale_bits if grouped else 0,
    )
    return quantized, replace(summary, bias_terms=_bias_terms(quantized, summary))


def _weight_scales(
    layer: ComputeLayer, prepared: PreparedModel, settings: QuantizationSettings
) -> tuple[npt.NDArray[np.float32], int]:
    """Scales ``(channels, groups)`` of a layer's weights, and the features in a group."""
    stored = settings.edge_weights if layer.edge else settings.weights
    if isinstance(stored, BlockFormat):
        return prepared.weight_scales(layer.name, stored, "block"), stored.block_size
    fmt = _used_range(stored, settings)
    ternary = isinstance(fmt, TernaryFormat)
    criterion = "mse" if settings.weight_scale == "mean" and not ternary else settings.weight_scale
    group = None if layer.edge else settings.weight_group
    if group is None or group >= layer.dot_length:
        return prepared.weight_scales(layer.name, fmt, criterion)[:, None], layer.dot_length
    return prepared.weight_scales(layer.name, fmt, criterion, group), group


def weight_scale(layer: nn.Module) -> Tensor:
    """The scales of a quantized layer's weights, with as many axes as these.

    One per output channel, ``(channels, 1, ...)``; in groups that of every weight, in their shape.
    """
    scale: Tensor = layer.weight_quant.tensor_quant.scale  # type: ignore[union-attr, assignment]
    return scale.detach()


def input_scale(layer: nn.Module) -> float:
    """The scale of a quantized layer's input.

    Raises:
        UsageError: there is none: scales are found at run time.
    """
    proxy = layer.input_quant.fused_activation_quant_proxy  # type: ignore[union-attr]
    scale = float(proxy.tensor_quant.scale.detach())  # type: ignore[union-attr, operator]
    if math.isnan(scale):
        msg = "this layer's input has no scale of its own: its scales are found at run time"
        raise UsageError(msg, given="scales of tokens or blocks", expected=["one scale per tensor"])
    return scale


def summarize(quantized: QuantizedModel) -> None:
    """Bring the summaries up to date with biases that have been changed since."""
    quantized.layers = [
        replace(layer, bias_terms=_bias_terms(module, layer)) if layer.weights else layer
        for layer in quantized.layers
        for module in [quantized.network.get_submodule(layer.name)]
    ]


def _bias_terms(layer: nn.Module, summary: LayerSummary) -> int:
    if layer.bias is None or not summary.has_known_step:
        return 0
    steps = input_scale(layer) * weight_scale(layer).double().flatten()
    largest_product = summary.weight_format.maximum * summary.activation_format.maximum * steps
    return math.ceil(float((layer.bias.double().abs() / largest_product).max()))  # type: ignore[operator]


def _used_range(stored: Format, settings: QuantizationSettings) -> ScalarFormat:
    """The values that weights take in the format in which they are stored, before their scales."""
    if isinstance(stored, BlockFormat):
        return stored.element
    if isinstance(stored, IntegerFormat) and settings.integer_weights == "narrow":
        return replace(stored, narrow=True)
    return stored  # type: ignore[return-value]  # the settings have checked it


def _matmul(
    layer: ComputeLayer, prepared: PreparedModel, settings: QuantizationSettings
) -> tuple[nn.Module, LayerSummary]:
    left, right = (_input(layer, operand, prepared, settings) for operand in (0, 1))
    return QuantMatMul(left.quantizer, right.quantizer), _summary(layer, right.fmt, left)


def _summary(layer: ComputeLayer, weight: ScalarFormat, inputs: _Input) -> LayerSummary:
    return LayerSummary(
        name=layer.name,
        kind=layer.kind,
        weight_format=weight,
        activation_format=inputs.fmt,
        weights=layer.weights,
        bias_terms=0,
        dot_length=layer.dot_length,
        macs=layer.macs,
        input_scales=inputs.scales,
    )


def _input(
    layer: ComputeLayer, operand: int, prepared: PreparedModel, settings: QuantizationSettings
) -> _Input:
    """The format and quantizer of one input of a layer."""
    fmt = settings.edge_activations if layer.edge else settings.activations
    if settings.unsigned_activations and layer.nonnegative[operand]:
        fmt = fmt.unsigned_counterpart
    if isinstance(fmt, BlockFormat):
        along_channels = 1 if layer.kind.startswith("conv") else -1
        axis = -2 if operand else along_channels
        return _Input(fmt.element, block_quantizer(fmt, axis), None, "block")
    scalar: ScalarFormat = fmt  # type: ignore[assignment]  # the settings have checked it
    statistics = prepared.statistics[layer.name][operand]
    with_tokens = layer.kind in ("linear", "matmul") and statistics.axes >= _AXES_WITH_TOKENS
    if settings.activation_granularity == "token" and with_tokens and not layer.edge and not operand:
        return _Input(scalar, token_quantizer(scalar), None, "token")
    scale = _tensor_scale(statistics, scalar, settings)
    return _Input(scalar, activation_quantizer(scalar, scale), scale, "tensor")


def _tensor_scale(statistics: TensorStatistics, fmt: ScalarFormat, settings: QuantizationSettings) -> float:
    if settings.activation_scale == "percentile":
        return statistics.percentile_scale(fmt, settings.percentile)
    return statistics.mse_scale(fmt, power_of_two=settings.activation_scale == "mse_power_of_two")


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
