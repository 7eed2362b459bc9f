"""One multiplier of the scale stage, and the sums that it works on in turns."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import C, Cat, EnableInserter, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import memory
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import accumulate, add_with_carry, register
from hw.arith.addend import MIN_DSP_PRODUCT_BITS
from hw.arith.booth import BoothMultiplier, booth_rows, select_multiple
from hw.arith.dsp import A_BITS
from hw.lut_kernel.tables import LUTRAM
from quantizers.errors import UsageError


class Scaler(Component):
    """Adds ``scale * (sum - zero * offset)`` to one of the totals.

    Ports: ``sum``, ``scale``, ``zero``, ``offset`` in, the latter two without bits where there are no zero
    points; ``slot`` (which total), ``is_first`` (it starts at zero), ``enable`` in, :attr:`latency` cycles
    after them; ``total`` out, in the cycle of these: the total with the product. ``advance`` in: without it
    nothing happens.

    Args:
        sums: shape of ``sum``.
        zeros: shape of ``zero``.
        offsets: shape of ``offset``.
        scale_bits: of the scale, unsigned: 2 to 16.
        centred: shape of ``sum - zero * offset``, which wraps.
        slots: totals.
        accumulator_bits: of a total, signed, which wraps.
        products: ``luts`` or ``dsps``: what multiplies by the scale.

    Raises:
        UsageError: a product that does not fit a DSP slice, or would get none.
    """

    def __init__(
        self,
        *,
        sums: Shape,
        zeros: Shape,
        offsets: Shape,
        scale_bits: int,
        centred: Shape,
        slots: int,
        accumulator_bits: int,
        products: str,
    ) -> None:
        self._centred, self._slots = centred, slots
        self._zeros = zeros
        self._structure = _booth(centred, unsigned(scale_bits)) if products == "luts" else None
        if products == "dsps":
            _check_dsp(centred.width, scale_bits)
        super().__init__(
            {
                "sum": In(sums),
                "scale": In(scale_bits),
                "zero": In(zeros),
                "offset": In(offsets if zeros.width else unsigned(0)),
                "advance": In(1),
                "slot": In(range(slots)),
                "is_first": In(1),
                "enable": In(1),
                "total": Out(signed(accumulator_bits)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a sum to its total."""
        return 2 + (self._structure.latency if self._structure else 0)

    def elaborate(self, platform: Any) -> Any:
        m = Module()
        centred = Signal(self._centred, reset_less=True)
        m.d.sync += centred.eq(self._difference(m))
        product, carry = self._product(m, centred, register(m, self.scale))
        before = Mux(self.is_first, 0, self._running_total(m)).as_signed()
        m.d.comb += self.total.eq(add_with_carry(before, product, carry, width=len(self.total)))
        return EnableInserter(self.advance)(m)

    def _difference(self, m: Module) -> Value:
        """The sum without what the zero point added to it.

        The offset is multiplied as in :class:`hw.arith.booth.BoothMultiplier`, by rows that start from the
        sum: the digits of the zero point with all their bits complemented are the opposite ones.
        """
        if not self._zeros.width:
            return self.sum
        rows = booth_rows(self._zeros)
        top = self.zero[-1] if self._zeros.signed else C(0, 1)
        digits = ~Cat(C(0, 1), self.zero, top, top)[: 2 * rows + 1]
        total = Signal(signed(self._centred.width), name="with_zero")
        m.d.comb += total.eq(self.sum)
        for row in range(rows):
            low, triple = 2 * row, digits[2 * row : 2 * row + 3]
            multiple = select_multiple(m, self.offset, triple)
            upper = Signal(signed(len(total) - low), name=f"without{row}")
            m.d.comb += upper.eq(accumulate(total[low:], multiple, triple[2], width=len(upper)))
            difference = Signal.like(total, name=f"difference{row}")
            m.d.comb += difference.eq(Cat(total[:low], upper))
            total = difference
        return total

    def _product(self, m: Module, centred: Value, scale: Value) -> tuple[Value, Value]:
        """Registers whose sum is the product."""
        if self._structure is None:
            product = Signal((centred * scale).shape(), reset_less=True, attrs={"use_dsp": "yes"})
            m.d.sync += product.eq(centred * scale)
            return product, C(0, 0)
        m.submodules.structure = structure = self._structure
        is_swapped = structure.multiplier.shape() == centred.shape()
        operands = (scale, centred) if is_swapped else (centred, scale)
        m.d.comb += [structure.multiplicand.eq(operands[0]), structure.multiplier.eq(operands[1])]
        return register(m, structure.product), register(m, structure.missing)

    def _running_total(self, m: Module) -> Value:
        if self._slots == 1:
            running = Signal.like(self.total, name="running", reset_less=True)
            with m.If(self.enable):
                m.d.sync += running.eq(self.total)
            return running
        m.submodules.totals = totals = memory.Memory(
            shape=self.total.shape(), depth=self._slots, init=[], attrs=LUTRAM
        )
        read, write = totals.read_port(domain="comb"), totals.write_port()
        m.d.comb += [
            read.addr.eq(self.slot),
            write.addr.eq(self.slot),
            write.data.eq(self.total),
            write.en.eq(self.enable),
        ]
        return read.data


def _booth(centred: Shape, scale: Shape) -> BoothMultiplier:
    """Of the two orders that of fewer rows."""
    whole, cut = (scale, centred) if booth_rows(centred) < booth_rows(scale) else (centred, scale)
    return BoothMultiplier(multiplicand=whole, multiplier=cut, is_open=True)


def _check_dsp(centred_bits: int, scale_bits: int) -> None:
    given = f"{centred_bits} and {scale_bits} bits"
    if centred_bits > A_BITS:
        msg = f"products of {given} do not fit a DSP slice, whose wider factor has {A_BITS}"
        raise UsageError(msg, given=given, expected=["products='luts'", "a smaller block"])
    if centred_bits + scale_bits < MIN_DSP_PRODUCT_BITS:
        msg = f"products of {given} are too narrow for synthesis to give them a DSP slice"
        raise UsageError(msg, given=given, expected=["products='luts'"])
