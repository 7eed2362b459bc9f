"""Merging as a store: what queries see of earlier passes and of their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quantizers.errors import UsageError
from quantizers.kv_cache.fixed_point import fraction_bits, to_floats, to_integers
from quantizers.kv_cache.grouped import PerChannel, PerToken
from quantizers.kv_cache.merge_arithmetic import merge, restore
from quantizers.kv_cache.merge_store import DirectionCodec, MergedStore
from quantizers.kv_cache.merging import MergeSettings, distinct
from tests.quantizers.kv_cache.merge_samples import at_angles

TOKENS, HEADS, CHANNELS = 24, 2, 16


def layers_of(count=4, seed=0):
    """Keys and values of layers, (1, heads, tokens, channels), pairwise alike but for one token."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(count // 2):
        sides = []
        for _ in ("keys", "values"):
            omega = math.pi * rng.uniform(0.03, 0.05, HEADS * TOKENS)
            omega[[5, TOKENS + 9]] = 0.4 * math.pi
            pair = at_angles(omega, CHANNELS, rng, smallest=13)
            sides.append([torch.tensor(v / 4096).float().reshape(1, HEADS, TOKENS, CHANNELS) for v in pair])
        layers += [(sides[0][side], sides[1][side]) for side in (0, 1)]
    return layers


def feed(store, layers, first, last):
    seen = [
        store.update(layer, keys[:, :, first:last], values[:, :, first:last], torch.arange(first, last))
        for layer, (keys, values) in enumerate(layers)
    ]
    store.finish()
    return seen


def expected(layers, pair, kind, first, last, settings, retain, fractions):
    """Keys (0) or values (1) of both layers as merged in one pass over these tokens."""
    x, y = (layers[layer][kind][:, :, first:last].numpy() for layer in pair)
    integers = [to_integers(v, f) for v, f in zip((x, y), fractions, strict=True)]
    merged = merge(*integers, settings.arithmetic(CHANNELS))
    kept = distinct(merged.distance, settings)[..., None] & retain
    return [
        to_floats(np.where(kept, exact, restore(merged.direction, magnitude)), fraction)
        for exact, magnitude, fraction in zip(
            integers, (merged.first_magnitude, merged.second_magnitude), fractions, strict=True
        )
    ]


@pytest.mark.parametrize("retention", ["prose", "printed"])
@pytest.mark.parametrize("convention", ["eq3", "alg2"])
def test_queries_see_earlier_passes_merged(retention, convention):
    settings = MergeSettings(retention=retention, convention=convention)
    layers, store = layers_of(), MergedStore([(2, 3)], settings)
    first = feed(store, layers, 0, 16)
    second = feed(store, layers, 16, 20)
    third = feed(store, layers, 20, 21)
    for kind in (0, 1):
        name = ("keys", "values")[kind]
        fractions = [fraction_bits(float(layers[layer][kind][:, :, :16].abs().max())) for layer in (2, 3)]
        prefill = expected(layers, (2, 3), kind, 0, 16, settings, True, fractions)
        decoded = expected(layers, (2, 3), kind, 16, 20, settings, False, fractions)
        for layer in range(4):
            exact = layers[layer][kind].numpy()
            seen = [getattr(p[layer], name)[0].tensor.numpy() for p in (first, second, third)]
            np.testing.assert_array_equal(seen[0], exact[:, :, :16])
            if layer < 2:
                np.testing.assert_array_equal(seen[2], exact[:, :, :21])
                continue
            np.testing.assert_array_equal(seen[1][:, :, :16], prefill[layer - 2])
            np.testing.assert_array_equal(seen[1][:, :, 16:], exact[:, :, 16:20])
            np.testing.assert_array_equal(seen[2][:, :, 16:20], decoded[layer - 2])
            np.testing.assert_array_equal(seen[2][:, :, 20:], exact[:, :, 20:21])
    bits = store.bits()
    assert (bits.vectors, bits.magnitude_bits, bits.channels) == (2 * HEADS * 21, 17, CHANNELS)
    # By the text the one distinct token of the prefill of each head; head 0 has token 5, head 1 token 9.
    assert bits.retained == 4 if retention == "prose" else bits.retained > 4


def test_a_codec_on_top_of_the_directions():
    layers = layers_of(2)
    coarse = DirectionCodec(lambda direction: direction >> 8 << 8, bits=8.0)
    store = MergedStore([(0, 1)], MergeSettings(), codec=coarse)
    plain = MergedStore([(0, 1)], MergeSettings())
    for each in (store, plain):
        feed(each, layers, 0, 20)
    coded, uncoded = (feed(each, layers, 20, 21)[1].keys[0].tensor[:, :, :20] for each in (store, plain))
    difference = (coded - uncoded).norm() / uncoded.norm()
    assert 0 < float(difference) < 2**-7 * math.sqrt(CHANNELS)
    assert store.bits().direction_bits == 8
    assert store.bits().ratio > 1.6 * plain.bits().ratio > 2.0


def test_any_codec_of_single_tokens_codes_all_heads_of_a_direction_together():
    codec = PerToken(channels=HEADS * CHANNELS, bits=4, group=HEADS * CHANNELS)
    coded = DirectionCodec.of(codec)
    direction = np.random.default_rng(1).integers(-20000, 20000, (2, HEADS, 5, CHANNELS))
    for sequence in range(2):
        for token in range(5):
            unit = direction[sequence, :, token].reshape(1, 1, -1)
            want = codec.decode(codec.encode(unit)).reshape(HEADS, CHANNELS)
            np.testing.assert_array_equal(coded.code(direction)[sequence, :, token], want)
    assert coded.bits == 4 + 32 / (HEADS * CHANNELS)
    with pytest.raises(UsageError) as caught:
        DirectionCodec.of(PerChannel(channels=HEADS * CHANNELS, bits=4, group=32))
    assert str(caught.value) == "directions take codecs of single tokens, not of 32 at a time"


def test_given_fraction_bits_and_reset():
    layers = layers_of(2)
    fractions = {(layer, kind): 4 for layer in (0, 1) for kind in ("keys", "values")}
    store = MergedStore([(0, 1)], fractions=fractions)
    for _ in range(2):
        feed(store, layers, 0, 16)
        seen = feed(store, layers, 16, 17)[0].values[0].tensor.numpy()
        want = expected(layers, (0, 1), 1, 0, 16, MergeSettings(), True, [4, 4])[0]
        np.testing.assert_array_equal(seen[:, :, :16], want)
        store.reset()


def test_tokens_must_come_in_order_and_layers_in_pairs():
    layers, store = layers_of(2), MergedStore([(0, 1)])
    with pytest.raises(UsageError) as caught:
        store.bits()
    assert str(caught.value) == "nothing has been merged yet: bits are counted after the first pass"
    feed(store, layers, 0, 3)
    with pytest.raises(UsageError) as caught:
        feed(store, layers, 4, 5)
    assert str(caught.value) == "layer 0 holds 3 tokens, so the next position is 3, not 4"
    with pytest.raises(UsageError) as caught:
        feed(MergedStore([(1, 2)]), layers, 0, 2)
    assert str(caught.value) == "layers 1 and 2 are to be merged, and the model has not both"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(3, 2)], "merging takes adjacent layers, lower first, not 3 and 2"),
        ([(0, 2)], "merging takes adjacent layers, lower first, not 0 and 2"),
        ([(0, 1), (1, 2)], "layer 1 is in two pairs"),
    ],
)
def test_wrong_pairs(pairs, message):
    with pytest.raises(UsageError) as caught:
        MergedStore(pairs)
    assert str(caught.value) == message
