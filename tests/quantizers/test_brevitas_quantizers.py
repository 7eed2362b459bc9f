"""The fast arithmetic inside Brevitas' proxies is Brevitas' own, bit for bit."""

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas.quant_tensor import FloatQuantTensor, IntQuantTensor

from quantizers.brevitas_quantizers import (
    activation_quantizer,
    bias_quantizer,
    block_quantizer,
    plain_activation_quantizer,
    plain_weight_quantizer,
    token_quantizer,
    weight_quantizer,
)
from quantizers.formats import parse_format, parse_scalar_format, signed_formats

SIGNED = [fmt for bits in range(3, 9) for fmt in signed_formats(bits)]
ALL = [*SIGNED, *(fmt.unsigned_counterpart for fmt in SIGNED)]
SPECIAL = [parse_scalar_format(name) for name in ("e4m3fn", "e5m2ieee", "e3m2b5", "int2", "int16")]


def critical_values(fmt, count=4000):
    """Random values over the whole range and beyond, all grid values, all midpoints and neighbours."""
    rng = np.random.default_rng(14)
    table = np.unique(fmt.values()[np.isfinite(fmt.values())]) if fmt.bits <= 8 else np.arange(-40.0, 40)
    midpoints = (table[1:] + table[:-1]) / 2
    around = [np.nextafter(np.float32(midpoints), np.float32(side)) for side in (-np.inf, np.inf)]
    spread = rng.standard_normal(count) * np.exp2(rng.uniform(-20, 4, count)) * fmt.maximum / 4
    return np.concatenate([spread, table, midpoints, *around, [0.0, -0.0]]).astype(np.float32)


def off_ties(x, fmt):
    """Where *x* is not halfway between two values: there Brevitas differs for want of a mantissa."""
    table = np.unique(fmt.values()[np.isfinite(fmt.values())])
    return ~np.isin(x, (table[1:] + table[:-1]) / 2)


def same_bits(a, b):
    return np.array_equal(a.detach().numpy().view(np.int32), b.detach().numpy().view(np.int32))


def same_values(a, b, fmt, inputs):
    """The very same numbers; without mantissa bits, ties aside."""
    if getattr(fmt, "mantissa_bits", 1) == 0:
        mask = torch.from_numpy(off_ties(inputs, fmt))
        a, b = a[mask], b[mask]
    # Equal values, zeros of either sign: Brevitas has a negative zero in integers and unsigned formats.
    return torch.equal(a, b)


@pytest.mark.parametrize("fmt", [*ALL, *SPECIAL], ids=str)
def test_activations(fmt):
    x = critical_values(fmt)
    for scale in (1.0, 0.25, 0.0371):
        fast = qnn.QuantIdentity(activation_quantizer(fmt, scale), return_quant_tensor=True).eval()
        plain = qnn.QuantIdentity(plain_activation_quantizer(fmt, scale), return_quant_tensor=True).eval()
        scaled = torch.from_numpy(x * np.float32(scale))
        with torch.no_grad():
            ours, theirs = fast(scaled), plain(scaled)
        inputs = x if scale in (1.0, 0.25) else scaled.numpy() / np.float32(scale)
        assert same_values(ours.value, theirs.value, fmt, inputs)
        assert_same_metadata(ours, theirs)


def assert_same_metadata(ours, theirs):
    assert type(ours) is type(theirs)
    assert torch.equal(ours.scale.reshape(-1), theirs.scale.reshape(-1))
    assert ours.signed == theirs.signed
    assert ours.zero_point.item() == theirs.zero_point.item() == 0
    if isinstance(ours, IntQuantTensor):
        assert ours.bit_width.item() == theirs.bit_width.item()
    else:
        for name in ("exponent_bit_width", "mantissa_bit_width", "exponent_bias", "saturating"):
            assert float(getattr(ours, name)) == float(getattr(theirs, name)), name
        assert ours.inf_values == theirs.inf_values
        assert ours.nan_values == theirs.nan_values


@pytest.mark.parametrize("fmt", [*SIGNED, *SPECIAL, parse_scalar_format("ternary")], ids=str)
@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_weights_of_real_layers(fmt, kind):
    torch.manual_seed(15)
    scales = torch.rand(6) + 0.01
    scales[0] = 0.5

    def layer(quantizer):
        if kind == "linear":
            return qnn.QuantLinear(10, 6, bias=False, weight_quant=quantizer(fmt, scales.view(6, 1)))
        return qnn.QuantConv2d(
            4, 6, 3, groups=2, bias=False, weight_quant=quantizer(fmt, scales.view(6, 1, 1, 1))
        )

    fast, plain = layer(weight_quantizer).eval(), layer(plain_weight_quantizer).eval()
    weight = torch.randn_like(plain.weight) * fmt.maximum * scales.view(6, *[1] * (plain.weight.dim() - 1))
    fast.weight.data.copy_(weight)
    plain.weight.data.copy_(weight)
    with torch.no_grad():
        ours, theirs = fast.quant_weight(), plain.quant_weight()
        assert same_bits(ours.value + 0.0, theirs.value + 0.0)
        assert_same_metadata(ours, theirs)
        x = torch.randn(2, 4, 8, 8) if kind == "conv2d" else torch.randn(2, 10)
        assert torch.equal(fast(x), plain(x))


def test_quant_tensors_know_their_codes():
    integer = qnn.QuantIdentity(
        activation_quantizer(parse_scalar_format("int4"), 0.5), return_quant_tensor=True
    )
    x = torch.tensor([0.26, -9.0, 1.0])
    out = integer.eval()(x)
    assert isinstance(out, IntQuantTensor)
    assert out.int().tolist() == [1, -8, 2]
    minifloat = qnn.QuantIdentity(
        activation_quantizer(parse_scalar_format("e2m1"), 0.5), return_quant_tensor=True
    )
    out = minifloat.eval()(x)
    assert isinstance(out, FloatQuantTensor)
    assert out.value.tolist() == [0.25, -3.0, 1.0]


def test_scales_do_not_follow_the_weights():
    fmt = parse_scalar_format("int4")
    layer = qnn.QuantLinear(3, 2, bias=False, weight_quant=weight_quantizer(fmt, torch.full((2, 1), 0.5)))
    layer.eval().weight.data.fill_(100.0)
    with torch.no_grad():
        assert layer.quant_weight().value.unique().tolist() == [3.5]
        # Behind autograd's back, as GPTQ does: nothing old may be remembered.
        layer.weight.data.fill_(1.1)
        assert layer.quant_weight().value.unique().tolist() == [1.0]


def test_gradients_are_straight_through():
    quantizer = qnn.QuantIdentity(activation_quantizer(parse_scalar_format("e2m1"), 1.0))
    x = torch.tensor([0.3, 5.2, 7.0, -100.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


class TestBias:
    STEPS = torch.tensor([0.5, 2.0**-32, 0.3], dtype=torch.float64)

    def test_rounds_to_steps(self):
        layer = qnn.QuantLinear(4, 3, bias_quant=bias_quantizer(self.STEPS), weight_quant=None).eval()
        layer.weight.data.zero_()
        layer.bias.data.copy_(torch.tensor([1.75, 1.0, -0.4]))
        with torch.no_grad():
            output = layer(torch.zeros(1, 4))
        assert output.tolist() == [[2.0, 1.0, pytest.approx(-0.3)]]


class TestScalesOfRunTime:
    @pytest.mark.parametrize("fmt", [*SIGNED, *(f.unsigned_counterpart for f in SIGNED)], ids=str)
    def test_tokens(self, fmt):
        x = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(16))
        x = x if fmt.signed else x.abs()
        x[0, 1] *= 1000.0
        quantizer = qnn.QuantIdentity(token_quantizer(fmt), return_quant_tensor=True).eval()
        with torch.no_grad():
            found = quantizer(x)
        scale = x.abs().amax(-1, keepdim=True) / fmt.maximum
        assert torch.equal(found.scale, scale)
        assert torch.equal(found.value, torch.from_numpy(fmt.round((x / scale).numpy())) * scale)
        # Each row reaches its own largest magnitude.
        assert torch.equal(found.value.abs().amax(-1, keepdim=True), fmt.maximum * scale)

    @pytest.mark.parametrize("name", ["mxfp4", "mxfp6_e2m3", "mxfp8_e5m2", "mxint8"])
    @pytest.mark.parametrize("axis", [1, -1])
    def test_blocks(self, name, axis):
        fmt = parse_format(name)
        x = torch.randn(2, 40, 33, generator=torch.Generator().manual_seed(17))
        quantizer = qnn.QuantIdentity(block_quantizer(fmt, axis), return_quant_tensor=True).eval()
        with torch.no_grad():
            found = quantizer(x)
        expected = torch.from_numpy(fmt.round(x.movedim(axis, -1).numpy())).movedim(-1, axis)
        assert torch.equal(found.value, expected)
        assert found.scale.isnan().all()


def test_weights_with_a_scale_each():
    fmt = parse_scalar_format("int4")
    scales = torch.tensor([[0.5, 0.5, 2.0], [1.0, 1.0, 0.25]])
    layer = qnn.QuantLinear(3, 2, bias=False, weight_quant=weight_quantizer(fmt, scales)).eval()
    layer.weight.data.copy_(torch.tensor([[1.3, -9.0, 5.0], [1.3, -9.0, 5.0]]))
    with torch.no_grad():
        assert layer.quant_weight().value.tolist() == [[1.5, -4.0, 4.0], [1.0, -8.0, 1.75]]
