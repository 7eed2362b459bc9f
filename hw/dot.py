"""The dot product of two vectors of codes, all lanes at once."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import EnableInserter, Module, Signal, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import register
from hw.arith.addend import ProductAddend, ScaledAddend, product_addend
from hw.arith.adder_tree import AdderTree, sum_shape
from hw.arith.compressor import CompressorTree
from hw.arith.decoder import check_format
from hw.reference.widths import product_range
from quantizers.errors import unknown_choice
from quantizers.formats import ScalarFormat

TREES = ("adders", "compressors")
"""How the products of all lanes are added."""


def check_tree(name: str, value: object) -> None:
    """Raises :class:`UsageError` unless *value* is one of :data:`TREES`."""
    if value not in TREES:
        raise unknown_choice(name, value, TREES)


class DotProduct(Component):
    """Exact dot products of vectors of *lanes* codes.

    Ports:
        ``vectors``: input stream of ``{weights, activations}``, arrays of *lanes* codes.
        ``sums``: output stream of the sums, signed, in units of
        ``2**(weights.grid.lsb_exponent + activations.grid.lsb_exponent)``; see
        :func:`hw.reference.multiply_accumulate`.

    One vector a cycle; a sum is valid :attr:`latency` cycles after its vector was taken. When it is not
    taken then, the pipeline stops.

    The products are added by a tree of binary adders, each of which takes the carry that the product of one
    lane leaves open (the last lane leaves none), or by compressors
    (:class:`hw.arith.compressor.CompressorTree`), which take fewer LUTs and more registers.

    Args:
        weights: any scalar format without codes for NaN or infinity.
        activations: likewise; the two are independent.
        lanes: products of one sum.
        levels_per_stage: carry chains in a row between registers; 0: none.
        tree: one of :data:`TREES`.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        weights: ScalarFormat,
        activations: ScalarFormat,
        lanes: int,
        levels_per_stage: int = 2,
        tree: str = "adders",
    ) -> None:
        check_format("weights", weights)
        check_format("activations", activations)
        check_positive("lanes", lanes)
        check_tree("tree", tree)
        low, high = product_range(weights, activations)
        # Not every structure has a carry; room for one costs nothing where there is none.
        bits = sum_shape(1, low=low, high=high, has_carry=True).width
        self._products = [product_addend(weights, activations, bits=bits) for _ in range(lanes)]
        product = self._products[0]
        sizes = {"terms": lanes, "low": low, "high": high, "levels_per_stage": levels_per_stage}
        has_carry = len(product.carry) > 0
        self._tree: AdderTree | CompressorTree
        if tree == "adders":
            last = ScaledAddend(weights, activations, bits=bits)
            if not len(last.carry):
                self._products[-1] = last
            self._tree = AdderTree(has_carry=has_carry, **sizes)
        else:
            self._tree = CompressorTree(has_carry=has_carry, carry_is_sign=product.carry_is_sign, **sizes)
        vectors = data.StructLayout(
            {
                "weights": data.ArrayLayout(weights.bits, lanes),
                "activations": data.ArrayLayout(activations.bits, lanes),
            }
        )
        super().__init__(
            {
                "vectors": In(stream.Signature(vectors)),
                "sums": Out(
                    stream.Signature(signed(sum_shape(lanes, low=low, high=high, has_carry=False).width))
                ),
            }
        )

    @property
    def accumulator_bits(self) -> int:
        """Width of the sums."""
        return len(self.sums.payload)

    @property
    def latency(self) -> int:
        """Cycles from the one in which a vector is taken to the first in which its sum is valid."""
        return self._product_latency + self._tree.latency + 1

    @property
    def _product_latency(self) -> int:
        return max(self._lane_latency(product) for product in self._products)

    def _lane_latency(self, product: ProductAddend) -> int:
        return product.latency + self._needs_register(product)

    def _needs_register(self, product: ProductAddend) -> bool:
        """Whether a register holds the addend: an adder takes logic into its LUTs, a compressor does not."""
        return isinstance(self._tree, CompressorTree) and not product.is_registered

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        advance = Signal()
        datapath = Module()
        datapath.submodules.tree = tree = self._tree
        for lane, product in enumerate(self._products):
            datapath.submodules[f"product{lane}"] = product
            addend, carry = product.addend, product.carry
            for _ in range(self._product_latency - product.latency):
                addend, carry = register(datapath, addend), register(datapath, carry)
            datapath.d.comb += [
                product.weight.eq(self.vectors.payload.weights[lane]),
                product.activation.eq(self.vectors.payload.activations[lane]),
                tree.addends[lane].eq(addend),
            ]
            if len(tree.carries):
                datapath.d.comb += tree.carries[lane].eq(carry)
        datapath.d.comb += self.sums.payload.eq(register(datapath, tree.sum + tree.carry))
        valid = self.vectors.valid
        for stage in range(self.latency):
            next_valid = Signal(name=f"valid{stage}")
            datapath.d.sync += next_valid.eq(valid)
            valid = next_valid
        m.submodules.datapath = EnableInserter(advance)(datapath)
        m.d.comb += [
            advance.eq(self.sums.ready | ~self.sums.valid),
            self.vectors.ready.eq(advance),
            self.sums.valid.eq(valid),
        ]
        return m
