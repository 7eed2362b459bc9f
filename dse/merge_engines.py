"""The hardware that merges layers of a cache."""

from __future__ import annotations

from dse.cache_engines import LANES
from hw._component import Component
from hw.kv_cache.distinct_tokens import DistinctTokens
from hw.kv_cache.merge_engine import MergeEngine
from hw.kv_cache.merge_restore import MergeRestore
from quantizers.kv_cache.merge_plan import MergePlan

KINDS = ("keys", "values")


def merge_parts(plan: MergePlan) -> dict[str, Component]:
    """For keys and for values: what merges vectors, what chooses the tokens of a prefill that are retained,
    and what restores the vectors of the layer whose attention runs; products in DSP slices.

    Memories are those that the components have by default: for the distances of 512 tokens and for 32
    retained rows of a head.

    Raises:
        UsageError: the lanes do not divide a head's channels, or are too few for it.
    """
    arithmetic = plan.arithmetic
    parts: dict[str, Component] = {}
    for kind in KINDS:
        parts[f"merge_{kind}"] = MergeEngine(arithmetic=arithmetic, lanes=LANES)
        parts[f"distinct_{kind}"] = DistinctTokens(settings=plan.settings)
        parts[f"restore_{kind}"] = MergeRestore(arithmetic=arithmetic, lanes=LANES)
    return parts
