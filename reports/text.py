"""Figures and names as reports write them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

from dse.metrics import Metric


def with_interval(record: Mapping[Hashable, Any], of: Metric) -> str:
    """``91.23 [90.0, 92.4]``: the value as shown, and its 95 % interval where it has one."""
    factor = 100 if of.percent else 1
    value = factor * record[of.name]
    text = f"{value:.2f}" if of.percent or value != int(value) else f"{value:.0f}"
    low, high = (float(record.get(f"{of.name}_{end}", "nan")) for end in ("low", "high"))
    return text if math.isnan(low) else f"{text} [{factor * low:.1f}, {factor * high:.1f}]"
