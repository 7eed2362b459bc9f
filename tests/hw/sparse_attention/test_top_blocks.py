from functools import partial

import numpy as np
import pytest
from amaranth.hdl import signed, unsigned

from costmodel import synthesize
from hw.reference.sparse_attention import top_indices
from hw.simulation import simulate_stream
from hw.sparse_attention import SortedBlocks, TopBlocks
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError

BITS, BLOCKS, TOPK = 8, 20, 5
KINDS = {
    "radix 1": partial(TopBlocks, radix_bits=1),
    "radix 3": partial(TopBlocks, radix_bits=3, storage="lutram"),
    "radix 5": TopBlocks,
    "one digit": partial(TopBlocks, radix_bits=8),
    "sorted": SortedBlocks,
}


def build(kind, bits=BITS, blocks=BLOCKS, topk=TOPK):
    return KINDS[kind](score=unsigned(bits), max_blocks=blocks, topk=topk)


def words(lists, dense=(), bits=BITS):
    """Payloads of the input stream."""
    return [
        int(score) | (place == len(scores) - 1) << bits | (number in dense) << (bits + 1)
        for number, scores in enumerate(lists)
        for place, score in enumerate(scores)
    ]


def expected(lists, dense=(), blocks=BLOCKS, topk=TOPK):
    index_bits = (blocks - 1).bit_length()
    return [
        index | is_last << index_bits
        for number, scores in enumerate(lists)
        for index, is_last in top_indices(scores, len(scores) if number in dense else topk)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("largest", [1, 3, 200, 255])
@pytest.mark.parametrize(("valid", "ready"), [(1.0, 1.0), (0.5, 0.5), (1.0, 0.2)])
def test_lists_one_after_the_other(kind, largest, valid, ready):
    """Few values make many ties; lists of one score, of fewer than are chosen, and dense ones."""
    rng = np.random.default_rng(largest)
    lists = [rng.integers(0, largest + 1, n) for n in (1, 20, 3, 5, 6, 19, 20, 12, 7)]
    dense = (4, 6)
    want = expected(lists, dense)
    run = simulate_stream(
        build(kind),
        words(lists, dense),
        output_count=len(want),
        seed=largest,
        valid_probability=valid,
        ready_probability=ready,
        max_cycles=20_000,
    )
    assert run.outputs == want


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_those_that_came_first(kind):
    lists = [[7] * 20, [0] * 20, [255] * 20, [0, 9, 0, 9, 9, 0, 9, 9, 9], [1, 2, 3, 2, 1, 2, 3, 2, 2]]
    run = simulate_stream(build(kind), words(lists), output_count=25, max_cycles=20_000)
    assert [index & 31 for index in run.outputs] == [
        *(0, 1, 2, 3, 4) * 3,
        *(1, 3, 4, 6, 7),
        *(1, 2, 3, 5, 6),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [1, 4, 5, 6, 20])
def test_cycles(kind, blocks):
    """Of lists whose last score is taken."""
    component = build(kind)
    lists = [[*np.random.default_rng(blocks).integers(0, 200, blocks - 1), 255]]
    want = expected(lists)
    run = simulate_stream(build(kind), words(lists), output_count=len(want), max_cycles=20_000)
    assert run.outputs == want
    assert run.cycles == component.cycles(blocks)


@pytest.mark.parametrize("kind", ["radix 5", "sorted"])
def test_long_lists(kind):
    """As many as 8k tokens have, with scores of the width of weights."""
    bits, blocks, topk = 26, 128, 24
    rng = np.random.default_rng(3)
    lists = [rng.integers(0, largest, int(n)) for largest in (1 << 26, 40) for n in rng.integers(1, 129, 150)]
    want = expected(lists, blocks=blocks, topk=topk)
    model = VerilatedStream(build(kind, bits, blocks, topk))
    for valid, ready in ((1.0, 1.0), (0.7, 0.5)):
        run = model.run(
            words(lists, bits=bits),
            output_count=len(want),
            seed=1,
            valid_probability=valid,
            ready_probability=ready,
            max_cycles=2_000_000,
        )
        assert run.outputs.tolist() == want


def test_a_memory_is_smaller_than_registers():
    """Of 512 scores the best 16."""
    scores = {"score": unsigned(26), "max_blocks": 512, "topk": 16}
    top = synthesize(TopBlocks(**scores), name="top")
    row = synthesize(SortedBlocks(**scores), name="row")
    assert top.luts <= 210
    assert row.luts > 4 * top.luts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topk": 0}, "topk must be a positive integer, not 0"),
        ({"max_blocks": -1}, "max_blocks must be a positive integer, not -1"),
        ({"radix_bits": 9}, "radix_bits must be 1 to 8, not 9"),
        (
            {"storage": "ram"},
            "unknown storage 'ram' (did you mean 'bram'?); expected one of: lutram, bram",
        ),
        ({"score": signed(8)}, "scores must be unsigned, not signed(8)"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(UsageError) as caught:
        TopBlocks(**{"score": unsigned(8), "max_blocks": 8, "topk": 2, **changes})
    assert str(caught.value) == message
