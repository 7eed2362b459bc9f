"""Multiply-accumulate unit with a floating-point accumulator."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, EnableInserter, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_natural, check_positive
from hw._component import Component
from hw.arith._shapes import add_with_carry, register, shape_range
from hw.arith.decoder import Decoder
from hw.arith.multiplier import Multiplier
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat


class FloatMultiplyAccumulate(Component):
    """Dot products of two streams of codes in a sum whose exponent is the largest so far.

    The sum is a two's complement significand in units of ``2**(exponent - guard_bits)``. Where a product
    has a larger exponent than all before it, the sum is shifted right, its low bits falling away (towards
    minus infinity); any other product is shifted right instead and rounded to nearest, a half upward before
    the sign is applied. The sum is not normalised: its width holds *dot_length* products of the largest
    exponent, so nothing overflows, and no leading one is searched for.

    A dot product of n pairs is off by at most ``n/2 + r`` units of ``2**(exponent - guard_bits)``, r being
    how often the exponent rose after the first pair. With as many guard bits as exponents of products
    reach from least to greatest nothing is lost. Products of zero have exponents too.

    Ports:
        ``pairs``: input stream of ``{weight, activation, last}``.
        ``sums``: output stream of ``{significand, exponent}``: the dot product is ``significand *
        2**(exponent - first_exponent - guard_bits)`` in units of ``2**(weights.grid.lsb_exponent +
        activations.grid.lsb_exponent)``; see :func:`hw.reference.float_accumulate`.

    One pair a cycle, without a gap between dot products. Where a sum is not taken, the unit stops when the
    next one is complete.

    Args:
        weights: any scalar format without codes for NaN or infinity.
        activations: likewise; one of the two must have more than one binade.
        dot_length: pairs in the longest dot product.
        guard_bits: bits that are kept below the least significant one of the products of the largest
            exponent.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self, *, weights: ScalarFormat, activations: ScalarFormat, dot_length: int, guard_bits: int = 4
    ) -> None:
        check_positive("dot_length", dot_length)
        check_natural("guard_bits", guard_bits)
        self._decoders = Decoder(weights), Decoder(activations)
        self._exponents = [d for d in self._decoders if len(d.exponent)]
        if not self._exponents:
            msg = f"a floating sum needs exponents, and neither {weights} nor {activations} has any"
            raise UsageError(msg, given=f"{weights}, {activations}", expected=["the exact accumulator"])
        self._multiplier = Multiplier(
            a=self._decoders[0].significand.shape(), b=self._decoders[1].significand.shape()
        )
        self._guard_bits = guard_bits
        self._last_exponent = sum(d.max_exponent for d in self._exponents)
        largest = max(abs(value) for value in shape_range(self._multiplier.product.shape()))
        self._significand = signed(((dot_length * largest) << guard_bits).bit_length() + 1)
        pair = data.StructLayout({"weight": weights.bits, "activation": activations.bits, "last": 1})
        total = data.StructLayout(
            {"significand": self._significand, "exponent": unsigned(self._last_exponent.bit_length())}
        )
        super().__init__({"pairs": In(stream.Signature(pair)), "sums": Out(stream.Signature(total))})

    @property
    def accumulator_bits(self) -> int:
        """Width of the significand."""
        return self._significand.width

    @property
    def first_exponent(self) -> int:
        """The exponent of products of least codes: that of each format counts from 1. (Zeros of formats
        without a mantissa have a lower one.)"""
        return len(self._exponents)

    @property
    def latency(self) -> int:
        """Cycles from the one in which the last pair is taken to the first in which its sum is valid."""
        return self._multiplier.latency + 5

    def elaborate(self, platform: Any) -> Module:
        m, path = Module(), Module()
        advance = Signal()
        m.submodules.path = EnableInserter(advance)(path)

        exponent, product, negate, marks = self._products(path)
        largest = Signal.like(exponent)
        rises = exponent > largest
        reached = Mux(rises, exponent, largest)
        valid, last = marks[0], marks[1]
        with path.If(valid):
            path.d.sync += largest.eq(Mux(last, 0, reached))
        raised_by = register(path, Mux(rises, exponent - largest, 0)[: len(exponent)])
        below_by = register(path, Mux(rises, 0, largest - exponent)[: len(exponent)])
        product, negate, reached = (register(path, value) for value in (product, negate, reached))
        marks = _flags(path, marks)

        # One bit more below, for rounding.
        aligned = (product << (self._guard_bits + 1)) >> below_by
        term = register(path, aligned[1:].as_signed() if product.shape().signed else aligned[1:])
        carry = register(path, aligned[0] ^ negate)
        raised_by, negate, reached = (register(path, value) for value in (raised_by, negate, reached))
        marks = _flags(path, marks)

        running = Signal(self._significand)
        total = Signal(self._significand)
        extended = Signal(self._significand)
        width = len(extended)
        addend = extended ^ negate.replicate(width)
        path.d.comb += [
            extended.eq(term),
            total.eq(add_with_carry(running >> raised_by, addend, carry, width=width)),
        ]
        valid, last = marks[0], marks[1]
        with path.If(valid):
            path.d.sync += running.eq(Mux(last, 0, total))

        waits = self.sums.valid & ~self.sums.ready
        finished = Signal.like(self.sums.payload, reset_less=True)
        with m.If(last & ~waits):
            m.d.sync += [finished.significand.eq(total), finished.exponent.eq(reached)]
        m.d.sync += self.sums.valid.eq(last | waits)
        m.d.comb += [
            advance.eq(~(last & waits)),
            self.pairs.ready.eq(advance),
            self.sums.payload.eq(finished),
        ]
        return m

    def _products(self, m: Module) -> tuple[Signal, Value, Value, Value]:
        """Registers of the exponent, product of the significands, its sign, and ``valid, last & valid``."""
        pair = self.pairs.payload
        weight, activation = self._decoders
        m.submodules.weight, m.submodules.activation = weight, activation
        m.submodules.multiplier = multiplier = self._multiplier
        m.d.comb += [
            weight.code.eq(pair.weight),
            activation.code.eq(pair.activation),
            multiplier.a.eq(weight.significand),
            multiplier.b.eq(activation.significand),
        ]
        exponents: list[Value] = [decoder.exponent for decoder in self._exponents]
        negate: Value = weight.sign ^ activation.sign
        marks: Value = Cat(self.pairs.valid, self.pairs.valid & pair.last)
        for _ in range(multiplier.latency + 1):
            exponents = [register(m, exponent) for exponent in exponents]
            negate, marks = register(m, negate), _flags(m, marks)
        total = exponents[0] if len(exponents) == 1 else exponents[0] + exponents[1]
        exponent = register(m, total[: self._last_exponent.bit_length()])
        product = register(m, register(m, multiplier.product))
        return exponent, product, register(m, negate), _flags(m, marks)


def _flags(m: Module, marks: Value) -> Signal:
    """The marks one cycle later; reset, unlike what they are of."""
    delayed = Signal(len(marks))
    m.d.sync += delayed.eq(marks)
    return delayed
