import numpy as np
import pytest
import torch
from torch import nn

from quantizers.moments import MomentSums, float_moments, group_count, input_rows, output_places
from tests.quantizers.recipes.layer_problems import LAYERS, disturbed, example_layer, rows_of


def moments_of(layer, inputs, others=None):
    sums = MomentSums(layer, 1, 0)
    sums.add(inputs, others)
    return sums.finish(paired=others is not None)


def close(actual, expected):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", LAYERS)
class TestAgainstNumpy:
    def test_own_inputs(self, kind):
        layer, inputs = example_layer(kind)
        rows, moments = rows_of(layer, inputs), moments_of(layer, inputs)
        close(moments.gram, rows.transpose(0, 2, 1) @ rows / rows.shape[1])
        close(moments.mean, rows.mean(1))
        assert moments.cross is moments.gram
        assert moments.float_mean is moments.mean

    def test_inputs_of_both_networks(self, kind):
        layer, inputs = example_layer(kind)
        changed = disturbed(inputs) + 1
        rows, others = rows_of(layer, changed), rows_of(layer, inputs)
        moments = moments_of(layer, changed, inputs)
        close(moments.gram, rows.transpose(0, 2, 1) @ rows / rows.shape[1])
        close(moments.cross, rows.transpose(0, 2, 1) @ others / rows.shape[1])
        close(moments.mean, rows.mean(1))
        close(moments.float_mean, others.mean(1))

    def test_centred(self, kind):
        layer, inputs = example_layer(kind)
        changed = disturbed(inputs) + 1
        rows, others = rows_of(layer, changed), rows_of(layer, inputs)
        rows, others = rows - rows.mean(1, keepdims=True), others - others.mean(1, keepdims=True)
        moments = moments_of(layer, changed, inputs).centred()
        close(moments.gram, rows.transpose(0, 2, 1) @ rows / rows.shape[1])
        close(moments.cross, rows.transpose(0, 2, 1) @ others / rows.shape[1])
        own = moments_of(layer, inputs).centred()
        close(own.gram, others.transpose(0, 2, 1) @ others / rows.shape[1])
        assert own.cross is own.gram

    def test_additive_over_batches(self, kind):
        layer, inputs = example_layer(kind)
        changed = disturbed(inputs)
        sums = MomentSums(layer, 3, 0)
        size = len(inputs) // 3
        for part, other in zip(changed.split(size), inputs.split(size), strict=True):
            sums.add(part, other)
        parts, whole = sums.finish(paired=True), moments_of(layer, changed, inputs)
        for name in ("gram", "cross", "mean", "float_mean"):
            close(getattr(parts, name), getattr(whole, name))

    def test_rows_give_the_layer(self, kind):
        layer, inputs = example_layer(kind)
        places = torch.arange(output_places(layer, inputs))
        rows = input_rows(layer, inputs, places)
        groups = group_count(layer)
        products = rows @ layer.weight.detach().reshape(groups, len(layer.weight) // groups, -1).mT
        with torch.no_grad():
            expected = layer(inputs) - layer.bias.reshape(-1, *[1] * (inputs.dim() - 2))
        expected = expected.movedim(1, -1).reshape(len(places), -1)
        torch.testing.assert_close(products.transpose(0, 1).flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_linear_takes_tokens_as_rows():
    layer, inputs = example_layer("linear")
    tokens = moments_of(layer, inputs.reshape(30, 10, 12))
    np.testing.assert_array_equal(tokens.gram, moments_of(layer, inputs).gram)


def test_conv1d_and_conv3d():
    torch.manual_seed(8)
    for layer, shape in ((nn.Conv1d(2, 3, 3, padding=1), (4, 2, 7)), (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4))):
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        moments = moments_of(layer, inputs)
        with torch.no_grad():
            outputs = (layer(inputs) - layer.bias.reshape(-1, *[1] * (len(shape) - 2))).movedim(1, -1)
        weight = layer.weight.detach().flatten(1).double().numpy()
        close(
            np.einsum("ci,ij,cj->c", weight, moments.gram[0], weight),
            outputs.reshape(-1, 3).double().square().mean(0).numpy(),
        )


def test_a_sample_of_many_rows_has_their_moments():
    layer = nn.Linear(6, 2)
    inputs = torch.randn(40_000, 6, generator=torch.Generator().manual_seed(6)) + 1
    sums = MomentSums(layer, 1, 0)
    sums.add(inputs)
    sampled = sums.finish(paired=False)
    exact = (inputs.double().T @ inputs.double() / 40_000).numpy()
    # 8192 rows: the noise of an entry is about sqrt(8 / 8192) at most, as E[x^4] - E[x^2]^2 is 6.
    assert np.abs(sampled.gram[0] - exact).max() < 4 * np.sqrt(6 / 8192)
    assert not np.allclose(sampled.gram[0], exact, rtol=1e-6)
    again = MomentSums(layer, 1, 0)
    again.add(inputs)
    np.testing.assert_array_equal(again.finish(paired=False).gram, sampled.gram)
    other = MomentSums(layer, 1, 1)
    other.add(inputs)
    assert not np.array_equal(other.finish(paired=False).gram, sampled.gram)


class TestFloatMoments:
    def test_every_layer_sees_its_own_inputs(self):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
        batches = torch.randn(60, 5).split(20)
        found = float_moments(model, ["0", "2"], batches, 0)
        with torch.no_grad():
            hidden = model[:2](torch.cat(batches)).double().numpy()
        close(found["2"].gram, (hidden.T @ hidden / 60)[None])
        close(found["2"].mean, hidden.mean(0)[None])
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_hooks_go_when_the_model_fails(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.Linear(3, 2))
        with pytest.raises(RuntimeError, match="must match the size"):
            float_moments(model, ["0", "1"], [torch.randn(2, 5)], 0)
        assert not any(module._forward_pre_hooks for module in model.modules())
