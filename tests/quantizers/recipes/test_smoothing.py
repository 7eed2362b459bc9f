import pytest
import torch
from torch import nn

from quantizers.errors import UsageError
from quantizers.prepare import prepare
from quantizers.recipes import Recipe, rewritten
from quantizers.recipes.smoothing import ChannelDivision, SmoothQuant, smoothing_factors
from tests.quantizers.recipes.layer_problems import generator, network_error, settings


def network():
    torch.manual_seed(31)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8))
    with torch.no_grad():
        # As in language models, the outliers do not make up the output.
        model[0].weight[:, ::8] /= 16
    return model


def outliers(seed):
    """Every eighth channel is 30 times as large as the others."""
    x = torch.randn(256, 32, generator=generator(seed))
    x[:, ::8] *= 30
    return x


@pytest.mark.parametrize("name", ["int4", "e2m1"])
@pytest.mark.parametrize("recipe", ["smoothquant", "smoothquant(search=true)"])
def test_helps_where_channels_are_outliers(name, recipe):
    errors = [
        network_error(network(), outliers(32), outliers(33), text, settings(name, name))
        for text in ("round", recipe)
    ]
    assert errors[1] < 0.35 * errors[0]


def test_function_stays():
    prepared = prepare(network(), [outliers(32)])
    smoothed = rewritten(prepared, Recipe.parse("smoothquant"))
    with torch.no_grad():
        torch.testing.assert_close(
            smoothed.model(outliers(33)), prepared.model(outliers(33)), rtol=1e-4, atol=1e-5
        )
    assert isinstance(smoothed.model[0][0], ChannelDivision)
    assert [layer.name for layer in smoothed.layers] == ["0.layer", "2.layer"]


def test_factors_are_the_papers():
    prepared = prepare(network(), [outliers(32)])
    smoothed = rewritten(prepared, Recipe.parse("smoothquant(alpha=0.75)"))
    largest, weights = outliers(32).abs().amax(0), prepared.model[0].weight.abs().amax(0)
    torch.testing.assert_close(smoothed.model[0][0].factors, largest**0.75 / weights**0.25)


def test_channels_without_inputs_or_weights_stay():
    inputs, weights = torch.tensor([0.0, 4.0, 4.0]), torch.tensor([1.0, 0.0, 1.0])
    assert smoothing_factors(inputs, weights, 0.5).tolist() == [1.0, 1.0, 2.0]


def test_depthwise_inputs_are_evened_out_and_grouped_layers_left_alone():
    torch.manual_seed(34)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=2))
    x = torch.randn(8, 4, 8, 8) * torch.tensor([1.0, 3, 10, 30]).reshape(1, -1, 1, 1)
    smoothed = rewritten(prepare(model, [x]), Recipe.parse("smoothquant"))
    torch.testing.assert_close(smoothed.model[0][0].factors, x.abs().amax((0, 2, 3)))
    assert isinstance(smoothed.model[1], nn.Conv2d)
    with torch.no_grad():
        torch.testing.assert_close(smoothed.model(x), model(x), rtol=1e-4, atol=1e-4)


def test_edges_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    smoothed = rewritten(
        prepare(model, [torch.randn(16, 4, generator=generator(35))]), Recipe.parse("smoothquant")
    )
    assert [layer.name for layer in smoothed.layers] == ["0", "1.layer", "2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "smoothquant: alpha must lie in 0..1, not 1.5"),
        ({"bits": 9}, "smoothquant: bits must lie in 2..8, not 9"),
        ({"search": 1}, "smoothquant: search must be of type bool, not 1"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(UsageError) as error:
        SmoothQuant(**options)
    assert str(error.value) == message
