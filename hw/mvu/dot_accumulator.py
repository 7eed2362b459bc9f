"""A row of multipliers, an adder tree and the accumulator behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import add_with_carry
from hw.arith.addend import product_addend
from hw.arith.adder_tree import AdderTree, sum_shape
from hw.arith.decoder import check_format
from quantizers.formats import ScalarFormat

LEVELS_PER_STAGE = 2
"""Levels of the adder tree between registers; the first also holds the last step of the products."""


class DotAccumulator(Component):
    """*simd* products a cycle, added to a running sum.

    Ports: ``weights``, ``activations`` (arrays of *simd* codes) in; ``start`` (signed), ``is_first``,
    ``enable`` in; ``total`` (signed) out. :attr:`latency` cycles after the codes, ``total`` is the
    running sum with their products: ``is_first`` in that cycle lets it begin at ``start``, ``enable``
    keeps it. One step a cycle. Sums wrap modulo ``2**accumulator_bits``. Registers are not reset.

    Args:
        multipliers: see :func:`hw.arith.addend.product_addend`.

    Raises:
        UsageError: a format without a datapath, or a number that is not positive.
    """

    def __init__(
        self,
        *,
        weights: ScalarFormat,
        activations: ScalarFormat,
        simd: int,
        accumulator_bits: int,
        multipliers: str = "luts",
    ) -> None:
        check_format("weights", weights)
        check_format("activations", activations)
        check_positive("simd", simd)
        check_positive("accumulator_bits", accumulator_bits)
        low, high = _product_range(weights, activations)
        # Not every structure has a carry; room for one costs nothing where there is none.
        bits = sum_shape(1, low=low, high=high, has_carry=True).width
        self._products = [
            product_addend(weights, activations, bits=bits, multipliers=multipliers) for _ in range(simd)
        ]
        self._tree = AdderTree(
            terms=simd,
            low=low,
            high=high,
            has_carry=len(self._products[0].carry) > 0,
            levels_per_stage=LEVELS_PER_STAGE,
        )
        super().__init__(
            {
                "weights": In(data.ArrayLayout(weights.bits, simd)),
                "activations": In(data.ArrayLayout(activations.bits, simd)),
                "start": In(signed(accumulator_bits)),
                "is_first": In(1),
                "enable": In(1),
                "total": Out(signed(accumulator_bits)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the codes to the sum with their products."""
        return self._products[0].latency + self._tree.latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.tree = tree = self._tree
        for lane, product in enumerate(self._products):
            m.submodules[f"product{lane}"] = product
            m.d.comb += [
                product.weight.eq(self.weights[lane]),
                product.activation.eq(self.activations[lane]),
                tree.addends[lane].eq(product.addend),
            ]
            if len(tree.carries):
                m.d.comb += tree.carries[lane].eq(product.carry)
        running = Signal.like(self.total, reset_less=True)
        before = Mux(self.is_first, self.start, running)
        m.d.comb += self.total.eq(add_with_carry(before, tree.sum, tree.carry, width=len(self.total)))
        with m.If(self.enable):
            m.d.sync += running.eq(self.total)
        return m


def _product_range(weights: ScalarFormat, activations: ScalarFormat) -> tuple[int, int]:
    """Smallest and largest product of two codes, in units of the least significant bits."""
    extremes = [
        [int(np.ldexp(bound, -fmt.grid.lsb_exponent)) for bound in (fmt.minimum, fmt.maximum)]
        for fmt in (weights, activations)
    ]
    products = [w * a for w in extremes[0] for a in extremes[1]]
    return min(products), max(products)
