import numpy as np
import pytest
from torch import nn

from quantizers.recipes.qronos import Qronos
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
from tests.quantizers.recipes.test_gpfq import with_ridge


def paper(weights, x, other, scales, fmt, columns):
    """Equations 3 and 4 of arXiv 2505.11695: pick a value, then refit all columns to come."""
    chosen = np.zeros_like(weights)
    for c, (row, scale) in enumerate(zip(weights, scales, strict=True)):
        wanted, future = other @ row, row.copy()
        for place, t in enumerate(columns):
            done, rest = columns[:place], columns[place + 1 :]
            left = wanted - x[:, done] @ chosen[c, done] - x[:, rest] @ future[rest]
            chosen[c, t] = nearest(x[:, t] @ left / (x[:, t] @ x[:, t]), fmt, scale)
            left = wanted - x[:, columns[: place + 1]] @ chosen[c, columns[: place + 1]]
            if len(rest):
                future[rest] = np.linalg.lstsq(x[:, rest], left, rcond=None)[0]
    return chosen


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("order", ["activation", "given"])
def test_is_the_papers(kind, fmt, order):
    layer, inputs = example_layer(kind)
    changed = disturbed(inputs)
    problem = problem_of(layer, fmt, inputs, changed)
    Qronos(order=order).solve(problem)
    for g, (x, other) in enumerate(zip(rows_of(layer, changed), rows_of(layer, inputs), strict=True)):
        energy = (x**2).sum(0)
        columns = np.argsort(-energy, kind="stable") if order == "activation" else np.arange(len(energy))
        expected = paper(problem.weights[g], *with_ridge(x, other, 0.01), problem.scales[g], fmt, columns)
        np.testing.assert_allclose(problem.rounded[g], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "factor"), [("int4", 0.6), ("e2m1", 0.6)])
def test_makes_up_for_the_layers_before(name, factor):
    """Against rounding, on the output of the float network."""
    layer, inputs = example_layer("linear")
    problem = problem_of(layer, FORMATS[name], inputs, disturbed(inputs))
    unseen = correlated(300, 12, seed=30)
    rows, wanted = rows_of(layer, disturbed(unseen)), rows_of(layer, unseen)
    before = output_error(problem, rows, wanted)
    Qronos().solve(problem)
    assert output_error(problem, rows, wanted) < factor * before


def test_a_layer_of_one_feature():
    layer = nn.Linear(1, 3)
    problem = problem_of(layer, FORMATS["int4"], correlated(10, 1, seed=3))
    before = problem.rounded
    Qronos().solve(problem)
    np.testing.assert_array_equal(problem.rounded, before)
