"""Accumulators against sums in Python integers, one product after the other."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from quantizers.accumulator import (
    AccumulatorLayer,
    narrowest_safe_bits,
    safe_accumulator_bits,
    with_accumulator,
)
from quantizers.errors import UsageError
from quantizers.formats import parse_format
from quantizers.prepare import prepare
from quantizers.quantize import QuantizationSettings, input_scale, quantize, weight_scale

# The inner layer is the one under test: the edges are int8.
KINDS = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 4, (3, 2), stride=2, padding=(0, 1), bias=False),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1),
    "grouped dilated": lambda: nn.Conv2d(4, 4, 2, groups=2, dilation=2),
}


def network_of(kind, activation=None):
    torch.manual_seed(5)
    layers = [nn.Conv2d(1, 4, 1), activation or nn.ReLU(), KINDS[kind](), nn.Flatten(), nn.LazyLinear(3)]
    network = nn.Sequential(*layers).eval()
    network(torch.zeros(1, 1, 6, 6))
    return network


def images(count=6):
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(6))


def quantized_of(kind="conv", name="int4", activation=None, **choices):
    settings = QuantizationSettings(parse_format(name), parse_format(name), **choices)
    return quantize(prepare(network_of(kind, activation), [images()]), settings)


def inner(quantized):
    return quantized.network.get_submodule("2")


def layer_inputs(quantized):
    seen = []
    handle = inner(quantized).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        quantized(images())
    handle.remove()
    return seen[0]


def integer_operands(quantized, inputs):
    """Codes of the layer's input and weights as Python-sized integers, and what a sum starts from."""
    summary, layer = quantized.layers[1], inner(quantized)
    fmt_w, fmt_a = summary.weight_format, summary.activation_format
    unit_w, unit_a = 2.0**fmt_w.grid.lsb_exponent, 2.0**fmt_a.grid.lsb_exponent
    scales = weight_scale(layer).double()
    weights = fmt_w.round((layer.weight.double() / scales).numpy()) / unit_w
    codes = fmt_a.round((inputs.double() / input_scale(layer)).numpy()) / unit_a
    start = np.zeros(len(weights))
    if layer.bias is not None:
        step = scales.flatten().numpy() * input_scale(layer) * unit_w * unit_a
        start = np.round(layer.bias.detach().double().numpy() / step)
    return codes.astype(np.int64), weights.astype(np.int64), start.astype(np.int64)


def settle(value, bits, overflow):
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if overflow == "saturate":
        return min(max(value, low), high)
    return (value - low) % (1 << bits) + low


def sums_by_hand(quantized, inputs, bits, overflow):
    codes, weights, start = integer_operands(quantized, inputs)
    layer = inner(quantized)
    (ph, pw), (sh, sw), (dh, dw) = layer.padding, layer.stride, layer.dilation
    padded = np.pad(codes, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    kh, kw = weights.shape[2:]
    rows = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    columns = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    per_group = len(weights) // layer.groups
    result = np.zeros((len(codes), len(weights), rows, columns))
    for image, channel, row, column in itertools.product(*map(range, result.shape)):
        first = channel // per_group * weights.shape[1]
        total = settle(int(start[channel]), bits, overflow)
        for i, y, x in itertools.product(range(weights.shape[1]), range(kh), range(kw)):
            code = padded[image, first + i, row * sh + y * dh, column * sw + x * dw]
            total = settle(total + int(code) * int(weights[channel, i, y, x]), bits, overflow)
        result[image, channel, row, column] = total
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["int4", "e2m1"])
@pytest.mark.parametrize(("bits", "overflow"), [(6, "wrap"), (6, "saturate"), (8, "wrap"), (8, "saturate")])
def test_sums_are_those_of_the_hardware(kind, name, bits, overflow):
    quantized = quantized_of(kind, name)
    inputs = layer_inputs(quantized)
    wanted = sums_by_hand(quantized, inputs, bits, overflow)
    narrow = with_accumulator(quantized, bits, overflow=overflow, layers=["2"])
    assert isinstance(inner(narrow), AccumulatorLayer)
    np.testing.assert_array_equal(inner(narrow).sums(inputs).numpy(), wanted)
    # The narrow sum has to differ from the exact one somewhere, or nothing was tested.
    assert (wanted != sums_by_hand(quantized, inputs, 40, "wrap")).any()


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_sums_wider_than_a_float64(overflow):
    quantized = quantized_of("conv", "e5m2", nn.Identity())
    inputs = layer_inputs(quantized)[:2]
    for bits in (56, 62):
        wide = with_accumulator(quantized, bits, overflow=overflow, layers=["2"])
        module = inner(wide)
        if not isinstance(module, AccumulatorLayer):
            continue
        np.testing.assert_array_equal(
            module.sums(inputs).numpy(), sums_by_hand(quantized, inputs, bits, overflow)
        )
    assert safe_accumulator_bits(quantized)["2"] > 56


@pytest.mark.parametrize("name", ["int4", "e2m1", "int8"])
@pytest.mark.parametrize("kind", ["conv", "depthwise"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Identity()], ids=["unsigned", "signed"])
def test_the_safe_width_is_safe_and_tight(name, kind, activation):
    quantized = quantized_of(kind, name, activation)
    bits = safe_accumulator_bits(quantized)["2"]
    _, weights, start = integer_operands(quantized, layer_inputs(quantized))
    fmt = quantized.layers[1].activation_format
    unit = 2.0**fmt.grid.lsb_exponent
    low, high = int(fmt.minimum / unit), int(fmt.maximum / unit)
    flat = weights.reshape(len(weights), -1)
    most = (np.where(flat > 0, flat * high, flat * low).sum(1) + start).max()
    least = (np.where(flat > 0, flat * low, flat * high).sum(1) + start).min()
    assert -(1 << (bits - 1)) <= least
    assert most <= (1 << (bits - 1)) - 1
    narrower = bits - 1
    assert least < -(1 << (narrower - 1)) or most > (1 << (narrower - 1)) - 1


def test_layers_that_cannot_overflow_stay_and_others_are_replaced():
    quantized = quantized_of()
    safe = safe_accumulator_bits(quantized)
    assert narrowest_safe_bits(quantized) == max(safe.values())
    wide = with_accumulator(quantized, max(safe.values()))
    assert not any(isinstance(module, AccumulatorLayer) for module in wide.modules())
    narrow = with_accumulator(wide, min(safe.values()) - 1)
    assert sum(isinstance(module, AccumulatorLayer) for module in narrow.modules()) == 3
    again = with_accumulator(narrow, max(safe.values()))
    with torch.no_grad():
        torch.testing.assert_close(again(images()), quantized(images()), rtol=0, atol=0)


@pytest.mark.parametrize("bias", ["fixed", "float"])
def test_without_end_they_are_the_float_layers(bias):
    quantized = quantized_of(bias=bias)
    exact = with_accumulator(quantized, None)
    with torch.no_grad():
        torch.testing.assert_close(exact(images()), quantized(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"bits": 1}, "accumulator bits must be an integer of at least 2, or None, not 1"),
        (
            {"bits": 8, "overflow": "clip"},
            "unknown overflow 'clip'; expected one of: wrap, saturate",
        ),
        ({"bits": 8, "layers": ["3"]}, "unknown layer '3'; expected one of: 0, 2, 4"),
    ],
)
def test_what_cannot_be_is_said(choices, message):
    with pytest.raises(UsageError) as error:
        with_accumulator(quantized_of(), **choices)
    assert str(error.value) == message
