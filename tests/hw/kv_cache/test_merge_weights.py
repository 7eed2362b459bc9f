import pytest

from costmodel import synthesize
from hw.kv_cache.merge_weights import MergeWeights
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.merge_arithmetic import MergeArithmetic
from tests.hw.kv_cache.merge_words import as_objects, product_payloads, sample_pairs, weight_payloads


@pytest.mark.parametrize(
    ("channels", "t", "multipliers"),
    [(1, 0.6, "dsps"), (64, 0.6, "dsps"), (64, 0.0, "luts"), (192, 0.3, "dsps"), (1024, 1.0, "luts")],
)
def test_weights_are_those_of_the_software(channels, t, multipliers):
    arithmetic = MergeArithmetic(channels=channels, t=t)
    x, y = sample_pairs(120, channels, seed=channels)
    items, want = product_payloads(x, y, arithmetic), weight_payloads(x, y, arithmetic)
    component = MergeWeights(arithmetic=arithmetic, multipliers=multipliers)
    cycles = component.cycles(len(x))
    model = VerilatedStream(component)
    run = model.run(as_objects(items), output_count=len(x), max_cycles=2 * cycles)
    assert run.outputs.tolist() == want
    assert run.cycles == cycles
    for valid, ready in ((0.01, 1.0), (1.0, 0.01), (0.02, 0.05)):
        run = model.run(
            as_objects(items),
            output_count=len(x),
            seed=7,
            valid_probability=valid,
            ready_probability=ready,
            max_cycles=9 * cycles,
        )
        assert run.outputs.tolist() == want
        assert run.cycles > cycles


def test_latency():
    arithmetic = MergeArithmetic(channels=64)
    x, y = sample_pairs(1, 64, seed=1)
    component = MergeWeights(arithmetic=arithmetic)
    items = product_payloads(x, y, arithmetic)
    run = simulate_stream(component, items, output_count=1)
    assert run.cycles == component.latency + 1 == 327
    assert MergeWeights(arithmetic=arithmetic, multipliers="luts").latency == 332


def test_its_size():
    """Measured: 639 sites and a DSP slice."""
    found = synthesize(MergeWeights(arithmetic=MergeArithmetic(channels=64)), name="weights")
    assert found.luts <= 670
    assert (found.dsps, found.brams) == (1, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arithmetic": 64}, "arithmetic must be a MergeArithmetic, not 64"),
        (
            {"arithmetic": MergeArithmetic(channels=8), "multipliers": "dsp"},
            "unknown multipliers 'dsp' (did you mean 'dsps'?); expected one of: luts, dsps",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        MergeWeights(**arguments)
    assert str(caught.value) == message
