"""MiniCache as a codec by name: ``minicache(pairs=7, on="rotated(bits=4)")``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from quantizers.errors import UsageError
from quantizers.kv_cache.calibration import Calibration
from quantizers.kv_cache.fitting import integer_means
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.layer_schemes import LAYER_SCHEMES
from quantizers.kv_cache.merge_plan import MergePlan, Schedule, direction_statistics, several_tokens
from quantizers.kv_cache.merging import Convention, MergeSettings, Retention, layer_pairs
from quantizers.kv_cache.scheme import CacheScheme, LayerScheme
from quantizers.written import parse_written

_MOST_LAYERS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class MergedLayers(CacheScheme):
    """Pairs of adjacent layers merged into one direction and two magnitudes, on another codec.

    Merging needs both layers, so a window is run as a prefill and steps: predictions of the prefill, whose
    queries see nothing merged, do not count. Layers that are not merged go through the codec that merging is
    *on* as well. With ``means`` the means of merged layers are subtracted before they are merged; those of
    the codec below are its own parameter.

    Args:
        first: layer that is merged with the next one; -1: the middle of the model, as in the paper.
        pairs: of layers from there on; 0: as many as there are.
        t: interpolation.
        convention: "eq3", t is the weight of the upper layer, or "alg2", of the lower one.
        retention: "prose", the distinct tokens of the prefill stay unmerged, or "printed", the similar ones.
        gamma: fraction of the range of distances in which tokens are retained.
        on: codec of the directions and of all layers that are not merged; of single tokens.
        prefill: tokens of the first pass of a window; 0: half of them.
        step: new tokens of each later pass.
    """

    name: ClassVar[str] = "minicache"
    source: ClassVar[str] = "arXiv 2405.14366"

    first: int = -1
    pairs: int = 0
    t: float = 0.6
    convention: Convention = "eq3"
    retention: Retention = "prose"
    gamma: float = 0.05
    on: str = "exact"
    prefill: int = 0
    step: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("first", self.first, -1, _MOST_LAYERS)
        check_range("pairs", self.pairs, 0, _MOST_LAYERS)
        _ = self.settings, self.schedule, self.below  # which check their values

    @property
    def settings(self) -> MergeSettings:
        """Interpolation and retention."""
        return MergeSettings(t=self.t, convention=self.convention, retention=self.retention, gamma=self.gamma)

    @property
    def schedule(self) -> Schedule:
        """Of windows that are run as a stream."""
        return Schedule(self.prefill, self.step)

    @property
    def below(self) -> LayerScheme:
        """The codec that layers are merged on, which keeps the tokens that are kept here.

        Raises:
            UsageError: there is none of that name, it keeps tokens of its own, or its units are of several.
        """
        kind = "codec to merge layers on"
        found: LayerScheme = parse_written(
            self.on, LAYER_SCHEMES, what=f"a {kind}", kind=kind, choices=LAYER_SCHEMES, example="bits=4"
        )
        if found.sinks or found.residual:
            msg = f"{self.name} says which tokens are kept, and {self.on!r} below it cannot: move them out"
            raise UsageError(msg, given=self.on, expected=[f"{self.name}(sinks=..., residual=...)"])
        if found.unit != 1:
            raise several_tokens(found.unit)
        return replace(found, sinks=self.sinks, residual=self.residual)

    def pairs_of(self, layers: int) -> list[tuple[int, int]]:
        """The pairs that are merged of a model of so many layers.

        Raises:
            UsageError: it has fewer.
        """
        start = layers // 2 if self.first < 0 else self.first
        most = max(0, layers - start) // 2
        wanted = self.pairs or max(1, most)
        if wanted > most:
            there = f"a model of {layers} layers has {most} pairs from layer {start} on"
            msg = f"{self.name}: {there}, not {wanted}"
            raise UsageError(msg, given=wanted, expected=[f"at most {most} pairs", "an earlier first layer"])
        return layer_pairs(layers, start=start, stop=start + 2 * wanted)

    def check_run(self, *, layers: int, length: int, whole_window: bool = False) -> None:
        self.pairs_of(layers)
        self.schedule.passes(length, self.kept, whole_window=whole_window)

    def plan(self, calibration: Calibration) -> MergePlan:
        pairs = self.pairs_of(calibration.layers)
        means = np.zeros((calibration.layers, 2 * calibration.channels), np.int64)
        if self.means:
            means = np.stack([integer_means(calibration, layer) for layer in range(calibration.layers)])
        below = self.below
        directions = direction_statistics(calibration, pairs, self.settings, means)
        return MergePlan(
            name=str(self),
            pairs=pairs,
            settings=self.settings,
            layers=below.plan(calibration),
            directions=below.plan(directions),
            means=means,
            schedule=self.schedule,
        )
