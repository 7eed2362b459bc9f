"""The dot product of two MX blocks, all elements at once."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, EnableInserter, Module, Signal, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import register
from hw.arith.decoder import check_format
from hw.dot import DotProduct
from hw.reference.mx_dot import SCALE_BITS, Elements, element_format


class MxDotProduct(Component):
    """Exact dot products of two blocks of *block_size* elements, each with a shared E8M0 scale.

    The formats are those of OCP Microscaling Formats (MX) v1.0, without rounding: a product of two blocks is
    an integer and an exponent, for an accumulator that follows to align.

    Ports:
        ``blocks``: input stream of ``{weights, activations, weight_scale, activation_scale}``: arrays of
            *block_size* element codes, and a scale code for each array.
        ``dots``: output stream of ``{sum, exponent, is_nan}``. The value is ``sum * 2**(exponent +
            hw.reference.mx_dot.unit_exponent(weights, activations))``; ``exponent`` is the sum of the two
            scale codes, so that it has twice the bias of E8M0, 254. ``is_nan`` is set where a scale is
            NaN (code 255), and sum and exponent mean nothing then.

    One pair of blocks a cycle; a dot product is valid :attr:`latency` cycles after its blocks were taken.
    When it is not taken then, the pipeline stops.

    Args:
        weights: an MX format, or the scalar format of the elements, without codes for NaN or infinity.
        activations: likewise; the two are independent.
        block_size: elements of a block; 32 in OCP MX v1.0.
        levels_per_stage: carry chains in a row between registers; 0: none.
        tree: how the products are added; see :class:`hw.dot.DotProduct`. Measured for 32 elements of
            e2m1, e2m3, int8 and e3m2: compressors 513, 1449, 1474 and 1719 LUT6 sites, adders 590, 1451,
            1692 and 1570; adders take the shift of wide exponents into their LUTs.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        weights: Elements,
        activations: Elements,
        block_size: int = 32,
        levels_per_stage: int = 1,
        tree: str = "compressors",
    ) -> None:
        elements = [element_format(fmt) for fmt in (weights, activations)]
        check_format("weights", elements[0])
        check_format("activations", elements[1])
        check_positive("block_size", block_size)
        self._dot = DotProduct(
            weights=elements[0],
            activations=elements[1],
            lanes=block_size,
            levels_per_stage=levels_per_stage,
            tree=tree,
        )
        blocks = data.StructLayout(
            {
                "weights": data.ArrayLayout(elements[0].bits, block_size),
                "activations": data.ArrayLayout(elements[1].bits, block_size),
                "weight_scale": SCALE_BITS,
                "activation_scale": SCALE_BITS,
            }
        )
        dots = data.StructLayout(
            {"sum": signed(self.accumulator_bits), "exponent": SCALE_BITS + 1, "is_nan": 1}
        )
        super().__init__({"blocks": In(stream.Signature(blocks)), "dots": Out(stream.Signature(dots))})

    @property
    def accumulator_bits(self) -> int:
        """Width of the sums."""
        return self._dot.accumulator_bits

    @property
    def latency(self) -> int:
        """Cycles from the one in which blocks are taken to the first in which their dot product is valid."""
        return self._dot.latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.dot = dot = self._dot
        scales = Module()
        blocks, dots = self.blocks.payload, self.dots.payload
        exponent = Signal(SCALE_BITS + 1)
        is_nan = Signal()
        scales.d.comb += [
            exponent.eq(blocks.weight_scale + blocks.activation_scale),
            is_nan.eq(blocks.weight_scale.all() | blocks.activation_scale.all()),
        ]
        delayed = Cat(exponent, is_nan)
        for _ in range(self.latency):
            delayed = register(scales, delayed)
        # The dot product is ready for a vector exactly when its pipeline advances.
        m.submodules.scales = EnableInserter(dot.vectors.ready)(scales)
        m.d.comb += [
            dot.vectors.payload.weights.eq(blocks.weights),
            dot.vectors.payload.activations.eq(blocks.activations),
            dot.vectors.valid.eq(self.blocks.valid),
            self.blocks.ready.eq(dot.vectors.ready),
            dots.sum.eq(dot.sums.payload),
            Cat(dots.exponent, dots.is_nan).eq(delayed),
            self.dots.valid.eq(dot.sums.valid),
            dot.sums.ready.eq(self.dots.ready),
        ]
        return m
