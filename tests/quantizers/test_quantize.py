import copy
import math

import brevitas.nn as qnn
import pytest
import torch
import torch.nn.functional as F
from brevitas.graph.gptq import gptq_mode
from torch import nn

from quantizers.errors import UsageError
from quantizers.formats import BlockFormat, parse_format, parse_scalar_format, signed_formats
from quantizers.prepare import prepare
from quantizers.quantize import QuantizationSettings, QuantMatMul, layer_summary, quantize

FORMATS = [fmt for bits in range(3, 9) for fmt in signed_formats(bits)]


def settings(weights="int8", activations=None, **options):
    parse = parse_scalar_format
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


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"weights": parse_format("mxfp4")},
                "weights cannot be mxfp4: its scales are shared between elements; use a scalar format",
            ),
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
                "unknown weight_scale 'mes' (did you mean 'mse'?); expected one of: mse, max",
            ),
            (
                {"activation_scale": "max"},
                "unknown activation_scale 'max'; expected one of: mse, percentile",
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
