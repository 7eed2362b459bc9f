"""Limits of the calibrated codecs' parameters: of the functions that find tables as well as of schemes."""

from __future__ import annotations

import pytest

from quantizers.errors import UsageError
from quantizers.kv_cache.fitting import rotations, transforms
from quantizers.kv_cache.limits import check_number
from tests.quantizers.kv_cache.small_calibration import random_calibration

CALIBRATION = random_calibration(layers=1, heads=1)
SPANS = [slice(0, 8), slice(8, 16)]


@pytest.mark.parametrize("value", [0, 1, 0.5, 1e-300])
def test_numbers_within(value):
    check_number("x", value, 0, 1)


@pytest.mark.parametrize("value", [-1e-300, 1.0000001, float("nan"), float("inf"), -float("inf")])
def test_numbers_beyond(value):
    with pytest.raises(UsageError) as caught:
        check_number("x", value, 0, 1)
    assert str(caught.value) == f"x must be from 0 to 1, not {value}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 7, "allocated": False}, "bits must be from 1 to 6, not 7"),
        ({"bits": float("nan")}, "bits must be from 0 to 16, not nan"),
        ({"scale_bits": 17}, "scale_bits must be an integer from 5 to 16, not 17"),
        ({"seed": 1 << 32}, "seed must be an integer from 0 to 4294967295, not 4294967296"),
        ({"lowest": 3, "highest": 2}, "lowest must be at most highest, not 3 with a highest of 2"),
        ({"tempering": -0.5}, "tempering must be from 0 to 1, not -0.5"),
        (
            {"bits": 6.125},
            "codes of 0 to 5 bits, with what is stored beside them, take 1 to 6 bits an element, not 6.125",
        ),
    ],
)
def test_rotations(changes, message):
    with pytest.raises(UsageError) as caught:
        rotations(CALIBRATION, SPANS, **{"bits": 4, "highest": 5, **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 8.5}, "bits must be from 0 to 8, not 8.5"),
        ({"entry_bits": 13}, "entry_bits must be an integer from 4 to 12, not 13"),
        ({"tempering": 2}, "tempering must be from 0 to 1, not 2"),
        ({"floor": float("inf")}, "floor must be from 0 to 1000000, not inf"),
    ],
)
def test_transforms(changes, message):
    with pytest.raises(UsageError) as caught:
        transforms(CALIBRATION, SPANS, **{"bits": 4, **changes})
    assert str(caught.value) == message
