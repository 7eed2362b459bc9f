"""Merging of the caches of two layers (MiniCache), as blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hw._checks import check_positive
from hw.arith.addend import MULTIPLIERS
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli, check_optional_positive, check_text
from hw.blocks.codes import element_words, joined
from hw.kv_cache.distinct_tokens import DistinctTokens
from hw.kv_cache.merge_engine import MergeEngine
from hw.kv_cache.merge_restore import MergeRestore
from quantizers.errors import UsageError
from quantizers.kv_cache.fixed_point import BITS, HIGHEST, LOWEST
from quantizers.kv_cache.merge_arithmetic import (
    DISTANCE_BITS,
    MergeArithmetic,
    check_interpolation,
    merge,
    restore,
)
from quantizers.kv_cache.merging import MergeSettings, distinct

Integers = npt.NDArray[np.int64]


def _check_t(name: str, value: object) -> None:
    check_interpolation(value)


def _check_gamma(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        msg = f"{name} must be from 0 to 1, not {value!r}"
        raise UsageError(msg, given=repr(value), expected=["0..1"])


def _engine(*, channels: int, t: float, lanes: int, multipliers: str) -> MergeEngine:
    arithmetic = MergeArithmetic(channels=channels, t=t)
    return MergeEngine(arithmetic=arithmetic, lanes=lanes, multipliers=multipliers)


def _restore(*, channels: int, lanes: int, capacity: int, token_bits: int, multipliers: str) -> MergeRestore:
    return MergeRestore(
        arithmetic=MergeArithmetic(channels=channels),
        lanes=lanes,
        capacity=capacity,
        token_bits=token_bits,
        multipliers=multipliers,
    )


def _distinct(*, capacity: int, retained: int | None, retention: Any, gamma: float) -> DistinctTokens:
    settings = MergeSettings(retention=retention, gamma=gamma)
    return DistinctTokens(settings=settings, capacity=capacity, retained=retained)


def _pairs(rng: np.random.Generator, count: int, channels: int) -> tuple[Integers, Integers]:
    """Pairs of vectors of all lengths, a half of them nearly parallel; the first pair is all zeros."""

    def vectors(spread: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(rng.standard_normal((count, channels)) * np.exp2(spread)[:, None])

    x, y = vectors(rng.uniform(0, 15, count)), vectors(rng.uniform(0, 15, count))
    near = rng.random(count) < 0.5
    y[near] = (x * rng.uniform(-2, 2, (count, 1)) + vectors(rng.uniform(-3, 5, count)))[near]
    x[0] = y[0] = 0
    first, second = (np.clip(np.rint(v), LOWEST, HIGHEST).astype(np.int64) for v in (x, y))
    return first, second


def _merged(
    component: MergeEngine, rng: np.random.Generator, count: int, *, channels: int, lanes: int, **_: Any
) -> Stimuli:
    """As many pairs as give at least *count* words."""
    x, y = _pairs(rng, -(-count // component.words_per_pair), channels)
    arithmetic = component.arithmetic
    merged, bits = merge(x, y, arithmetic), arithmetic.magnitude_bits
    beside = np.stack([merged.first_magnitude, merged.second_magnitude, merged.distance], axis=1)
    rest = [
        joined(numbers, [bits, bits, DISTANCE_BITS])
        for numbers in np.repeat(beside, component.words_per_pair, axis=0).tolist()
    ]
    directions = element_words(merged.direction, lanes=lanes, bits=BITS)
    words = np.stack([x.reshape(-1, lanes), y.reshape(-1, lanes)], axis=1)
    return Stimuli(
        {"words": element_words(words, lanes=2 * lanes, bits=BITS)},
        {
            "merged": [
                direction | numbers << BITS * lanes
                for direction, numbers in zip(directions, rest, strict=True)
            ]
        },
    )


def _restored(
    component: MergeRestore,
    rng: np.random.Generator,
    count: int,
    *,
    channels: int,
    lanes: int,
    capacity: int,
    token_bits: int,
    **_: Any,
) -> Stimuli:
    """As many tokens as give at least *count* words, some of them retained; read twice if they are many."""
    words, bits = component.words_per_vector, component.arithmetic.magnitude_bits
    tokens = min(-(-count // words), 1 << token_bits)
    passes = -(-count // (tokens * words))
    directions = rng.integers(LOWEST, HIGHEST + 1, (tokens, channels))
    magnitudes = rng.integers(0, 1 << bits, tokens) >> rng.integers(0, bits, tokens)
    places = np.sort(rng.choice(tokens, min(capacity, 1 + tokens // 4), replace=False))
    rows = rng.integers(LOWEST, HIGHEST + 1, (len(places), channels))
    results = restore(directions, magnitudes)
    results[places] = rows
    ends = np.arange(tokens * words) == tokens * words - 1
    merged = [
        joined([word, magnitude, last], [BITS * lanes, bits, 1])
        for word, magnitude, last in zip(
            element_words(directions, lanes=lanes, bits=BITS),
            np.repeat(magnitudes, words).tolist(),
            ends.tolist(),
            strict=True,
        )
    ]
    retained = [
        joined([word, token, index == 0], [BITS * lanes, token_bits, 1])
        for index, (word, token) in enumerate(
            zip(element_words(rows, lanes=lanes, bits=BITS), np.repeat(places, words).tolist(), strict=True)
        )
    ]
    outputs = element_words(results, lanes=lanes, bits=BITS) * passes
    return Stimuli({"rows": retained, "merged": merged * passes}, {"restored": outputs}, first=("rows",))


def _flagged(
    component: DistinctTokens, rng: np.random.Generator, count: int, *, capacity: int, **_: Any
) -> Stimuli:
    """Prefills of random length, until there are *count* distances."""
    items: list[int] = []
    flags: list[int] = []
    while len(items) < count:
        tokens = int(rng.integers(1, capacity + 1))
        distances = np.clip(rng.standard_normal(tokens) * 300 + 30000, 0, (1 << DISTANCE_BITS) - 1)
        outliers = rng.random(tokens) < 0.05
        distances[outliers] = rng.integers(0, 1 << DISTANCE_BITS, tokens)[outliers]
        whole = distances.astype(np.int64)
        taken = distinct(whole, component.settings)
        taken &= np.cumsum(taken) <= component.retained
        flags += taken.astype(int).tolist()
        items += whole.tolist()
        items[-1] |= 1 << DISTANCE_BITS
    return Stimuli({"distances": items}, {"flags": flags})


def _engine_datasheet(component: MergeEngine, *, channels: int, lanes: int, **_: Any) -> Datasheet:
    return Datasheet(
        component.latency,
        "from the one in which a pair's last word is taken to the first with its direction",
        f"one pair of {channels} channels in {component.interval} cycles",
        {
            "words": f"{lanes} elements of the lower layer's vector and as many of the upper layer's",
            "merged": f"{lanes} elements of the direction, in units of 2**-15; both magnitudes and the "
            "distance, the same in all words of a pair",
        },
    )


def _restore_datasheet(component: MergeRestore, *, lanes: int, capacity: int, **_: Any) -> Datasheet:
    return Datasheet(
        component.latency,
        "from the one in which a word is taken to the restored one",
        "one word a cycle",
        {
            "rows": f"{lanes} elements of a retained row and the token's number, in the order of the tokens; "
            f"clears, with the first, forgets earlier rows. At most {capacity} rows",
            "merged": f"{lanes} elements of a direction and the token's magnitude, from token 0 on; last, "
            "with a token's last word: token 0 comes next",
            "restored": f"{lanes} elements",
        },
    )


def _distinct_datasheet(component: DistinctTokens, *, capacity: int, **_: Any) -> Datasheet:
    return Datasheet(
        component.latency,
        "from the one in which a prefill's last distance is taken to its first flag",
        "one distance a cycle, then one flag a cycle",
        {
            "distances": f"distance of a token; last marks that of a prefill's last one. At most {capacity}",
            "flags": "for each token in turn: whether it is retained",
        },
    )


def _engine_speed(component: MergeEngine, *, channels: int, **_: Any) -> dict[str, float]:
    return {
        "cycles_per_vector": component.interval / 2,
        "elements_per_cycle": 2 * channels / component.interval,
    }


def _restore_speed(component: MergeRestore, *, lanes: int, **_: Any) -> dict[str, float]:
    return {"elements_per_cycle": lanes}


_CHANNELS = Parameter("channels", 64, "elements of a vector", check_positive)
_LANES = Parameter("lanes", 4, "elements a cycle; they divide the channels", check_positive)
_MULTIPLIERS = Parameter("multipliers", "dsps", f"of what: {', '.join(MULTIPLIERS)}", check_text)

KV_MERGE_ENGINE = Block(
    "kv_merge_engine",
    _engine,
    "merges the vectors of two layers to one direction and two magnitudes (MiniCache)",
    (
        _CHANNELS,
        Parameter("t", 0.6, "weight of the upper layer's vector, 0 to 1", _check_t),
        _LANES,
        _MULTIPLIERS,
    ),
    _merged,
    _engine_datasheet,
    speed=_engine_speed,
    formats=(),
)

KV_MERGE_RESTORE = Block(
    "kv_merge_restore",
    _restore,
    "vectors of one layer from what kv_merge_engine made, and retained rows in their place",
    (
        _CHANNELS,
        _LANES,
        Parameter("capacity", 32, "retained rows that there is room for", check_positive),
        Parameter("token_bits", 16, "of a token's number", check_positive),
        _MULTIPLIERS,
    ),
    _restored,
    _restore_datasheet,
    speed=_restore_speed,
    formats=(),
)

KV_DISTINCT_TOKENS = Block(
    "kv_distinct_tokens",
    _distinct,
    "flags the tokens of a prefill that are not merged, by their distances",
    (
        Parameter("capacity", 512, "tokens of a prefill", check_positive),
        Parameter("retained", None, "at most so many are flagged; all if not set", check_optional_positive),
        Parameter("retention", "prose", "rule: prose, the distinct ones, or printed", check_text),
        Parameter("gamma", 0.05, "fraction of the range of distances, 0 to 1", _check_gamma),
    ),
    _flagged,
    _distinct_datasheet,
    formats=(),
)
