import numpy as np
import pytest

from quantizers.recipes.gpfq import Gpfq
from tests.quantizers.recipes.layer_problems import (
    FORMATS,
    LAYERS,
    correlated,
    disturbed,
    example_layer,
    nearest,
    output_error,
    problem_of,
    rows_of,
)


def paper(weights, x, other, scales, fmt, order):
    """Equation 6 of arXiv 2201.11113 with inputs ``(places, n)`` of both networks, neuron by neuron."""
    energy = (x**2).sum(0)
    columns = np.argsort(-energy, kind="stable") if order == "activation" else np.arange(len(energy))
    chosen = np.zeros_like(weights)
    for c, (row, scale) in enumerate(zip(weights, scales, strict=True)):
        state = np.zeros(len(x))
        for t in columns:
            state = state + row[t] * other[:, t]
            chosen[c, t] = nearest(x[:, t] @ state / energy[t], fmt, scale)
            state = state - chosen[c, t] * x[:, t]
    return chosen


def with_ridge(x, other, damping):
    """The rows that add the damping to the second moments of both."""
    ridge = np.sqrt(damping * (x**2).sum(0).mean()) * np.eye(x.shape[1])
    return np.vstack([x, ridge]), np.vstack([other, ridge])


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("order", ["activation", "given"])
def test_is_the_papers(kind, fmt, order):
    layer, inputs = example_layer(kind)
    changed = disturbed(inputs)
    problem = problem_of(layer, fmt, inputs, changed)
    before = problem.rounded
    Gpfq(order=order).solve(problem)
    for g, rows in enumerate(zip(rows_of(layer, changed), rows_of(layer, inputs), strict=True)):
        expected = paper(problem.weights[g], *with_ridge(*rows, 1e-6), problem.scales[g], fmt, order)
        np.testing.assert_allclose(problem.rounded[g], expected, rtol=1e-6, atol=1e-9)
    assert not np.array_equal(problem.rounded, before)


@pytest.mark.parametrize(("name", "factor"), [("int4", 0.3), ("e2m1", 0.3)])
def test_helps_on_correlated_inputs(name, factor):
    layer, inputs = example_layer("linear")
    problem = problem_of(layer, FORMATS[name], inputs)
    unseen = rows_of(layer, correlated(300, 12, seed=30))
    before = output_error(problem, unseen)
    Gpfq().solve(problem)
    assert output_error(problem, unseen) < factor * before
