import numpy as np
import pytest
from numpy.linalg import cholesky, inv

from quantizers.errors import UsageError
from quantizers.recipes.gptq import Gptq
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


def paper(weights, hessian, scales, fmt, block, order):
    """Algorithm 1 of arXiv 2210.17323 with activation order, for ``(channels, n)``."""
    n = len(hessian)
    columns = np.argsort(-np.diag(hessian), kind="stable") if order == "activation" else np.arange(n)
    hessian = hessian + 0.01 * np.diag(hessian).mean() * np.eye(n)
    upper = cholesky(inv(hessian[columns][:, columns])).T
    w, q, errors = weights[:, columns].copy(), np.zeros_like(weights), np.zeros_like(weights)
    for start in range(0, n, block):
        end = min(start + block, n)
        for j in range(start, end):
            q[:, j] = [nearest(v, fmt, s) for v, s in zip(w[:, j], scales, strict=True)]
            errors[:, j] = (w[:, j] - q[:, j]) / upper[j, j]
            w[:, j:end] -= np.outer(errors[:, j], upper[j, j:end])
        w[:, end:] -= errors[:, start:end] @ upper[start:end, end:]
    given = np.empty_like(q)
    given[:, columns] = q
    return given


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
class TestIsThePapers:
    @pytest.mark.parametrize(("order", "block"), [("activation", 5), ("given", 128)])
    def test_on_the_layers_own_inputs(self, kind, fmt, order, block):
        layer, inputs = example_layer(kind)
        problem, rows = problem_of(layer, fmt, inputs), rows_of(layer, inputs)
        before = problem.rounded
        Gptq(order=order, inputs="float", target="layer").solve(problem)
        for g, x in enumerate(rows):
            expected = paper(problem.weights[g], x.T @ x / len(x), problem.scales[g], fmt, block, order)
            np.testing.assert_allclose(problem.rounded[g], expected, rtol=1e-6, atol=1e-9)
        assert not np.array_equal(problem.rounded, before)

    def test_with_the_float_output_as_target(self, kind, fmt):
        """That is GPTQ from the least-squares solution for the float output (arXiv 2504.02692)."""
        layer, inputs = example_layer(kind)
        changed = disturbed(inputs)
        problem = problem_of(layer, fmt, inputs, changed)
        Gptq().solve(problem)
        for g, (x, other) in enumerate(zip(rows_of(layer, changed), rows_of(layer, inputs), strict=True)):
            gram = x.T @ x / len(x)
            ridge = np.sqrt(0.01 * np.diag(gram).mean() * len(x)) * np.eye(len(gram))
            wanted = np.vstack([other, ridge]) @ problem.weights[g].T
            start = np.linalg.lstsq(np.vstack([x, ridge]), wanted, rcond=None)[0].T
            expected = paper(start, gram, problem.scales[g], fmt, 4, "activation")
            np.testing.assert_allclose(problem.rounded[g], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "factor"), [("int4", 0.2), ("e2m1", 0.2)])
def test_helps_on_correlated_inputs(name, factor):
    layer, inputs = example_layer("linear")
    problem = problem_of(layer, FORMATS[name], inputs)
    unseen = rows_of(layer, correlated(300, 12, seed=30))
    before = output_error(problem, unseen)
    Gptq().solve(problem)
    assert output_error(problem, unseen) < factor * before


def test_dead_inputs_are_no_obstacle():
    layer, inputs = example_layer("linear")
    inputs = inputs.clone()
    inputs[:, 3] = 0
    for x in (inputs, 0 * inputs):
        problem = problem_of(layer, FORMATS["int4"], x)
        before = problem.rounded
        Gptq().solve(problem)
        np.testing.assert_array_equal(problem.rounded[..., 3], before[..., 3])
        assert np.isfinite(problem.rounded).all()


@pytest.mark.parametrize("damping", [0.0, -1.0, 2.0, float("nan")])
def test_damping_has_a_range(damping):
    with pytest.raises(UsageError) as error:
        Gptq(damping=damping)
    assert str(error.value) == f"gptq: damping must lie in 1e-08..1, not {damping!r}"
