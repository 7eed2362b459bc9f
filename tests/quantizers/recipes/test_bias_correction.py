import numpy as np
import pytest
import torch
from torch import nn

from quantizers.prepare import prepare
from quantizers.recipes import Recipe, quantize_by
from quantizers.recipes.bias_correction import BiasCorrection
from tests.quantizers.recipes.layer_problems import (
    FORMATS,
    LAYERS,
    correlated,
    disturbed,
    example_layer,
    generator,
    network_error,
    problem_of,
    rows_of,
    settings,
)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("inputs", ["float", "quantized"])
def test_mean_of_every_output_is_the_float_networks(kind, fmt, inputs):
    layer, x = example_layer(kind)
    x = x + 2
    changed = disturbed(x) + 0.5
    problem = problem_of(layer, fmt, x, changed)
    BiasCorrection(inputs=inputs).solve(problem)
    rows, wanted = rows_of(layer, changed if inputs == "quantized" else x), rows_of(layer, x)
    found = (rows @ problem.rounded.transpose(0, 2, 1)).mean(1) + problem.bias_shift
    np.testing.assert_allclose(found, (wanted @ problem.weights.transpose(0, 2, 1)).mean(1), atol=1e-5)
    assert np.abs(problem.bias_shift).max() > 0.01


def network():
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))


def shifted(seed):
    """Inputs whose mean is three times their deviation."""
    return 3 + torch.randn(256, 16, generator=generator(seed))


@pytest.mark.parametrize("name", ["int4", "e2m1"])
@pytest.mark.parametrize(
    ("recipe", "factor"), [("bias_correction", 0.6), ("bias_correction(inputs='quantized')", 0.6)]
)
def test_helps_where_the_mean_is_shifted(name, recipe, factor):
    errors = [
        network_error(network(), shifted(12), shifted(13), text, settings(name)) for text in ("round", recipe)
    ]
    assert errors[1] < factor * errors[0]


@pytest.mark.parametrize("bias", ["float", "fixed"])
def test_reaches_the_bias_of_the_network(bias):
    prepared = prepare(network(), [shifted(12)])
    plain, corrected = (
        quantize_by(prepared, settings("int4", bias=bias), Recipe.parse(text))
        for text in ("round", "bias_correction")
    )
    mean = shifted(12).double().mean(0)
    lost = (prepared.model[0].weight - plain.network[0].quant_weight().value).double() @ mean
    found = (corrected.network[0].bias - plain.network[0].bias).double()
    torch.testing.assert_close(found, lost, rtol=1e-4, atol=1e-5)
    assert torch.equal(corrected.network[0].weight, plain.network[0].quant_weight().value)


def test_a_layer_without_bias_keeps_its_weights():
    torch.manual_seed(14)
    prepared = prepare(nn.Sequential(nn.Linear(16, 4, bias=False)), [correlated(64, 16, seed=15)])
    corrected = quantize_by(prepared, settings("int4"), Recipe.parse("bias_correction"))
    plain = quantize_by(prepared, settings("int4"), Recipe())
    assert corrected.network[0].bias is None
    assert torch.equal(corrected.network[0].quant_weight().value, plain.network[0].quant_weight().value)
