import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.recipes.gain_correction import GainCorrection
from tests.quantizers.recipes.layer_problems import FORMATS, disturbed, example_layer, problem_of, rows_of


@pytest.mark.parametrize("kind", ["linear", "conv", "depthwise"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("match", ["variance", "signal"])
def test_every_output_swings_as_in_the_float_network(kind, fmt, match):
    layer, inputs = example_layer(kind)
    changed = 0.8 * disturbed(inputs)
    problem = problem_of(layer, fmt, inputs, changed)
    codes = problem.rounded / problem.column_scales
    GainCorrection(match=match).solve(problem)
    np.testing.assert_allclose(problem.rounded / problem.column_scales, codes, rtol=1e-5, atol=1e-6)
    found = rows_of(layer, changed) @ problem.rounded.transpose(0, 2, 1)
    wanted = rows_of(layer, inputs) @ problem.weights.transpose(0, 2, 1)
    found, wanted = found - found.mean(1, keepdims=True), wanted - wanted.mean(1, keepdims=True)
    other = found if match == "variance" else wanted
    ratio = (found * other).mean(1) / (wanted**2).mean(1)
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-3)


def test_limit():
    layer, inputs = example_layer("linear")
    problem = problem_of(layer, FORMATS["int4"], inputs, 0.1 * inputs)
    before = problem.scales
    GainCorrection(limit=1.25).solve(problem)
    np.testing.assert_allclose(problem.scales / before, 1.25, rtol=1e-6)
    with pytest.raises(UsageError) as error:
        GainCorrection(limit=0.5)
    assert str(error.value) == "gain_correction: limit must lie in 1..100, not 0.5"
