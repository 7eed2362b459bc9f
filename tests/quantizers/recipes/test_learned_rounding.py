import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.recipes.learned_rounding import LearnedRounding, neighbours
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


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
class TestStart:
    def test_is_on_each_values_own_step(self, kind, fmt):
        """One step that is too small to move anything leaves rounding to nearest."""
        layer, inputs = example_layer(kind)
        problem = problem_of(layer, fmt, inputs)
        expected = problem.rounded
        LearnedRounding(iterations=1, rate=1e-6, warmup=0.5, inputs="float", target="layer").solve(problem)
        np.testing.assert_array_equal(problem.rounded, expected)

    def test_neighbours_are_those_of_the_format(self, kind, fmt):
        problem = problem_of(example_layer(kind)[0], fmt, example_layer(kind)[1])
        scales = problem.column_scales
        low, high = neighbours(problem.weights, fmt, scales)
        units = (problem.weights.astype(np.float32) / scales).ravel()
        grid = values_of(fmt)
        expected_low = [grid[grid <= u].max(initial=grid.min()) for u in units]
        expected_high = [grid[grid >= u].min(initial=grid.max()) for u in units]
        np.testing.assert_allclose((low / scales).ravel(), expected_low, rtol=1e-6)
        np.testing.assert_allclose((high / scales).ravel(), expected_high, rtol=1e-6)


@pytest.mark.parametrize(("name", "factor"), [("int4", 0.6), ("e2m1", 0.6)])
def test_is_better_than_nearest_on_the_output(name, factor):
    layer, inputs = example_layer("linear")
    problem = problem_of(layer, FORMATS[name], inputs)
    unseen = rows_of(layer, correlated(300, 12, seed=30))
    before = output_error(problem, unseen)
    LearnedRounding().solve(problem)
    assert output_error(problem, unseen) < factor * before


@pytest.mark.parametrize("kind", ["conv", "grouped"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_convolutions(kind, fmt):
    layer, inputs = example_layer(kind)
    problem, rows = problem_of(layer, fmt, inputs), rows_of(layer, inputs)
    before = output_error(problem, rows)
    LearnedRounding().solve(problem)
    assert output_error(problem, rows) < 0.85 * before


@pytest.mark.parametrize("kind", ["conv", "grouped"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_inputs_of_a_quantized_network(kind, fmt):
    """Most of the error is that of the inputs, which no rounding could take back."""
    layer, inputs = example_layer(kind)
    changed = disturbed(inputs)
    problem = problem_of(layer, fmt, inputs, changed)
    rows, wanted = rows_of(layer, changed), rows_of(layer, inputs)
    before = output_error(problem, rows, wanted)
    LearnedRounding().solve(problem)
    assert output_error(problem, rows, wanted) < 0.97 * before
    low, high = neighbours(problem.weights, fmt, problem.column_scales)
    assert ((problem.rounded == low) | (problem.rounded == high)).all()


def test_same_bits_every_time():
    layer, inputs = example_layer("conv")
    first, second = (problem_of(layer, FORMATS["e2m1"], inputs) for _ in range(2))
    for problem in (first, second):
        LearnedRounding(iterations=50).solve(problem)
    np.testing.assert_array_equal(first.rounded, second.rounded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "learned_rounding: iterations must lie in 1..100000, not 0"),
        ({"rate": 0.0}, "learned_rounding: rate must lie in 1e-06..10, not 0.0"),
        ({"regularization": -1.0}, "learned_rounding: regularization must lie in 0..1e+06, not -1.0"),
        ({"warmup": 1.0}, "learned_rounding: warmup must lie in 0..0.99, not 1.0"),
        ({"damping": 0.0}, "learned_rounding: damping must lie in 1e-08..1, not 0.0"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(UsageError) as error:
        LearnedRounding(**options)
    assert str(error.value) == message
