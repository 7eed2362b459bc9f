"""Brevitas quantizers (injectors) from a number format and frozen scales.

``weight_quantizer`` and ``activation_quantizer`` are Brevitas' own quantizers with the arithmetic
replaced by the fast kernel; ``plain_*`` leave Brevitas' arithmetic in, and are what the tests
compare with. Both keep Brevitas' proxies, so quantized tensors, export and its graph algorithms
work. Scales are parameters, found once: Brevitas would repeat an MSE search at every forward pass,
and its GPTQ does nothing where scales follow the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import ScalingImplType
from brevitas.proxy import BiasQuantProxyFromInjector
from brevitas.quant.float import Fp8e4m3ActPerTensorFloat, Fp8e4m3WeightPerChannelFloat
from brevitas.quant.scaled_int import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
from torch import Tensor, nn

from quantizers.errors import UsageError
from quantizers.formats import (
    BlockFormat,
    IntegerFormat,
    MinifloatFormat,
    ScalarFormat,
    Specials,
    TernaryFormat,
)
from quantizers.torch_rounding import fake_quantize, round_blocks_torch, row_scales

Injector = type[ExtendedInjector]
Rounding = Callable[[Tensor, ScalarFormat, Tensor], tuple[Tensor, Tensor]]

# Metadata only: what a bias may need at most (see quantizers.quantize).
_BIAS_BITS = 32


class UnitThreshold(nn.Module):
    """Makes Brevitas' scale the number given, where it would divide a range by a threshold."""

    def __init__(self) -> None:  # Brevitas' injection reads the signature
        super().__init__()

    def forward(self, bit_width: Tensor) -> Tensor:
        return torch.ones_like(bit_width)


class _Arithmetic(nn.Module):
    """Brevitas' ``tensor_quant``, computed by :func:`quantizers.torch_rounding.fake_quantize`.

    Nothing is cached, so changed weights (GPTQ changes them behind autograd's back) always count;
    rounding all weights of a network again costs a percent of its evaluation.
    """

    def __init__(self, number_format: ScalarFormat, scaling_init: Tensor, rounding: Rounding) -> None:
        super().__init__()
        self.number_format = number_format
        self.rounding = rounding
        self.scale = nn.Parameter(scaling_init.clone())
        self.input_view_impl = nn.Identity()

    @property
    def int_quant(self) -> _Arithmetic:
        """Where Brevitas' integer proxies look for ``input_view_impl``."""
        return self

    def _metadata(self, *values: float) -> tuple[Tensor, ...]:
        return tuple(self.scale.new_tensor(value) for value in values)

    def rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The rounded values and their scale."""
        return self.rounding(x, self.number_format, self.scale)


class IntegerArithmetic(_Arithmetic):
    """Returns value, scale, zero point and bit width, as ``RescalingIntQuant`` does."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        value, scale = self.rounded(x)
        zero_point, bits = self._metadata(0, self.number_format.bits)
        return value, scale, zero_point, bits


class MinifloatArithmetic(_Arithmetic):
    """Returns value, scale, zero point and the format, as ``FloatQuant`` does."""

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        fmt = self.number_format
        if not isinstance(fmt, MinifloatFormat):
            msg = f"{fmt} is not a minifloat"
            raise UsageError(msg, given=fmt, expected=["a minifloat"])
        metadata = self._metadata(0, fmt.exponent_bits, fmt.mantissa_bits, fmt.exponent_bias)
        infinities, nans = _special_mantissas(fmt)
        return *self.rounded(x), *metadata, True, infinities, nans


class AccumulatorBias(nn.Module):
    """A bias on the grid of the accumulator's least significant bit, one step per channel.

    Rounds to nearest even. The steps follow from the scales of weights and input and are frozen.
    """

    def __init__(self, scaling_init: Tensor) -> None:
        super().__init__()
        self.register_buffer("step", scaling_init.double())

    def forward(self, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        step: Tensor = self.step  # type: ignore[assignment]
        nearest = ((bias.double() / step).round() * step).to(bias.dtype)
        return (
            nearest,
            step.to(bias.dtype),
            bias.new_tensor(0.0),
            bias.new_tensor(float(_BIAS_BITS)),
        )


def weight_quantizer(fmt: ScalarFormat, scales: Tensor) -> Injector:
    """A weight quantizer; *scales* ``(C, 1, ...)`` or those of every weight, in the shape of the weight."""
    return _fast(plain_weight_quantizer(fmt, scales), fmt, _with_frozen_scale)


def activation_quantizer(fmt: ScalarFormat, scale: float) -> Injector:
    """An input quantizer with one scale for the tensor."""
    return _fast(plain_activation_quantizer(fmt, scale), fmt, _with_frozen_scale)


def token_quantizer(fmt: ScalarFormat) -> Injector:
    """An input quantizer with one scale per row of the last axis, found at run time.

    See :func:`quantizers.torch_rounding.row_scales`. The scale in its quantized tensors is ``(..., 1)``.
    """
    return _fast(plain_activation_quantizer(fmt, math.nan), fmt, _with_row_scales)


def block_quantizer(fmt: BlockFormat, axis: int) -> Injector:
    """An input quantizer to a block format, its blocks along *axis*, with scales found at run time.

    The scale in its quantized tensors is NaN: there is none that all elements share.
    """
    plain = plain_activation_quantizer(fmt.element, math.nan)
    return _fast(plain, fmt.element, partial(_in_blocks, block_format=fmt, axis=axis))


def _with_frozen_scale(x: Tensor, fmt: ScalarFormat, scale: Tensor) -> tuple[Tensor, Tensor]:
    return fake_quantize(x, fmt, scale), scale


def _with_row_scales(x: Tensor, fmt: ScalarFormat, scale: Tensor) -> tuple[Tensor, Tensor]:
    del scale
    scales = row_scales(x, fmt)
    return fake_quantize(x, fmt, scales), scales


def _in_blocks(
    x: Tensor, fmt: ScalarFormat, scale: Tensor, *, block_format: BlockFormat, axis: int
) -> tuple[Tensor, Tensor]:
    del fmt
    return round_blocks_torch(x, block_format, axis), scale


def bias_quantizer(steps: Tensor) -> Injector:
    """A bias quantizer on the grid of *steps* ``(C,)``; for any format, unlike ``Int32Bias``."""

    class FixedPointBias(ExtendedInjector):
        proxy_class = BiasQuantProxyFromInjector
        tensor_quant = AccumulatorBias
        requires_input_scale = False
        signed = True

    return FixedPointBias.let(scaling_init=steps)


def plain_weight_quantizer(fmt: ScalarFormat, scales: Tensor) -> Injector:
    """The weight quantizer with Brevitas' own arithmetic."""
    base = Fp8e4m3WeightPerChannelFloat if isinstance(fmt, MinifloatFormat) else Int8WeightPerChannelFloat
    return base.let(scaling_init=scales, **_frozen_scale(), **_format_settings(fmt))


def plain_activation_quantizer(fmt: ScalarFormat, scale: float) -> Injector:
    """The input quantizer with Brevitas' own arithmetic."""
    base = Fp8e4m3ActPerTensorFloat if isinstance(fmt, MinifloatFormat) else Int8ActPerTensorFloat
    return base.let(scaling_init=torch.tensor(scale), **_frozen_scale(), **_format_settings(fmt))


def _fast(plain: Injector, fmt: ScalarFormat, rounding: Rounding) -> Injector:
    arithmetic = MinifloatArithmetic if isinstance(fmt, MinifloatFormat) else IntegerArithmetic
    return plain.let(tensor_quant=arithmetic, number_format=fmt, rounding=rounding)


def _frozen_scale() -> dict[str, Any]:
    return {"scaling_impl_type": ScalingImplType.PARAMETER, "scaling_min_val": None}


def _format_settings(fmt: ScalarFormat) -> dict[str, Any]:
    """The format in Brevitas' terms."""
    match fmt:
        case MinifloatFormat():
            infinities, nans = _special_mantissas(fmt)
            return {
                "signed": fmt.signed,
                "bit_width": fmt.bits,
                "exponent_bit_width": fmt.exponent_bits,
                "mantissa_bit_width": fmt.mantissa_bits,
                "exponent_bias": fmt.exponent_bias,
                "float_scaling_impl": None,
                "max_available_float": None if fmt.specials is Specials.NONE else fmt.maximum,
                "inf_values": infinities,
                "nan_values": nans,
                "saturating": True,
            }
        case IntegerFormat() | TernaryFormat():
            return {
                "signed": fmt.signed,
                "bit_width": fmt.bits,
                "narrow_range": isinstance(fmt, TernaryFormat) or fmt.narrow,
                "int_scaling_impl": UnitThreshold,
            }
    msg = f"Brevitas has no quantizer for {fmt}"
    raise UsageError(msg, given=fmt, expected=["an integer, minifloat or ternary format"])


def _special_mantissas(fmt: MinifloatFormat) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """The mantissas that are infinity and NaN where the exponent is all ones, in Brevitas' terms."""
    mantissas = tuple(f"{code:0{fmt.mantissa_bits}b}" for code in range(1 << fmt.mantissa_bits))
    match fmt.specials:
        case Specials.IEEE:
            return mantissas[:1], mantissas[1:]
        case Specials.FN:
            return None, mantissas[-1:]
        case _:
            return None, None
