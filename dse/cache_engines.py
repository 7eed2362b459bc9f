"""The hardware of a cache's codecs: which components they are, and tokens through their simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hw._component import Component
from hw.kv_cache.allocated import (
    KvAllocatedReader,
    KvAllocatedWriter,
    RotatedGeometry,
)
from hw.kv_cache.codebook import most_lanes
from hw.kv_cache.rotated import KvRotatedReader, KvRotatedWriter
from hw.kv_cache.round_trip import LoadedRoundTrip, RoundTrip
from hw.kv_cache.transform_geometry import TransformGeometry
from hw.kv_cache.transform_reader import TransformReader
from hw.kv_cache.transform_writer import TransformWriter
from hw.kv_cache.uniform_cache import UniformReader, UniformWriter
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.codec import Centred, Codec, IntegerArray
from quantizers.kv_cache.grouped import PerChannel, PerToken
from quantizers.kv_cache.rotated import Rotated
from quantizers.kv_cache.transform import Transformed

LANES = 8
"""Elements of a cycle at most, on the way in and on the way out."""

_MOST_CYCLES_PER_WORD = 1000


@dataclass(frozen=True)
class CacheEngine:
    """The hardware of one codec; each call makes new components: one can be elaborated only once.

    Attributes:
        writer, reader: make them.
        joined: makes both, without a memory between them, and what its load streams, by their names, are
            offered first.
        elements_per_cycle: of the slower of both, over whole tokens or groups.
        lanes: elements of a word.
    """

    writer: Callable[[], Component]
    reader: Callable[[], Component]
    joined: Callable[[], tuple[Component, dict[str, list[int]]]]
    elements_per_cycle: float
    lanes: int = LANES


def _connected(
    writer: Callable[[], Component],
    reader: Callable[[], Component],
    between: dict[str, str],
    elements_per_cycle: float,
    lanes: int = LANES,
) -> CacheEngine:
    """Of parts without load streams, see :class:`hw.kv_cache.round_trip.RoundTrip`."""
    return CacheEngine(
        writer, reader, lambda: (RoundTrip(writer(), reader(), between), {}), elements_per_cycle, lanes
    )


def engine_of(codec: Codec, others: Sequence[Codec] = ()) -> CacheEngine:
    """The hardware that gives the bits of *codec*.

    Args:
        codec: of a layer.
        others: of other layers, for whose tables there is to be room as well, where tables are loaded.

    Raises:
        UsageError: there is none.
    """
    if isinstance(codec, PerChannel | PerToken):
        return _uniform(codec)
    if isinstance(codec, Rotated):
        return _rotated(codec, [other for other in others if isinstance(other, Rotated)])
    inner, means = (codec.inner, codec.means) if isinstance(codec, Centred) else (codec, None)
    if isinstance(inner, Transformed):
        alike = [other.inner if isinstance(other, Centred) else other for other in others]
        return _transformed(inner, means, [some for some in alike if isinstance(some, Transformed)])
    with_means = "" if inner is codec else " with means"
    raise _no_engine(f"{type(inner).__name__}{with_means} has no hardware here")


def _no_engine(reason: str) -> UsageError:
    msg = f"{reason}; there is some of kivi, per_token, rotated and transform"
    return UsageError(msg, given=reason, expected=["kivi", "per_token", "rotated", "transform"])


def _uniform(codec: PerChannel | PerToken) -> CacheEngine:
    per_channel = isinstance(codec, PerChannel)
    group = codec.tokens if isinstance(codec, PerChannel) else codec.group
    lanes = math.gcd(LANES, group, codec.channels)
    arguments: dict[str, Any] = {
        "head_dim": codec.channels,
        "bits": codec.bits,
        "group": group,
        "lanes": lanes,
        "word_bits": lanes * codec.bits,
        "per_channel": per_channel,
    }
    between = {"words": "words", "ranges": "ranges"}
    interval = max(UniformWriter(**arguments).interval, UniformReader(**arguments).interval)
    return _connected(
        lambda: UniformWriter(**arguments),
        lambda: UniformReader(**arguments),
        between,
        group / interval,
        lanes,
    )


def _rotated(codec: Rotated, others: Sequence[Rotated]) -> CacheEngine:
    first = codec.vectors[0]
    if len(first.signs) != first.elements:
        raise _no_engine(f"vectors of {first.elements} elements, no power of two, have no hardware here")
    lanes = min(LANES, most_lanes(first.elements, first.finest))
    if any(v.bits != (v.finest,) * v.elements for some in (codec, *others) for v in some.vectors):
        return _allocated(codec, others, lanes)
    arguments: dict[str, Any] = {
        "means": np.array([vector.offsets for vector in codec.vectors]),
        "signs": np.array([vector.signs for vector in codec.vectors]),
        "lanes": lanes,
        "bits": first.finest,
        "scale": first.scale,
    }
    between = {"outputs": "inputs"}
    return _connected(
        lambda: KvRotatedWriter(**arguments), lambda: KvRotatedReader(**arguments), between, lanes, lanes
    )


def _allocated(codec: Rotated, others: Sequence[Rotated], lanes: int) -> CacheEngine:
    geometry = RotatedGeometry.covering(codec.vectors, lanes=lanes)
    for other in others:
        geometry.check(other.vectors)

    def joined() -> tuple[Component, dict[str, list[int]]]:
        both = LoadedRoundTrip(KvAllocatedWriter(geometry=geometry), KvAllocatedReader(geometry=geometry))
        return both, both.loads(codec.vectors)

    return CacheEngine(
        lambda: KvAllocatedWriter(geometry=geometry),
        lambda: KvAllocatedReader(geometry=geometry),
        joined,
        geometry.lanes,
        geometry.lanes,
    )


def _transformed(
    codec: Transformed, means: IntegerArray | None, others: Sequence[Transformed]
) -> CacheEngine:
    """Matrices in block RAM, products in DSP slices."""
    layers = [some.blocks for some in (codec, *others)]
    geometry = TransformGeometry.covering(*layers, has_means=means is not None)
    few = min(LANES, geometry.coefficients)
    arguments: dict[str, Any] = {"geometry": geometry, "lanes": LANES, "multipliers": "dsps"}

    def writer() -> TransformWriter:
        return TransformWriter(**arguments, pe=few, simd=LANES)

    def reader() -> TransformReader:
        return TransformReader(**arguments, pe=LANES, simd=few)

    def joined() -> tuple[Component, dict[str, list[int]]]:
        both = LoadedRoundTrip(writer(), reader())
        return both, both.loads(codec.blocks, means)

    interval = max(writer().interval, reader().interval(codec.blocks))
    return CacheEngine(writer, reader, joined, geometry.token_elements / interval)


@dataclass(frozen=True, eq=False)
class Simulated:
    """Units that went through the simulated writer and reader.

    Attributes:
        units: 16-bit integers, of the shape that was given.
        cycles: of the simulation.
    """

    units: npt.NDArray[np.int64]
    cycles: int


class SimulatedCodec:
    """A codec's hardware, compiled for simulation.

    Args:
        codec: one that :func:`engine_of` knows.

    Raises:
        UsageError: there is no hardware for it.
        MissingExtraError, SimulationError: no Verilator or no compiler.
    """

    def __init__(self, codec: Codec) -> None:
        self.channels = codec.channels
        engine = engine_of(codec)
        self._lanes = engine.lanes
        component, self._loads = engine.joined()
        self._model = VerilatedStream(component)

    def run(self, units: IntegerArray, *, seed: int = 0) -> Simulated:
        """Units ``(n, tokens, channels)`` of 16-bit integers, offered and taken with random pauses."""
        words = units.reshape(-1, self._lanes)
        trace = self._model.run(
            {**self._loads, "inputs": words},
            output_count=len(words),
            seed=seed,
            valid_probability=0.9,
            ready_probability=0.9,
            first=tuple(self._loads),
            max_cycles=_MOST_CYCLES_PER_WORD * len(words) + 100_000_000,
        )
        return Simulated(np.asarray(trace.outputs, np.int64).reshape(units.shape), trace.cycles)
