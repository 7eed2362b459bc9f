"""Plans of codecs behind a decoder: one pass is what decoding token by token gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dse.workloads.language import decode
from quantizers.errors import UsageError
from quantizers.kv_cache.cache import NEVER, Cache, Kept, bits_used
from quantizers.kv_cache.calibration import Calibration, calibrate
from quantizers.kv_cache.fixed_point import NotFiniteError, to_floats
from quantizers.kv_cache.registry import parse_cache_scheme
from quantizers.kv_cache.stores import CachePlan, CodecStore
from quantizers.kv_store import ExactStore
from tests.dse.workloads_language.tiny_decoder import random_decoder, random_tokens

# Of the tiny decoder, two heads of 8 channels.
SCHEMES = [
    "exact",
    "kivi(bits=4, group=8)",
    "kivi(bits=3, group=4, value_group=8)",
    "per_token(bits=3, group=8)",
    "format(format='e2m1', group=8)",
    "format(format='e3m2', group=16, scale='power')",
    "oaken(outer=0.1, inner=0.15)",
    "rotated(bits=3)",
    "rotated(bits=4, allocated=true)",
    "transform(bits=3.5)",
    "transform(bits=2.5, span='side')",
    "transform(bits=2.25, span='joint', tempering=0.0)",
]
OPTIONS = {"sinks": 2, "residual": 3, "means": True}


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(random_decoder(), random_tokens(4, 40), text="random tokens")


def plan_of(calibration: Calibration, text: str, **options: object) -> CachePlan:
    return dataclasses.replace(parse_cache_scheme(text), **options).plan(calibration)


@pytest.fixture
def in_float64() -> Iterator[None]:
    """No key is so close to a tie there that another order of sums rounds it the other way."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("options", [{}, OPTIONS, {"sinks": 1}], ids=["plain", "options", "sink"])
@pytest.mark.parametrize("text", SCHEMES)
def test_one_pass_is_token_by_token(calibration: Calibration, text: str, options: dict) -> None:
    decoder, tokens = random_decoder().double(), random_tokens(1, 24)
    store = CodecStore(plan_of(calibration, text, **options))
    at_once = decoder(tokens, store)
    assert torch.allclose(decode(decoder, tokens, store, step=1), at_once, atol=1e-9, rtol=1e-9)
    difference = (at_once - decoder(tokens)).abs().max()
    assert difference < 0.05 if text == "exact" else difference > 0.05


@pytest.mark.parametrize("text", SCHEMES)
def test_queries_see_what_the_cache_of_their_time_holds(calibration: Calibration, text: str) -> None:
    """The versions shown against :class:`Cache`, appended token by token."""
    plan = plan_of(calibration, text, **OPTIONS)
    keys = torch.randn(1, 2, 24, 8, generator=torch.Generator().manual_seed(1))
    values = torch.randn(1, 2, 24, 8, generator=torch.Generator().manual_seed(2))
    store = CodecStore(plan)
    seen = store.see(1, keys, values)
    rows = plan.to_rows(1, keys, values)
    caches = [Cache(stream.codec, plan.kept) for stream in plan.layers[1]]
    for position in range(24):
        for cache, stream in zip(caches, plan.layers[1], strict=True):
            cache.append(rows[position : position + 1, stream.start : stream.stop])
        held = np.concatenate([cache.read() for cache in caches], axis=1)
        for side, versions in enumerate((seen.keys, seen.values)):
            shown = torch.zeros(2, position + 1, 8)
            for version in versions:
                visible = version.visible(torch.tensor([position]))[0, : position + 1]
                shown += torch.where(visible[:, None], version.tensor[0, :, : position + 1], 0.0)
            floats = to_floats(held[:, 16 * side : 16 * side + 16], int(plan.fractions[1][side]))
            assert np.array_equal(shown.transpose(0, 1).flatten(1).numpy(), floats)
    if "oaken" not in text:
        expected = [bits_used(stream.codec, 24, plan.kept) for stream in plan.layers[1]]
        assert [cache.bits_used for cache in caches] == expected


def test_whole_window_shows_all_units_coded(calibration: Calibration) -> None:
    plan = plan_of(calibration, "kivi(bits=2, group=8)", sinks=1)
    keys, values = torch.randn(2, 1, 2, 20, 8, generator=torch.Generator().manual_seed(5))
    seen = CodecStore(plan, whole_window=True).see(0, keys, values)
    (shown,) = seen.keys
    assert shown.always
    exact = CodecStore(plan_of(calibration, "exact")).see(0, keys, values).keys[0].tensor
    same = (shown.tensor == exact)[0].all(dim=(0, 2))
    assert same.tolist() == [True, *[False] * 16, True, True, True]


def test_bits_of_short_and_long_sequences(calibration: Calibration) -> None:
    plan = plan_of(calibration, "kivi(bits=4, group=8, value_group=16)", sinks=1, residual=2)
    # Keys 4 + 32 / 8, values 4 + 32 / 16.
    assert plan.bits_per_element == (8 + 6) / 2
    keys = 16 * (16 * 8 + 4 * 16)  # two units coded, four tokens exact
    values = 16 * (17 * 6 + 3 * 16)
    assert plan.bits_used(20) == 2 * (keys + values)
    assert plan.bits_per_element_at(20) == (keys + values) / (20 * 32)


def test_keys_can_be_coded_after_their_rotation() -> None:
    decoder, tokens = random_decoder(), random_tokens(1, 24)
    rotated = calibrate(decoder, random_tokens(4, 40), text="random tokens", rope=True)
    store = CodecStore(plan_of(rotated, "per_token(bits=8, group=8)"))
    assert store.rope_before_store
    assert (decoder(tokens, store) - decoder(tokens, ExactStore())).abs().mean() < 0.05


def test_broken_keys_are_named(calibration: Calibration) -> None:
    keys, values = torch.zeros(2, 1, 2, 6, 8)
    values[0, 1, 4, 3] = float("nan")
    with pytest.raises(NotFiniteError) as caught:
        CodecStore(plan_of(calibration, "exact")).see(1, keys, values)
    assert str(caught.value) == "values of layer 1 hold nan at position 4"


def test_another_geometry_is_refused(calibration: Calibration) -> None:
    store = CodecStore(plan_of(calibration, "exact"))
    with pytest.raises(UsageError) as caught:
        store.see(0, *torch.zeros(2, 1, 3, 5, 8))
    assert (
        str(caught.value) == "exact is for 2 layers of keys of shape (1, 2, 5, 8); layer 0 gives (1, 3, 5, 8)"
    )


def test_streams_take_each_channel_once(calibration: Calibration) -> None:
    plan = plan_of(calibration, "exact")
    with pytest.raises(UsageError) as caught:
        dataclasses.replace(plan, layers=[plan.layers[0], plan.layers[1][:1]])
    assert str(caught.value) == "the streams of layer 1 must take channels 0 to 32 in order, not [(0, 16)]"


@pytest.mark.parametrize(("sinks", "residual", "unit"), [(0, 0, 1), (2, 0, 4), (1, 3, 4), (0, 5, 1)])
def test_units_are_coded_when_their_last_token_is_old_enough(sinks: int, residual: int, unit: int) -> None:
    kept = Kept(sinks, residual)
    at = kept.coded_at(30, unit)
    for position in range(30):
        coded = kept.coded_units(position + 1, unit) * unit
        assert np.array_equal(at <= position, (np.arange(30) >= sinks) & (np.arange(30) < sinks + coded))
    assert np.all(at[:sinks] == NEVER)
