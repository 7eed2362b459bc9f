"""The dot product as a block."""

from __future__ import annotations

import numpy as np

from hw._checks import check_natural, check_positive
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli
from hw.blocks.codes import packed, random_codes, sum_meaning, wrapped
from hw.dot import DotProduct, check_tree
from hw.reference import multiply_accumulate
from quantizers.formats import ScalarFormat


def _dot_stimuli(
    component: DotProduct,
    rng: np.random.Generator,
    count: int,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    lanes: int,
    levels_per_stage: int,
    tree: str,
) -> Stimuli:
    """Vectors of random codes."""
    w, a = (random_codes(fmt, (count, lanes), rng) for fmt in (weights, activations))
    vectors = [
        packed(x, weights.bits) | packed(y, activations.bits) << lanes * weights.bits
        for x, y in zip(w, a, strict=True)
    ]
    sums = multiply_accumulate(w, a, weights=weights, activations=activations)
    outputs = [wrapped(int(total), component.accumulator_bits) for total in sums]
    return Stimuli({"vectors": vectors}, {"sums": outputs})


def _dot_datasheet(
    component: DotProduct,
    *,
    weights: ScalarFormat,
    activations: ScalarFormat,
    lanes: int,
    levels_per_stage: int,
    tree: str,
) -> Datasheet:
    return Datasheet(
        component.latency,
        "from the one in which a vector is taken to the first in which its sum is offered",
        "one vector a cycle",
        {
            "vectors": f"{lanes} weight codes and {lanes} activation codes",
            "sums": sum_meaning(weights, activations),
        },
    )


DOT = Block(
    "dot",
    DotProduct,
    "dot product of two vectors at once",
    (
        Parameter("lanes", 16, "products of a sum", check_positive),
        Parameter("levels_per_stage", 2, "carry chains between registers; 0: none", check_natural),
        Parameter("tree", "adders", "how products are added: adders or compressors", check_tree),
    ),
    _dot_stimuli,
    _dot_datasheet,
)
