"""The multiply-accumulate units as blocks."""

from __future__ import annotations

import numpy as np

from hw._checks import check_positive, check_switch
from hw.binned_mac import BinnedMultiplyAccumulate
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli, check_optional_positive
from hw.blocks.codes import PAIRS_MEANING, random_dots, sum_meaning, wrapped
from hw.mac import MultiplyAccumulate
from hw.reference import multiply_accumulate
from quantizers.formats import ScalarFormat

ANCHOR_DOT_LENGTH = 4608
"""Longest dot product of ResNet-18 (512 channels, 3 x 3), where arXiv 2311.12359 costs its MACs."""


def _mac_stimuli(
    component: MultiplyAccumulate | BinnedMultiplyAccumulate,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    dot_length: int,
    accumulator_bits: int | None,
    pipelined: bool,
) -> Stimuli:
    """Dot products of random codes, of random length."""
    dots, pairs = random_dots(weights, activations, dot_length, rng, count)
    sums = [int(multiply_accumulate(w, a, weights=weights, activations=activations)) for w, a in dots]
    outputs = [wrapped(total, component.accumulator_bits) for total in sums]
    return Stimuli({"pairs": pairs}, {"sums": outputs})


def _mac_datasheet(
    component: MultiplyAccumulate | BinnedMultiplyAccumulate,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    dot_length: int,
    accumulator_bits: int | None,
    pipelined: bool,
) -> Datasheet:
    pause = getattr(component, "pause", 0)
    gap = f"with a pause of {pause} cycles" if pause else "without a gap"
    return Datasheet(
        component.latency,
        "from the one in which the last pair is taken to the first in which its sum is offered",
        f"one pair a cycle, {gap} between dot products",
        {
            "pairs": PAIRS_MEANING,
            "sums": sum_meaning(weights, activations),
        },
    )


ACCUMULATOR_BITS = Parameter(
    "accumulator_bits", None, "accumulator width; the exact one where not set", check_optional_positive
)
_PARAMETERS = (
    Parameter("dot_length", ANCHOR_DOT_LENGTH, "pairs in the longest dot", check_positive),
    ACCUMULATOR_BITS,
    Parameter("pipelined", False, "more registers, for a higher clock frequency", check_switch),
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
