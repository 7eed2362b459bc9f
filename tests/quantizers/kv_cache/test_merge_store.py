"""Merging as a store: what queries see of earlier passes and of their own, and what it takes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quantizers.errors import UsageError
from quantizers.kv_cache.calibration import Calibration
from quantizers.kv_cache.merge_arithmetic import merge, restore
from quantizers.kv_cache.merge_plan import MergePlan
from quantizers.kv_cache.merging import MergeSettings, distinct
from quantizers.kv_cache.registry import parse_cache_scheme
from quantizers.kv_store import Pass
from tests.quantizers.kv_cache.merge_samples import at_angles

TOKENS, HEADS, CHANNELS, LAYERS = 24, 2, 16, 5
FRACTION = 12
WIDTH = 2 * HEADS * CHANNELS


def integer_layers(seed=0):
    """Rows (tokens, 2c) of layers, pairwise alike but for one token of two heads, and a layer without a
    partner."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(LAYERS // 2):
        omega = math.pi * rng.uniform(0.03, 0.05, (TOKENS, 2 * HEADS))
        omega[5, 0] = omega[9, 1] = 0.4 * math.pi
        pair = at_angles(omega.reshape(-1), CHANNELS, rng, smallest=13)
        layers += [np.asarray(v).reshape(TOKENS, WIDTH) for v in pair]
    return [*layers, layers[0][::-1].copy()]


ROWS = integer_layers()
CALIBRATION = Calibration(
    text="this test",
    heads=HEADS,
    head_dim=CHANNELS,
    rope=False,
    fractions=np.full((LAYERS, 2), FRACTION),
    means=np.stack([rows.mean(axis=0) for rows in ROWS]),
    covariances=np.stack([np.cov(rows.T.astype(float)) for rows in ROWS]),
    importances=np.stack([np.eye(WIDTH)] * LAYERS),
    samples=np.stack(ROWS).astype(np.int16),
)


def plan_of(text: str) -> MergePlan:
    plan = parse_cache_scheme(text).plan(CALIBRATION)
    assert isinstance(plan, MergePlan)
    return plan


def tensors(rows):
    shaped = torch.tensor(np.ldexp(rows.astype(np.float32), -FRACTION)).view(len(rows), 2, HEADS, CHANNELS)
    return [side.transpose(0, 1)[None] for side in shaped.unbind(1)]


def feed(store, first, last):
    """The rows that queries of a pass see, of every layer."""
    shown = []
    for layer, rows in enumerate(ROWS):
        seen = store.update(layer, *tensors(rows[first:last]), torch.arange(first, last))
        sides = [side[0].tensor[0].transpose(0, 1).flatten(1) for side in (seen.keys, seen.values)]
        shown.append(np.ldexp(torch.cat(sides, dim=1).numpy(), FRACTION).astype(np.int64))
    store.finish()
    return shown


def merged(pair, first, last, settings, retain, mean=0):
    """Rows of both layers as merged in one pass over these tokens."""
    rows = [ROWS[layer][first:last].astype(np.int64) for layer in pair]
    vectors = [(row - mean).reshape(last - first, -1, CHANNELS) for row in rows]
    found = merge(*vectors, settings.arithmetic(CHANNELS))
    kept = np.repeat(distinct(found.distance, settings, axis=0) & retain, CHANNELS, axis=1)
    return [
        np.where(kept, row, restore(found.direction, magnitude).reshape(row.shape) + mean)
        for row, magnitude in zip(rows, (found.first_magnitude, found.second_magnitude), strict=True)
    ]


@pytest.mark.parametrize("retention", ["prose", "printed"])
@pytest.mark.parametrize("convention", ["eq3", "alg2"])
def test_queries_see_earlier_passes_merged(retention, convention):
    settings = MergeSettings(retention=retention, convention=convention)
    plan = plan_of(f"minicache(first=2, pairs=1, retention='{retention}', convention='{convention}')")
    store = plan.store()
    first, second, third = feed(store, 0, 16), feed(store, 16, 20), feed(store, 20, 21)
    prefill = merged((2, 3), 0, 16, settings, retain=True)
    decoded = merged((2, 3), 16, 20, settings, retain=False)
    for layer, exact in enumerate(ROWS):
        np.testing.assert_array_equal(first[layer], exact[:16])
        if layer not in (2, 3):
            np.testing.assert_array_equal(third[layer], exact[:21])
            continue
        np.testing.assert_array_equal(second[layer], np.concatenate([prefill[layer - 2], exact[16:20]]))
        np.testing.assert_array_equal(
            third[layer], np.concatenate([prefill[layer - 2], decoded[layer - 2], exact[20:21]])
        )


def test_first_and_newest_tokens_are_kept():
    store = plan_of("minicache(first=0, pairs=1, sinks=2, residual=3)").store()
    feed(store, 0, 16)
    shown, exact = feed(store, 16, 17)[0], ROWS[0]
    body = merged((0, 1), 2, 13, MergeSettings(), retain=True)[0]
    np.testing.assert_array_equal(shown, np.concatenate([exact[:2], body, exact[13:17]]))


def test_the_means_can_be_taken_away_first():
    store = plan_of("minicache(first=0, pairs=1, means=true)").store()
    feed(store, 0, 16)
    shown = feed(store, 16, 17)[1][:16]
    plain = merged((0, 1), 0, 16, MergeSettings(), retain=True)[1]
    means = [np.rint(CALIBRATION.means[layer]).astype(np.int64) for layer in (0, 1)]
    assert not np.array_equal(shown, plain)
    error = np.abs(shown - ROWS[1][:16]).mean()
    assert error < 0.2 * np.abs(ROWS[1] - means[1]).mean()


def test_a_codec_codes_directions_and_the_other_layers():
    plan = plan_of("minicache(first=2, pairs=1, gamma=0, on='per_token(bits=8, group=32)')")
    store = plan.store()
    first, second = feed(store, 0, 16), feed(store, 16, 17)
    uncoded = merged((2, 3), 0, 16, MergeSettings(gamma=0), retain=False)
    for layer in (2, 3):
        np.testing.assert_array_equal(first[layer], ROWS[layer][:16])
        difference = second[layer][:16] - uncoded[layer - 2]
        assert 0 < np.square(difference).mean() < 2**-10 * np.square(uncoded[layer - 2]).mean()
    alone = parse_cache_scheme("per_token(bits=8, group=32)").plan(CALIBRATION)
    for layer in (0, 1, 4):
        keys = alone.layers[layer][0].codec
        decoded = keys.decode(keys.encode(ROWS[layer][:17, None, : WIDTH // 2]))[:, 0]
        np.testing.assert_array_equal(second[layer][:, : WIDTH // 2], decoded)


def test_codecs_are_fitted_to_the_directions():
    """Directions have other means and spreads than the layers they come from."""
    plan = plan_of("minicache(first=0, pairs=2, gamma=0, on='transform(bits=8)')")
    store = plan.store()
    feed(store, 0, 16)
    shown = feed(store, 16, 17)
    for pair in ((0, 1), (2, 3)):
        uncoded = merged(pair, 0, 16, MergeSettings(gamma=0), retain=False)
        for layer, rows in zip(pair, uncoded, strict=True):
            error = np.square(shown[layer][:16] - rows).mean()
            assert error < 0.002 * np.square(rows).mean()


def test_a_whole_window_is_seen_as_its_first_pass_left_it():
    store = plan_of("minicache(first=2, pairs=1, sinks=1)").store(whole_window=True)
    assert store.passes(TOKENS) == (Pass(0, TOKENS, counts=False), Pass(0, TOKENS))
    for _ in range(2):
        store.reset()
        first, second = feed(store, 0, TOKENS), feed(store, 0, TOKENS)
        body = merged((2, 3), 1, TOKENS, MergeSettings(), retain=True)
        for layer, exact in enumerate(ROWS):
            np.testing.assert_array_equal(first[layer], exact)
            if layer in (2, 3):
                exact = np.concatenate([exact[:1], body[layer - 2]])
            np.testing.assert_array_equal(second[layer], exact)
    with pytest.raises(UsageError) as caught:
        feed(store, 0, 2)
    assert str(caught.value) == "the second pass takes the 24 tokens of the first, not [0, 1]"


def test_bits_are_those_that_were_retained():
    text = "minicache(first=2, pairs=1, prefill=16, step=5)"
    store = plan_of(text).store()
    assert store.passes(TOKENS) == (Pass(0, 16, counts=False), Pass(16, 21), Pass(21, 24))
    for each in store.passes(TOKENS):
        feed(store, each.start, each.stop)
    found = store.bits(TOKENS)
    assert found.is_measured
    vectors = [ROWS[layer][:16].astype(np.int64).reshape(16, -1, CHANNELS) for layer in (2, 3)]
    distances = merge(*vectors, MergeSettings().arithmetic(CHANNELS)).distance
    count = int(distinct(distances, MergeSettings(), axis=0).sum())
    assert 4 <= count < 8
    vector, row, exact = CHANNELS * 16 + 2 * 17, 2 * 16 * CHANNELS + 16, 16 * WIDTH
    both = 4 * vector + row * count / 16
    assert found.per_element == pytest.approx((both + 3 * exact) / (LAYERS * WIDTH), abs=1e-12)
    used = sum(
        3 * exact * tokens + 4 * vector * done + count * row + 2 * exact * (tokens - done)
        for done, counts in ((16, range(17, 22)), (21, range(22, 25)))
        for tokens in counts
    )
    elements = LAYERS * WIDTH * sum(range(17, 25))
    assert found.per_element_seen == pytest.approx(used / elements, abs=1e-12)


def test_the_most_rows_of_a_head_are_kept_count_of():
    """Of two pairs, of both of which one token of two heads differs; over sequences, not only the last."""
    store = plan_of("minicache(first=0, pairs=2, retention='printed', gamma=0.7)").store()
    assert store.most_retained == 0
    counts = []
    for last in (16, 8):
        store.reset()
        feed(store, 0, last)
        for lower in (0, 2):
            vectors = [
                ROWS[n][:last].astype(np.int64).reshape(last, -1, CHANNELS) for n in (lower, lower + 1)
            ]
            distances = merge(*vectors, MergeSettings().arithmetic(CHANNELS)).distance
            settings = MergeSettings(retention="printed", gamma=0.7)
            counts += distinct(distances, settings, axis=0).sum(axis=0).tolist()
    assert store.most_retained == max(counts) == 15
    # Tokens that are decoded are never retained.
    feed(store, 8, 9)
    assert store.most_retained == 15


def test_bits_of_a_whole_window_and_of_kept_tokens():
    store = plan_of("minicache(first=2, pairs=1, gamma=0, sinks=2)").store(whole_window=True)
    feed(store, 0, TOKENS)
    vector, exact = 4 * (CHANNELS * 16 + 2 * 17), 16 * WIDTH
    used = sum(3 * exact * n + vector * max(0, n - 2) + 2 * exact * min(n, 2) for n in range(1, TOKENS + 1))
    elements = LAYERS * WIDTH * sum(range(1, TOKENS + 1))
    assert store.bits(TOKENS).per_element_seen == pytest.approx(used / elements, abs=1e-12)


def test_bits_on_a_codec_are_its_own():
    store = plan_of("minicache(first=0, pairs=2, gamma=0, on='per_token(bits=4, group=32)')").store()
    feed(store, 0, 16)
    both = WIDTH * (4 + 1) + 4 * 2 * 17
    assert store.bits(TOKENS).per_element == pytest.approx((2 * both + WIDTH * 5) / (LAYERS * WIDTH))


def test_tokens_must_come_in_order_and_layers_in_pairs():
    store = plan_of("minicache(first=2, pairs=1)").store()
    with pytest.raises(UsageError) as caught:
        store.bits(TOKENS)
    assert str(caught.value) == "nothing has been merged yet: bits are counted after the first pass"
    feed(store, 0, 3)
    with pytest.raises(UsageError) as caught:
        feed(store, 4, 5)
    assert str(caught.value) == "layer 0 holds 3 tokens, so the next positions are 3 to 3, not 4 to 4"
    store.reset()
    store.update(2, *tensors(ROWS[2][:2]), torch.arange(2))
    with pytest.raises(UsageError) as caught:
        store.finish()
    assert str(caught.value) == "layers 2 and 3 are to be merged, and the model has not both"


@pytest.mark.parametrize(
    ("whole_window", "length", "message"),
    [
        (
            False,
            5,
            "a window of 5 tokens is too short for a prefill that leaves some to merge beside 3 that stay exact, "
            "and some to predict: expected at least 6",
        ),
        (
            False,
            7,
            "a prefill of 4 to 5 tokens leaves some of a window of 7 to merge and some to predict, not one of 3",
        ),
        (True, 3, "a window of 3 tokens, of which 3 stay exact, has none to merge"),
    ],
)
def test_windows_that_are_too_short(whole_window, length, message):
    store = plan_of("minicache(pairs=1, sinks=3)").store(whole_window=whole_window)
    with pytest.raises(UsageError) as caught:
        store.passes(length)
    assert str(caught.value) == message
