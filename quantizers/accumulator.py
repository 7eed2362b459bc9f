"""Quantized networks on accumulators of a given width: the width that never overflows, and what a
narrower one computes.

Sums are integers in units of the products' least significant bit,
``2**(weights.grid.lsb_exponent + activations.grid.lsb_exponent)`` before the scales. An accumulator
starts from the integer bias (0 where there is none or it is a float) and adds one product after the
other in the order of the flattened weight: input channel first, then the place in the kernel.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from quantizers._rounding_kernels import _jit
from quantizers.errors import UsageError, unknown_choice
from quantizers.folding import replace_modules
from quantizers.formats import ScalarFormat
from quantizers.moments import group_count
from quantizers.quantize import LayerSummary, QuantizedModel, input_scale, weight_scale
from quantizers.torch_rounding import fake_quantize

Overflow = Literal["wrap", "saturate"]
_OVERFLOWS = ("wrap", "saturate")
_NARROWEST_BITS = 2
# Widths at which every value of the accumulator is a float: a sum that rounds is out of range anyway.
_FLOAT32_BITS = 25
_FLOAT64_BITS = 54
# Half of what float64 holds: the wrap adds half the accumulator's range to a sum.
_LARGEST_FLOAT64_SUM = 1 << 52
# Wider sums are two float64 words: the lower one has this many bits, the upper one the rest.
_WORD_BITS = 40
_WORD = float(1 << _WORD_BITS)
# Unfolded inputs at a time, so that a convolution of a large batch takes megabytes and not gigabytes.
_UNFOLDED_ELEMENTS = 1 << 21


def safe_accumulator_bits(quantized: QuantizedModel) -> dict[str, int]:
    """The narrowest signed width per layer at which no input can overflow its accumulators.

    For a layer with weights the bound is taken from the rounded weights of each output channel. With
    P and N the sums of its positive and of its negative weights, and inputs of a format from ``low
    <= 0`` to ``high``, the products add ``P * high + N * low`` at most and ``P * low + N * high`` at
    least (the worst case of A2Q+, Colbert et al., arXiv 2401.10432, for any format). At these ends
    no product has the other sign, so they hold for the sum of any of the products too: no prefix sum
    leaves them, in whatever order the products come. The integer bias, from which the sum starts,
    moves both ends. Some input codes reach each of them, and the width holds both exactly. A bias in
    float is no part of it.

    Products of two activations (``matmul``) have no fixed weights: the bound is the largest and the
    smallest product of the two formats, times the dot length.

    Returns:
        Bits, sign included and at least 2, by layer name in the order in which the layers run.

    Raises:
        UsageError: a layer has several scales within a sum, so that no integers add up to it.
    """
    return {layer.name: _safe_bits(layer, _brevitas_layer(quantized, layer)) for layer in quantized.layers}


def narrowest_safe_bits(quantized: QuantizedModel) -> int:
    """The narrowest width at which no accumulator of the network can overflow."""
    return max(safe_accumulator_bits(quantized).values())


def with_accumulator(
    quantized: QuantizedModel,
    bits: int | None,
    *,
    overflow: Overflow = "wrap",
    layers: Collection[str] | None = None,
) -> QuantizedModel:
    """A copy whose weighted layers add up as hardware with accumulators of *bits* does.

    A layer becomes an :class:`AccumulatorLayer`, unless its :func:`safe_accumulator_bits` are at most
    *bits*: then it cannot overflow and stays the float layer that it is, with the same sums up to
    float32 rounding. Products of two activations stay as they are. Weights, biases and scales are
    taken as they stand now. An accumulator that a chosen layer already has is replaced.

    Args:
        quantized: from :func:`quantizers.quantize.quantize`, a recipe, or this function.
        bits: signed width; ``None`` for integers without end, in every layer.
        overflow: ``wrap`` keeps the lower bits (two's complement), so the order of additions does not
            matter; ``saturate`` keeps the nearest value in range of the start and after every addition.
        layers: names of those that get the accumulator; all that have weights if not given.

    Raises:
        UsageError: *bits* or *overflow* is not possible, a layer has no weights or does not exist, or has
            several scales within a sum or scales of its inputs that are found at run time.
    """
    check_accumulator(bits, overflow)
    chosen = _chosen(quantized, layers)
    result = copy.deepcopy(quantized)
    replacements: dict[nn.Module, nn.Module] = {}
    for summary in chosen:
        layer = _brevitas_layer(result, summary)
        safe = bits is not None and _safe_bits(summary, layer) <= bits
        present = result.network.get_submodule(summary.name)
        replacements[present] = layer if safe else AccumulatorLayer(layer, summary, bits, overflow)
    replace_modules(result, replacements)
    return result.eval()


def check_accumulator(bits: int | None, overflow: str) -> Overflow:
    """*overflow*; raises :class:`UsageError` where :func:`with_accumulator` would."""
    if overflow not in _OVERFLOWS:
        raise unknown_choice("overflow", overflow, _OVERFLOWS)
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or bits < _NARROWEST_BITS):
        msg = f"accumulator bits must be an integer of at least {_NARROWEST_BITS}, or None, not {bits!r}"
        raise UsageError(msg, given=repr(bits), expected=["2, 3, 4, ...", "None"])
    return overflow  # type: ignore[return-value]


def _chosen(quantized: QuantizedModel, names: Collection[str] | None) -> list[LayerSummary]:
    if names is None:
        return [layer for layer in quantized.layers if layer.weights]
    known = {layer.name: layer for layer in quantized.layers}
    for name in names:
        if name not in known:
            raise unknown_choice("layer", name, known)
        if not known[name].weights:
            msg = (
                f"layer {name!r} is a {known[name].kind}, a product of two activations; "
                "only layers with weights can be given an accumulator"
            )
            raise UsageError(msg, given=name, expected=[x.name for x in quantized.layers if x.weights])
    return [layer for layer in quantized.layers if layer.name in names]


class AccumulatorLayer(nn.Module):
    """A quantized convolution or linear layer whose sums are integers of a given width.

    The result is sum times scales, plus the bias where that is a float: in float64, rounded at the end
    to the dtype of the input. A NaN makes the sums that it takes part in NaN, as in a float layer.

    Args:
        layer: the Brevitas layer; stays reachable under this name.
        summary: of the layer.
        bits, overflow: see :func:`with_accumulator`.
    """

    weight_codes: Tensor
    start: Tensor
    input_scale: Tensor
    output_scale: Tensor

    def __init__(self, layer: nn.Module, summary: LayerSummary, bits: int | None, overflow: Overflow) -> None:
        super().__init__()
        weights, inputs = summary.weight_format, summary.activation_format
        self.layer = layer
        self.activation_format = inputs
        self.bits = bits
        self.overflow = overflow
        low, high = _ends(summary, layer)
        # What any sum of some of the products can be, with and without the bias.
        self._fits_float64 = max(high - low, high, -low) <= _LARGEST_FLOAT64_SUM
        codes = _weight_codes(layer, weights)
        largest_product = int(codes.abs().max()) * max(map(abs, _code_range(inputs)))
        self._fits_float32 = largest_product < 1 << (_FLOAT32_BITS - 1)
        lsb = 2.0 ** (weights.grid.lsb_exponent + inputs.grid.lsb_exponent)
        scales = weight_scale(layer).double().flatten() * input_scale(layer) * lsb
        # Channels, which do not depend on each other, are the last axis: (groups, features, channels).
        self._keep("weight_codes", codes.unflatten(0, (group_count(layer), -1)).mT.contiguous())
        self._keep("start", _start(layer).reshape(group_count(layer), 1, -1))
        self._keep("input_scale", torch.tensor(input_scale(layer)))
        self._keep("output_scale", scales.reshape(-1, *[1] * (layer.weight.dim() - 2)))  # type: ignore[operator]

    def _keep(self, name: str, constant: Tensor) -> None:
        self.register_buffer(name, constant, persistent=False)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, overflow={self.overflow!r}"

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.sums(inputs) * self.output_scale
        bias: Tensor | None = self.layer.bias  # type: ignore[assignment]
        if bias is not None and not _has_fixed_bias(self.layer):
            outputs += bias.double().reshape(self.output_scale.shape)
        return outputs.to(inputs.dtype)

    @torch.no_grad()
    def sums(self, inputs: Tensor) -> Tensor:
        """What the accumulators hold at the end, for float *inputs* of the layer.

        Returns:
            float64, of the shape of the layer's output: integers in units of the products' least
            significant bit; those beyond 2**53 are rounded to float64.
        """
        codes = _codes(inputs, self.activation_format, self.input_scale)
        if isinstance(self.layer, nn.Linear):
            sums = self._accumulate(codes.reshape(1, -1, codes.shape[-1]))[0]
            return sums.reshape(*codes.shape[:-1], self.layer.out_features)
        unbatched = codes.dim() == len(self.layer.kernel_size) + 1  # type: ignore[arg-type]
        if unbatched:
            return self._convolve(codes[None])[0]
        unfolded_image = math.prod((*codes.shape[1:], *self.layer.kernel_size))  # type: ignore[misc]
        images = max(1, _UNFOLDED_ELEMENTS // unfolded_image)
        return torch.cat([self._convolve(part) for part in codes.split(images)])

    def _convolve(self, codes: Tensor) -> Tensor:
        windows = _windows(self.layer, codes)
        images, positions = len(windows), windows.shape[2 : codes.dim()]
        # (groups, images, *positions, channels of a group, *kernel)
        grouped = windows.unflatten(1, (group_count(self.layer), -1)).movedim(1, 0).movedim(2, codes.dim())
        sums = self._accumulate(
            grouped.reshape(len(grouped), images * positions.numel(), self.weight_codes.shape[1])
        )
        return sums.unflatten(1, (images, *positions)).movedim(0, 1).movedim(-1, 2).flatten(1, 2)

    def _accumulate(self, rows: Tensor) -> Tensor:
        """Sums ``(groups, places, channels)`` of codes ``(groups, places, features)``."""
        bits = self.bits
        if self.overflow == "saturate" and bits is not None:
            if bits > _FLOAT64_BITS:
                return _two_word_sums(rows, self.weight_codes, self.start, saturate_bits=bits)
            narrow = self._fits_float32 and bits <= _FLOAT32_BITS
            return _saturated_sums(rows, self.weight_codes, self.start, bits, narrow)
        if not self._fits_float64:
            return _two_word_sums(rows, self.weight_codes, self.start, wrap_bits=bits)
        total = rows.double() @ self.weight_codes.double() + self.start
        return total if bits is None else _wrapped(total, bits)


def _brevitas_layer(quantized: QuantizedModel, summary: LayerSummary) -> nn.Module:
    module = quantized.network.get_submodule(summary.name)
    return module.layer if isinstance(module, AccumulatorLayer) else module


def _safe_bits(summary: LayerSummary, layer: nn.Module) -> int:
    low, high = _ends(summary, layer)
    return max(_NARROWEST_BITS, high.bit_length() + 1, (-low - 1).bit_length() + 1)


def _ends(summary: LayerSummary, layer: nn.Module) -> tuple[int, int]:
    """The smallest and the largest sum that any inputs make, over all channels; at most and least 0."""
    if not summary.has_integer_sums:
        msg = (
            f"layer {summary.name!r} has several scales within a sum (groups of weights, blocks of inputs): "
            "no accumulator of integers adds its products"
        )
        raise UsageError(
            msg, given=summary.name, expected=["one weight scale per channel", "no block formats"]
        )
    smallest, largest = _code_range(summary.activation_format)
    if not summary.weights:
        products = [a * b for a in (smallest, largest) for b in _code_range(summary.weight_format)]
        return summary.dot_length * min(products), summary.dot_length * max(products)
    codes = _weight_codes(layer, summary.weight_format).double()
    # Python integers: a sum can be wider than 64 bits.
    parts = torch.stack([codes.clamp(min=0).sum(1), codes.clamp(max=0).sum(1), _start(layer)], dim=1)
    channels = [tuple(map(int, channel)) for channel in parts.tolist()]
    low = min(start + positive * smallest + negative * largest for positive, negative, start in channels)
    high = max(start + positive * largest + negative * smallest for positive, negative, start in channels)
    return min(low, 0), max(high, 0)


def _code_range(fmt: ScalarFormat) -> tuple[int, int]:
    lsb = 2.0**fmt.grid.lsb_exponent
    return int(fmt.minimum / lsb), int(fmt.maximum / lsb)


def _codes(x: Tensor, fmt: ScalarFormat, scale: Tensor) -> Tensor:
    """The format's values nearest to ``x / scale`` as integer counts of its least significant bit.

    float32 holds them all: the formats have 16 significant bits at most.
    """
    return fake_quantize(x.detach().float() / scale, fmt, 1.0) * 2.0**-fmt.grid.lsb_exponent


def _weight_codes(layer: nn.Module, fmt: ScalarFormat) -> Tensor:
    """The weights as integers, ``(channels, features)``."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return _codes(weight, fmt, weight_scale(layer)).flatten(1)


def _has_fixed_bias(layer: nn.Module) -> bool:
    return layer.bias is not None and bool(layer.bias_quant.is_quant_enabled)  # type: ignore[union-attr]


def _start(layer: nn.Module) -> Tensor:
    """The integer that each channel's sum starts from, float64 ``(channels,)``."""
    if not _has_fixed_bias(layer):
        return torch.zeros(len(layer.weight), dtype=torch.float64)  # type: ignore[arg-type]
    step = layer.bias_quant.tensor_quant.step  # type: ignore[union-attr]
    return torch.round(layer.bias.detach().double() / step)  # type: ignore[operator]


def _windows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """A view of the padded *inputs* ``(n, channels, *positions, *kernel)``."""
    mode = "constant" if layer.padding_mode == "zeros" else str(layer.padding_mode)
    windows = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode)  # type: ignore[arg-type]
    geometry = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)  # type: ignore[arg-type]
    for axis, (kernel, stride, dilation) in enumerate(geometry, start=2):
        windows = windows.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return windows


def _wrapped(total: Tensor, bits: int) -> Tensor:
    """The integer of *bits*, two's complement, that equals *total* modulo ``2**bits``.

    Exact where *total* plus half the range is: the other operations only move exponents.
    """
    span = 2.0**bits
    return total - torch.floor((total + span / 2) / span) * span


def _saturated_sums(rows: Tensor, weights: Tensor, start: Tensor, bits: int, narrow: bool) -> Tensor:
    dtype = torch.float32 if narrow else torch.float64
    ends = torch.tensor([-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1], dtype=torch.float64)
    sums = start.clamp(ends[0], ends[1]).to(dtype).expand(-1, rows.shape[1], -1).contiguous()
    low, high = ends.to(dtype).numpy()
    _add_saturating(rows.contiguous().numpy(), weights.to(dtype).numpy(), low, high, sums.numpy())
    return sums.double()


def _two_word_sums(
    rows: Tensor,
    weights: Tensor,
    start: Tensor,
    *,
    wrap_bits: int | None = None,
    saturate_bits: int | None = None,
) -> Tensor:
    """Sums wider than float64: saturating after every addition, or wrapped at the end, or neither."""
    words = torch.empty(2, len(rows), rows.shape[1], weights.shape[2], dtype=torch.float64)
    range_of_upper = math.inf if saturate_bits is None else 2.0 ** (saturate_bits - 1 - _WORD_BITS)
    operands = (rows.double().contiguous(), weights.double(), start[:, 0])
    _add_words(*(operand.numpy() for operand in operands), range_of_upper, *words.numpy())
    upper, lower = words
    if wrap_bits is not None and wrap_bits <= _WORD_BITS:
        return _wrapped(lower, wrap_bits)
    if wrap_bits is not None:
        upper = _wrapped(upper, wrap_bits - _WORD_BITS)
    return upper * _WORD + lower


@_jit
def _add_saturating(rows, weights, low, high, sums):  # type: ignore[no-untyped-def]
    """Add to *sums* ``(groups, places, channels)``, product by product, staying in *low* to *high*.

    Args:
        rows: ``(groups, places, features)``.
        weights: ``(groups, features, channels)``.
    """
    groups, places, features = rows.shape
    for group in range(groups):
        for place in range(places):
            total = sums[group, place]
            for feature in range(features):
                code = rows[group, place, feature]
                if code == 0:
                    continue
                column = weights[group, feature]
                for channel in range(column.size):
                    value = total[channel] + code * column[channel]
                    value = high if value > high else value
                    total[channel] = low if value < low else value


@_jit
def _add_words(rows, weights, start, range_of_upper, upper, lower):  # type: ignore[no-untyped-def]
    """The same for sums ``upper * _WORD + lower``, with ``0 <= lower < _WORD``, that begin at *start*.

    They stay in ``-range_of_upper * _WORD .. range_of_upper * _WORD - 1``. A product of two codes is
    exact in float64: it has 32 significant bits at most.
    """
    groups, places, features = rows.shape
    for group in range(groups):
        for place in range(places):
            for channel in range(start.shape[1]):
                high, low = _add_term(0.0, 0.0, start[group, channel], range_of_upper)
                for feature in range(features):
                    product = rows[group, place, feature] * weights[group, feature, channel]
                    high, low = _add_term(high, low, product, range_of_upper)
                upper[group, place, channel] = high
                lower[group, place, channel] = low


@_jit
def _add_term(upper, lower, term, range_of_upper):  # type: ignore[no-untyped-def]
    term_upper = np.floor(term / _WORD)
    lower += term - term_upper * _WORD
    carry = np.floor(lower / _WORD)
    upper += term_upper + carry
    if upper >= range_of_upper:
        return range_of_upper - 1.0, _WORD - 1.0
    if upper < -range_of_upper:
        return -range_of_upper, 0.0
    return upper, lower - carry * _WORD
