import numpy as np
import pytest

from costmodel import synthesize
from hw.kv_cache.merge_engine import MergeEngine
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.fixed_point import fraction_bits, to_integers
from quantizers.kv_cache.merge_arithmetic import MergeArithmetic
from tests.hw.kv_cache.merge_words import as_objects, merged_payloads, pair_payloads, sample_pairs

SIZES = [
    (64, 4, 0.6, "dsps"),
    (64, 4, 0.4, "luts"),
    (64, 1, 0.6, "dsps"),
    (12, 3, 0.5, "dsps"),
    (1, 1, 1.0, "luts"),
]


@pytest.mark.parametrize(("channels", "lanes", "t", "multipliers"), SIZES)
def test_directions_are_those_of_the_software(channels, lanes, t, multipliers):
    arithmetic = MergeArithmetic(channels=channels, t=t)
    x, y = sample_pairs(60, channels, seed=channels + lanes)
    items, want = as_objects(pair_payloads(x, y, lanes)), merged_payloads(x, y, arithmetic, lanes)
    component = MergeEngine(arithmetic=arithmetic, lanes=lanes, multipliers=multipliers)
    cycles = component.cycles(len(x))
    model = VerilatedStream(component)
    run = model.run(items, output_count=len(want), max_cycles=2 * cycles)
    assert run.outputs.tolist() == want
    assert run.cycles == cycles
    for valid, ready in ((0.05, 1.0), (1.0, 0.02), (0.1, 0.1)):
        run = model.run(
            items,
            output_count=len(want),
            seed=5,
            valid_probability=valid,
            ready_probability=ready,
            max_cycles=100 * cycles,
        )
        assert run.outputs.tolist() == want


@pytest.mark.parametrize("lanes", [2, 8])
def test_latency_of_the_first_word(lanes):
    arithmetic = MergeArithmetic(channels=16)
    x, y = sample_pairs(2, 16, seed=4)
    component = MergeEngine(arithmetic=arithmetic, lanes=lanes)
    words, latency, interval = component.words_per_pair, component.latency, component.interval
    model = VerilatedStream(component)
    items = as_objects(pair_payloads(x, y, lanes))
    # The last word is taken in cycle words - 1; the last cycle counted is that of the output.
    assert model.run(items, output_count=1).cycles == words + latency
    assert model.run(items, output_count=words).cycles == 2 * words + latency - 1 == component.cycles(1)
    assert model.run(items, output_count=words + 1).cycles == words + latency + interval


@pytest.mark.slow
@pytest.mark.parametrize(("lower", "kind"), [(0, 0), (14, 0), (14, 1), (28, 1)])
def test_keys_and_values_of_two_layers_of_a_language_model(smollm2_cache, lower, kind):
    """Every vector of a window: the same directions and magnitudes."""
    pair = smollm2_cache[lower : lower + 2, kind].transpose(0, 2, 1, 3).reshape(2, -1, 64)
    x, y = (to_integers(rows, fraction_bits(float(np.abs(rows).max()))) for rows in pair)
    arithmetic = MergeArithmetic(channels=64)
    want = merged_payloads(x, y, arithmetic, 8)
    component = MergeEngine(arithmetic=arithmetic, lanes=8)
    run = VerilatedStream(component).run(
        as_objects(pair_payloads(x, y, 8)),
        output_count=len(want),
        seed=1,
        valid_probability=0.9,
        ready_probability=0.9,
        max_cycles=4 * component.cycles(len(x)),
    )
    assert len(want) == 512 * 3 * 8
    assert run.outputs.tolist() == want


@pytest.mark.slow
def test_its_size():
    """Measured: 1228 sites with 21 DSP slices; of LUTs alone 5865."""
    found = synthesize(MergeEngine(arithmetic=MergeArithmetic(channels=64)), name="engine")
    assert found.luts <= 1290
    assert (found.dsps, found.brams) == (21, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arithmetic": None}, "arithmetic must be a MergeArithmetic, not None"),
        (
            {"arithmetic": MergeArithmetic(channels=64), "lanes": 0},
            "lanes must be a positive integer, not 0",
        ),
        (
            {"arithmetic": MergeArithmetic(channels=64), "lanes": 5},
            "lanes must divide the 64 channels, not be 5",
        ),
        (
            {"arithmetic": MergeArithmetic(channels=576), "lanes": 2},
            "pairs of 576 channels need at least 4 lanes, not 2",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        MergeEngine(**arguments)
    assert str(caught.value) == message
