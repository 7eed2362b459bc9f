import pytest
import torch
from torch import nn

from quantizers.errors import UsageError
from quantizers.prepare import prepare
from quantizers.recipes import Recipe, rewritten
from quantizers.recipes.equalization import Equalize
from tests.quantizers.recipes.layer_problems import generator, network_error, settings


def images(seed):
    return torch.randn(32, 3, 8, 8, generator=generator(seed))


def imbalanced():
    """Channels between two convolutions differ by up to a factor of 1000; the function does not show it."""
    torch.manual_seed(21)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(512, 4),
    )
    factors = 10 ** (3 * torch.rand(8) - 1.5)
    with torch.no_grad():
        model[0].weight *= factors.reshape(-1, 1, 1, 1)
        model[0].bias *= factors
        model[2].weight /= factors.reshape(1, -1, 1, 1)
    return model


@pytest.mark.parametrize("name", ["int4", "e2m1"])
def test_helps_where_channels_are_imbalanced(name):
    errors = [
        network_error(imbalanced(), images(22), images(23), recipe, settings(name, name))
        for recipe in ("round", "equalize")
    ]
    assert errors[1] < 0.25 * errors[0]


def test_function_stays_and_ranges_meet():
    prepared = prepare(imbalanced(), [images(22)])
    before = [p.clone() for p in prepared.model.parameters()]
    changed = rewritten(prepared, Recipe.parse("equalize"))
    with torch.no_grad():
        torch.testing.assert_close(
            changed.model(images(23)), prepared.model(images(23)), rtol=1e-3, atol=1e-4
        )
    ranges = changed.model[0].weight.abs().amax((1, 2, 3)), changed.model[2].weight.abs().amax((0, 2, 3))
    torch.testing.assert_close(*ranges, rtol=0.05, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, prepared.model.parameters(), strict=True))


def test_relu6_leaves_nothing_to_do():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU6(), nn.Linear(4, 2))
    with pytest.raises(UsageError) as error:
        rewritten(prepare(model, [torch.randn(8, 4)]), Recipe((Equalize(),)))
    assert str(error.value) == (
        "equalize finds nothing to do in Sequential: no two layers have only ReLU, pooling or additions between them"
    )


class Undecided(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


def test_a_layer_that_cannot_be_traced_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Undecided()), nn.Linear(4, 2))
    with pytest.raises(UsageError) as error:
        rewritten(prepare(model, [torch.randn(8, 4)]), Recipe.parse("equalize"))
    assert str(error.value) == (
        "equalize needs a model that can be traced: layer '1.1' (Undecided) cannot be traced: "
        "symbolically traced variables cannot be used as inputs to control flow"
    )
    assert error.value.given == "layer '1.1' (Undecided)"


def test_optional_arguments_keep_their_defaults():
    class Optional(nn.Sequential):
        def forward(self, x, scale=None):
            return super().forward(x if scale is None else scale * x)

    torch.manual_seed(9)
    model = Optional(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    images = torch.randn(8, 4)
    equalized = rewritten(prepare(model, [images]), Recipe.parse("equalize"))
    torch.testing.assert_close(equalized.model(images), model(images))
    assert not torch.equal(equalized.model[0].weight, model[0].weight)


@pytest.mark.parametrize("iterations", [0, 1001])
def test_iterations_have_a_range(iterations):
    with pytest.raises(UsageError) as error:
        Equalize(iterations=iterations)
    assert str(error.value) == f"equalize: iterations must lie in 1..1000, not {iterations}"
