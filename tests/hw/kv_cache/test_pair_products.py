import pytest

from hw.kv_cache.pair_products import PairProducts
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from quantizers.kv_cache.merge_arithmetic import MergeArithmetic
from tests.hw.kv_cache.merge_words import pair_payloads, product_payloads, sample_pairs


@pytest.mark.parametrize("multipliers", ["dsps", "luts"])
@pytest.mark.parametrize(("channels", "lanes"), [(8, 1), (8, 2), (6, 6), (1, 1)])
def test_products_are_exact(channels, lanes, multipliers):
    arithmetic = MergeArithmetic(channels=channels)
    x, y = sample_pairs(30, channels, seed=lanes)
    items, want = pair_payloads(x, y, lanes), product_payloads(x, y, arithmetic)

    def component():
        return PairProducts(arithmetic=arithmetic, lanes=lanes, multipliers=multipliers)

    run = simulate_stream(component(), items, output_count=len(x))
    assert run.outputs == want
    assert run.cycles == component().cycles(len(x))
    stalled = simulate_stream(
        component(), items, output_count=len(x), seed=3, valid_probability=0.6, ready_probability=0.3
    )
    assert stalled.outputs == want


def test_wrong_lanes():
    with pytest.raises(UsageError) as caught:
        PairProducts(arithmetic=MergeArithmetic(channels=64), lanes=6)
    assert str(caught.value) == "lanes must divide the 64 channels, not be 6"
    assert caught.value.expected == ["1", "2", "4", "8", "16", "32", "64"]
