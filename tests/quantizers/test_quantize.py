import copy
import math

import brevitas.nn as qnn
import pytest
import torch
import torch.nn.functional as F
from brevitas.graph.gptq import gptq_mode
from torch import nn

from quantizers.accumulator import safe_accumulator_bits, with_accumulator
from quantizers.errors import UsageError
from quantizers.formats import BlockFormat, parse_format, parse_scalar_format, signed_formats
from quantizers.prepare import prepare
from quantizers.quantize import QuantizationSettings, QuantMatMul, input_scale, layer_summary, quantize
from quantizers.recipes import Recipe, quantize_by

FORMATS = [fmt for bits in range(3, 9) for fmt in signed_formats(bits)]


def settings(weights="int8", activations=None, **options):
    parse = parse_format
    for edge in ("edge_weights", "edge_activations"):
        if edge in options:
            options[edge] = parse(options[edge])
    return QuantizationSettings(parse(weights), parse(activations or weights), **options)


class Net(nn.Module):
    """Four layers: stem, depthwise after ReLU, linear after a residual, head after attention."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.linear = nn.Linear(8, 8, bias=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x - self.depthwise(x)
        tokens = self.linear(x.flatten(2).transpose(1, 2))
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        return self.head(tokens.mean(1))


@pytest.fixture(scope="module")
def images():
    return torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(18))


@pytest.fixture(scope="module")
def prepared(images):
    torch.manual_seed(19)
    return prepare(Net(), [images[:32], images[32:]])


def relative_error(prepared, quantized, images):
    with torch.no_grad():
        expected = prepared.model(images)
        return float((quantized(images) - expected).norm() / expected.norm())


class TestArithmetic:
    @pytest.mark.parametrize(
        ("weights", "activations"), [("int4", "int8"), ("e2m1", "e4m3"), ("e3m0", "int5"), ("int6", "e5m2")]
    )
    def test_is_that_of_the_formats(self, weights, activations):
        """Convolution, ReLU and linear layer, recomputed with the definition of rounding alone."""
        torch.manual_seed(20)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
        x = torch.randn(6, 3, 4, 4)
        weights, activations = parse_scalar_format(weights), parse_scalar_format(activations)
        quantized = quantize(
            prepare(model, [x]),
            QuantizationSettings(
                weights, activations, weights, activations, integer_weights="full", bias="float"
            ),
        )
        layers = [m for m in quantized.modules() if isinstance(m, qnn.QuantConv2d | qnn.QuantLinear)]

        def rounded(tensor, fmt, scale):
            scale = scale.detach().numpy()
            return torch.from_numpy(fmt.round(tensor.detach().numpy() / scale) * scale)

        def parts(layer, value, fmt):
            weight = rounded(layer.weight, weights, layer.weight_quant.scale())
            return rounded(value, fmt, layer.input_quant.scale()), weight, layer.bias

        with torch.no_grad():
            y = F.conv2d(*parts(layers[0], x, activations)).relu().flatten(1)
            y = F.linear(*parts(layers[1], y, activations.unsigned_counterpart))
            assert torch.equal(quantized(x), y)

    def test_integer_weights_are_symmetric_unless_asked_otherwise(self):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
        codes = {}
        for choice in ("narrow", "full"):
            chosen = settings("int3", integer_weights=choice)
            quantized = quantize(prepare(model, [torch.randn(8, 64)]), chosen)
            layer = quantized.network[2]
            steps = layer.quant_weight().value / layer.weight_quant.scale()
            codes[choice] = steps.round().unique().tolist()
            assert (
                layer_summary(quantized)[1].weight_format.name == {"narrow": "int3n", "full": "int3"}[choice]
            )
        assert min(codes["narrow"]) == -3
        assert min(codes["full"]) == -4

    def test_many_bits_change_nothing(self, prepared, images):
        fine = settings("int16", edge_weights="int16", edge_activations="int16")
        assert relative_error(prepared, quantize(prepared, fine), images) < 2e-4

    def test_more_bits_are_closer(self, prepared, images):
        names = ("int3", "int4", "int6", "int8")
        errors = [relative_error(prepared, quantize(prepared, settings(name)), images) for name in names]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.02

    @pytest.mark.parametrize("fmt", FORMATS, ids=str)
    def test_every_format_runs(self, prepared, images, fmt):
        quantized = quantize(prepared, QuantizationSettings(fmt, fmt))
        with torch.no_grad():
            assert quantized(images[:2]).isfinite().all()

    def test_ternary_weights(self, prepared, images):
        quantized = quantize(prepared, settings("ternary", "int8"))
        weight = quantized.network.linear.quant_weight()
        codes = (weight.value / weight.scale).unique()
        assert codes.tolist() == [-1.0, 0.0, 1.0]
        assert weight.bit_width.item() == 2

    def test_same_bits_every_time(self, prepared, images):
        first, second = (quantize(prepared, settings("e2m1")) for _ in range(2))
        with torch.no_grad():
            assert torch.equal(first(images), second(images))

    def test_float_model_and_random_state_are_untouched(self, prepared):
        before, state = copy.deepcopy(prepared.model.state_dict()), torch.get_rng_state()
        quantized = quantize(prepared, settings("int4"))
        for p in quantized.parameters():
            p.data.zero_()
        after = prepared.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(torch.get_rng_state(), state)

    def test_max_and_percentile(self, prepared, images):
        quantized = quantize(
            prepared, settings("int4", weight_scale="max", activation_scale="percentile", percentile=99.0)
        )
        layer = quantized.network.linear
        largest = layer.weight.abs().amax(1, keepdim=True)
        torch.testing.assert_close(layer.weight_quant.scale(), largest / 7)
        clip = prepared.statistics["linear"][0].magnitude_percentile(99.0)
        assert layer.input_quant.scale().item() == pytest.approx(clip / 7, rel=1e-6)


class TestSummary:
    def test_formats(self, prepared):
        quantized = quantize(prepared, settings("e2m1", "e4m3", edge_weights="int6"))
        shown = [
            (layer.name, layer.kind, str(layer.weight_format), str(layer.activation_format))
            for layer in layer_summary(quantized)
        ]
        assert shown == [
            ("stem", "conv2d", "int6n", "int8"),
            ("depthwise", "conv2d", "e2m1", "ue4m4"),
            ("linear", "linear", "e2m1", "e4m3"),
            ("attention.query", "linear", "e2m1", "e4m3"),
            ("attention.key", "linear", "e2m1", "e4m3"),
            ("attention.value", "linear", "e2m1", "e4m3"),
            ("attention.scores", "matmul", "e4m3", "e4m3"),
            ("attention.mix", "matmul", "e4m3", "ue4m4"),
            ("attention.out_proj", "linear", "e2m1", "e4m3"),
            ("head", "linear", "int6n", "int8"),
        ]

    def test_counts_are_those_of_preparation(self, prepared):
        layers = layer_summary(quantize(prepared, settings()))
        counts = [(layer.name, layer.weights, layer.dot_length, layer.macs) for layer in layers]
        assert counts == [(x.name, x.weights, x.dot_length, x.macs) for x in prepared.layers]

    def test_layers_hold_what_the_summary_says(self, prepared):
        quantized = quantize(prepared, settings("int4", "int5"))
        modules = dict(quantized.network.named_modules())
        assert isinstance(modules["attention.mix"], QuantMatMul)
        assert modules["attention.mix"].left_quant.act_quant.is_signed is False
        for layer in layer_summary(quantized):
            if layer.kind != "matmul":
                module = modules[layer.name]
                assert module.weight_quant.bit_width().item() == layer.weight_format.bits
                assert module.input_quant.bit_width().item() == layer.activation_format.bits
                assert module.input_quant.is_signed == layer.activation_format.signed

    def test_signed_everywhere_on_request(self, prepared):
        layers = layer_summary(quantize(prepared, settings("e2m1", unsigned_activations=False)))
        assert {str(layer.activation_format) for layer in layers} == {"e2m1", "int8"}


class TestBias:
    @pytest.mark.parametrize("name", ["int4", "e4m3", "e3m0"])
    def test_fixed_is_on_the_accumulator_grid(self, prepared, name):
        quantized = quantize(prepared, settings(name))
        summary = {layer.name: layer for layer in layer_summary(quantized)}["depthwise"]
        layer = quantized.network.depthwise
        exponent = summary.weight_format.grid.lsb_exponent + summary.activation_format.grid.lsb_exponent
        scale = layer.weight_quant.scale().flatten().double() * layer.input_quant.scale().double()
        step = (scale * 2.0**exponent).detach()
        rounded = layer.bias_quant(layer.bias).double()
        codes = rounded / step
        torch.testing.assert_close(codes, codes.round(), rtol=1e-6, atol=1e-3)
        assert ((rounded - layer.bias).abs() <= 0.501 * step + 1e-7 * layer.bias.abs()).all()
        largest = summary.weight_format.maximum * summary.activation_format.maximum / 2.0**exponent
        assert summary.bias_terms == math.ceil(float(codes.round().abs().max()) / largest)

    def test_float_stays(self, prepared):
        quantized = quantize(prepared, settings("int3", bias="float"))
        assert not quantized.network.depthwise.bias_quant.is_quant_enabled

    def test_no_bias(self, prepared):
        summary = {layer.name: layer for layer in layer_summary(quantize(prepared, settings()))}
        assert summary["linear"].bias_terms == 0

    @pytest.mark.parametrize("name", ["int8", "e4m3"])
    def test_dead_channels_do_not_need_a_wider_accumulator(self, name):
        torch.manual_seed(21)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        model[0].weight.data[1] = 0.0
        model[0].weight.data[2] *= 1e-9
        model[0].bias.data[:] = torch.tensor([0.1, 3.0, -2.0, 0.2])
        x = torch.randn(8, 2, 4, 4)
        edges = {"edge_weights": name, "edge_activations": name}
        quantized = quantize(prepare(model, [x]), settings(name, **edges))
        summary = layer_summary(quantized)[0]
        assert summary.bias_terms == summary.dot_length
        with torch.no_grad():
            torch.testing.assert_close(
                quantized.network[0](x)[:, 1], torch.full((8, 2, 2), 3.0), rtol=1e-3, atol=0
            )


def ordered(weight):
    """As groups run, independently of the library: (channels, features), input channels fastest."""
    return weight.detach().flatten(2).transpose(1, 2).flatten(1) if weight.dim() > 2 else weight.detach()


def rounded_weight(layer):
    with torch.no_grad():
        return layer.weight_quant.tensor_quant(layer.weight)[0]


class TestGroups:
    @pytest.mark.parametrize("name", ["int3", "e2m1", "ternary"])
    @pytest.mark.parametrize("group", [3, 4, 5])
    def test_weights_are_those_of_groups_on_their_own(self, prepared, name, group):
        quantized = quantize(prepared, settings(name, "int8", weight_group=group, weight_scale="max"))
        fmt = layer_summary(quantized)[2].weight_format
        for place in ("depthwise", "linear", "attention.key"):
            layer = quantized.network.get_submodule(place)
            found, weight = ordered(rounded_weight(layer)), ordered(layer.weight)
            for first in range(0, weight.shape[1], group):
                part = weight[:, first : first + group]
                scale = part.abs().amax(1, keepdim=True) / fmt.maximum
                expected = torch.from_numpy(fmt.round((part / scale).numpy())) * scale
                assert torch.equal(found[:, first : first + group], expected)

    def test_a_convolution_with_places_and_channels(self):
        torch.manual_seed(23)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(20, 3))
        quantized = quantize(prepare(model, [torch.randn(4, 3, 6, 6)]), settings("int3", weight_group=8))
        scale = ordered(quantized.network[1].weight_quant.tensor_quant.scale)
        assert scale.shape == (5, 36)
        # Eight features are the four channels of two places.
        assert [len(row.unique()) for row in scale] == [5] * 5
        assert all(torch.equal(scale[:, i], scale[:, i // 8 * 8]) for i in range(36))

    def test_a_group_of_all_features_changes_nothing(self, prepared, images):
        plain, grouped = (quantize(prepared, settings("int3", weight_group=g)) for g in (None, 9))
        with torch.no_grad():
            assert torch.equal(plain(images), grouped(images))
        assert layer_summary(grouped) == layer_summary(plain)

    def test_smaller_groups_are_closer(self):
        torch.manual_seed(24)
        model = nn.Sequential(nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 9))
        prepared = prepare(model, [torch.randn(64, 96)])
        errors = []
        for group in (None, 48, 24, 8):
            layer = quantize(prepared, settings("int3", "int8", weight_group=group)).network[2]
            errors.append(float((rounded_weight(layer) - layer.weight).norm()))
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.9 * errors[0]

    def test_summary(self, prepared):
        layers = {x.name: x for x in layer_summary(quantize(prepared, settings("int4", weight_group=5)))}
        depthwise, linear, stem, scores = (
            layers[name] for name in ("depthwise", "linear", "stem", "attention.scores")
        )
        # Nine features are groups of five and four; eight are five and three.
        assert (depthwise.weight_group, depthwise.weight_scale_bits) == (5, 8 * 2 * 32)
        assert (linear.weight_group, linear.weight_scale_bits) == (5, 8 * 2 * 32)
        assert (depthwise.has_integer_sums, depthwise.has_known_step, depthwise.bias_terms) == (
            False,
            False,
            0,
        )
        assert (stem.weight_group, stem.weight_scale_bits, stem.has_known_step) == (None, 0, True)
        assert stem.bias_terms > 0
        assert scores.has_known_step

    def test_bias_is_float_where_a_channel_has_several_scales(self, prepared):
        network = quantize(prepared, settings("int4", weight_group=4)).network
        assert not network.depthwise.bias_quant.is_quant_enabled
        assert network.stem.bias_quant.is_quant_enabled
        assert network.head.bias_quant.is_quant_enabled


class TestScaleRules:
    def test_powers_of_two(self, prepared):
        choices = {"weight_scale": "mse_power_of_two", "activation_scale": "mse_power_of_two"}
        quantized = quantize(prepared, settings("e2m1", "e4m3", **choices))
        for layer in layer_summary(quantized):
            module = quantized.network.get_submodule(layer.name)
            if layer.weights:
                scales = module.weight_quant.tensor_quant.scale
                assert torch.equal(scales.log2(), scales.log2().round())
                assert math.log2(input_scale(module)).is_integer()

    def test_powers_of_two_stay_so_where_a_bias_raises_them(self):
        torch.manual_seed(25)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 2))
        model[0].weight.data[2] *= 1e-9
        quantized = quantize(
            prepare(model, [torch.randn(8, 2, 4, 4)]), settings("int8", weight_scale="mse_power_of_two")
        )
        scales = quantized.network[0].weight_quant.tensor_quant.scale
        assert torch.equal(scales.log2(), scales.log2().round())
        assert layer_summary(quantized)[0].bias_terms <= 18

    @pytest.mark.parametrize("group", [None, 4])
    def test_mean_of_ternary_weights(self, prepared, group):
        quantized = quantize(
            prepared, settings("ternary", "int8", weight_scale="mean", weight_group=group, bias="float")
        )
        layer = quantized.network.linear
        parts = layer.weight.unflatten(1, (-1, group or 8))
        scale = parts.abs().mean(2, keepdim=True)
        # BitNet b1.58, equations 1 to 3.
        expected = (parts / scale).round().clamp(-1, 1) * scale
        torch.testing.assert_close(rounded_weight(layer), expected.flatten(1))

    def test_mean_leaves_the_edges_at_least_error(self, prepared):
        mean, mse = (
            quantize(prepared, settings("ternary", "int8", weight_scale=s, bias="float"))
            for s in ("mean", "mse")
        )
        for name in ("stem", "head"):
            found, expected = (
                q.network.get_submodule(name).weight_quant.tensor_quant.scale for q in (mean, mse)
            )
            assert torch.equal(found, expected)


def mx(x, fmt, axis=-1):
    return torch.from_numpy(fmt.round(x.detach().movedim(axis, -1).numpy())).movedim(-1, axis)


class TestBlockFormats:
    @pytest.mark.parametrize("weights", ["mxfp4", "mxfp6_e3m2", "mxint8"])
    @pytest.mark.parametrize("activations", ["mxfp6_e2m3", "mxfp8_e4m3", "int8"])
    def test_layers_compute_on_values_of_the_formats(self, weights, activations):
        """Convolution over 40 channels and a linear layer, recomputed with the definition alone."""
        torch.manual_seed(26)
        model = nn.Sequential(
            nn.Conv2d(3, 40, 1), nn.ReLU(), nn.Conv2d(40, 6, 3), nn.Flatten(), nn.Linear(96, 40), nn.ReLU(),
            nn.Linear(40, 3),
        )  # fmt: skip
        prepared = prepare(model, [torch.randn(8, 3, 6, 6)])
        quantized = quantize(prepared, settings(weights, activations))
        conv, linear = quantized.network[2], quantized.network[4]
        w, a = parse_format(weights), parse_format(activations)
        blocks = mx(ordered(conv.weight), w).unflatten(1, (9, 40)).transpose(1, 2).reshape(conv.weight.shape)
        image, row = torch.rand(2, 40, 6, 6), torch.randn(5, 96)

        def rounded(layer, x, axis):
            return mx(x, a, axis) if activations.startswith("mx") else layer.input_quant(x).value

        with torch.no_grad():
            bias = conv.bias_quant(conv.bias, None, None)
            expected = F.conv2d(rounded(conv, image, 1), blocks, getattr(bias, "value", bias))
            torch.testing.assert_close(conv(image), expected, rtol=1e-6, atol=1e-6)
            assert torch.equal(rounded_weight(conv), blocks)
            assert torch.equal(rounded_weight(linear), mx(linear.weight, w))
            expected = F.linear(rounded(linear, row, -1), mx(linear.weight, w), linear.bias)
            torch.testing.assert_close(linear(row), expected, rtol=1e-6, atol=1e-6)

    def test_attention_blocks_run_along_the_dot_product(self, prepared):
        network = quantize(prepared, settings("int8", "mxfp4")).network
        fmt = parse_format("mxfp4")
        left, right = torch.randn(2, 2, 40, 4), torch.randn(2, 2, 4, 40)
        with torch.no_grad():
            assert torch.equal(network.attention.scores(left, right), mx(left, fmt) @ mx(right, fmt, -2))

    def test_edges_stay(self, prepared):
        layers = layer_summary(quantize(prepared, settings("mxfp4", "mxfp4")))
        formats = [(x.name, str(x.weight_format), str(x.activation_format), x.input_scales) for x in layers]
        assert formats[0] == ("stem", "int8n", "int8", "tensor")
        assert formats[1] == ("depthwise", "e2m1", "e2m1", "block")
        assert formats[-1] == ("head", "int8n", "int8", "tensor")

    def test_summary_counts_eight_bits_a_block(self):
        torch.manual_seed(27)
        model = nn.Sequential(nn.Linear(8, 70), nn.ReLU(), nn.Linear(70, 6), nn.ReLU(), nn.Linear(6, 3))
        layer = layer_summary(quantize(prepare(model, [torch.randn(8, 8)]), settings("mxfp4", "int8")))[1]
        assert (layer.weight_group, layer.weight_scale_bits, layer.has_integer_sums) == (32, 6 * 3 * 8, False)


class TestTokens:
    def test_rows_have_scales_of_their_own(self, prepared):
        network = quantize(prepared, settings("int8", "int4", activation_granularity="token")).network
        tokens = torch.randn(2, 7, 8) * torch.logspace(-2, 2, 7)[:, None]
        scale = tokens.abs().amax(-1, keepdim=True) / 7
        rows = torch.from_numpy(parse_scalar_format("int4").round((tokens / scale).numpy())) * scale
        layer = network.linear
        with torch.no_grad():
            torch.testing.assert_close(
                layer(tokens), F.linear(rows, rounded_weight(layer)), rtol=1e-6, atol=1e-6
            )

    def test_where_there_are_tokens(self, prepared):
        quantized = quantize(prepared, settings("int8", "int4", activation_granularity="token"))
        found = {layer.name: layer.input_scales for layer in layer_summary(quantized)}
        tensor = {"stem", "depthwise", "head"}
        assert found == {name: "tensor" if name in tensor else "token" for name in found}
        scores = quantized.network.attention.scores
        assert scores.left_quant.act_quant.fused_activation_quant_proxy.tensor_quant.scale.isnan()
        assert scores.right_quant.act_quant.fused_activation_quant_proxy.tensor_quant.scale > 0
        assert not quantized.network.attention.key.bias_quant.is_quant_enabled
        assert quantized.network.depthwise.bias_quant.is_quant_enabled

    def test_linear_layers_without_tokens_keep_one_scale(self):
        torch.manual_seed(28)
        model = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))
        prepared, x = prepare(model, [torch.randn(8, 8)]), torch.randn(5, 8)
        plain, by_token = (
            quantize(prepared, settings("int4", activation_granularity=g)) for g in ("tensor", "token")
        )
        with torch.no_grad():
            assert torch.equal(plain(x), by_token(x))
        assert layer_summary(plain) == layer_summary(by_token)

    def test_outlying_tokens_do_not_cost_the_others(self, prepared, images):
        errors = {}
        for granularity in ("tensor", "token"):
            chosen = settings("int8", "int4", activation_granularity=granularity)
            errors[granularity] = relative_error(prepared, quantize(prepared, chosen), images)
        assert errors["token"] < 0.8 * errors["tensor"]

    def test_there_is_no_scale_to_ask_for(self, prepared):
        layer = quantize(prepared, settings("int8", activation_granularity="token")).network.linear
        with pytest.raises(UsageError) as error:
            input_scale(layer)
        assert str(error.value) == (
            "this layer's input has no scale of its own: its scales are found at run time"
        )


CHOICES = {
    "groups": {"weights": "int3", "activations": "int8", "weight_group": 12},
    "blocks": {"weights": "mxfp4", "activations": "mxfp6_e2m3"},
    "ternary": {"weights": "ternary", "activations": "int8", "weight_group": 10, "weight_scale": "mean"},
    "tokens": {"weights": "e2m1", "activations": "int6", "activation_granularity": "token"},
    "powers": {"weights": "e2m1", "activations": "e3m2", "weight_scale": "mse_power_of_two"},
}


class TestRecipes:
    """Steps of recipes leave every weight on the grid of its own scale."""

    @pytest.fixture(scope="class")
    @classmethod
    def correlated(cls):
        torch.manual_seed(29)
        x = torch.randn(256, 6, 8) @ torch.randn(8, 40) + 0.1 * torch.randn(256, 6, 40)
        model = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 4))
        return prepare(model, [x]), x

    @pytest.mark.parametrize("choice", CHOICES)
    @pytest.mark.parametrize(
        "recipe",
        ["gptq", "gptq(order='given') + bias_correction", "gpfq", "qronos", "coordinate_descent",
         "learned_rounding(iterations=100)"],
    )  # fmt: skip
    def test_every_step_works(self, correlated, choice, recipe):
        prepared, x = correlated
        chosen = settings(**CHOICES[choice])
        plain = quantize(prepared, chosen)
        solved = quantize_by(prepared, chosen, Recipe.parse(recipe))
        layer = solved.network[2]
        scale = layer.weight_quant.tensor_quant.scale.detach()
        assert torch.equal(scale, plain.network[2].weight_quant.tensor_quant.scale)
        assert torch.equal(rounded_weight(layer), layer.weight)
        fmt = layer_summary(solved)[1].weight_format
        codes = layer.weight / scale
        torch.testing.assert_close(codes, torch.from_numpy(fmt.round(codes.numpy())), rtol=1e-6, atol=1e-6)
        assert relative_error(prepared, solved, x) < relative_error(prepared, plain, x)


class TestAccumulators:
    @pytest.mark.parametrize(
        "options", [{"weight_group": 4}, {"weights": "mxfp4"}, {"activations": "mxfp4"}], ids=str
    )
    def test_none_adds_products_of_several_scales(self, options):
        torch.manual_seed(30)
        model = nn.Sequential(nn.Linear(9, 40), nn.ReLU(), nn.Linear(40, 9), nn.ReLU(), nn.Linear(9, 3))
        quantized = quantize(prepare(model, [torch.randn(8, 9)]), settings(**{"weights": "int4", **options}))
        for use in (safe_accumulator_bits, lambda q: with_accumulator(q, 16)):
            with pytest.raises(UsageError) as error:
                use(quantized)
            assert str(error.value) == (
                "layer '2' has several scales within a sum (groups of weights, blocks of inputs): "
                "no accumulator of integers adds its products"
            )

    def test_tokens_have_a_safe_width(self, prepared):
        by_token = quantize(prepared, settings("int4", activation_granularity="token", bias="float"))
        plain = quantize(prepared, settings("int4", bias="float"))
        assert safe_accumulator_bits(by_token) == safe_accumulator_bits(plain)
        with pytest.raises(UsageError, match=r"^this layer's input has no scale of its own"):
            with_accumulator(by_token, 4)


class TestBrevitas:
    @pytest.mark.parametrize("name", ["int4", "e2m1"])
    def test_gptq_works(self, name):
        """With scales recomputed from the weights it would silently change nothing."""
        torch.manual_seed(22)
        x = torch.randn(512, 4) @ torch.randn(4, 32) + 0.1 * torch.randn(512, 32)
        model = nn.Sequential(nn.Linear(32, 32, bias=False))
        prepared = prepare(model, [x])
        quantized = quantize(prepared, settings(name, "int8", edge_weights=name))
        before = relative_error(prepared, quantized, x)
        with torch.no_grad(), gptq_mode(quantized.network) as gptq:
            for _ in range(gptq.num_layers):
                gptq.model(x)
                gptq.update()
        assert relative_error(prepared, quantized, x) < 0.75 * before

    def test_can_be_copied(self, prepared, images):
        quantized = quantize(prepared, settings("e2m1"))
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(quantized)(images), quantized(images))

    def test_scales_are_parameters_that_are_saved(self, prepared, images):
        quantized = quantize(prepared, settings("e2m1"))
        other = quantize(prepared, settings("e2m1", weight_scale="max"))
        names = [name for name in quantized.state_dict() if name.endswith("weight_quant.tensor_quant.scale")]
        assert len(names) == 8
        other.load_state_dict(quantized.state_dict())
        with torch.no_grad():
            assert torch.equal(other(images), quantized(images))


class TestResiduals:
    def test_only_the_sum_of_two_activations_is_quantized(self, prepared, images):
        quantized = quantize(prepared, settings("int8", residuals=parse_format("e4m3")))
        assert {name: fmt.name for name, fmt in quantized.residual_adds.items()} == {"residual_add_0": "e4m3"}
        plain = quantize(prepared, settings("int8"))
        assert plain.residual_adds == {}
        assert layer_summary(quantized) == layer_summary(plain)
        with torch.no_grad():
            assert not torch.equal(quantized(images), plain(images))

    def test_accumulators_go_with_it(self, prepared, images):
        quantized = quantize(prepared, settings("int4", residuals=parse_format("int8")))
        wide = with_accumulator(quantized, 32)
        assert wide.residual_adds == quantized.residual_adds
        with torch.no_grad():
            torch.testing.assert_close(wide(images), quantized(images), rtol=1e-4, atol=1e-4)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"edge_weights": parse_format("mxint8")},
                "edge_weights cannot be mxint8: its scales are shared between elements; use a scalar format",
            ),
            ({"activations": parse_format("ternary")}, "activations cannot be ternary, which is for weights"),
            (
                {"weights": parse_format("uint8")},
                "weights cannot be uint8: give the signed format; inputs never negative lose the sign bit",
            ),
            (
                {"weight_scale": "mes"},
                "unknown weight_scale 'mes' (did you mean 'mse'?); "
                "expected one of: mse, max, mse_power_of_two, mean",
            ),
            (
                {"activation_scale": "max"},
                "unknown activation_scale 'max'; expected one of: mse, percentile, mse_power_of_two",
            ),
            (
                {"activation_granularity": "row"},
                "unknown activation_granularity 'row'; expected one of: tensor, token",
            ),
            ({"weight_group": 0}, "weight_group must be a positive number of features, not 0"),
            ({"weight_group": True}, "weight_group must be a positive number of features, not True"),
            (
                {"weights": parse_format("mxfp4"), "weight_group": 64},
                "weight_group 64 does not go with weights mxfp4: its blocks of 32 have scales of their own",
            ),
            (
                {"activations": parse_format("mxint8"), "activation_granularity": "token"},
                "activation_granularity 'token' does not go with activations mxint8: its blocks of 32 have "
                "scales of their own",
            ),
            ({"weight_scale": "mean"}, "weight_scale 'mean' is for ternary weights, not int8"),
            (
                {"residuals": parse_format("mxint8")},
                "residuals cannot be mxint8: its scales are shared between elements; use a scalar format",
            ),
            ({"residuals": parse_format("ternary")}, "residuals cannot be ternary, which is for weights"),
            (
                {"residuals": parse_format("uint8")},
                "residuals cannot be uint8: give the signed format; inputs never negative lose the sign bit",
            ),
            ({"bias": "int32"}, "unknown bias 'int32'; expected one of: fixed, float"),
            ({"percentile": 0.0}, "percentile must be above 0 and at most 100, not 0.0"),
            ({"percentile": float("nan")}, "percentile must be above 0 and at most 100, not nan"),
        ],
    )
    def test_settings(self, options, message):
        int8 = parse_scalar_format("int8")
        with pytest.raises(UsageError) as error:
            QuantizationSettings(**{"weights": int8, "activations": int8, **options})
        assert str(error.value) == message

    def test_block_formats_are_not_scalar(self):
        assert isinstance(parse_format("mxfp4"), BlockFormat)
