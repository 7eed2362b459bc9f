import numpy as np
import pytest
import torch
from torch import nn

from quantizers.errors import UsageError
from quantizers.prepare import prepare
from quantizers.quantize import quantize, weight_scale
from quantizers.recipes import NAMED, STEPS, Recipe, quantize_by, rewritten
from quantizers.recipes.bias_correction import BiasCorrection
from quantizers.recipes.coordinate_descent import CoordinateDescent
from quantizers.recipes.equalization import Equalize
from quantizers.recipes.gain_correction import GainCorrection
from quantizers.recipes.gpfq import Gpfq
from quantizers.recipes.gptq import Gptq
from quantizers.recipes.learned_rounding import LearnedRounding
from quantizers.recipes.qronos import Qronos
from quantizers.recipes.smoothing import SmoothQuant
from tests.quantizers.recipes.layer_problems import correlated, network_error, settings, values_of

RECIPES = {
    "round": (),
    "gptq": (Gptq(),),
    "equalize(iterations=5) + gpfq(order='given') + bias_correction": (
        Equalize(iterations=5),
        Gpfq(order="given"),
        BiasCorrection(),
    ),
    "smoothquant(alpha=0.25, search=true, bits=6) + qronos(inputs='float', damping=0.1)": (
        SmoothQuant(alpha=0.25, search=True, bits=6),
        Qronos(inputs="float", damping=0.1),
    ),
    "learned_rounding(iterations=10, rate=0.1) + coordinate_descent(sweeps=3, target='layer')": (
        LearnedRounding(iterations=10, rate=0.1),
        CoordinateDescent(sweeps=3, target="layer"),
    ),
    "gain_correction(limit=1.1) + bias_correction(inputs='quantized')": (
        GainCorrection(limit=1.1),
        BiasCorrection(inputs="quantized"),
    ),
}


class TestText:
    @pytest.mark.parametrize(("text", "steps"), RECIPES.items())
    def test_round_trip(self, text, steps):
        assert Recipe.parse(text) == Recipe(steps)
        assert str(Recipe(steps)) == text

    @pytest.mark.parametrize("damping", [0.12345678, 1e-8, 0.001, 1 / 3])
    def test_numbers_come_back_exactly(self, damping):
        recipe = Recipe((Gptq(damping=damping),))
        assert Recipe.parse(str(recipe)) == recipe

    def test_space_does_not_matter_and_plus_may_be_in_a_number(self):
        recipe = Recipe.parse("  equalize+gptq( damping = 1e+0 )  +bias_correction ")
        assert recipe.steps == (Equalize(), Gptq(damping=1.0), BiasCorrection())

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            (
                "gptq-restored",
                "gptq(damping=1.0) + gain_correction(limit=1.1) + bias_correction(inputs='quantized')",
            ),
            (
                "learned-restored",
                "learned_rounding(damping=0.1) + gain_correction(limit=1.1)"
                " + bias_correction(inputs='quantized')",
            ),
            ("anchor-bias", "equalize + smoothquant + bias_correction"),
            (
                "anchor-gptq",
                "equalize + smoothquant + gptq(order='given', target='layer') + bias_correction",
            ),
            (
                "anchor-learned",
                "equalize + smoothquant + learned_rounding(iterations=1000, target='layer') + bias_correction",
            ),
        ],
    )
    def test_named(self, name, text):
        assert str(Recipe.parse(name)) == text
        assert name in NAMED

    def test_every_named_recipe_is_tested(self):
        assert set(NAMED) == {
            "gptq-restored",
            "learned-restored",
            "anchor-bias",
            "anchor-gptq",
            "anchor-learned",
        }

    def test_rewrites_and_solvers(self):
        recipe = Recipe.parse("equalize + smoothquant + gptq + bias_correction")
        assert recipe.rewrites == Recipe((Equalize(), SmoothQuant()))
        assert recipe.solvers == (Gptq(), BiasCorrection())


KNOWN = (
    "equalize, smoothquant, gptq, gpfq, qronos, learned_rounding, coordinate_descent, "
    "gain_correction, bias_correction"
)


class TestBadText:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "gptqq",
                f"unknown recipe step 'gptqq' (did you mean 'gptq'?); expected one of: {KNOWN}, round",
            ),
            (
                "round + gptq",
                "round is the recipe without steps, not a step: round + gptq",
            ),
            (
                "gptq(oder='given')",
                "unknown parameter of gptq 'oder' (did you mean 'order'?); "
                "expected one of: order, inputs, target, damping",
            ),
            (
                "gptq(order='size')",
                "unknown order of gptq 'size' (did you mean 'given'?); expected one of: activation, given",
            ),
            ("gptq(damping='much')", "gptq: damping must be of type float, not 'much'"),
            ("gptq(damping=true)", "gptq: damping must be of type float, not True"),
            ("gptq(damping=nan)", "gptq: damping must lie in 1e-08..1, not nan"),
            ("equalize(iterations=2.5)", "equalize: iterations must be of type int, not 2.5"),
            ("equalize(iterations=true)", "equalize: iterations must be of type int, not True"),
            (
                "gptq + equalize",
                "equalize comes before gptq in a recipe, not after it: gptq + equalize",
            ),
            (
                "bias_correction + coordinate_descent",
                "coordinate_descent comes before bias_correction in a recipe, not after it: "
                "bias_correction + coordinate_descent",
            ),
            (
                "equalize + equalize(iterations=3)",
                "equalize is twice in the recipe equalize + equalize(iterations=3)",
            ),
            ("gptq + gptq", "gptq is twice in the recipe gptq + gptq"),
            (
                "gptq + learned_rounding",
                "gptq and learned_rounding both round the weights; a recipe takes one of them: gptq + learned_rounding",
            ),
            ("", "a step is written name or name(parameter=value, ...), not ''"),
            ("gptq +", "a step is written name or name(parameter=value, ...), not ''"),
            (
                "gptq(order='given'",
                "a step is written name or name(parameter=value, ...), not \"gptq(order='given'\"",
            ),
            ("GPTQ", "a step is written name or name(parameter=value, ...), not 'GPTQ'"),
        ],
    )
    def test_whole_message(self, text, message):
        with pytest.raises(UsageError) as error:
            Recipe.parse(text)
        assert str(error.value) == message

    def test_parameters_that_are_not_toml(self):
        with pytest.raises(UsageError) as error:
            Recipe.parse("gptq(order=given)")
        begins = "gptq(order=given): parameters must be TOML, such as order='activation': "
        assert str(error.value).startswith(begins)
        assert error.value.given == "order=given"

    def test_every_step_is_named(self):
        assert ", ".join(STEPS) == KNOWN


def network(activation=nn.ReLU):
    torch.manual_seed(61)
    return nn.Sequential(nn.Linear(24, 24), activation(), nn.Linear(24, 24), activation(), nn.Linear(24, 6))


def rows(seed):
    return correlated(256, 24, seed=seed)


class TestOnNetworks:
    @pytest.mark.parametrize("name", ["int4", "e2m1"])
    @pytest.mark.parametrize(
        "recipe",
        ["gptq", "gpfq", "qronos", "coordinate_descent", "learned_rounding", "gptq + coordinate_descent"],
    )
    def test_solvers_help_on_unseen_inputs(self, name, recipe):
        chosen = settings(name, "int8", edge_weights=settings(name).weights)
        errors = [network_error(network(), rows(62), rows(63), text, chosen) for text in ("round", recipe)]
        assert errors[1] < 0.75 * errors[0]

    @pytest.mark.parametrize("recipe", [*RECIPES, *NAMED])
    def test_every_recipe_gives_values_of_the_format(self, recipe):
        parsed = Recipe.parse(recipe)
        prepared = rewritten(prepare(network(), rows(62).split(64)), parsed)
        quantized = quantize_by(prepared, settings("e2m1"), parsed)
        for layer in quantized.layers:
            module = quantized.network.get_submodule(layer.name)
            codes = (module.quant_weight().value / weight_scale(module)).detach().numpy()
            grid = values_of(layer.weight_format)
            assert np.abs(codes[..., None] - grid).min(-1).max() < 1e-5
            if parsed.solvers:
                torch.testing.assert_close(module.quant_weight().value, module.weight, rtol=1e-6, atol=0)

    def test_no_steps_are_rounding(self):
        prepared = prepare(network(), [rows(62)])
        assert rewritten(prepared, Recipe()) is prepared
        with torch.no_grad():
            found, expected = (
                q(rows(63))
                for q in (
                    quantize_by(prepared, settings("int4"), Recipe()),
                    quantize(prepared, settings("int4")),
                )
            )
        assert torch.equal(found, expected)

    def test_the_float_network_is_untouched(self):
        prepared = prepare(network(), [rows(62)])
        before = {key: value.clone() for key, value in prepared.model.state_dict().items()}
        recipe = Recipe.parse("anchor-gptq")
        quantize_by(rewritten(prepared, recipe), settings("int4"), recipe)
        assert all(torch.equal(value, before[key]) for key, value in prepared.model.state_dict().items())


class TestBadInput:
    @pytest.mark.parametrize("recipe", ["equalize", "anchor-gptq"])
    def test_a_step_that_does_not_fit_the_network(self, recipe):
        with pytest.raises(UsageError) as error:
            rewritten(prepare(network(nn.GELU), [rows(62)]), Recipe.parse(recipe))
        assert str(error.value) == (
            "equalize finds nothing to do in Sequential: no two layers have only ReLU, pooling or additions between them"
        )

    @pytest.mark.parametrize(
        ("batches", "message"),
        [
            ([], "calibration needs at least one batch, and at least one image in each"),
            ([rows(62), rows(62) * float("nan")], "calibration batches hold numbers that are not finite"),
        ],
    )
    def test_calibration_data(self, batches, message):
        with pytest.raises(UsageError) as error:
            prepare(network(), batches)
        assert str(error.value) == message
