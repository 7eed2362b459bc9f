"""What a codec of a language model's cache keeps of the model, and what its engine costs.

What several points share (the model, its windows, the calibration) is kept by the process. Runs in workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from dse.cache_costs import cost_of_plan
from dse.design import CachePoint
from dse.evaluation import Evaluation
from dse.merge_engines import MergeMemories
from dse.metrics import Figure, Provenance
from dse.statistics import Z_95
from dse.workloads.hashing import text_sha256
from dse.workloads.language import (
    Comparison,
    LanguageModel,
    Perplexity,
    Windows,
    compare,
    language_fingerprint,
    load_language_model,
    load_text,
    windows_of,
)
from quantizers.kv_cache.calibration import Calibration, calibrate
from quantizers.kv_cache.merge_store import MergedStore
from quantizers.kv_cache.registry import parse_cache_scheme
from quantizers.kv_cache.stores import Plan, StoredBits
from quantizers.kv_store import Pass

CALIBRATION_WINDOWS = 16


@dataclass(frozen=True)
class CacheText:
    """A language model and the text that its cache is measured on; files by absolute path.

    Attributes:
        model, data: see :func:`dse.workloads.language.load_language_model`.
        text: file; ``None`` for the Python language reference.
        windows, length: so many windows of so many tokens.
        skip: windows of the text that come before them and are not used.
        calibration_text: file; ``None`` for the windows of *text* that follow the measured ones.
        calibration_windows: of the same length.
        rope: keys are rotated by their position before they are coded.
    """

    model: str
    windows: int
    length: int
    calibration_windows: int
    skip: int = 0
    rope: bool = False
    data: str | None = None
    text: str | None = None
    calibration_text: str | None = None

    @classmethod
    def of(
        cls,
        model: str,
        *,
        data: Path | None,
        text: Path | None,
        windows: int,
        length: int,
        calibration_text: Path | None = None,
        calibration_windows: int = CALIBRATION_WINDOWS,
        skip: int = 0,
        rope: bool = False,
    ) -> CacheText:
        """With files by any path."""
        return cls(
            model=model,
            windows=windows,
            length=length,
            calibration_windows=calibration_windows,
            skip=skip,
            rope=rope,
            data=_absolute(data),
            text=_absolute(text),
            calibration_text=_absolute(calibration_text),
        )

    @property
    def fingerprint(self) -> str:
        """Hash of all contents and choices."""
        texts = [load_text(_path(name)).sha256 for name in (self.text, self.calibration_text)]
        model = language_fingerprint(self.model, _path(self.data))
        numbers = (self.windows, self.length, self.calibration_windows, self.skip)
        return text_sha256(model, *texts, *map(str, (*numbers, self.calibration_text is None, self.rope)))


@dataclass(frozen=True)
class CacheTask:
    """A point with what a worker needs to evaluate it; *tools* are the versions in its key."""

    point: CachePoint
    source: CacheText
    fingerprint: str
    tools: Mapping[str, str]

    @property
    def key(self) -> str:
        return self.point.key(tools=self.tools, data=self.fingerprint)


@dataclass(frozen=True, eq=False)
class Measured:
    """A codec on a text, against the exact cache.

    Attributes:
        plan: what was made of the cache.
        comparison: of the predictions that count.
        bits: of an element.
        passes: how each window was run.
        memories: what those of a merge engine had to hold; ``None`` where nothing is merged.
    """

    plan: Plan
    comparison: Comparison
    bits: StoredBits
    passes: tuple[Pass, ...]
    memories: MergeMemories | None = None


def check_cache_text(source: CacheText) -> None:
    """Raise where a text cannot be read.

    Raises:
        UsageError: see :func:`dse.workloads.language.load_text`.
    """
    for name in (source.text, source.calibration_text):
        load_text(_path(name))


def evaluate_cache(task: CacheTask) -> Evaluation:
    """Perplexity and agreement with the exact cache, bits, and the cost of the engine where there is one."""
    point = task.point
    found = measure(task.source, point.codec, whole_window=point.evaluation == "window")
    cost = cost_of_plan(found.plan, part=point.part, memories=found.memories)
    metrics = {**_metrics(found), **cost.metrics}
    details = {
        "text": found.comparison.changed.text,
        "text_sha256": found.comparison.changed.text_sha256,
        "calibration": calibration_of(task.source).text,
        "predictions": found.comparison.changed.predictions,
        **_choices(found.passes),
        **cost.details,
    }
    return Evaluation(metrics, details)


def measure(source: CacheText, codec: str, *, whole_window: bool = False) -> Measured:
    """The codec in every layer of the model, on all windows.

    Raises:
        UsageError: a codec that does not fit the model's heads.
    """
    plan = parse_cache_scheme(codec).plan(calibration_of(source))
    store = plan.store(whole_window=whole_window)
    passes = store.passes(source.length)
    comparison = compare(model_of(source), measured_windows(source), store=store, passes=passes)
    memories = MergeMemories.of(store, source.length) if isinstance(store, MergedStore) else None
    return Measured(plan, comparison, store.bits(source.length), passes, memories)


@lru_cache(maxsize=2)
def calibration_of(source: CacheText) -> Calibration:
    """Statistics of keys and values on the calibration windows."""
    windows, text = _calibration_windows(source)
    return calibrate(model_of(source).decoder, windows, text=text, rope=source.rope)


@lru_cache(maxsize=1)
def _loaded(model: str, data: str | None) -> LanguageModel:
    return load_language_model(model, _path(data))


def model_of(source: CacheText) -> LanguageModel:
    """The model, in memory from the first time on."""
    return _loaded(source.model, source.data)


@lru_cache(maxsize=2)
def measured_windows(source: CacheText) -> Windows:
    """The windows that codecs are measured on."""
    text = load_text(_path(source.text))
    found = windows_of(model_of(source), text, length=source.length, count=source.skip + source.windows)
    return replace(found, tokens=found.tokens[source.skip :])


def _calibration_windows(source: CacheText) -> tuple[torch.Tensor, str]:
    """Windows, and what they are in words."""
    own = source.calibration_text is None
    text = load_text(_path(source.text if own else source.calibration_text))
    first = source.skip + source.windows if own else 0
    count = first + source.calibration_windows
    windows = windows_of(model_of(source), text, length=source.length, count=count)
    named = f"windows {first + 1} to {count} of {source.length} tokens of {text.name}"
    return windows.tokens[first:], named


def _choices(passes: tuple[Pass, ...]) -> dict[str, Any]:
    """How a window was run, where not in one pass."""
    if len(passes) == 1:
        return {}
    first, second, *_ = passes
    if second.start == 0:
        return {"passes": f"a prefill of all {first.stop} tokens, then all of them with its cache"}
    return {"prefill": first.stop, "step": second.stop - second.start}


def _metrics(found: Measured) -> dict[str, Figure]:
    comparison = found.comparison
    counted = Provenance.MEASURED if found.bits.is_measured else Provenance.ANALYTIC
    increase = comparison.ratio - 1
    error = comparison.log_ratio_standard_error
    interval = None
    if error is not None:
        ends = (comparison.ratio * math.exp(sign * Z_95 * error) - 1 for sign in (-1, 1))
        interval = (next(ends), next(ends))
    return {
        "perplexity": perplexity_figure(comparison.changed),
        "float_perplexity": perplexity_figure(comparison.exact),
        "perplexity_increase": Figure(increase, Provenance.MEASURED, interval),
        "next_token_agreement": Figure(comparison.agreement, Provenance.MEASURED),
        "mean_kl_nats": Figure(comparison.mean_kl, Provenance.MEASURED),
        "bits_per_element": Figure(found.bits.per_element, counted),
        "bits_per_element_seen": Figure(found.bits.per_element_seen, counted),
    }


def perplexity_figure(found: Perplexity) -> Figure:
    """With the 95 % interval of its predictions, taken as independent."""
    if found.standard_error is None:
        return Figure(found.perplexity, Provenance.MEASURED)
    low, high = (math.exp(found.mean_nll + sign * Z_95 * found.standard_error) for sign in (-1, 1))
    return Figure(found.perplexity, Provenance.MEASURED, (low, high))


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
