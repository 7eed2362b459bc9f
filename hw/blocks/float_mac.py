"""The multiply-accumulate unit with a floating-point accumulator as a block."""

from __future__ import annotations

import numpy as np

from hw._checks import check_natural, check_positive
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli
from hw.blocks.codes import PAIRS_MEANING, random_dots, wrapped
from hw.blocks.mac import ANCHOR_DOT_LENGTH
from hw.float_mac import FloatMultiplyAccumulate
from hw.reference import float_accumulate
from quantizers.formats import ScalarFormat


def _stimuli(
    component: FloatMultiplyAccumulate,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    dot_length: int,
    guard_bits: int,
) -> Stimuli:
    dots, pairs = random_dots(weights, activations, dot_length, rng, count)
    outputs = []
    for w, a in dots:
        significand, exponent = float_accumulate(
            w, a, weights=weights, activations=activations, guard_bits=guard_bits
        )
        bits = component.accumulator_bits
        outputs.append(wrapped(int(significand), bits) | int(exponent) << bits)
    return Stimuli({"pairs": pairs}, {"sums": outputs})


def _datasheet(
    component: FloatMultiplyAccumulate,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    guard_bits: int,
    dot_length: int,
) -> Datasheet:
    unit = weights.grid.lsb_exponent + activations.grid.lsb_exponent - component.first_exponent - guard_bits
    return Datasheet(
        component.latency,
        "from the one in which the last pair is taken to the first in which its sum is offered",
        "one pair a cycle, without a gap between dot products",
        {
            "pairs": PAIRS_MEANING,
            "sums": f"significand (signed) and, above it, exponent: significand * 2**(exponent {unit:+d})",
        },
    )


FLOAT_MAC = Block(
    "float_mac",
    FloatMultiplyAccumulate,
    "multiply-accumulate unit with a floating-point accumulator",
    (
        Parameter("dot_length", ANCHOR_DOT_LENGTH, "pairs in the longest dot", check_positive),
        Parameter("guard_bits", 4, "bits kept below those of the largest product", check_natural),
    ),
    _stimuli,
    _datasheet,
)
