"""Small layers with correlated inputs, and what their tests measure; independent of the library's moments."""

import itertools

import numpy as np
import torch
from torch import nn

from quantizers.formats import IntegerFormat, parse_scalar_format
from quantizers.moments import MomentSums, group_count
from quantizers.prepare import prepare
from quantizers.quantize import QuantizationSettings
from quantizers.recipes import Recipe, quantize_by, rewritten
from quantizers.recipes.problem import LayerProblem
from quantizers.scales import weight_scales

LAYERS = ["linear", "conv", "grouped", "depthwise"]
FORMATS = {"int4": IntegerFormat(4, narrow=True), "e2m1": parse_scalar_format("e2m1")}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def correlated(rows, features, *, seed, rank=4, noise=0.1):
    """``(rows, features)``: *rank* common causes and some noise."""
    g = generator(seed)
    mixed = torch.randn(rows, rank, generator=g) @ torch.randn(rank, features, generator=generator(1))
    return mixed + noise * torch.randn(rows, features, generator=g)


def smooth_images(count, *, seed):
    """``(count, 4, 6, 6)`` whose neighbouring pixels, and channels, are alike."""
    noise = torch.randn(count, 4, 8, 8, generator=generator(seed))
    return 3 * nn.functional.avg_pool2d(noise + 0.5 * noise.flip(1), 3, 1)


def example_layer(kind):
    """A small layer, and inputs of which all places fit in the sample of its moments."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        if kind == "linear":
            return nn.Linear(12, 6), correlated(300, 12, seed=3)
        groups = {"conv": 1, "grouped": 2, "depthwise": 4}[kind]
        layer = nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=groups)
    return layer, smooth_images(24, seed=3)


def rows_of(layer, inputs):
    """``(groups, places, features)`` in float64, window by window."""
    x = inputs.double().numpy()
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    (top, left), (down, right) = layer.padding, layer.stride
    (height, width), (tall, wide) = layer.kernel_size, layer.dilation
    x = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    last = x.shape[2] - tall * (height - 1), x.shape[3] - wide * (width - 1)
    share = layer.in_channels // layer.groups
    rows = [
        [
            x[n, g * share : (g + 1) * share, i : i + tall * height : tall, j : j + wide * width : wide]
            for n, i, j in itertools.product(range(len(x)), range(0, last[0], down), range(0, last[1], right))
        ]
        for g in range(layer.groups)
    ]
    rows = np.array(rows)
    return rows.reshape(*rows.shape[:2], -1)


def problem_of(layer, fmt, inputs, quantized_inputs=None):
    """The layer's problem, with the scales of least squared error."""
    own = MomentSums(layer, 1, 0)
    own.add(inputs)
    moments = None
    if quantized_inputs is not None:
        sums = MomentSums(layer, 1, 0)
        sums.add(quantized_inputs, inputs)
        moments = sums.finish(paired=True)
    scales = torch.from_numpy(weight_scales(layer.weight.detach().flatten(1).numpy(), fmt, "mse"))
    return LayerProblem.of(
        "layer", layer.weight, group_count(layer), fmt, scales, own.finish(paired=False), moments
    )


def disturbed(inputs):
    """As a quantized network might pass them on."""
    return inputs + 0.2 * torch.randn(inputs.shape, generator=generator(4))


def values_of(fmt):
    """The values that rounding may give: the narrow integers leave out the most negative."""
    values = np.unique(fmt.values())
    return values[values >= fmt.minimum]


def nearest(values, fmt, scale):
    """The nearest grid value, by looking at them all."""
    grid = values_of(fmt) * np.float64(scale)
    return grid[np.abs(np.asarray(values)[..., None] - grid).argmin(-1)]


def output_error(problem, rows, wanted_rows=None):
    """``|Q x' - W x|^2`` over all places of ``(groups, places, features)``."""
    wanted = (rows if wanted_rows is None else wanted_rows) @ problem.weights.transpose(0, 2, 1)
    return float(((rows @ problem.rounded.transpose(0, 2, 1) - wanted) ** 2).sum())


def settings(weights, activations="int8", **options):
    return QuantizationSettings(parse_scalar_format(weights), parse_scalar_format(activations), **options)


def network_error(model, batch, other, recipe, chosen):
    """Relative error of the outputs for inputs that were not calibrated on."""
    prepared = rewritten(prepare(model, [batch]), Recipe.parse(recipe))
    quantized = quantize_by(prepared, chosen, Recipe.parse(recipe))
    with torch.no_grad():
        expected = model.eval()(other)
        return float((quantized(other) - expected).norm() / expected.norm())
