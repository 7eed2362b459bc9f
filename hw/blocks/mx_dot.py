"""The dot product of two MX blocks as a block."""

from __future__ import annotations

import numpy as np

from hw._checks import check_natural, check_positive
from hw.blocks.block import Block, Datasheet, Parameter, Stimuli
from hw.blocks.codes import joined, packed, random_codes, wrapped
from hw.dot import check_tree
from hw.mx_dot import MxDotProduct
from hw.reference.mx_dot import SCALE_BITS, Elements, block_dot, element_format, unit_exponent
from quantizers.formats import parse_format


def _stimuli(
    component: MxDotProduct,
    rng: np.random.Generator,
    count: int,
    *,
    weights: Elements,
    activations: Elements,
    block_size: int,
    levels_per_stage: int,
    tree: str,
) -> Stimuli:
    """Blocks of random codes, one scale in 256 NaN."""
    formats = [element_format(fmt) for fmt in (weights, activations)]
    codes = [random_codes(fmt, (count, block_size), rng) for fmt in formats]
    scales = [rng.integers(1 << SCALE_BITS, size=count) for _ in formats]
    dots = block_dot(scales[0], codes[0], scales[1], codes[1], weights=weights, activations=activations)
    widths = [block_size * fmt.bits for fmt in formats] + [SCALE_BITS, SCALE_BITS]
    blocks = [
        joined([packed(w, formats[0].bits), packed(a, formats[1].bits), int(w_scale), int(a_scale)], widths)
        for w, a, w_scale, a_scale in zip(*codes, *scales, strict=True)
    ]
    bits = component.accumulator_bits
    outputs = [
        joined([wrapped(int(total), bits), int(exponent), int(is_nan)], [bits, SCALE_BITS + 1, 1])
        for total, exponent, is_nan in zip(*dots, strict=True)
    ]
    return Stimuli({"blocks": blocks}, {"dots": outputs})


def _datasheet(
    component: MxDotProduct,
    *,
    weights: Elements,
    activations: Elements,
    block_size: int,
    levels_per_stage: int,
    tree: str,
) -> Datasheet:
    unit = unit_exponent(weights, activations)
    return Datasheet(
        component.latency,
        "from the one in which two blocks are taken to the first in which their dot product is offered",
        "two blocks a cycle, one of weights and one of activations",
        {
            "blocks": f"{block_size} weight codes, {block_size} activation codes and the E8M0 code of the "
            "scale of each",
            "dots": f"sum and exponent, of value sum * 2**(exponent - {-unit}), and whether a scale is NaN",
        },
    )


MX_DOT = Block(
    "mx_dot",
    MxDotProduct,
    "dot product of two MX blocks with shared scales, at once",
    (
        Parameter("block_size", 32, "elements of a block", check_positive),
        Parameter("levels_per_stage", 1, "carry chains between registers; 0: none", check_natural),
        Parameter("tree", "compressors", "how products are added: adders or compressors", check_tree),
    ),
    _stimuli,
    _datasheet,
    parse_format,
)
