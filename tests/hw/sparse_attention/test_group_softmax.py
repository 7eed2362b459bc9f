import numpy as np
import pytest

from hw.simulation import simulate_stream
from hw.sparse_attention import GroupSoftmax
from hw.sparse_attention.group_softmax import weight_shape
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.sparse_attention import FixedSoftmax

WIDTHS = [
    FixedSoftmax(),
    FixedSoftmax(score_bits=8, fraction_bits=3, table_bits=3, mantissa_bits=6, weight_bits=9),
    FixedSoftmax(score_bits=10, fraction_bits=5, table_bits=2, mantissa_bits=10, weight_bits=12),
]


def draw(softmax, heads, keys, rng):
    """Scores, (heads, 1, keys): near each other, and of the whole range."""
    half = 1 << (softmax.score_bits - 1)
    spread = rng.choice([min(half, 3 << softmax.fraction_bits), half])
    return rng.integers(-spread, spread, (heads, 1, keys))


def items(softmax, queries):
    """Payloads of the input stream as numbers."""
    mask = (1 << softmax.score_bits) - 1
    words = []
    for scores in queries:
        column = (scores[:, 0].T.reshape(-1) & mask).tolist()
        words += [*column[:-1], column[-1] | 1 << softmax.score_bits]
    return words


def expected(softmax, queries):
    words = []
    for scores in queries:
        heads, _, keys = scores.shape
        weights = softmax.weights(scores, np.ones((1, keys), bool))[0].tolist()
        words += [*weights[:-1], weights[-1] | 1 << weight_shape(softmax, heads).width]
    return words


@pytest.mark.parametrize("softmax", WIDTHS)
@pytest.mark.parametrize(("heads", "storage"), [(1, "lutram"), (3, "bram"), (4, "lutram")])
def test_queries_one_after_the_other(softmax, heads, storage):
    rng = np.random.default_rng(heads)
    queries = [draw(softmax, heads, keys, rng) for keys in (1, 5, 20, 7, 9)]
    want = expected(softmax, queries)
    for valid, ready in ((1.0, 1.0), (0.6, 0.3)):
        run = simulate_stream(
            GroupSoftmax(softmax=softmax, heads=heads, max_keys=20, storage=storage),
            items(softmax, queries),
            output_count=len(want),
            valid_probability=valid,
            ready_probability=ready,
            max_cycles=20_000,
        )
        assert run.outputs == want


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("keys", [1, 2, 11])
def test_cycles(heads, keys):
    softmax = WIDTHS[1]
    scores = draw(softmax, heads, keys, np.random.default_rng(keys))
    component = GroupSoftmax(softmax=softmax, heads=heads, max_keys=12)
    run = simulate_stream(component, items(softmax, [scores]), output_count=keys)
    assert run.outputs == expected(softmax, [scores])
    assert run.cycles == component.cycles(keys)


def test_extremes():
    softmax = WIDTHS[0]
    low, high = -(1 << 15), (1 << 15) - 1
    queries = [
        np.array([[[low] * 4]]),
        np.array([[[high] * 4]]),
        np.array([[[low, high, low, high]]]),
        np.array([[[0, 0, 0, 1]]]),
    ]
    want = expected(softmax, queries)
    component = GroupSoftmax(softmax=softmax, heads=1, max_keys=4)
    assert simulate_stream(component, items(softmax, queries), output_count=16).outputs == want


def test_long_queries():
    softmax, heads = FixedSoftmax(), 3
    rng = np.random.default_rng(5)
    queries = [draw(softmax, heads, int(keys), rng) for keys in rng.integers(1, 512, 60)]
    want = expected(softmax, queries)
    component = GroupSoftmax(softmax=softmax, heads=heads, max_keys=511)
    cycles = sum(component.cycles(scores.shape[2]) for scores in queries)
    model = VerilatedStream(component)
    at_once = model.run(items(softmax, queries), output_count=len(want))
    assert at_once.outputs.tolist() == want
    # A query's first score is taken in the cycle after the last weight of the one before.
    assert at_once.cycles == cycles
    stalled = model.run(
        items(softmax, queries), output_count=len(want), seed=2, valid_probability=0.8, ready_probability=0.4
    )
    assert stalled.outputs.tolist() == want


def test_wrong_arguments():
    with pytest.raises(UsageError) as caught:
        GroupSoftmax(softmax=FixedSoftmax(), heads=0, max_keys=4)
    assert str(caught.value) == "heads must be a positive integer, not 0"
    with pytest.raises(UsageError) as caught:
        GroupSoftmax(softmax=FixedSoftmax(), heads=1, max_keys=4, storage="brams")
    assert str(caught.value) == (
        "unknown storage 'brams' (did you mean 'bram'?); expected one of: lutram, bram"
    )
