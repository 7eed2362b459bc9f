"""SmoothQuant: divide each input channel of a layer by a factor that its weights take up."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantizers.folding import replace_modules
from quantizers.formats import IntegerFormat
from quantizers.moments import group_count, input_rows, output_places
from quantizers.prepare import PreparedModel, prepare
from quantizers.recipes.steps import REWRITING, Step, check_range
from quantizers.scales import weight_scales
from quantizers.torch_rounding import fake_quantize

_ALPHAS = tuple(tenths / 10 for tenths in range(11))
_SEARCH_PLACES = 512
_SEARCH_VALUES = 1 << 14


@dataclass(frozen=True)
class SmoothQuant(Step):
    """Divides the input channels of each inner layer by ``max|x|**alpha / max|w|**(1 - alpha)``.

    The weights are multiplied by it, so the function stays the same. The division is a constant per
    channel in front of the layer's quantizer: hardware merges it into the requantizer that makes that
    input. In a depthwise layer the weight scale of each channel takes up the factor whatever it is, so
    there the inputs are evened out entirely (alpha 1). Layers of several groups that are not depthwise
    are left alone.

    Args:
        alpha: 0 evens out the weights, 1 the inputs.
        search: take for each layer the alpha of 0, 0.1, ... 1 (and none at all) that disturbs its output
            least when weights and inputs are integers of *bits* bits.
        bits: for *search*.
    """

    name: ClassVar[str] = "smoothquant"
    source: ClassVar[str] = "arXiv 2211.10438, equation 4"
    stage: ClassVar[int] = REWRITING

    alpha: float = 0.5
    search: bool = False
    bits: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, "alpha", self.alpha, 0, 1)
        check_range(self.name, "bits", self.bits, 2, 8)

    def rewrite(self, prepared: PreparedModel) -> PreparedModel:
        model = copy.deepcopy(prepared.model)
        names = [layer.name for layer in prepared.layers if layer.weights and not layer.edge]
        seen = _observe(model, [n for n in names if _can_be_smoothed(model.get_submodule(n))], prepared)
        replacements: dict[nn.Module, nn.Module] = {}
        for name, (largest, rows) in seen.items():
            layer: Any = model.get_submodule(name)
            factors = self._factors(layer, largest, rows)
            if factors is not None:
                layer.weight.data *= _along_input(factors, layer)
                division = ChannelDivision(factors, axis=-1 if isinstance(layer, nn.Linear) else 1)
                replacements[layer] = nn.Sequential(OrderedDict(division=division, layer=layer))
        replace_modules(model, replacements)
        return prepare(model, prepared.batches, seed=prepared.seed)

    def _factors(self, layer: nn.Module, largest: Tensor, rows: Tensor) -> Tensor | None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        if group_count(layer) > 1:
            return smoothing_factors(largest, largest, alpha=1.0)
        of_weights = (
            weight.detach().abs().flatten(2).amax((0, 2)) if weight.dim() > 2 else weight.abs().amax(0)
        )
        if not self.search:
            return smoothing_factors(largest, of_weights, self.alpha)
        kernel = weight[0, 0].numel()
        best: Tensor | None = None
        least = _disturbance(weight.flatten(1), rows, self.bits)
        for alpha in _ALPHAS:
            factors = smoothing_factors(largest, of_weights, alpha)
            spread = factors.repeat_interleave(kernel)
            found = _disturbance(weight.flatten(1) * spread, rows / spread, self.bits)
            if found < least:
                best, least = factors, found
        return best


class ChannelDivision(nn.Module):
    """``x / factors`` along an axis."""

    factors: Tensor

    def __init__(self, factors: Tensor, axis: int) -> None:
        super().__init__()
        self.register_buffer("factors", factors)
        self._axis = axis

    def forward(self, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self._axis] = -1
        # The magnitude of factors that are positive anyway: so it can be seen that no sign changes.
        return x / self.factors.abs().reshape(shape)


def smoothing_factors(largest_inputs: Tensor, largest_weights: Tensor, alpha: float) -> Tensor:
    """Equation 4, for channels ``(C,)``; 1 where a channel has no input or no weight."""
    usable = (largest_inputs > 0) & (largest_weights > 0)
    ones = torch.ones_like(largest_inputs)
    inputs, weights = torch.where(usable, largest_inputs, ones), torch.where(usable, largest_weights, ones)
    factors = inputs**alpha / weights ** (1 - alpha)
    return torch.where(usable, factors, ones)


def _can_be_smoothed(layer: nn.Module) -> bool:
    groups = group_count(layer)
    return groups == 1 or groups == layer.in_channels == layer.out_channels


def _along_input(factors: Tensor, layer: nn.Module) -> Tensor:
    """The factors in the shape in which they multiply the weight of *layer*."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if group_count(layer) > 1:
        return factors.reshape(-1, *[1] * (weight.dim() - 1))
    return factors.reshape(1, -1, *[1] * (weight.dim() - 2))


def _disturbance(weight: Tensor, rows: Tensor, bits: int) -> float:
    """Squared error of the outputs for weights ``(C, n)`` and inputs ``(places, n)`` of *bits* bits."""
    fmt = IntegerFormat(bits, narrow=True)
    of_inputs = fmt.unsigned_counterpart if bool((rows >= 0).all()) else fmt
    rounded = fake_quantize(weight, fmt, torch.from_numpy(weight_scales(weight.numpy(), fmt, "max")))
    values = rows.flatten()[:: max(1, rows.numel() // _SEARCH_VALUES)].numpy()[None]
    scale = weight_scales(values, of_inputs, "mse")
    inputs = fake_quantize(rows, of_inputs, float(scale[0]))
    return float((inputs @ rounded.T - rows @ weight.T).double().square().sum())


def _observe(model: nn.Module, names: list[str], prepared: PreparedModel) -> dict[str, tuple[Tensor, Tensor]]:
    """For each layer the largest magnitude of every input channel, and a sample of its inputs."""
    largest: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    generator = torch.Generator().manual_seed(prepared.seed)
    share = -(-_SEARCH_PLACES // len(prepared.batches))

    def observe(name: str) -> Any:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            axis = x.dim() - 1 if isinstance(layer, nn.Linear) else 1
            now = x.abs().amax([a for a in range(x.dim()) if a != axis])
            largest[name] = torch.maximum(largest.get(name, now), now)
            places = torch.randint(output_places(layer, x), (share,), generator=generator)
            rows[name].append(input_rows(layer, x, places).transpose(0, 1).flatten(1))

        return add

    handles = [model.get_submodule(n).register_forward_pre_hook(observe(n)) for n in names]
    try:
        with torch.no_grad():
            for batch in prepared.batches:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (largest[name], torch.cat(rows[name])) for name in names}
