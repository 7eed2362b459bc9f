import numpy as np
import pytest
from amaranth.hdl import unsigned

from hw.reference.sparse_attention import pooled_scores
from hw.simulation import simulate_stream
from hw.sparse_attention import BlockPooling
from quantizers.errors import UsageError
from quantizers.sparse_attention import BlockSelection

SELECTIONS = [
    BlockSelection(kernel=4, stride=2, block=8, window=8, topk=3, dense_length=0),
    BlockSelection(kernel=8, stride=2, block=8, window=16, initial=2, topk=3, dense_length=20),
    BlockSelection(kernel=4, stride=4, block=8, window=0, initial=0, topk=3, dense_length=0),
    BlockSelection(kernel=8, stride=8, block=8, window=8, topk=3, dense_length=0),
    BlockSelection(kernel=2, stride=2, block=4, window=4, topk=3, dense_length=30),
    BlockSelection(kernel=6, stride=2, block=8, window=8, topk=3, dense_length=0),
]
TOKENS = 100


def draw(selection, position, rng):
    is_dense = position + 1 < selection.dense_length
    return rng.integers(0, 200, 0 if is_dense else selection.compressed_count(position + 1))


def items(positions, weights):
    marked = [
        {"weight": int(w), "is_last": place == len(row) - 1} for row in weights for place, w in enumerate(row)
    ]
    return {"positions": positions, "weights": marked}


def expected(positions, weights, selection):
    pooled = [
        pooled_scores(row, position, selection, score_bits=8)
        for position, row in zip(positions, weights, strict=True)
    ]
    return [score | last << 8 | dense << 9 for row in pooled for score, last, dense in row]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_queries_one_after_the_other(selection):
    """Contexts too short for a compressed key, dense ones, and those around the ends of blocks."""
    rng = np.random.default_rng(0)
    positions = [0, 1, 3, 4, 99, 98, 50, 64, 63, 7, 8, 23, 24, 29, 30]
    weights = [draw(selection, position, rng) for position in positions]
    want = expected(positions, weights, selection)
    for valid, ready in ((1.0, 1.0), (0.6, 0.4)):
        run = simulate_stream(
            BlockPooling(selection=selection, weight=unsigned(8), max_tokens=TOKENS),
            items(positions, weights),
            output_count=len(want),
            valid_probability=valid,
            ready_probability=ready,
        )
        assert run.outputs == want


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("position", [0, 5, 31, 32, 99])
def test_cycles(selection, position):
    weights = [draw(selection, position, np.random.default_rng(position))]
    component = BlockPooling(selection=selection, weight=unsigned(8), max_tokens=TOKENS)
    want = expected([position], weights, selection)
    run = simulate_stream(component, items([position], weights), output_count=len(want))
    assert run.outputs == want
    assert run.cycles == component.cycles(position)


@pytest.mark.parametrize(
    ("selection", "tokens", "message"),
    [
        (
            BlockSelection(kernel=24, stride=12, block=48, window=48),
            100,
            "stride must be a power of two, not 12",
        ),
        (
            BlockSelection(kernel=8, stride=8, block=24, window=48),
            100,
            "block must be a power of two, not 24",
        ),
        (BlockSelection(), 31, "max_tokens must be at least the kernel of 32 tokens, not 31"),
        (BlockSelection(), 0, "max_tokens must be a positive integer, not 0"),
        (None, 100, "selection must be a BlockSelection, not None"),
    ],
)
def test_wrong_arguments(selection, tokens, message):
    with pytest.raises(UsageError) as caught:
        BlockPooling(selection=selection, weight=unsigned(8), max_tokens=tokens)
    assert str(caught.value) == message
