"""Figures that are known from how the tensors were made, and the verdicts that follow."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.kv_cache.diagnosis import diagnose, normal_crest
from quantizers.kv_cache.merge_arithmetic import slerp
from quantizers.kv_cache.merging import MergeSettings
from tests.quantizers.kv_cache.merge_samples import at_angles

SHAPE = (2, 3, 40, 32)
"""Sequences, heads, tokens, channels."""


def normal(layers=4, seed=0):
    return np.random.default_rng(seed).standard_normal((layers, *SHAPE)).astype(np.float32)


def alike(angle, seed=0):
    """Four layers, the vectors of adjacent ones at one angle."""
    omega = np.full(math.prod(SHAPE[:3]), angle)
    layers = []
    for pair in range(2):
        both = at_angles(omega, SHAPE[-1], np.random.default_rng(seed + pair), smallest=13)
        layers += [v.reshape(SHAPE) / 4096 for v in both]
    return np.array(layers, dtype=np.float32)


def test_angles_and_the_error_of_merging():
    found = diagnose(alike(0.1 * math.pi), kind="keys")
    assert found.merged == (2,)
    assert [pair.lower for pair in found.pairs] == [0, 1, 2]
    assert found.pairs[2].mean_angle == pytest.approx(0.1, abs=1e-4)
    assert found.pairs[1].mean_angle == pytest.approx(0.5, abs=0.01)
    assert (found.pairs[2].small_angles, found.pairs[1].small_angles) == (1, 0)
    assert found.merging_pays
    assert found.verdict()[0].startswith(
        "keys: merging adjacent layers can pay: they are 0.100 pi apart, so that merged vectors are off by 1"
    )


@pytest.mark.parametrize("convention", ["eq3", "alg2"])
def test_the_error_is_that_of_merging_and_restoring(convention):
    settings = MergeSettings(convention=convention)
    x, y = tensors = normal(2, seed=3)
    found = diagnose(tensors, kind="values", settings=settings)
    direction = slerp(x, y, settings.upper_weight)
    lost = sum(((direction * np.linalg.norm(v, axis=-1, keepdims=True) - v) ** 2).sum() for v in (x, y))
    assert found.merge_error == pytest.approx(math.sqrt(lost / (tensors**2).sum()), rel=1e-5)
    assert not found.merging_pays
    assert "values: merging adjacent layers cannot pay: they are 0.5" in found.verdict()[0]


def test_normal_tensors_gain_nothing():
    found = diagnose(normal(), kind="keys")
    assert abs(found.mean_gain_bits) < 0.01
    assert abs(found.rotation_gain_bits) < 0.03
    assert found.channel_gain_bits < 0.01
    assert found.first_token == pytest.approx(1, abs=0.05)
    assert found.verdict()[1:] == [
        f"keys: removing each channel's mean saves too little to pay ({found.mean_gain_bits:.2f} bits an element)",
        f"keys: a rotation saves too little to pay ({found.rotation_gain_bits:.2f} bits an element) (the means being removed)",
        f"keys: a scale for each channel saves too little to pay ({found.channel_gain_bits:.2f} bits an element) (the strongest channel has {found.channel_spread:.1f} times the spread of the median one)",
        f"keys: the first token is {found.first_token:.1f} times as far from the channels' means as others: nothing to single out",
    ]


def test_means_outliers_channels_and_sinks_are_found():
    tensors = normal()
    # Means of three quarters of the energy: log2(sqrt(4)) bits.
    assert diagnose(tensors + math.sqrt(3), kind="keys").mean_gain_bits == pytest.approx(1, abs=0.02)
    channels = tensors.copy()
    channels[..., 7] *= 8
    found = diagnose(channels, kind="keys")
    assert found.channel_spread == pytest.approx(8, rel=0.1)
    assert found.channel_gain_bits == pytest.approx(0.5 * math.log2((31 + 64) / 32) - 3 / 32, abs=0.02)
    assert found.rotation_gain_bits > 0.3
    sink = tensors.copy()
    sink[:, :, :, 0] *= 5
    found = diagnose(sink, kind="keys")
    assert found.first_token == pytest.approx(5, rel=0.1)
    assert found.verdict()[4].endswith("keep it exactly")
    tensors[:, :, :, 0] *= 0.1
    assert diagnose(tensors, kind="keys").verdict()[4].endswith("a relative error of its own group suffices")


def test_coding_errors_are_those_of_uniform_groups():
    layer = diagnose(normal(), kind="keys").layers[0]
    # A range of r standard deviations in n steps is off by r / n / sqrt(12); of 32 normal ones r is about 4.1.
    assert layer.half_error == pytest.approx(4.14 / 3 / math.sqrt(12), rel=0.05)
    assert layer.usual_error == pytest.approx(4.14 / 15 / math.sqrt(12), rel=0.05)


def test_nothing_but_zeros():
    found = diagnose(np.zeros((2, 1, 1, 3, 8)), kind="values")
    assert (found.merge_error, found.mean_gain_bits, found.channel_gain_bits) == (0, 0, 0)
    assert found.verdict()


def test_json_has_layers_and_figures():
    document = diagnose(normal(), kind="keys").as_json()
    assert (len(document["layers"]), len(document["pairs"])) == (4, 3)
    assert document["merged"] == (2,)
    assert document["merging_pays"] is False


def test_normal_crest_is_the_median():
    rng = np.random.default_rng(1)
    largest = np.abs(rng.standard_normal((20000, 64))).max(axis=1)
    assert normal_crest(64) == pytest.approx(float(np.median(largest)), abs=0.01)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            np.zeros((1, 1, 1, 4, 8)),
            "tensors must be of shape (layers >= 2, sequences, heads, tokens >= 2, channels), not (1, 1, 1, 4, 8)",
        ),
        (
            np.zeros((2, 1, 4, 8)),
            "tensors must be of shape (layers >= 2, sequences, heads, tokens >= 2, channels), not (2, 1, 4, 8)",
        ),
        (
            np.zeros((2, 1, 1, 4, 40)),
            "heads must have at most 32 channels or a multiple of it, not 40",
        ),
        (np.full((2, 1, 1, 4, 8), np.nan), "keys and values must be finite numbers"),
    ],
)
def test_wrong_tensors(tensors, message):
    with pytest.raises(UsageError) as caught:
        diagnose(tensors, kind="keys")
    assert str(caught.value) == message
