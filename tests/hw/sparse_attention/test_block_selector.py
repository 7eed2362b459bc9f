import numpy as np
import pytest

from hw.reference.sparse_attention import selected_blocks
from hw.simulation import simulate_stream
from hw.sparse_attention import BlockSelector, key_words, query_words
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.sparse_attention import (
    BlockSelection,
    FixedSoftmax,
    IntegerQueries,
    block_indices,
    compressed_sums,
    integer_keys,
    integer_queries,
    key_scales,
    select_blocks_integer,
)

TOKENS = 96
SHAPES = {
    "overlap of one": {
        "selection": BlockSelection(kernel=4, stride=2, block=8, window=8, topk=4, dense_length=0),
        "head_dim": 8,
        "heads": 3,
        "lanes": 4,
    },
    "means, overlap of three, dense": {
        "selection": BlockSelection(kernel=8, stride=2, block=8, window=16, topk=5, dense_length=40),
        "head_dim": 8,
        "heads": 2,
        "lanes": 8,
        "dropped_bits": 3,
        "query_bits": 6,
    },
    "one head, nothing forced but its own": {
        "selection": BlockSelection(kernel=4, stride=4, block=8, window=0, initial=0, topk=2, dense_length=0),
        "head_dim": 4,
        "heads": 1,
        "lanes": 4,
        "dropped_bits": 2,
    },
    "DSP slices": {
        "selection": BlockSelection(kernel=4, stride=2, block=8, window=8, topk=4, dense_length=30),
        "head_dim": 8,
        "heads": 4,
        "lanes": 2,
        "dropped_bits": 1,
        "multipliers": "dsps",
    },
}


def build(shape, tokens=TOKENS, **changes):
    return BlockSelector(max_tokens=tokens, **{"storage": "lutram", **shape, **changes})


class Case:
    """Random queries at some positions of a random sequence."""

    def __init__(self, shape, positions, tokens=TOKENS, seed=0):
        rng = np.random.default_rng(seed)
        self.shape, self.positions = shape, np.array(positions)
        self.selection, self.dropped = shape["selection"], shape.get("dropped_bits", 0)
        keys = 2 * rng.standard_normal((tokens, shape["head_dim"]))
        queries = 3 * rng.standard_normal((shape["heads"], len(positions), shape["head_dim"]))
        scales = key_scales(keys, key_bits=8)
        self.keys = integer_keys(keys, scales, key_bits=8)
        self.compressed = compressed_sums(self.keys, self.selection, key_bits=8, dropped_bits=self.dropped)
        self.queries = integer_queries(
            queries,
            scales,
            self.selection,
            FixedSoftmax(),
            query_bits=shape.get("query_bits", 8),
            dropped_bits=self.dropped,
        )

    def items(self, component):
        return {
            "positions": self.positions.tolist(),
            "queries": query_words(component, self.queries),
            "keys": key_words(component, self.compressed, self.positions).tolist(),
        }

    def expected(self, tokens=TOKENS):
        bits = (self.selection.block_count(tokens) - 1).bit_length()
        taken = selected_blocks(self.queries, self.compressed, self.positions, self.selection, FixedSoftmax())
        return [index | is_last << bits for index, is_last in taken]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("valid", "ready"), [(1.0, 1.0), (0.6, 0.4)])
def test_queries_one_after_the_other(name, valid, ready):
    """Contexts without a compressed key, of fewer blocks than are taken, dense ones, ends of blocks."""
    case = Case(SHAPES[name], [0, 2, 95, 3, 64, 28, 29, 30, 39])
    component = build(SHAPES[name])
    want = case.expected()
    run = simulate_stream(
        component,
        case.items(component),
        output_count=len(want),
        valid_probability=valid,
        ready_probability=ready,
        max_cycles=40_000,
    )
    assert run.outputs == want


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("position", [7, 28, 95])
def test_cycles(name, position):
    """Of one query, and of two: the second begins an interval later, if the blocks of the first are out
    before its weights come."""
    for count in (1, 2):
        case = Case(SHAPES[name], [position] * count)
        component = build(SHAPES[name])
        want = case.expected()
        run = simulate_stream(component, case.items(component), output_count=len(want), max_cycles=20_000)
        assert run.outputs == want
        weights = component.visible_keys(position) * component.heads
        if count == 1 or component.interval(position) > component.top.cycles(12) + weights:
            assert run.cycles == component.cycles(position) + (count - 1) * component.interval(position)


def test_the_reference_is_the_selection():
    """The payloads' model is the one that is measured on language models."""
    shape = SHAPES["means, overlap of three, dense"]
    case = Case(shape, range(TOKENS), seed=3)
    taken = select_blocks_integer(
        case.queries,
        case.keys,
        case.positions,
        case.selection,
        FixedSoftmax(),
        key_bits=8,
        dropped_bits=case.dropped,
    )
    flat = [int(index) for row in block_indices(taken) for index in row]
    reference = selected_blocks(case.queries, case.compressed, case.positions, case.selection, FixedSoftmax())
    assert [index for index, _ in reference] == flat
    assert sum(is_last for _, is_last in reference) == TOKENS


def test_equal_scores():
    """Queries of zeros score all keys alike: the smaller indices are taken."""
    shape = SHAPES["overlap of one"]
    case = Case(shape, [95, 80])
    case.queries = IntegerQueries(np.zeros_like(case.queries.codes), case.queries.shifts)
    component = build(shape)
    run = simulate_stream(component, case.items(component), output_count=8, max_cycles=20_000)
    assert [word & 15 for word in run.outputs] == [0, 1, 10, 11, 0, 1, 9, 10]


@pytest.mark.slow
def test_long_contexts():
    """The geometry of SmolLM2, 2048 tokens."""
    selection = BlockSelection(window=256, topk=12, dense_length=512)
    shape = {
        "selection": selection,
        "head_dim": 64,
        "heads": 3,
        "lanes": 16,
        "dropped_bits": 5,
        "multipliers": "dsps",
    }
    case = Case(shape, [2047, 100, 511, 1030, 2046, 512, 1984], tokens=2048, seed=5)
    component = build(shape, 2048, storage="bram")
    items = case.items(component)
    want = case.expected(2048)
    model = VerilatedStream(component)
    items = {
        "positions": items["positions"],
        "queries": items["queries"],
        "keys": key_words(component, case.compressed, case.positions),
    }
    for valid, ready in ((1.0, 1.0), (0.8, 0.5)):
        run = model.run(
            items,
            output_count=len(want),
            valid_probability=valid,
            ready_probability=ready,
            max_cycles=100_000,
        )
        assert run.outputs.tolist() == want


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 3}, "head_dim must be a multiple of the 3 lanes, not 8"),
        ({"heads": 0}, "heads must be a positive integer, not 0"),
        ({"dropped_bits": 3}, "dropped_bits must be an integer from 0 to 2, not 3"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(UsageError) as caught:
        build(SHAPES["overlap of one"], **changes)
    assert str(caught.value) == message


def test_keys_that_are_missing():
    shape = SHAPES["overlap of one"]
    case, component = Case(shape, [95]), build(shape)
    with pytest.raises(UsageError) as caught:
        key_words(component, case.compressed[:40], [95])
    assert str(caught.value) == "a query sees 47 compressed keys, but there are 40"
