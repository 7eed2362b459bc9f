"""Where Brevitas gives a wrong result without a word, and this project does not."""

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas.graph.gptq import gptq_mode
from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize
from brevitas.inject.enum import LearnedRoundImplType
from brevitas.quant.float import Fp8e4m3WeightPerChannelFloat
from brevitas.quant.scaled_int import Int8WeightPerChannelFloat
from brevitas_examples.common.learned_round.learned_round_method import insert_learned_round_quantizers
from torch import nn

from quantizers.prepare import prepare
from quantizers.quantize import quantize
from quantizers.recipes import Recipe, quantize_by
from quantizers.recipes.learned_rounding import LearnedRounding
from tests.quantizers.recipes.layer_problems import FORMATS, correlated, generator, problem_of, settings


class E2M1(Fp8e4m3WeightPerChannelFloat):
    bit_width = 4
    exponent_bit_width = 2
    mantissa_bit_width = 1


class E3M2(Fp8e4m3WeightPerChannelFloat):
    bit_width = 6
    exponent_bit_width = 3
    mantissa_bit_width = 2


class Int4(Int8WeightPerChannelFloat):
    bit_width = 4


def weights():
    return torch.randn(64, 64, generator=generator(41))


def brevitas_layer(quantizer):
    layer = qnn.QuantLinear(64, 64, bias=False, weight_quant=quantizer)
    layer.weight.data.copy_(weights())
    return nn.Sequential(layer).eval()


def moved_by_brevitas_gptq(quantizer, x):
    """Whether GPTQ changed any quantized weight."""
    model = brevitas_layer(quantizer)
    with torch.no_grad():
        model(x)
        before = model[0].quant_weight().value.clone()
        with gptq_mode(model) as gptq:
            for _ in range(gptq.num_layers):
                gptq.model(x)
                gptq.update()
        return not torch.equal(model[0].quant_weight().value, before)


@pytest.mark.parametrize(("name", "quantizer"), [("int4", Int4), ("e2m1", E2M1)])
def test_gptq_changes_the_weights(name, quantizer):
    x = correlated(512, 64, seed=42)
    assert not moved_by_brevitas_gptq(quantizer.let(scaling_impl_type="stats"), x)
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    model[0].weight.data.copy_(weights())
    prepared = prepare(model, [x])
    plain, solved = (
        quantize_by(prepared, settings(name), Recipe.parse(text)).network[0].quant_weight().value.detach()
        for text in ("round", "gptq")
    )
    assert (plain != solved).float().mean() > 0.05
    errors = [float((x @ (w - weights()).T).norm()) for w in (plain, solved)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("quantizer", "wrong"), [(E2M1, (0.30, 0.38)), (E3M2, (0.33, 0.42)), (Int4, (0.0, 0.0))]
)
def test_learned_rounding_starts_at_the_nearest_values(quantizer, wrong):
    model = brevitas_layer(quantizer)
    with torch.no_grad():
        before = model[0].quant_weight().value.clone()
        insert_learned_round_quantizers(model, LearnedRoundImplType.HARD_SIGMOID)
        misplaced = float((model.eval()[0].quant_weight().value != before).float().mean())
    assert wrong[0] <= misplaced <= wrong[1]


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_ours_starts_there_in_every_format(fmt):
    layer = nn.Linear(64, 64)
    layer.weight.data.copy_(weights())
    problem = problem_of(layer, fmt, correlated(512, 64, seed=42))
    nearest = problem.rounded
    LearnedRounding(iterations=1, rate=1e-6, warmup=0.5).solve(problem)
    np.testing.assert_array_equal(problem.rounded, nearest)


def test_inputs_after_relu_lose_their_sign():
    torch.manual_seed(43)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert layerwise_quantize(model)[2].input_quant.is_signed
    prepared = prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [torch.randn(32, 4)])
    for name in ("int4", "e2m1"):
        formats = [str(layer.activation_format) for layer in quantize(prepared, settings(name, name)).layers]
        assert formats == [name, f"u{name}" if name == "int4" else "ue2m2"]


def test_relu6_stays_relu6():
    torch.manual_seed(44)
    x = 20 * torch.randn(32, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU6(), nn.Linear(8, 2))
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(prepare(model, [x]).model(x), expected)
        rewritten = preprocess_for_quantize(model)
        assert [type(layer) for layer in rewritten.children()] == [nn.Linear, nn.ReLU, nn.Linear]
        assert not torch.allclose(rewritten(x), expected)
