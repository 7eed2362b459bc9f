import numpy as np
import pytest

from dse.cache_costs import cost_of_plan
from dse.cache_engines import LANES, engine_of
from quantizers.errors import UsageError
from quantizers.kv_cache.codebook import ScaleFormat
from quantizers.kv_cache.formats_codec import InFormat
from quantizers.kv_cache.grouped import PerChannel, PerToken
from quantizers.kv_cache.registry import parse_cache_scheme
from quantizers.kv_cache.rotated import Rotated, Rotation
from quantizers.kv_cache.rotation import largest_sum
from tests.quantizers.kv_cache.small_calibration import random_calibration


def rotated(bits, finest, *, size=32, heads=2):
    vector = Rotation(
        elements=size,
        bits=tuple(np.resize(bits, size).tolist()),
        finest=finest,
        signs=(1,) * size,
        scale=ScaleFormat.covering(largest_sum(size)),
    )
    return Rotated([vector] * heads)


@pytest.mark.parametrize(
    ("codec", "lanes"),
    [
        (rotated([3], 3), 8),
        (rotated([4], 4), 4),
        (rotated([5], 5), 2),
        (rotated([3, 4], 4), 4),
        (rotated([2, 5], 5), 2),
        (rotated([3], 4), 4),
        # Eight lanes of 4 bits and a scale are more than a word of 32 bits; of 3 bits they are not.
        (rotated([3, 4], 4, size=64), 4),
        (rotated([2, 3], 3, size=64), 8),
        (PerToken(channels=24, bits=4, group=12), 4),
        (PerToken(channels=15, bits=3, group=5), 1),
        (PerChannel(channels=24, bits=2, group=20), 4),
    ],
)
def test_as_many_lanes_as_divide_a_group_or_a_vector_has_time_for_products(codec, lanes):
    engine = engine_of(codec)
    assert (engine.lanes, engine.elements_per_cycle) == (lanes, lanes)
    for part in (engine.writer(), engine.reader()):
        assert part.latency > 0


def test_one_engine_for_the_tables_of_all_layers():
    """Codes that are all alike in the first layer, but not in the second, take tables of widths."""
    first, second = rotated([4], 4), rotated([3, 4], 4)
    assert hasattr(engine_of(first, [second]).writer(), "load")
    assert not hasattr(engine_of(first, [first]).writer(), "load")
    with pytest.raises(UsageError) as caught:
        engine_of(second, [rotated([3], 3)])
    assert str(caught.value) == (
        "the hardware is made for 2 vectors of 32 elements, codes of at most 4 bits and scales of 8 bits in units "
        "of 2**3; the tables are for 2 vectors of 32 elements, codes of at most 3 bits and scales of 8 bits in "
        "units of 2**3"
    )


@pytest.mark.parametrize(
    ("codec", "reason"),
    [
        (InFormat(channels=32, format="e2m1", group=32, scale="half"), "InFormat has no hardware here"),
        (
            PerToken(channels=32, bits=4, group=32).centred([0] * 32),
            "PerToken with means has no hardware here",
        ),
        (
            Rotated(
                [
                    Rotation(
                        elements=12, bits=(3,) * 16, finest=3, signs=(1,) * 16,
                        scale=ScaleFormat.covering(largest_sum(16)),
                    )
                ]
            ),
            "vectors of 12 elements, no power of two, have no hardware here",
        ),
    ],
)  # fmt: skip
def test_codecs_without_hardware(codec, reason):
    with pytest.raises(UsageError) as caught:
        engine_of(codec)
    assert str(caught.value) == f"{reason}; there is some of kivi, per_token, rotated and transform"


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("per_token(bits=4, group=32)", 2 * LANES),
        ("rotated(bits=2)", 8),  # vectors of 8 elements have a word for each level
        ("transform(bits=2)", 2),
    ],
)
def test_cost_of_a_plan(name, rate):
    """Keys and values side by side: sites of all parts, for the elements that they do in a cycle."""
    plan = parse_cache_scheme(name).plan(random_calibration(layers=1))
    cost = cost_of_plan(plan, part="xc7z020")
    assert cost.metrics["elements_per_cycle"].value == rate
    sites = [int(text.split()[1]) for text in cost.details["engine"].removeprefix("sites: ").split(", ")]
    assert len(sites) == 4
    assert cost.metrics["luts"].value == sum(sites) > 0
    assert cost.metrics["luts_per_element_cycle"].value == sum(sites) / rate


def test_a_plan_without_hardware_has_no_cost():
    plan = parse_cache_scheme("oaken(outer=0.1, inner=0.15)").plan(random_calibration(layers=1))
    cost = cost_of_plan(plan, part="xc7z020")
    assert cost.metrics == {}
    assert cost.details == {
        "engine": "SplitOutliers has no hardware here; there is some of kivi, per_token, rotated and transform"
    }
