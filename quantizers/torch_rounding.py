"""Rounding of tensors with straight-through gradients.

Forward is ``fmt.round(x / scale) * scale`` bit for bit: float32 on the CPU through the kernel of
:mod:`quantizers.rounding`, everything else in plain torch operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantizers import rounding
from quantizers.errors import UsageError
from quantizers.formats import BlockFormat, ScalarFormat


def fake_quantize(x: Tensor, fmt: ScalarFormat, scale: Tensor | float) -> Tensor:
    """``round(x / scale) * scale`` with straight-through gradients.

    With ``u = x / scale`` the gradients are those of LSQ (arXiv 1902.08153, equations 3 and 5):

    - to *x*: 1 where ``minimum <= u <= maximum`` of the format, 0 outside;
    - to *scale*: ``round(u) - u`` there, ``minimum`` or ``maximum`` outside.

    Args:
        x: any shape and memory layout, which the result keeps. float16 and bfloat16 are computed in
            float32 and rounded back at the end; float64 is computed in float64.
        scale: as in :func:`quantizers.rounding.round_scaled`.

    Raises:
        UsageError: *scale* does not fit *x*, or *x* is not a floating-point tensor.
    """
    if not x.is_floating_point():
        msg = f"only floating-point tensors can be quantized, not {x.dtype}"
        raise UsageError(msg, given=x.dtype, expected=["torch.float32"])
    dtype = scale.dtype if isinstance(scale, Tensor) else _compute_dtype(x)
    scales = torch.as_tensor(scale, device=x.device, dtype=dtype)
    shaped = scales.reshape(rounding.scale_shape(tuple(scales.shape), tuple(x.shape)))
    if torch.is_grad_enabled() and (x.requires_grad or scales.requires_grad):
        result: Tensor = _FakeQuantize.apply(x, shaped, fmt)
        return result
    return _forward(x.detach(), shaped.detach(), fmt)


def row_scales(x: Tensor, fmt: ScalarFormat) -> Tensor:
    """One scale per row of the last axis, ``(..., 1)``: its largest magnitude becomes the largest value.

    ``max|x| / maximum``, rounded once in the dtype of *x*; 1 where that is below the smallest normal
    number, so that a row of zeros stays zeros.
    """
    scales = x.detach().abs().amax(-1, keepdim=True) / fmt.maximum
    return torch.where(scales < torch.finfo(x.dtype).tiny, torch.ones_like(scales), scales)


def round_blocks_torch(x: Tensor, fmt: BlockFormat, axis: int) -> Tensor:
    """*x* in a block format with its blocks along *axis*, on the CPU; gradients pass as they are."""
    rounded = torch.from_numpy(rounding.round_blocks(x.detach().float().numpy(), fmt, axis)).to(x.dtype)
    return rounded + (x - x.detach()) if torch.is_grad_enabled() and x.requires_grad else rounded


def round_scaled_torch(x: Tensor, fmt: ScalarFormat, scale: Tensor) -> Tensor:
    """The forward pass in plain torch, for any device; *scale* broadcasts against *x*.

    float32 and float64 are computed as they are, the narrower types in float32.
    """
    dtype = _compute_dtype(x)
    # A scale on the device keeps this a true division: torch multiplies by the inverse otherwise.
    factor = scale.to(device=x.device, dtype=dtype)
    return _round(x.to(dtype) / factor, fmt).mul_(factor).to(x.dtype)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, fmt: ScalarFormat) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.fmt = fmt
        return _forward(x.detach(), scale.detach(), fmt)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        x, scale = ctx.saved_tensors
        dtype = _compute_dtype(x)
        u = x.to(dtype) / scale.to(dtype)
        inside = (u >= ctx.fmt.minimum) & (u <= ctx.fmt.maximum)
        to_x = to_scale = None
        if ctx.needs_input_grad[0]:
            to_x = torch.where(inside, gradient, torch.zeros_like(gradient))
        if ctx.needs_input_grad[1]:
            rounded = _round(u, ctx.fmt)
            slope = torch.where(inside, rounded - u, rounded)
            to_scale = (gradient * slope).sum_to_size(scale.shape).to(scale.dtype)
        return to_x, to_scale, None


def _forward(x: Tensor, scale: Tensor, fmt: ScalarFormat) -> Tensor:
    if x.device.type != "cpu" or x.dtype != torch.float32 or not rounding.HAVE_KERNELS:
        return round_scaled_torch(x, fmt, scale)
    # Memory from numpy, not torch: it comes in huge pages, which halves the cost of a large result.
    return torch.from_numpy(rounding.round_scaled(x.numpy(), fmt, scale.to(torch.float32).numpy()))


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _round(u: Tensor, fmt: ScalarFormat) -> Tensor:
    """The nearest values of the format, for float32 and float64: a new tensor.

    Clips first; then adding and subtracting ``1.5 * 2**mantissa`` steps of each value's binade leaves
    it rounded to nearest even on those steps.
    """
    grid = fmt.grid
    integer, mantissa, bias = (torch.int64, 52, 1023) if u.dtype == torch.float64 else (torch.int32, 23, 127)
    half = 1 << (mantissa - 1)
    rounded = u.clamp(grid.minimum, grid.maximum)
    bits = rounded.view(integer)
    magic = bits & ((2 * bias + 1) << mantissa)
    magic.clamp_(min=(grid.min_exponent + bias) << mantissa)
    magic.add_(((mantissa - grid.mantissa_bits) << mantissa) | half)
    if grid.mantissa_bits == 0:
        # No mantissa to decide a tie: 1.5 steps would always go up. One ulp less goes down.
        tie = (grid.odd_code_parity << mantissa) | half
        bits.sub_(((bits & ((2 << mantissa) - 1)) == tie).to(integer))
    rounded.add_(magic.view(u.dtype)).sub_(magic.view(u.dtype))
    return rounded.copysign_(u) if grid.signed_zero else rounded
