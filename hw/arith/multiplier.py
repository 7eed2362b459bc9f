"""The multiplier for a pair of operand shapes."""

from __future__ import annotations

from typing import Any, TypeAlias

from amaranth.hdl import Module, Shape
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import check_shape, product_shape
from hw.arith.booth import BoothMultiplier, booth_rows
from hw.arith.booth_tree import PipelinedBoothMultiplier
from hw.arith.table import TableMultiplier, table_pieces

_Structure: TypeAlias = TableMultiplier | BoothMultiplier | PipelinedBoothMultiplier


class Multiplier(Component):
    """``product = a * b``, exactly, by the structure that takes the fewest LUT6 sites.

    A gate where one operand is a single bit, truth tables where two of them suffice, else Booth
    rows; the operand that makes fewer tables or rows is the one that is cut. (A bare ``a * b``
    costs a signed 8x8 twice the sites.)

    Ports: ``a``, ``b`` in; ``product`` out, of the narrowest shape for all products.
    Latency :attr:`latency` cycles; one product a cycle.

    Args:
        a: shape of an operand.
        b: shape of the other one.
        pipelined: registers for the highest clock frequency rather than the fewest cycles.

    Raises:
        UsageError: an argument is not a shape of at least one bit.
    """

    def __init__(self, *, a: Shape, b: Shape, pipelined: bool = False) -> None:
        check_shape("a", a)
        check_shape("b", b)
        super().__init__({"a": In(a), "b": In(b), "product": Out(product_shape(a, b))})
        one_bit = Shape(1)
        self._gated = a if b == one_bit else b if a == one_bit else None
        self._structure = None if self._gated else _narrowest(a, b, pipelined)

    @property
    def latency(self) -> int:
        """Cycles from operands to product."""
        return self._structure.latency if self._structure else 0

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        if self._structure is None:
            gate, value = (self.b, self.a) if len(self.b) == 1 else (self.a, self.b)
            gated = value & gate.replicate(len(value))
            m.d.comb += self.product.eq(gated.as_signed() if value.shape().signed else gated)
            return m
        m.submodules.structure = structure = self._structure
        swapped = structure.multiplier.shape() != self.b.shape()
        whole, cut = (self.b, self.a) if swapped else (self.a, self.b)
        m.d.comb += [
            structure.multiplicand.eq(whole),
            structure.multiplier.eq(cut),
            self.product.eq(structure.product),
        ]
        return m


def _narrowest(a: Shape, b: Shape, pipelined: bool) -> _Structure:
    """Fewest tables, if few tables do; else fewest rows."""
    orders = ((a, b), (b, a))
    tables = [(pieces, order) for order in orders if (pieces := table_pieces(*order)) is not None]
    if tables:
        pieces, (whole, cut) = min(tables, key=lambda choice: choice[0])
        if pieces <= TableMultiplier.MAX_PIECES:
            return TableMultiplier(multiplicand=whole, multiplier=cut, pipelined=pipelined)
    cuttable = [order for order in orders if order[1].width > 1]
    whole, cut = min(cuttable, key=lambda order: booth_rows(order[1]))
    structure = PipelinedBoothMultiplier if pipelined else BoothMultiplier
    return structure(multiplicand=whole, multiplier=cut)
