import numpy as np
import pytest

from costmodel import synthesize
from hw.kv_cache.distinct_tokens import DistinctTokens
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.merging import MergeSettings, distinct


def prefills(tokens, seed):
    """Distances of several prefills, one after the other."""
    rng = np.random.default_rng(seed)
    normal = np.clip(rng.standard_normal(tokens) * 300 + 30000, 0, 65535).astype(np.int64)
    extremes = rng.choice([0, 65535, 3276, 3277, 62258, 62259], tokens)
    return [rng.integers(0, 65536, tokens), normal, np.full(tokens, 77), extremes, normal[::-1]]


def payloads(distances):
    return [int(d) | (place == len(distances) - 1) << 16 for place, d in enumerate(distances)]


@pytest.mark.parametrize(
    ("tokens", "settings", "retained"),
    [
        (100, MergeSettings(), None),
        (1, MergeSettings(), None),
        (300, MergeSettings(retention="printed", gamma=0.3), None),
        (64, MergeSettings(gamma=0.5), 3),
        (64, MergeSettings(gamma=1.0), None),
        (64, MergeSettings(gamma=0.0), None),
    ],
)
def test_flags_are_those_of_the_software(tokens, settings, retained):
    want, items = [], []
    for distances in prefills(tokens, tokens):
        flags = distinct(distances, settings)
        if retained is not None:
            flags &= np.cumsum(flags) <= retained
        want += flags.astype(int).tolist()
        items += payloads(distances)
    component = DistinctTokens(settings=settings, capacity=tokens, retained=retained)
    cycles = component.cycles(tokens)
    model = VerilatedStream(component)
    assert model.run(items[:tokens], output_count=tokens).cycles == cycles
    for valid, ready in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.05), (0.5, 0.4)):
        run = model.run(
            items, output_count=len(items), seed=4, valid_probability=valid, ready_probability=ready
        )
        assert run.outputs.tolist() == want


def test_latency():
    component = DistinctTokens(settings=MergeSettings(), capacity=4)
    latency = component.latency
    run = VerilatedStream(component).run(payloads([5, 6, 7]), output_count=1)
    # The last of three is taken in cycle 2; the last cycle counted is that of the output.
    assert run.cycles == 2 + latency + 1


def test_its_size():
    """Measured: 250 sites and half a block RAM for 512 tokens."""
    found = synthesize(DistinctTokens(settings=MergeSettings(), retained=32), name="distinct")
    assert found.luts <= 265
    assert found.brams == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": "prose"}, "settings must be MergeSettings, not 'prose'"),
        ({"capacity": 0}, "capacity must be a positive integer, not 0"),
        ({"retained": 0}, "retained must be a positive integer, not 0"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(UsageError) as caught:
        DistinctTokens(**{"settings": MergeSettings(), **changes})
    assert str(caught.value) == message
