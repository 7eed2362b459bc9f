"""Several products in one DSP slice of the 7 series (DSP48E1).

Y. Fu et al., "Deep Learning with INT8 Optimization on Xilinx Devices", Xilinx WP486, 2017, put two
products with a common factor into one slice: ``(w1 * 2**s + w0) * a = w1*a * 2**s + w0*a``. With two
values on both sides it is four: Xilinx WP521, "Convolutional Neural Network with INT4 Optimization", 2020.
A negative lane takes one from the lane above it; here an offset of half its range, added by the slice
itself, keeps every lane but the highest from it, so nothing has to be corrected after the slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Module, Shape, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import check_shape, product_shape, register, shape_range
from quantizers.errors import UsageError

ROWS = 2
"""Weights that one slice multiplies at once."""

A_BITS, B_BITS, P_BITS = 25, 18, 48
"""Signed factors and result of the slice (UG479, "7 Series DSP48E1 Slice", figure 2-1)."""


@dataclass(frozen=True)
class Packing:
    """Where the products of one slice lie.

    Lane ``row * columns + column`` is weight *row* times activation *column*. Its lowest bit is at
    ``lane * spacing`` of the result of the slice.

    Attributes:
        weight: shape of the weights.
        activation: shape of the activations.
        columns: activations that are multiplied at once: 1 or 2.
        spacing: bits of every lane but the highest, which has the rest.
    """

    weight: Shape
    activation: Shape
    columns: int
    spacing: int

    @property
    def rows(self) -> int:
        """Weights that are multiplied at once."""
        return ROWS

    @property
    def lanes(self) -> int:
        """Products of a slice."""
        return ROWS * self.columns

    @property
    def places(self) -> list[int]:
        """Lowest bit of every lane."""
        return [lane * self.spacing for lane in range(self.lanes)]

    @property
    def weight_place(self) -> int:
        """The second weight is multiplied by two to this power."""
        return self.columns * self.spacing

    @property
    def offset(self) -> int:
        """Half the range of every lane but the highest."""
        return sum(1 << (self.spacing * (lane + 1) - 1) for lane in range(self.lanes - 1))

    @property
    def kept_bits(self) -> int:
        """Bits of a running sum that may stay in a lane when the next product is added.

        The largest r with ``2**r + largest product <= 2**(spacing - 1)``. Below zero there is at least as
        much room: the running sum has no negative part.
        """
        _, high = self._product_bounds
        return ((1 << (self.spacing - 1)) - high).bit_length() - 1

    @property
    def is_exact(self) -> bool:
        """Whether the factors fit the slice and a product, after its running sum, fits its lane."""
        low, high = self._product_bounds
        half = 1 << (self.spacing - 1)
        return (
            -half <= low and high < half and self.weights_width <= A_BITS and self.activations_width <= B_BITS
        )

    @property
    def weights_width(self) -> int:
        """Signed width of the two weights as one number."""
        return _packed_width(self.weight, self.weight_place, ROWS)

    @property
    def activations_width(self) -> int:
        """Signed width of the activations as one number."""
        return _packed_width(self.activation, self.spacing, self.columns)

    @property
    def _product_bounds(self) -> tuple[int, int]:
        products = [w * a for w in shape_range(self.weight) for a in shape_range(self.activation)]
        return min(products), max(products)


def _packed_width(shape: Shape, place: int, count: int) -> int:
    factor = sum(1 << place * index for index in range(count))
    low, high = (factor * bound for bound in shape_range(shape))
    return max((~low).bit_length() if low < 0 else 0, high.bit_length()) + 1


def check_columns(name: str, value: object) -> None:
    """Raises :class:`UsageError` unless *value* is 1 or 2."""
    if isinstance(value, bool) or value not in (1, 2):
        msg = f"{name} must be 1 or 2, not {value!r}"
        raise UsageError(msg, given=repr(value), expected=["1", "2"])


def widest_packing(
    weight: Shape, activation: Shape, *, columns: int, result_bits: int | None = None
) -> Packing | None:
    """The packing with the widest lanes; None if the products do not fit a slice.

    Args:
        weight: shape of the weights.
        activation: shape of the activations.
        columns: activations that are multiplied at once: 1 or 2.
        result_bits: width of the highest lane; by default that of a product.

    Raises:
        UsageError: *columns* is neither 1 nor 2, or a shape is of no bit.
    """
    check_shape("weight", weight)
    check_shape("activation", activation)
    check_columns("columns", columns)
    if result_bits is None:
        result_bits = product_shape(weight, activation).width
    widest = (P_BITS - result_bits) // (ROWS * columns - 1)
    packings = (Packing(weight, activation, columns, spacing) for spacing in range(widest, 0, -1))
    return next((packing for packing in packings if packing.is_exact), None)


class PackedProduct(Component):
    """All products of two weights with one or two activations as one number.

    Ports: ``weights`` and ``activations``, arrays; ``product``: the sum of the products, each times
    ``2**(lane * spacing)``. One set a cycle, :attr:`latency` cycles; registers are in the slice, which
    adds the two weights up too.

    Args:
        packing: see :func:`widest_packing`.
    """

    def __init__(self, *, packing: Packing) -> None:
        self._packing = packing
        super().__init__(
            {
                "weights": In(data.ArrayLayout(packing.weight, ROWS)),
                "activations": In(data.ArrayLayout(packing.activation, packing.columns)),
                # Not wider than the factors: the mapper leaves what is more, and the adder, out of the slice.
                "product": Out(signed(packing.weights_width + packing.activations_width)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from operands to product."""
        return 3

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        packing = self._packing
        low, high = (register(m, weight) for weight in self.weights)
        weights = Signal(signed(packing.weights_width), reset_less=True)
        columns = [register(m, activation) for activation in self.activations]
        activations = Signal(signed(packing.activations_width), reset_less=True)
        product = Signal(self.product.shape(), reset_less=True, attrs={"use_dsp": "yes"})
        m.d.sync += [
            weights.eq((high << packing.weight_place) + low),
            activations.eq(sum(value << packing.spacing * place for place, value in enumerate(columns))),
            product.eq(weights * activations),
        ]
        m.d.comb += self.product.eq(product)
        return m


class PackedMultiplier(Component):
    """Products of two weights with one or two activations, all from one DSP slice.

    Ports: ``weights`` and ``activations``, arrays of 2 and of *columns*; ``products``, array of
    ``2 * columns``: lane ``row * columns + column`` is weight *row* times activation *column*, exact
    for all operands. One set a cycle, :attr:`latency` cycles. Synthesis must be allowed DSP slices;
    the result of the slice asks for one by the attribute ``use_dsp``, which
    :func:`costmodel.synthesize` and Vivado (UG901) follow.

    Args:
        weight: shape of each weight.
        activation: shape of each activation.
        columns: activations that are multiplied at once: 1 or 2.

    Raises:
        UsageError: the products do not fit a slice.
    """

    def __init__(self, *, weight: Shape, activation: Shape, columns: int) -> None:
        packing = widest_packing(weight, activation, columns=columns)
        if packing is None:
            msg = f"{ROWS * columns} products of {weight!r} and {activation!r} do not fit one DSP48E1"
            expected = ["signed(8) and signed(8), 1 column", "signed(4) and signed(4), 2 columns"]
            raise UsageError(msg, given=f"{weight!r}, {activation!r}", expected=expected)
        self._packing = packing
        self._product = PackedProduct(packing=self._packing)
        super().__init__(
            {
                "weights": In(data.ArrayLayout(weight, ROWS)),
                "activations": In(data.ArrayLayout(activation, columns)),
                "products": Out(data.ArrayLayout(product_shape(weight, activation), self._packing.lanes)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from operands to products."""
        return self._product.latency + 1

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.product = product = self._product
        m.d.comb += [product.weights.eq(self.weights), product.activations.eq(self.activations)]
        result = Signal(signed(P_BITS), reset_less=True)
        m.d.sync += result.eq(product.product + Const(self._packing.offset, signed(P_BITS)))
        *lower, highest = self.products
        *places, last_place = self._packing.places
        for product_out, place in zip(lower, places, strict=True):
            m.d.comb += product_out.eq(without_offset(result[place : place + self._packing.spacing]))
        m.d.comb += highest.eq(result[last_place:])
        return m


def without_offset(field: Value) -> Value:
    """The signed number in a lane, or in the upper bits of one, whose offset is half its range."""
    return Cat(field[:-1], ~field[-1]).as_signed()
