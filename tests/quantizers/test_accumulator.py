"""Accumulators of a given width against brute force and against a loop over Python integers."""

import functools
import itertools

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from torch import nn

from quantizers import accumulator
from quantizers.accumulator import (
    AccumulatorLayer,
    check_accumulator,
    narrowest_safe_bits,
    safe_accumulator_bits,
    with_accumulator,
)
from quantizers.attention import MatMul
from quantizers.errors import UsageError
from quantizers.formats import parse_format, parse_scalar_format
from quantizers.prepare import prepare
from quantizers.quantize import QuantizationSettings, input_scale, quantize

OVERFLOWS = ["wrap", "saturate"]

# name: (layer, shape of its input)
LAYERS = {
    "linear": (lambda: nn.Linear(7, 4), (5, 7)),
    "linear of tokens": (lambda: nn.Linear(6, 3, bias=False), (2, 3, 6)),
    "linear of grids": (lambda: nn.Linear(5, 2), (2, 2, 3, 5)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3), (2, 2, 4, 5)),
    "strided and padded": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 5, 4)),
    "dilated": (lambda: nn.Conv2d(2, 3, 2, dilation=2, bias=False), (2, 2, 4, 5)),
    "of two axes": (
        lambda: nn.Conv2d(2, 3, (1, 3), stride=(1, 2), padding=(0, 2), dilation=(1, 2)),
        (2, 2, 2, 5),
    ),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 3, 4)),
    "depthwise multiplied": (lambda: nn.Conv2d(2, 6, 2, groups=2), (2, 2, 3, 3)),
    "grouped": (lambda: nn.Conv2d(4, 6, 2, groups=2), (2, 4, 3, 3)),
    "pointwise": (lambda: nn.Conv2d(5, 3, 1, stride=2), (2, 5, 3, 3)),
    "one axis": (lambda: nn.Conv1d(4, 2, 3, stride=2, padding=1, groups=2), (3, 4, 6)),
    "three axes": (lambda: nn.Conv3d(2, 2, 2, padding=(1, 0, 0)), (2, 2, 2, 3, 2)),
    "reflected": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), (2, 2, 3, 4)),
    "replicated": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"), (2, 2, 3, 4)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 3, 4)),
}
# Products up to 2**8, 2**11, 2**36 and 2**66: sums in float32 (the first two), float64 and two words.
PAIRS = [("int4", "int6"), ("e2m1", "int8"), ("e4m3", "e4m3"), ("e5m2", "e5m2")]
NUMPY_PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def settings(weights, activations, **options):
    weights, activations = parse_format(weights), parse_format(activations)
    return QuantizationSettings(weights, activations, **options)


def over_many_binades(shape, binades=12):
    """Numbers of both signs, so that small products reach the low bits of a minifloat's sums."""
    return torch.randn(shape) * 2.0 ** torch.randint(-binades, 1, shape)


@functools.cache
def single_layer(name, weights, activations, bias="fixed"):
    """The layer of that name, quantized, and inputs for it; the tests change neither."""
    make, shape = LAYERS[name]
    torch.manual_seed(41)
    layer = make()
    with torch.no_grad():
        layer.weight.copy_(over_many_binades(layer.weight.shape))
    inputs = over_many_binades(shape)
    chosen = settings(weights, activations, bias=bias)
    return quantize(prepare(nn.Sequential(layer), [inputs]), chosen), inputs


def small_network(weights="int4", activations="int4", **options):
    """Seven layers: convolution, depthwise, pointwise, linear, two products of activations, linear."""
    torch.manual_seed(42)
    inputs = torch.randn(16, 2, 6, 6)
    return quantize(prepare(SmallNetwork(), [inputs]), settings(weights, activations, **options)), inputs


class SmallNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="circular")
        self.pointwise = nn.Conv2d(8, 8, 1, bias=False)
        self.linear = nn.Linear(8, 8)
        self.scores, self.mixed = MatMul(), MatMul()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.pointwise(self.depthwise(self.stem(x).relu()).relu())
        tokens = self.linear(x.flatten(2).transpose(1, 2))
        tokens = self.mixed(self.scores(tokens, tokens.transpose(1, 2)).softmax(-1), tokens)
        return self.head(tokens.mean(1))


def integers(values, fmt, scale):
    """The nearest values of the format as Python integers, in units of its least significant bit."""
    steps = fmt.round(values.detach().numpy() / scale) / 2.0**fmt.grid.lsb_exponent
    return python_integers(steps)


def python_integers(values):
    return np.vectorize(int, otypes=[object])(values)


def weights_and_starts(quantized, name="0"):
    """Integer weights of the layer's shape and the integer that each channel starts from."""
    (summary,) = (layer for layer in quantized.layers if layer.name == name)
    module = quantized.network.get_submodule(name)
    scale = module.weight_quant.scale().detach().numpy()
    weights = integers(module.weight, summary.weight_format, scale)
    if module.bias is None or quantized.settings.bias == "float":
        return weights, [0] * len(weights)
    lsb = 2.0 ** (summary.weight_format.grid.lsb_exponent + summary.activation_format.grid.lsb_exponent)
    steps = scale.astype(np.float64).flatten() * input_scale(module) * lsb
    starts = np.rint(module.bias.detach().double().numpy() / steps)
    return weights, [int(start) for start in starts]


def input_codes(quantized, inputs, name="0"):
    (summary,) = (layer for layer in quantized.layers if layer.name == name)
    scale = np.float32(input_scale(quantized.network.get_submodule(name)))
    return integers(inputs, summary.activation_format, scale)


def operands(quantized, inputs):
    """For every output of the one layer, in its shape: where it starts, and its factors in order."""
    layer = quantized.network[0]
    weights, starts = weights_and_starts(quantized)
    codes = input_codes(quantized, inputs)
    if isinstance(layer, nn.Linear):
        rows = codes.reshape(-1, codes.shape[-1])
        terms = [(start, row, weight) for row in rows for start, weight in zip(starts, weights, strict=True)]
        return terms, (*codes.shape[:-1], len(weights))
    padding = [(0, 0), (0, 0), *((p, p) for p in layer.padding)]
    codes = python_integers(np.pad(codes, padding, mode=NUMPY_PADDING[layer.padding_mode]))
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    places = [
        range(0, size - r + 1, s) for size, r, s in zip(codes.shape[2:], reach, layer.stride, strict=True)
    ]
    in_group, out_group = (c // layer.groups for c in (layer.in_channels, layer.out_channels))
    terms = []
    for image, channel, place in itertools.product(codes, range(len(weights)), itertools.product(*places)):
        window = tuple(
            slice(first, first + r, d) for first, r, d in zip(place, reach, layer.dilation, strict=True)
        )
        first = channel // out_group * in_group
        row = image[(slice(first, first + in_group), *window)].flatten()
        terms.append((starts[channel], row, weights[channel].flatten()))
    return terms, (len(codes), len(weights), *map(len, places))


def kept(value, bits, overflow):
    half = 2 ** (bits - 1)
    if overflow == "wrap":
        return (value + half) % (2 * half) - half
    return max(-half, min(half - 1, value))


def accumulated(start, row, weights, bits, overflow):
    total = kept(start, bits, overflow)
    for code, weight in zip(row, weights, strict=True):
        total = kept(total + code * weight, bits, overflow)
    return total


def exact(start, row, weights):
    return start + sum(code * weight for code, weight in zip(row, weights, strict=True))


def assert_sums(sums, expected, shape):
    """Equal as float64, which rounds those beyond 2**53."""
    assert sums.dtype == torch.float64
    assert sums.shape == shape
    assert sums.flatten().tolist() == [float(value) for value in expected]


def width_of(values):
    """The narrowest of at least two bits that holds all of them, by trying one after the other."""
    return next(b for b in itertools.count(2) if all(kept(v, b, "wrap") == v for v in values))


class TestSafeBits:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("relu", [False, True], ids=["signed", "unsigned"])
    @pytest.mark.parametrize(
        ("weights", "activations"),
        [("int3", "int3"), ("int4", "int2"), ("e1m1", "int3"), ("e2m1", "e2m0"), ("ternary", "e1m1")],
    )
    @pytest.mark.parametrize(
        ("make", "shape"),
        [
            (lambda bias: nn.Linear(4, 3, bias=bias), (4,)),
            (lambda bias: nn.Conv2d(1, 2, 2, bias=bias), (1, 2, 2)),
            (lambda bias: nn.Conv1d(6, 3, 2, groups=3, bias=bias), (6, 2)),
        ],
        ids=["linear", "convolution", "grouped"],
    )
    def test_is_the_narrowest_for_all_input_codes(self, make, shape, weights, activations, relu, bias):
        torch.manual_seed(43)
        layers = [nn.ReLU(), make(bias)] if relu else [make(bias)]
        model = nn.Sequential(*layers)
        name = str(len(layers) - 1)
        quantized = quantize(prepare(model, [torch.randn(64, *shape)]), settings(weights, activations))
        (summary,) = quantized.layers
        fmt = summary.activation_format
        assert fmt.signed is not relu
        bits = safe_accumulator_bits(quantized)
        assert list(bits) == [name]

        values = np.unique(fmt.values())
        codes = np.array(list(itertools.product(values / 2.0**fmt.grid.lsb_exponent, repeat=4)))
        assert len(codes) == len(values) ** 4
        products, starts = self.products(quantized, name, codes)
        prefixes = starts[:, None, None] + np.cumsum(products, axis=2)
        assert bits[name] == width_of([prefixes.min(), prefixes.max(), *starts.tolist()])

        narrower, totals = bits[name] - 1, prefixes[..., -1]
        overflowing = np.argwhere((totals < -(2 ** (narrower - 1))) | (totals >= 2 ** (narrower - 1)))
        inputs = self.inputs(shape, codes, fmt, input_scale(quantized.network[-1]))
        exactly = with_accumulator(quantized, None).network[-1].sums(inputs)
        assert torch.equal(exactly.reshape(len(codes), -1).T, torch.from_numpy(totals).double())
        channel, image = overflowing[0]
        for overflow in OVERFLOWS:
            narrow = with_accumulator(quantized, narrower, overflow=overflow).network[-1]
            assert narrow.sums(inputs[image : image + 1])[0, channel] != exactly[image, channel]
            wide = AccumulatorLayer(quantized.network[-1], summary, bits[name], overflow)
            assert torch.equal(wide.sums(inputs), exactly)

    @staticmethod
    def products(quantized, name, codes):
        """Of every channel and every choice of codes ``(channels, choices, 4)``; and the starts."""
        weights, starts = weights_and_starts(quantized, name)
        flat = weights.reshape(len(weights), 1, -1).astype(np.int64)
        return codes.astype(np.int64) * flat, np.array(starts)

    @staticmethod
    def inputs(shape, codes, fmt, scale):
        """Inputs that round to *codes*; every group of channels gets the same ones."""
        values = torch.from_numpy(codes * 2.0**fmt.grid.lsb_exponent * scale).float()
        groups = int(np.prod(shape)) // codes.shape[1]
        return values.repeat(1, groups).reshape(-1, *shape)

    def test_products_of_two_activations_take_the_extremes_of_both(self):
        quantized, _ = small_network("e2m1", "e2m1")
        bits = safe_accumulator_bits(quantized)
        assert list(bits) == ["stem", "depthwise", "pointwise", "linear", "scores", "mixed", "head"]
        for name in ("scores", "mixed"):
            (layer,) = (layer for layer in quantized.layers if layer.name == name)
            products = [
                a * b * layer.dot_length / 2.0 ** (f.grid.lsb_exponent + g.grid.lsb_exponent)
                for f, g in [(layer.activation_format, layer.weight_format)]
                for a in f.values()
                for b in g.values()
            ]
            assert bits[name] == width_of([int(min(products)), int(max(products))])
        # 8 x 12 x 12, signed; 9 x 28 x 12 with ue2m2, of half the step.
        assert (bits["scores"], bits["mixed"]) == (12, 13)
        assert narrowest_safe_bits(quantized) == max(bits.values())

    def test_weights_of_zero_need_two_bits(self):
        quantized = quantize(
            prepare(nn.Sequential(nn.Linear(3, 2, bias=False)), [torch.ones(2, 3)]), settings("int4", "int4")
        )
        with torch.no_grad():
            quantized.network[0].weight.zero_()
        assert safe_accumulator_bits(quantized) == {"0": 2}

    def test_sums_of_more_than_64_bits(self):
        quantized, _ = single_layer("linear", "e5m2", "e5m2")
        weights, starts = weights_and_starts(quantized)
        fmt = parse_scalar_format("e5m2")
        largest = int(fmt.maximum / 2.0**fmt.grid.lsb_exponent)
        ends = [
            start + sign * largest * sum(map(abs, row))
            for row, start in zip(weights, starts, strict=True)
            for sign in (-1, 1)
        ]
        bits = width_of(ends)
        assert bits > 64
        assert safe_accumulator_bits(quantized) == {"0": bits}

    def test_stays_after_the_layer_has_an_accumulator(self):
        quantized, _ = small_network()
        narrow = with_accumulator(quantized, 6)
        assert safe_accumulator_bits(narrow) == safe_accumulator_bits(quantized)

    @pytest.mark.parametrize("options", [{"weight_group": 4}, {"activations": "mxfp4"}], ids=str)
    def test_several_scales_within_a_sum(self, options):
        quantized, _ = small_network(**options, bias="float")
        for use in (safe_accumulator_bits, narrowest_safe_bits, lambda q: with_accumulator(q, 16)):
            with pytest.raises(UsageError) as error:
                use(quantized)
            assert str(error.value) == (
                "layer 'depthwise' has several scales within a sum (groups of weights, blocks of "
                "inputs): no accumulator of integers adds its products"
            )
            assert error.value.given == "depthwise"
            assert error.value.expected == ["one weight scale per channel", "no block formats"]


class TestSums:
    @pytest.mark.parametrize("name", LAYERS)
    def test_of_one_image_and_of_none(self, name):
        quantized, inputs = single_layer(name, *PAIRS[0])
        exact = with_accumulator(quantized, None).network[0]
        assert torch.equal(exact.sums(inputs[0]), exact.sums(inputs)[0])
        assert exact.sums(inputs[:0]).shape == exact.sums(inputs)[:0].shape

    @pytest.mark.parametrize("overflow", OVERFLOWS)
    @pytest.mark.parametrize(("weights", "activations"), PAIRS)
    @pytest.mark.parametrize("name", LAYERS)
    def test_are_those_of_a_loop(self, name, weights, activations, overflow):
        quantized, inputs = single_layer(name, weights, activations)
        terms, shape = operands(quantized, inputs)
        totals = [exact(*term) for term in terms]
        bits = width_of(totals) - 2
        narrow = with_accumulator(quantized, bits, overflow=overflow).network[0]
        expected = [accumulated(*term, bits, overflow) for term in terms]
        assert expected != totals
        assert_sums(narrow.sums(inputs), expected, shape)
        assert_sums(with_accumulator(quantized, None).network[0].sums(inputs), totals, shape)

    @pytest.mark.parametrize("overflow", OVERFLOWS)
    @pytest.mark.parametrize("name", ["linear", "depthwise"])
    @pytest.mark.parametrize(
        ("fmt", "bits"),
        [("e4m3", b) for b in (8, 24, 25, 26, 33)]
        + [("e5m2", b) for b in (16, 24, 25, 26, 39, 40, 41, 42, 53, 54, 55, 56, 60, 64)],
    )
    def test_of_minifloats_at_any_width(self, fmt, bits, name, overflow):
        quantized, inputs = single_layer(name, fmt, fmt)
        terms, shape = operands(quantized, inputs)
        expected = [accumulated(*term, bits, overflow) for term in terms]
        assert len({value for value in expected if value}) > 1
        narrow = with_accumulator(quantized, bits, overflow=overflow).network[0]
        assert_sums(narrow.sums(inputs), expected, shape)

    @pytest.mark.parametrize(
        ("weights", "activations", "bits"),
        # Products up to 4095 * 4096 < 2**24 are floats; those of the others are not.
        [("int13", "int13", b) for b in (23, 24, 25, 26)] + [("int16", "int16", b) for b in (24, 25, 30)],
    )
    def test_that_saturate_where_float32_ends(self, weights, activations, bits):
        torch.manual_seed(45)
        layer = nn.Linear(12, 3)
        with torch.no_grad():
            layer.weight.copy_(layer.weight.sign() * (0.5 + 0.5 * torch.rand(3, 12)))
        inputs = torch.cat([torch.randn(20, 12), 1e9 * layer.weight.sign(), -1e9 * layer.weight.sign()])
        quantized = quantize(
            prepare(nn.Sequential(layer), [torch.randn(64, 12)]), settings(weights, activations)
        )
        terms, shape = operands(quantized, inputs.detach())
        expected = [accumulated(*term, bits, "saturate") for term in terms]
        assert 2 ** (bits - 1) - 1 in expected
        assert -(2 ** (bits - 1)) in expected
        narrow = with_accumulator(quantized, bits, overflow="saturate").network[0]
        assert_sums(narrow.sums(inputs), expected, shape)

    @pytest.mark.parametrize("bits", [8, 44, 54])
    def test_that_wrap_where_float64_ends(self, bits):
        """Eight products of 105 * 2**44 and then one of 1, which a float64 sum loses."""
        torch.manual_seed(46)
        layer = nn.Linear(9, 1, bias=False)
        quantized = quantize(prepare(nn.Sequential(layer), [torch.randn(8, 9)]), settings("e4m3", "e5m2"))
        changed = quantized.network[0]
        weights = torch.tensor([15.0 * 2**14] * 8 + [1.0]) * 2.0**-9
        inputs = torch.tensor([[7.0 * 2**30] * 8 + [1.0]]) * 2.0**-16 * input_scale(changed)
        with torch.no_grad():
            changed.weight.copy_(weights * changed.weight_quant.scale())
        ((start, row, factors),), shape = operands(quantized, inputs)
        total = exact(start, row, factors)
        assert total == 8 * 105 * 2**44 + 1
        assert int(float(total)) == total - 1
        narrow = with_accumulator(quantized, bits).network[0]
        assert_sums(narrow.sums(inputs), [kept(total, bits, "wrap")], shape)

    def test_saturate_in_the_order_of_the_weight(self):
        """6 + 6 - 6 + 2 stops at 7 and ends at 3; channel after channel, 6 - 6 + 6 + 2 would end at 7."""
        weight = torch.tensor([[[[3.0, 3.0]], [[-3.0, 1.0]]]])
        layer = nn.Conv2d(2, 1, (1, 2), bias=False)
        with torch.no_grad():
            layer.weight.copy_(weight)
        quantized = quantize(
            prepare(nn.Sequential(layer), [torch.full((2, 2, 1, 2), 3.0)]), settings("int3", "int3")
        )
        scale = input_scale(quantized.network[0])
        inputs = torch.full((1, 2, 1, 2), 2 * scale)
        weights, _ = weights_and_starts(quantized)
        assert weights.flatten().tolist() == [3, 3, -3, 1]
        sums = {
            o: with_accumulator(quantized, 4, overflow=o).network[0].sums(inputs).item() for o in OVERFLOWS
        }
        assert sums == {"saturate": 3.0, "wrap": -8.0}

    @pytest.mark.parametrize("overflow", OVERFLOWS)
    def test_start_from_the_integer_bias(self, overflow):
        """A bias beyond the accumulator is wrapped or clipped before the first product."""
        quantized, _ = single_layer("linear", "int4", "int6")
        _, starts = weights_and_starts(quantized)
        bits = width_of(starts) - 1
        narrow = with_accumulator(quantized, bits, overflow=overflow).network[0]
        expected = [kept(start, bits, overflow) for start in starts]
        assert expected != starts
        assert narrow.sums(torch.zeros(1, 7)).tolist() == [[float(value) for value in expected]]

    @pytest.mark.parametrize("overflow", OVERFLOWS)
    @pytest.mark.parametrize("name", ["strided and padded", "grouped", "one axis"])
    def test_do_not_depend_on_how_many_images_are_unfolded_at_a_time(self, monkeypatch, name, overflow):
        quantized, _ = single_layer(name, "int4", "int6")
        torch.manual_seed(44)
        inputs = torch.randn(7, *LAYERS[name][1][1:])
        narrow = with_accumulator(quantized, 6, overflow=overflow).network[0]
        at_once = narrow.sums(inputs)
        unfolded = inputs[0].numel() * int(np.prod(narrow.layer.kernel_size))
        for elements in (1, 3 * unfolded):
            monkeypatch.setattr(accumulator, "_UNFOLDED_ELEMENTS", elements)
            assert torch.equal(narrow.sums(inputs), at_once)

    def test_of_one_vector(self):
        quantized, inputs = single_layer("linear", "int4", "int6")
        narrow = with_accumulator(quantized, 6).network[0]
        assert torch.equal(narrow.sums(inputs[0]), narrow.sums(inputs)[0])
        assert narrow(inputs[0]).shape == (4,)


class TestOutputs:
    @pytest.mark.parametrize("bias", ["fixed", "float"])
    @pytest.mark.parametrize("name", ["linear", "convolution", "depthwise"])
    def test_are_sums_times_scales_plus_a_float_bias(self, name, bias):
        quantized, inputs = single_layer(name, "e2m1", "int8", bias)
        narrow = with_accumulator(quantized, 8).network[0]
        layer = quantized.network[0]
        scale = layer.weight_quant.scale().detach().double().flatten().numpy()
        # e2m1 has steps of 1/2, int8 of 1.
        per_channel = (-1, *[1] * (layer.weight.dim() - 2))
        scale = (scale * input_scale(layer) * 0.5).reshape(per_channel)
        expected = narrow.sums(inputs).numpy() * scale
        if bias == "float":
            expected = expected + layer.bias.detach().double().numpy().reshape(per_channel)
        outputs = narrow(inputs)
        assert outputs.dtype == torch.float32
        assert outputs.tolist() == expected.astype(np.float32).tolist()

    @pytest.mark.parametrize(("weights", "activations"), PAIRS)
    @pytest.mark.parametrize("bias", ["fixed", "float"])
    @pytest.mark.parametrize("name", LAYERS)
    def test_of_integers_without_end_are_those_of_the_float_layer(self, name, weights, activations, bias):
        quantized, inputs = single_layer(name, weights, activations, bias)
        endless = with_accumulator(quantized, None)
        assert isinstance(endless.network[0], AccumulatorLayer)
        with torch.no_grad():
            expected = quantized(inputs)
            largest = float(expected.abs().max())
            torch.testing.assert_close(endless(inputs), expected, rtol=0, atol=1e-6 * largest)

    def test_of_a_network_of_integers_without_end(self):
        quantized, inputs = small_network("int8", "int8")
        endless = with_accumulator(quantized, None)
        with torch.no_grad():
            torch.testing.assert_close(endless(inputs), quantized(inputs), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("bits", [6, 30, 60, None])
    @pytest.mark.parametrize("overflow", OVERFLOWS)
    @pytest.mark.parametrize(("weights", "activations"), [PAIRS[0], PAIRS[3]])
    @pytest.mark.parametrize("name", ["linear of tokens", "strided and padded", "depthwise", "replicated"])
    def test_nan_stays_where_the_float_layer_has_it(self, name, weights, activations, overflow, bits):
        quantized, inputs = single_layer(name, weights, activations)
        spoilt = inputs.clone()
        spoilt[(1, *[0] * (inputs.dim() - 2), 1)] = torch.nan
        layer = quantized.network[0]
        with torch.no_grad():
            expected = layer(spoilt).isnan()
        assert expected.any()
        assert not expected.all()
        changed = AccumulatorLayer(layer, quantized.layers[0], bits, overflow)
        assert torch.equal(changed(spoilt).isnan(), expected)
        assert torch.equal(changed(spoilt)[~expected], changed(inputs)[~expected])

    def test_infinities_are_the_largest_inputs(self):
        quantized, inputs = single_layer("linear", "int4", "int6")
        narrow = with_accumulator(quantized, 7).network[0]
        assert torch.equal(narrow(inputs.sign() * torch.inf), narrow(inputs.sign() * 1e30))


class TestWhichLayersChange:
    def test_those_that_cannot_overflow_are_left_as_they_are(self):
        quantized, inputs = small_network()
        safe = safe_accumulator_bits(quantized)
        weighted = [layer.name for layer in quantized.layers if layer.weights]
        assert len({safe[name] for name in weighted}) > 2
        for bits in range(2, max(safe.values()) + 1):
            narrow = with_accumulator(quantized, bits)
            for name in safe:
                layer = narrow.network.get_submodule(name)
                changes = name in weighted and safe[name] > bits
                assert isinstance(layer, AccumulatorLayer) == changes
                if changes:
                    assert (layer.bits, layer.overflow) == (bits, "wrap")
                    assert isinstance(layer.layer, qnn.QuantLinear | qnn.QuantConv2d)
        with torch.no_grad():
            assert torch.equal(narrow(inputs), quantized(inputs))

    def test_the_given_network_stays_as_it_is(self):
        quantized, inputs = small_network()
        with torch.no_grad():
            before = quantized(inputs)
            narrow = with_accumulator(quantized, 6)
            assert not torch.equal(narrow(inputs), before)
            assert torch.equal(quantized(inputs), before)
        assert not any(isinstance(m, AccumulatorLayer) for m in quantized.modules())
        assert not narrow.training

    def test_only_the_chosen_ones(self):
        quantized, _ = small_network()
        narrow = with_accumulator(quantized, 4, layers=["head", "depthwise"])
        changed = [n for n, m in narrow.network.named_modules() if isinstance(m, AccumulatorLayer)]
        assert changed == ["depthwise", "head"]
        unchanged = with_accumulator(quantized, 4, layers=[])
        assert not any(isinstance(m, AccumulatorLayer) for m in unchanged.modules())

    def test_no_end_changes_every_layer_with_weights(self):
        quantized, _ = small_network()
        endless = with_accumulator(quantized, None, overflow="saturate")
        changed = [n for n, m in endless.network.named_modules() if isinstance(m, AccumulatorLayer)]
        assert changed == ["stem", "depthwise", "pointwise", "linear", "head"]

    def test_an_accumulator_is_replaced(self):
        quantized, inputs = small_network()
        narrow = with_accumulator(quantized, 6)
        wider = with_accumulator(narrow, 9, overflow="saturate")
        directly = with_accumulator(quantized, 9, overflow="saturate")
        with torch.no_grad():
            assert torch.equal(wider(inputs), directly(inputs))
            assert not torch.equal(wider(inputs), narrow(inputs))
        safe = with_accumulator(narrow, narrowest_safe_bits(quantized))
        assert not any(isinstance(m, AccumulatorLayer) for m in safe.modules())
        with torch.no_grad():
            assert torch.equal(safe(inputs), quantized(inputs))

    def test_accumulators_of_other_layers_stay(self):
        quantized, _ = small_network()
        both = with_accumulator(with_accumulator(quantized, 6), 4, overflow="saturate", layers=["linear"])
        found = {
            name: (module.bits, module.overflow)
            for name, module in both.network.named_modules()
            if isinstance(module, AccumulatorLayer)
        }
        wrapping = dict.fromkeys(("stem", "depthwise", "pointwise", "head"), (6, "wrap"))
        assert found == {**wrapping, "linear": (4, "saturate")}

    def test_weights_are_taken_as_they_stand(self):
        quantized, _ = single_layer("linear", "int4", "int6")
        changed = with_accumulator(quantized, None, layers=[])
        with torch.no_grad():
            changed.network[0].weight.neg_()
            changed.network[0].bias.zero_()
        inputs = torch.ones(1, 7)
        weights, starts = weights_and_starts(quantized)
        code = input_codes(quantized, inputs)[0, 0]
        sums = with_accumulator(changed, None).network[0].sums(inputs)
        assert sums.tolist() == [[float(-code * sum(row)) for row in weights]]
        assert any(starts)

    def test_shown_by_repr(self):
        quantized, _ = single_layer("linear", "int4", "int6")
        narrow = with_accumulator(quantized, 5, overflow="saturate").network[0]
        assert repr(narrow).startswith(
            "AccumulatorLayer(\n  bits=5, overflow='saturate'\n  (layer): QuantLinear("
        )


class TestErrors:
    @pytest.mark.parametrize("bits", [1, 0, -8, True, 8.0, "8"], ids=repr)
    def test_bits(self, bits):
        message = f"accumulator bits must be an integer of at least 2, or None, not {bits!r}"
        for use in (
            lambda: check_accumulator(bits, "wrap"),
            lambda: with_accumulator(single_layer("linear", "int4", "int6")[0], bits),
        ):
            with pytest.raises(UsageError) as error:
                use()
            assert str(error.value) == message
            assert error.value.given == repr(bits)
            assert error.value.expected == ["2, 3, 4, ...", "None"]

    @pytest.mark.parametrize(
        ("overflow", "hint"), [("clip", ""), ("saturated", " (did you mean 'saturate'?)")]
    )
    def test_overflow(self, overflow, hint):
        with pytest.raises(UsageError) as error:
            with_accumulator(single_layer("linear", "int4", "int6")[0], 8, overflow=overflow)
        assert str(error.value) == f"unknown overflow {overflow!r}{hint}; expected one of: wrap, saturate"
        assert set(error.value.expected) == {"wrap", "saturate"}

    @pytest.mark.parametrize(("bits", "overflow"), [(None, "wrap"), (2, "saturate"), (1000, "wrap")])
    def test_none_for_what_is_possible(self, bits, overflow):
        assert check_accumulator(bits, overflow) == overflow

    def test_layer_that_does_not_exist(self):
        with pytest.raises(UsageError) as error:
            with_accumulator(small_network()[0], 8, layers=["head", "liner"])
        assert str(error.value) == (
            "unknown layer 'liner' (did you mean 'linear'?); "
            "expected one of: stem, depthwise, pointwise, linear, scores, mixed, head"
        )

    def test_layer_without_weights(self):
        with pytest.raises(UsageError) as error:
            with_accumulator(small_network()[0], 8, layers=["mixed"])
        assert str(error.value) == (
            "layer 'mixed' is a matmul, a product of two activations; "
            "only layers with weights can be given an accumulator"
        )
        assert error.value.given == "mixed"
        assert error.value.expected == ["stem", "depthwise", "pointwise", "linear", "head"]

    def test_scales_of_the_inputs_that_are_found_at_run_time(self):
        quantized, _ = small_network(activation_granularity="token", bias="float")
        safe = safe_accumulator_bits(quantized)["linear"]
        with_accumulator(quantized, safe, layers=["linear"])
        for bits in (safe - 1, None):
            with pytest.raises(UsageError) as error:
                with_accumulator(quantized, bits, layers=["linear"])
            assert str(error.value) == (
                "this layer's input has no scale of its own: its scales are found at run time"
            )
