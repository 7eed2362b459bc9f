"""The hardware that merges layers of a cache."""

from __future__ import annotations

from dataclasses import dataclass

from dse.cache_engines import LANES
from hw._component import Component
from hw.kv_cache.distinct_tokens import DistinctTokens
from hw.kv_cache.merge_engine import MergeEngine
from hw.kv_cache.merge_restore import MergeRestore
from quantizers.errors import UsageError
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.merge_plan import MergePlan
from quantizers.kv_cache.merge_store import MergedStore
from quantizers.kv_cache.merging import INDEX_BITS

KINDS = ("keys", "values")


@dataclass(frozen=True, kw_only=True)
class MergeMemories:
    """What the memories of a merge engine have to hold, of keys and of values alike.

    Attributes:
        window: tokens of a sequence.
        prefill: tokens of the first pass, of which each has a distance.
        retained: rows of a head at most, in one layer.
    """

    window: int
    prefill: int
    retained: int

    @classmethod
    def of(cls, store: MergedStore, length: int) -> MergeMemories:
        """What *store* held while windows of *length* tokens ran with it."""
        prefill, *_ = store.passes(length)
        return cls(window=length, prefill=prefill.stop, retained=store.most_retained)


def merge_parts(plan: MergePlan, memories: MergeMemories | None) -> dict[str, Component]:
    """For keys and for values: what merges vectors, what chooses the tokens of a prefill that are retained,
    and what restores the vectors of the layer whose attention runs; products in DSP slices.

    One head of one pair is worked on at a time. The memory of distances then has room for those of the
    prefill that was measured, or of the whole window where that was one prefill; that of retained rows for
    the most that any head of any pair retained in the measurement. A text of which more are retained, or a
    longer prefill, takes larger memories than these.

    Args:
        plan: gives arithmetic and rule.
        memories: of a measurement; there is room for one row at least.

    Raises:
        UsageError: there is no measurement, or one of windows that the 16 bits of a token's number do not
            count; or the lanes do not divide a head's channels, or are too few for it.
    """
    if memories is None:
        msg = "how large the memories of a merge engine are is known of a measurement only"
        raise UsageError(msg, expected=["memories=MergeMemories(...)"])
    check_range("tokens of a window", memories.window, 1, 1 << INDEX_BITS)
    arithmetic = plan.arithmetic
    parts: dict[str, Component] = {}
    for kind in KINDS:
        parts[f"merge_{kind}"] = MergeEngine(arithmetic=arithmetic, lanes=LANES)
        parts[f"distinct_{kind}"] = DistinctTokens(settings=plan.settings, capacity=memories.prefill)
        parts[f"restore_{kind}"] = MergeRestore(
            arithmetic=arithmetic,
            lanes=LANES,
            capacity=max(1, memories.retained),
            token_bits=INDEX_BITS,
        )
    return parts
