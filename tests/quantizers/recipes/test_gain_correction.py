import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.recipes.gain_correction import GainCorrection
from tests.quantizers.recipes.layer_problems import FORMATS, disturbed, example_layer, problem_of, rows_of


@pytest.mark.parametrize("kind", ["linear", "conv", "depthwise"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_every_output_swings_as_in_the_float_network(kind, fmt):
    layer, inputs = example_layer(kind)
    changed = 0.8 * disturbed(inputs)
    problem = problem_of(layer, fmt, inputs, changed)
    codes = problem.rounded / problem.column_scales
    GainCorrection().solve(problem)
    np.testing.assert_allclose(problem.rounded / problem.column_scales, codes, rtol=1e-5, atol=1e-6)
    found = rows_of(layer, changed) @ problem.rounded.transpose(0, 2, 1)
    wanted = rows_of(layer, inputs) @ problem.weights.transpose(0, 2, 1)
    np.testing.assert_allclose(found.std(1) / wanted.std(1), 1.0, rtol=1e-3)


def test_limit():
    layer, inputs = example_layer("linear")
    problem = problem_of(layer, FORMATS["int4"], inputs, 0.1 * inputs)
    before = problem.scales
    GainCorrection(limit=1.25).solve(problem)
    np.testing.assert_allclose(problem.scales / before, 1.25, rtol=1e-6)
    with pytest.raises(UsageError) as error:
        GainCorrection(limit=0.5)
    assert str(error.value) == "gain_correction: limit must lie in 1..100, not 0.5"


def test_channels_of_several_scales_are_refused():
    layer, inputs = example_layer("linear")
    problem = problem_of(layer, FORMATS["int4"], inputs, inputs)
    problem.scales = problem.column_scales
    with pytest.raises(UsageError) as error:
        GainCorrection().solve(problem)
    assert str(error.value) == (
        "gain_correction scales channels, but those of layer have several scales each"
    )
