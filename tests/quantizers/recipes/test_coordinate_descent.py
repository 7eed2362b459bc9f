from itertools import pairwise

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.recipes.coordinate_descent import CoordinateDescent
from quantizers.recipes.gptq import Gptq
from tests.quantizers.recipes.layer_problems import (
    FORMATS,
    LAYERS,
    correlated,
    disturbed,
    example_layer,
    output_error,
    problem_of,
    rows_of,
    values_of,
)
from tests.quantizers.recipes.test_gpfq import with_ridge


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_no_single_weight_could_be_better(kind, fmt):
    layer, inputs = example_layer(kind)
    changed = disturbed(inputs)
    problem = problem_of(layer, fmt, inputs, changed)
    CoordinateDescent(sweeps=1000).solve(problem)
    grid = values_of(fmt)
    for g, rows in enumerate(zip(rows_of(layer, changed), rows_of(layer, inputs), strict=True)):
        x, other = with_ridge(*rows, 0.01)
        for weights, chosen, scale in zip(
            problem.weights[g], problem.rounded[g], problem.scales[g], strict=True
        ):
            left = other @ weights - x @ chosen
            moves = grid[None] * np.float64(scale) - chosen[:, None]
            gains = 2 * (x.T @ left)[:, None] * moves - (x**2).sum(0)[:, None] * moves**2
            assert gains.max() <= 1e-6 * (left @ left)


@pytest.mark.parametrize(("name", "factor"), [("int4", 0.35), ("e2m1", 0.35)])
def test_helps_on_correlated_inputs(name, factor):
    layer, inputs = example_layer("linear")
    problem = problem_of(layer, FORMATS[name], inputs)
    unseen = rows_of(layer, correlated(300, 12, seed=30))
    before = output_error(problem, unseen)
    CoordinateDescent().solve(problem)
    assert output_error(problem, unseen) < factor * before


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_starts_from_the_step_before_and_never_worsens_it(fmt):
    layer, inputs = example_layer("conv")
    problem, rows = problem_of(layer, fmt, inputs), rows_of(layer, inputs)
    errors = [output_error(problem, rows)]
    # The least damping, so that what it lowers is what is measured here.
    Gptq(damping=1e-8).solve(problem)
    errors.append(output_error(problem, rows))
    for _ in range(4):
        CoordinateDescent(sweeps=1, damping=1e-8).solve(problem)
        errors.append(output_error(problem, rows))
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(errors))
    assert errors[-1] < errors[1]


def test_needs_a_sweep():
    with pytest.raises(UsageError) as error:
        CoordinateDescent(sweeps=0)
    assert str(error.value) == "coordinate_descent: sweeps must lie in 1..1000, not 0"
