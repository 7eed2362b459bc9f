import numpy as np
import pytest

from dse.cache_costs import cost_of_plan
from dse.caches import CacheText, measure
from dse.merge_engines import KINDS, MergeMemories, merge_parts
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.merge_arithmetic import restore
from quantizers.kv_cache.merging import distinct
from quantizers.kv_cache.registry import parse_cache_scheme
from tests.dse.workloads_language.tiny_folder import tiny_model_folder
from tests.hw.kv_cache.merge_words import array_word, as_objects
from tests.quantizers.kv_cache.small_calibration import random_calibration

PART = "xc7z020"
NO_MEASUREMENT = "how large the memories of a merge engine are is known of a measurement only"


def plan_of(text="minicache(first=0)", *, head_dim=16):
    return parse_cache_scheme(text).plan(random_calibration(heads=2, head_dim=head_dim))


def parts_of(plan, **memories):
    return merge_parts(plan, MergeMemories(**{"window": 2000, "prefill": 600, "retained": 90, **memories}))


def test_memories_are_as_large_as_what_was_measured():
    parts = parts_of(plan_of())
    assert list(parts) == [
        f"{part}_{kind}" for kind in ("keys", "values") for part in ("merge", "distinct", "restore")
    ]
    for kind in KINDS:
        assert parts[f"distinct_{kind}"].capacity == 600
        assert parts[f"restore_{kind}"].capacity == 90
    assert parts_of(plan_of(), retained=0)["restore_keys"].capacity == 1


def test_a_long_prefill_goes_through():
    """More distances than the component's default memory holds."""
    plan = plan_of("minicache(first=0, retention='printed', gamma=0.3)")
    distances = np.random.default_rng(3).integers(0, 65536, 600)
    items = [int(d) | (place == 599) << 16 for place, d in enumerate(distances)]
    run = VerilatedStream(parts_of(plan)["distinct_values"]).run(items, output_count=600)
    assert run.outputs.tolist() == distinct(distances, plan.settings).astype(int).tolist()


def test_as_many_rows_as_were_retained_go_through():
    plan = plan_of()
    rng, tokens, retained = np.random.default_rng(4), 120, 90
    unit = parts_of(plan)["restore_keys"]
    lanes, bits = unit.lanes, plan.arithmetic.magnitude_bits
    directions, rows = (rng.integers(-32768, 32768, (n, 16)) for n in (tokens, retained))
    magnitudes = rng.integers(0, 1 << bits, tokens)
    places = np.sort(rng.choice(tokens, retained, replace=False))
    want = restore(directions, magnitudes)
    want[places] = rows
    row_words = [
        array_word(word) | int(place) << 16 * lanes | (row == number == 0) << 16 * lanes + 16
        for row, place in enumerate(places)
        for number, word in enumerate(rows[row].reshape(-1, lanes))
    ]
    merged_words = [
        array_word(word) | (int(magnitudes[token]) | (token == tokens - 1) << bits) << 16 * lanes
        for token in range(tokens)
        for word in directions[token].reshape(-1, lanes)
    ]
    run = VerilatedStream(unit).run(
        {"rows": as_objects(row_words), "merged": as_objects(merged_words)},
        output_count=len(merged_words),
        first=["rows"],
    )
    np.testing.assert_array_equal(run.outputs.reshape(tokens, 16), want)


@pytest.mark.parametrize(
    ("memories", "message"),
    [
        (None, NO_MEASUREMENT),
        (
            MergeMemories(window=65537, prefill=600, retained=90),
            "tokens of a window must be an integer from 1 to 65536, not 65537",
        ),
    ],
)
def test_no_cost_without_sizes(memories, message):
    with pytest.raises(UsageError) as caught:
        merge_parts(plan_of(), memories)
    assert str(caught.value) == message
    found = cost_of_plan(plan_of(), part=PART, memories=memories)
    assert (found.metrics, found.details) == ({}, {"engine": message})


def test_larger_memories_cost_more():
    small, large = (
        cost_of_plan(plan_of(), part=PART, memories=MergeMemories(window=4096, prefill=p, retained=r))
        for p, r in ((16, 1), (4096, 500))
    )
    # Distances of 4096 tokens take 16 * 4096 bits, rows 500 * 256, of keys and of values.
    least = 2 * (16 * 4096 + 500 * 256) / 36864
    assert small.metrics["brams"].value < least <= large.metrics["brams"].value
    assert small.metrics["luts"].value < large.metrics["luts"].value
    assert small.metrics["dsps"].value == large.metrics["dsps"].value > 0


@pytest.mark.parametrize("whole_window", [False, True])
def test_sizes_are_those_of_the_measurement(tmp_path, whole_window):
    model, text = tiny_model_folder(tmp_path, head_dim=16)
    source = CacheText.of(f"hf:{model}", data=None, text=text, windows=2, length=32, calibration_windows=2)
    codec = "minicache(first=0, retention='printed', gamma=0.5, prefill=20)"
    found = measure(source, codec, whole_window=whole_window).memories
    prefill = 32 if whole_window else 20
    assert (found.window, found.prefill) == (32, prefill)
    # Half of the range of distances holds more than a few of them, and never the most distant one.
    assert 2 < found.retained < prefill
    none = measure(source, "minicache(first=0, gamma=0)", whole_window=whole_window).memories
    assert none == MergeMemories(window=32, prefill=32 if whole_window else 16, retained=0)
    assert measure(source, "kivi(group=8)", whole_window=whole_window).memories is None
