"""The multiply-accumulate units as blocks."""

from __future__ import annotations

import numpy as np

from hw._checks import check_positive
from hw.binned_mac import BinnedMultiplyAccumulate
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli, check_optional_positive
from hw.blocks.codes import random_codes, sum_meaning, wrapped
from hw.mac import MultiplyAccumulate
from hw.reference import multiply_accumulate
from quantizers.formats import ScalarFormat

ANCHOR_DOT_LENGTH = 4608
"""Longest dot product of ResNet-18 (512 channels, 3 x 3), where arXiv 2311.12359 costs its MACs."""

LONGEST_RANDOM_DOT = 64
"""Pairs in the longest random dot product: many short ones exercise the streams more than few long ones."""


def _mac_stimuli(
    component: MultiplyAccumulate | BinnedMultiplyAccumulate,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    dot_length: int,
    accumulator_bits: int | None,
) -> Stimuli:
    """Dot products of random codes, of random length."""
    lengths = rng.integers(1, min(dot_length, LONGEST_RANDOM_DOT) + 1, count)
    w, a = (random_codes(fmt, int(lengths.sum()), rng) for fmt in (weights, activations))
    ends = np.cumsum(lengths)
    last = np.zeros(len(w), dtype=np.int64)
    last[ends - 1] = 1
    sums = [
        int(multiply_accumulate(w[end - n : end], a[end - n : end], weights=weights, activations=activations))
        for n, end in zip(lengths, ends, strict=True)
    ]
    pairs = w | a << weights.bits | last << weights.bits + activations.bits
    return Stimuli({"pairs": pairs.tolist()}, [wrapped(total, component.accumulator_bits) for total in sums])


def _mac_datasheet(
    component: MultiplyAccumulate | BinnedMultiplyAccumulate,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    dot_length: int,
    accumulator_bits: int | None,
) -> Datasheet:
    pause = getattr(component, "pause", 0)
    gap = f"with a pause of {pause} cycles" if pause else "without a gap"
    return Datasheet(
        component.latency,
        "from the one in which the last pair is taken to the first in which its sum is offered",
        f"one pair a cycle, {gap} between dot products",
        {
            "pairs": "a weight code and an activation code; last marks the final pair of a dot product",
            "sums": sum_meaning(weights, activations),
        },
    )


ACCUMULATOR_BITS = Parameter(
    "accumulator_bits", None, "accumulator width; the exact one where not set", check_optional_positive
)
_PARAMETERS = (
    Parameter("dot_length", ANCHOR_DOT_LENGTH, "pairs in the longest dot", check_positive),
    ACCUMULATOR_BITS,
)

MAC = Block(
    "mac",
    MultiplyAccumulate,
    "multiply-accumulate unit with an exact fixed-point accumulator",
    _PARAMETERS,
    _mac_stimuli,
    _mac_datasheet,
)

BINNED_MAC = Block(
    "binned_mac",
    BinnedMultiplyAccumulate,
    "multiply-accumulate unit with a bin of LUT RAM for each exponent",
    _PARAMETERS,
    _mac_stimuli,
    _mac_datasheet,
)
