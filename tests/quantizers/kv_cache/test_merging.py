"""Pairs of layers, retained tokens and bits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.kv_cache.merge_arithmetic import angle_distance, merge, restore
from quantizers.kv_cache.merging import (
    MergedBits,
    MergeSettings,
    distinct,
    layer_pairs,
)
from tests.quantizers.kv_cache.merge_samples import at_angles


def planted(tokens=512, channels=64, seed=3):
    """Two layers that are nearly alike, but for five tokens: what MiniCache is made for."""
    rng = np.random.default_rng(seed)
    omega = math.pi * rng.uniform(0.01, 0.0315, tokens)
    places = np.sort(rng.choice(tokens, 5, replace=False))
    omega[places] = math.pi * np.array([0.15, 0.17, 0.242, 0.245, 0.25])
    return *at_angles(omega, channels, rng, smallest=12), places


def test_the_text_retains_the_distinct_tokens_and_the_printed_rule_the_others():
    x, y, places = planted()
    distances = merge(x, y, MergeSettings().arithmetic(64)).distance
    prose = distinct(distances, MergeSettings())
    printed = distinct(distances, MergeSettings(retention="printed"))
    assert np.flatnonzero(prose).tolist() == places[2:].tolist()
    assert int(printed.sum()) == 279
    assert not printed[places].any()


def test_merging_pays_where_layers_are_alike():
    x, y, places = planted()
    merged = merge(x, y, MergeSettings().arithmetic(64))
    error = np.linalg.norm(restore(merged.direction, merged.second_magnitude) - y, axis=1)
    relative = error / np.linalg.norm(y, axis=1)
    alike = np.delete(relative, places)
    assert np.median(alike) == pytest.approx(2 * math.sin(0.4 * 0.02075 * math.pi / 2), rel=0.1)
    assert relative[places].min() > 5 * np.median(alike)


def test_integer_and_float_distances_retain_the_same():
    x, y, _ = planted(seed=1)
    codes = merge(x, y, MergeSettings().arithmetic(64)).distance
    for retention in ("prose", "printed"):
        settings = MergeSettings(retention=retention)
        exact = distinct(angle_distance(x, y), settings)
        assert (exact != distinct(codes, settings)).sum() <= 2


@pytest.mark.parametrize("retention", ["prose", "printed"])
def test_the_rule_on_few_numbers(retention):
    d = np.array([[0, 5, 10, 95, 96, 100], [7, 7, 7, 7, 7, 7]])
    settings = MergeSettings(retention=retention, gamma=0.05)
    # gamma is 3277 / 65536, a hair above 0.05, so that a gap of exactly 5 is within it.
    wanted = [0, 0, 0, 1, 1, 1] if retention == "prose" else [1, 1, 0, 0, 0, 0]
    assert distinct(d, settings).astype(int).tolist() == [wanted, [0] * 6]
    assert distinct(d.T, settings, axis=0).T.astype(int).tolist() == [wanted, [0] * 6]
    strict = [0, 0, 0, 0, 1, 1] if retention == "prose" else [1, 0, 0, 0, 0, 0]
    assert distinct(d[0] / 128, settings).astype(int).tolist() == strict


def test_conventions_swap_the_weights():
    assert MergeSettings().upper_weight == 0.6
    assert MergeSettings(convention="alg2").upper_weight == pytest.approx(0.4)
    assert MergeSettings(t=0.3, convention="alg2").arithmetic(8).t == pytest.approx(0.7)


def test_layer_pairs():
    assert layer_pairs(30) == [(15, 16), (17, 18), (19, 20), (21, 22), (23, 24), (25, 26), (27, 28)]
    assert layer_pairs(32)[-1] == (30, 31)
    assert layer_pairs(30, start=15, stop=17) == [(15, 16)]
    assert layer_pairs(5, start=0) == [(0, 1), (2, 3)]
    assert layer_pairs(2, start=0) == [(0, 1)]


def test_bits():
    bits = MergedBits(channels=64, vectors=100, retained=3, magnitude_bits=18, index_bits=16)
    assert bits.exact == 100 * 2 * 64 * 16
    assert bits.merged == 100 * (64 * 16 + 36) + 3 * (2 * 64 * 16 + 16)
    assert bits.ratio == pytest.approx(204800 / 112192)
    four = MergedBits(
        channels=64, vectors=100, retained=3, magnitude_bits=18, index_bits=16, direction_bits=4.5
    )
    assert four.merged == 100 * (64 * 4.5 + 36) + 3 * 2064


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MergeSettings(retention="text"),
            "unknown retention 'text'; expected one of: prose, printed",
        ),
        (
            lambda: MergeSettings(convention="eq4"),
            "unknown convention 'eq4' (did you mean 'eq3'?); expected one of: eq3, alg2",
        ),
        (lambda: MergeSettings(gamma=-0.1), "gamma must be from 0 to 1, not -0.1"),
        (lambda: MergeSettings(t=2), "t must be from 0 to 1, not 2"),
        (
            lambda: layer_pairs(1),
            "merging takes pairs of layers; from layer 0 to below 1 there is none",
        ),
        (
            lambda: layer_pairs(30, start=29),
            "merging takes pairs of layers; from layer 29 to below 30 there is none",
        ),
        (lambda: layer_pairs(4, start=2, stop=6), "layers 2 to 5 are no range of layers 0 to 3"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value) == message
