"""Every codec: stored bits are counted as they are, and what is read follows from them alone."""

from __future__ import annotations

import numpy as np
import pytest

from quantizers.errors import UsageError
from quantizers.kv_cache.cache import Cache, Kept, bits_used
from quantizers.kv_cache.codec import Centred, Code, Codec, Exact, Field, code_bits, code_bytes
from quantizers.kv_cache.grouped import PerToken
from quantizers.kv_cache.outliers import SplitOutliers
from quantizers.kv_cache.packing import unpack
from quantizers.kv_cache.registry import parse_cache_scheme
from tests.quantizers.kv_cache.small_calibration import SCHEMES, random_calibration

CALIBRATION = random_calibration()


def codecs(text: str) -> list[tuple[Codec, int]]:
    """Those of layer 1, each with its first channel."""
    plan = parse_cache_scheme(text).plan(CALIBRATION)
    return [(stream.codec, stream.start) for stream in plan.layers[1]]


def rows(codec: Codec, start: int, tokens: int = 64) -> np.ndarray:
    return CALIBRATION.samples[1, :tokens, start : start + codec.channels].astype(np.int64)


@pytest.mark.parametrize("text", SCHEMES)
def test_bits_are_those_of_the_packed_bytes(text: str) -> None:
    for codec, start in codecs(text):
        code = codec.encode(rows(codec, start).reshape(-1, codec.tokens, codec.channels))
        total = int(code_bits(code).sum())
        assert len(code_bytes(code)) == -(-total // 8)
        inner = codec.inner if isinstance(codec, Centred) else codec
        if not isinstance(inner, SplitOutliers):
            assert np.all(code_bits(code) == codec.unit_bits)


@pytest.mark.parametrize("text", SCHEMES)
def test_packed_bytes_are_all_that_decoding_takes(text: str) -> None:
    """Fields made from the bytes again decode to the same integers."""
    for codec, start in codecs(text):
        x = rows(codec, start).reshape(-1, codec.tokens, codec.channels)
        code = codec.encode(x)
        assert np.array_equal(codec.decode(reread(code)), codec.decode(code))


def reread(code: Code) -> Code:
    widths = [w for unit in range(len(code[0].values)) for field in code for w in field.unit(unit)[1]]
    octets = np.frombuffer(code_bytes(code), np.uint8)
    numbers = iter(unpack(octets, widths, count=len(widths), word_bits=8).tolist())
    found = [np.zeros_like(field.values) for field in code]
    for unit in range(len(code[0].values)):
        for field, values in zip(code, found, strict=True):
            stored = np.ones(values.shape[1], bool) if field.present is None else field.present[unit]
            values[unit, stored] = [next(numbers) for _ in range(stored.sum())]
    return tuple(Field(v, field.widths, field.present) for field, v in zip(code, found, strict=True))


@pytest.mark.parametrize("text", SCHEMES)
def test_errors_are_far_below_the_signal(text: str) -> None:
    for codec, start in codecs(text):
        x = rows(codec, start).reshape(-1, codec.tokens, codec.channels)
        error = (codec.decode(codec.encode(x)) - x).astype(np.float64)
        signal = x - x.mean(axis=(0, 1))
        assert np.square(error).mean() < (0 if text == "exact" else 0.15) * np.square(signal).mean() + 1e-9


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("value", [0, 1, -1, 32767, -32768])
def test_constant_tokens_decode_to_16_bits(text: str, value: int) -> None:
    for codec, _ in codecs(text):
        read = codec.decode(codec.encode(np.full((2, codec.tokens, codec.channels), value)))
        assert read.min() >= -32768
        assert read.max() <= 32767
        if text.startswith(("exact", "kivi", "per_token")):
            assert np.all(read == value)


@pytest.mark.parametrize("text", SCHEMES)
def test_extremes_next_to_each_other(text: str) -> None:
    for codec, _ in codecs(text):
        x = np.where(np.arange(codec.channels) % 2, 32767, -32768)
        read = codec.decode(codec.encode(np.tile(x, (1, codec.tokens, 1))))
        assert read.shape == (1, codec.tokens, codec.channels)
        assert np.abs(read).max() <= 32768


@pytest.mark.parametrize("text", SCHEMES)
def test_a_cache_is_read_as_its_units_say(text: str) -> None:
    kept = Kept(sinks=3, residual=5)
    for codec, start in codecs(text):
        x = rows(codec, start)
        cache = Cache(codec, kept)
        for first, last in ((0, 1), (1, 30), (30, 64)):
            cache.append(x[first:last])
        units = (64 - 3 - 5) // codec.tokens
        coded = slice(3, 3 + units * codec.tokens)
        expected = x.copy()
        shaped = x[coded].reshape(units, codec.tokens, -1)
        expected[coded] = codec.decode(codec.encode(shaped)).reshape(-1, codec.channels)
        assert np.array_equal(cache.read(), expected)
        stored = cache.to_bytes()
        assert sum(map(len, stored)) * 8 - 7 * len(stored) <= cache.bits_used <= sum(map(len, stored)) * 8
        if not text.startswith("oaken"):
            assert cache.bits_used == bits_used(codec, 64, kept)
        cache.reset()
        assert (cache.tokens, cache.bits_used, cache.read().shape) == (0, 0, (0, codec.channels))


def test_open_units_and_sinks_count_in_full() -> None:
    codec = codecs("kivi(bits=4, group=8)")[0][0]
    cache = Cache(codec, Kept(sinks=1))
    for tokens, coded in ((1, 0), (8, 0), (9, 1), (16, 1), (17, 2)):
        cache.append(rows(codec, 0)[cache.tokens : tokens])
        assert cache.tokens == tokens
        assert cache.bits_used == 32 * ((tokens - 8 * coded) * 16 + coded * (8 * 4 + 32))
        assert len(b"".join(cache.to_bytes())) * 8 == cache.bits_used


def test_means_saturate_on_the_way_in_and_out() -> None:
    centred = Centred(Exact(channels=2), means=[100, -100])
    x = np.array([[[32767, -32768]], [[-32768, 32767]]])
    assert centred.decode(centred.encode(x)).tolist() == [[[32767, -32768]], [[-32668, 32667]]]


@pytest.mark.parametrize("means", [[1, 2, 3], [40000, 0]])
def test_means_must_fit(means: list[int]) -> None:
    message = {
        3: "there must be 2 means, a channel one, not (3,)",
        2: "means must be from -32768 to 32767; one is 40000",
    }
    with pytest.raises(UsageError) as caught:
        Centred(Exact(channels=2), means=means)
    assert str(caught.value) == message[len(means)]


def test_shapes_are_checked() -> None:
    with pytest.raises(UsageError) as caught:
        PerToken(channels=8, bits=4, group=4).encode(np.zeros((3, 2, 8), int))
    assert str(caught.value) == "PerToken codes integers of shape (units, 1, 8), not (3, 2, 8)"
    with pytest.raises(UsageError) as caught:
        PerToken(channels=12, bits=4, group=5)
    assert str(caught.value) == (
        "groups of 5 do not divide the 12 channels of a token; the nearest that do have 4"
    )
    with pytest.raises(UsageError) as caught:
        Cache(Exact(channels=4)).append(np.zeros((2, 3), int))
    assert str(caught.value) == "the cache takes tokens of shape (new, 4), not (2, 3)"
