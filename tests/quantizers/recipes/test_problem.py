import numpy as np
import pytest

from quantizers.recipes.problem import damped
from tests.quantizers.recipes.layer_problems import (
    FORMATS,
    LAYERS,
    disturbed,
    example_layer,
    nearest,
    problem_of,
)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
class TestProblem:
    def test_starts_rounded_to_nearest(self, kind, fmt):
        layer, inputs = example_layer(kind)
        problem = problem_of(layer, fmt, inputs)
        groups = getattr(layer, "groups", 1)
        weights = layer.weight.detach().double().numpy().reshape(groups, len(layer.weight) // groups, -1)
        np.testing.assert_array_equal(problem.weights, weights)
        expected = [
            [nearest(row, fmt, scale) for row, scale in zip(*group, strict=True)]
            for group in zip(weights, problem.scales, strict=True)
        ]
        np.testing.assert_allclose(problem.rounded, expected, rtol=1e-6)


def test_damping():
    layer, inputs = example_layer("grouped")
    moments = problem_of(layer, FORMATS["int4"], inputs, disturbed(inputs)).moments
    gram, cross = damped(moments, 0.5, "float")
    features = moments.gram.shape[-1]
    for g in range(2):
        level = 0.5 * np.diag(moments.gram[g]).mean()
        np.testing.assert_allclose(gram[g], moments.gram[g] + level * np.eye(features))
        np.testing.assert_allclose(cross[g], moments.cross[g] + level * np.eye(features))
    gram, cross = damped(moments, 0.5, "layer")
    assert cross is gram
