"""Keys and values of a running language model through a cache's simulated hardware, against the software."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dse.cache_engines import SimulatedCodec
from dse.caches import CacheText, calibration_of, measured_windows, model_of
from dse.workloads.language import perplexity
from hw.verilator import SimulationError
from quantizers.kv_cache.codec import Centred, Code, Codec, IntegerArray
from quantizers.kv_cache.registry import parse_layer_scheme
from quantizers.kv_cache.rotated import Rotated
from quantizers.kv_cache.stores import CachePlan, CodecStore, Stream
from quantizers.kv_cache.transform import Transformed


@dataclass(frozen=True)
class CacheVerification:
    """What a comparison of hardware and software found.

    Attributes:
        model, codec: what was run.
        text, windows, window_tokens, layers: how much of it.
        checked: elements of keys and values that came back from the hardware.
        mismatches: those that are not the software's.
        cycles: simulated, of writers and readers one after the other.
        cycles_per_second: of the simulation, without building the models.
        perplexity: on these windows, keys and values from the hardware; ``None`` where some are not the
            software's, and so nothing that later layers made of them is known.
        software_perplexity: keys and values from the integer codec in software.
        exact_perplexity: nothing compressed.
    """

    model: str
    codec: str
    text: str
    windows: int
    window_tokens: int
    layers: int
    checked: int
    mismatches: int
    cycles: int
    cycles_per_second: float
    perplexity: float | None
    software_perplexity: float
    exact_perplexity: float

    def as_json(self) -> dict[str, Any]:
        """All attributes; a perplexity that is not known is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class _Watched(Codec):
    """Another codec, of which every unit that it codes is kept.

    Attributes:
        units: what was encoded, in order.
        results: what was decoded.
    """

    def __init__(self, inner: Codec) -> None:
        self._inner = inner
        self.channels, self.tokens = inner.channels, inner.tokens
        self.units: list[IntegerArray] = []
        self.results: list[IntegerArray] = []

    def encode(self, x: IntegerArray) -> Code:
        self.units.append(x)
        return self._inner.encode(x)

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        found = self._inner.decode(code)
        self.results.append(found)
        return found

    @property
    def unit_bits(self) -> float:
        return self._inner.unit_bits


class _Replayed(Codec):
    """What came back of the units of another codec, in the same order.

    Raises:
        SimulationError: from :meth:`encode`, for units that are not those.
    """

    def __init__(self, watched: _Watched, results: Sequence[IntegerArray]) -> None:
        self._watched, self._results = watched, list(results)
        self.channels, self.tokens = watched.channels, watched.tokens
        self._next = 0

    def encode(self, x: IntegerArray) -> Code:
        if not np.array_equal(x, self._watched.units[self._next]):
            msg = (
                "the hardware gave other keys or values in an earlier layer, so these inputs are not its own"
            )
            raise SimulationError(msg)
        return ()

    def decode(self, code: Code) -> npt.NDArray[np.int64]:
        self._next += 1
        return np.asarray(self._results[self._next - 1], np.int64)

    @property
    def unit_bits(self) -> float:
        return self._watched.unit_bits


def verify_cache(source: CacheText, codec: str, *, seed: int = 0) -> CacheVerification:
    """Run the model with the codec in software, its keys and values through the simulated writer and reader,
    and the model again with what these gave.

    Args:
        source: the model, and windows of a text.
        codec: one that :func:`dse.cache_engines.engine_of` knows.
        seed: of the pauses in the streams.

    Raises:
        UsageError: an unknown codec, one without hardware, or one that merges layers.
        MissingExtraError, SimulationError: no Verilator or no compiler.
    """
    scheme = parse_layer_scheme(codec, who="a check of writers against readers")
    plan = scheme.plan(calibration_of(source))
    places = range(len(plan.layers[0]))
    # Before the model runs: a codec without hardware is told at once.
    simulations = [SimulatedCodec(_joined([layer[place].codec for layer in plan.layers])) for place in places]
    model, windows = model_of(source), measured_windows(source)
    exact = perplexity(model, windows)
    watched = [[_Watched(stream.codec) for stream in layer] for layer in plan.layers]
    software = perplexity(model, windows, store=CodecStore(_with_codecs(plan, watched)))
    replayed: list[list[Codec]] = [[] for _ in plan.layers]
    checked = mismatches = cycles = 0
    seconds = 0.0
    for place, simulation in zip(places, simulations, strict=True):
        codecs = [layer[place] for layer in watched]
        start = time.perf_counter()
        results, spent = _simulated(simulation, codecs, seed)
        seconds, cycles = seconds + time.perf_counter() - start, cycles + spent
        for layer, (found, inner) in enumerate(zip(results, codecs, strict=True)):
            wanted = np.concatenate(inner.results)
            checked, mismatches = checked + wanted.size, mismatches + int((found != wanted).sum())
            ends = np.cumsum([len(units) for units in inner.units])[:-1]
            replayed[layer].append(_Replayed(inner, np.split(found, ends)))
    hardware = None
    if not mismatches:
        hardware = perplexity(model, windows, store=CodecStore(_with_codecs(plan, replayed)))
    return CacheVerification(
        model=source.model,
        codec=plan.name,
        text=windows.text.name,
        windows=len(windows.tokens),
        window_tokens=windows.tokens.shape[1],
        layers=len(plan.layers),
        checked=checked,
        mismatches=mismatches,
        cycles=cycles,
        cycles_per_second=cycles / seconds,
        perplexity=None if hardware is None else hardware.perplexity,
        software_perplexity=software.perplexity,
        exact_perplexity=exact.perplexity,
    )


def _with_codecs(plan: CachePlan, codecs: Sequence[Sequence[Codec]]) -> CachePlan:
    layers = [
        [Stream(codec, stream.start) for codec, stream in zip(new, old, strict=True)]
        for new, old in zip(codecs, plan.layers, strict=True)
    ]
    return replace(plan, layers=layers)


def _joined(codecs: Sequence[Codec]) -> Codec:
    """One codec for all layers, so that one design is built and not one a layer: where tables differ, a token
    of it is a token of every layer, one after the other."""
    first = codecs[0]
    if isinstance(first, Centred):
        inner = _joined([codec.inner for codec in codecs if isinstance(codec, Centred)])
        means = np.concatenate([codec.means for codec in codecs if isinstance(codec, Centred)])
        return Centred(inner, means=means)
    if isinstance(first, Rotated):
        return Rotated([v for codec in codecs if isinstance(codec, Rotated) for v in codec.vectors])
    if isinstance(first, Transformed):
        return Transformed([b for codec in codecs if isinstance(codec, Transformed) for b in codec.blocks])
    return first


def _simulated(
    simulation: SimulatedCodec, codecs: Sequence[_Watched], seed: int
) -> tuple[list[npt.NDArray[np.int64]], int]:
    """What comes back of all units of each layer's codec, and the cycles."""
    units = [np.concatenate(codec.units) for codec in codecs]
    if simulation.channels == codecs[0].channels:  # the layers one after the other
        found = simulation.run(np.concatenate(units), seed=seed)
        return np.split(found.units, len(units)), found.cycles
    found = simulation.run(np.concatenate(units, axis=2), seed=seed)
    return np.split(found.units, len(units), axis=2), found.cycles
