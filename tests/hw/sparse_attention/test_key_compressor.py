import numpy as np
import pytest

from costmodel import synthesize
from hw.simulation import simulate_stream
from hw.sparse_attention import KeyCompressor, token_words
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.sparse_attention import BlockSelection, compressed_sums

SHAPES = [
    # kernel, stride, key bits, dropped bits, channels, lanes
    (4, 2, 8, 0, 4, 2),
    (8, 2, 8, 3, 4, 4),
    (4, 4, 8, 1, 3, 1),
    (4, 1, 4, 2, 4, 4),
    (6, 2, 5, 1, 2, 2),
    (32, 16, 8, 5, 4, 2),
]


def build(kernel, stride, key_bits, dropped_bits, head_dim, lanes):
    selection = BlockSelection(kernel=kernel, stride=stride, block=64 * stride, window=0, dense_length=0)
    return KeyCompressor(
        selection=selection, head_dim=head_dim, key_bits=key_bits, lanes=lanes, dropped_bits=dropped_bits
    )


def expected(component, sequences):
    sums = [
        compressed_sums(
            keys, component.selection, key_bits=component.key_bits, dropped_bits=component.dropped_bits
        )
        for keys in sequences
    ]
    return np.concatenate(sums).reshape(-1, component.lanes).tolist()


def draw(component, rng, *extra):
    """Sequences of so many tokens more than a kernel."""
    half = 1 << (component.key_bits - 1)
    kernel = component.selection.kernel
    return [rng.integers(-half, half, (kernel + n, component.head_dim)) for n in extra]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("valid", "ready"), [(1.0, 1.0), (0.6, 0.4)])
def test_sequences(shape, valid, ready):
    """Several, one after the other: what is left of one does not come into the next."""
    component = build(*shape)
    sequences = draw(component, np.random.default_rng(0), 3 * shape[1] + 1, 0, shape[1], 1)
    words = [word for keys in sequences for word in token_words(component, keys)]
    want = expected(component, sequences)
    run = simulate_stream(
        component, words, output_count=len(want), valid_probability=valid, ready_probability=ready
    )
    assert run.outputs == want


@pytest.mark.parametrize("shape", SHAPES)
def test_cycles(shape):
    component = build(*shape)
    [keys] = draw(component, np.random.default_rng(1), 5 * shape[1] + 1)
    want = expected(component, [keys])
    run = simulate_stream(build(*shape), token_words(component, keys), output_count=len(want))
    assert run.outputs == want
    assert run.cycles == component.cycles(len(keys))


def test_extremes():
    """Sums of the most negative and of the largest keys fill the word; means of them do not wrap."""
    for dropped in (0, 3, 5):
        component = build(32, 16, 8, dropped, 2, 2)
        keys = np.repeat([[-128, 127], [127, -128]], 48, axis=0)
        want = expected(component, [keys])
        run = simulate_stream(component, token_words(component, keys), output_count=len(want))
        assert run.outputs == want


def test_a_long_sequence():
    component = build(32, 16, 8, 5, 64, 8)
    keys = np.random.default_rng(2).integers(-128, 128, (3000, 64))
    want = expected(component, [keys])
    model = VerilatedStream(component)
    at_once = model.run(token_words(component, keys), output_count=len(want))
    assert (at_once.outputs.tolist(), at_once.cycles) == (want, component.cycles(3000))
    stalled = model.run(
        token_words(component, keys),
        output_count=len(want),
        seed=1,
        valid_probability=0.7,
        ready_probability=0.3,
    )
    assert stalled.outputs.tolist() == want


def test_its_size():
    selection = BlockSelection()
    assert synthesize(KeyCompressor(selection=selection, head_dim=64), name="keys").luts <= 385


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 3}, "head_dim must be a multiple of the 3 lanes, not 64"),
        ({"lanes": 0}, "lanes must be a positive integer, not 0"),
        ({"dropped_bits": 6}, "dropped_bits must be an integer from 0 to 5, not 6"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(UsageError) as caught:
        KeyCompressor(**{"selection": BlockSelection(), "head_dim": 64, **changes})
    assert str(caught.value) == message


def test_wrong_keys():
    with pytest.raises(UsageError) as caught:
        token_words(build(4, 2, 8, 0, 4, 2), np.zeros((5, 3)))
    assert str(caught.value) == "keys must be of shape (tokens, 4), not (5, 3)"
