"""Shapes and registers: what the arithmetic components share."""

from __future__ import annotations

from amaranth.hdl import Module, Shape, Signal, Value

from quantizers.errors import UsageError


def check_shape(name: str, shape: object) -> None:
    """Raises :class:`UsageError` unless *shape* is an Amaranth shape of at least one bit."""
    if not isinstance(shape, Shape) or shape.width < 1:
        msg = f"{name} must be a shape of at least one bit, not {shape!r}"
        raise UsageError(msg, given=repr(shape), expected=["signed(8)", "unsigned(8)"])


def shape_range(shape: Shape) -> tuple[int, int]:
    """Smallest and largest value of a shape."""
    if shape.signed:
        return -(1 << (shape.width - 1)), (1 << (shape.width - 1)) - 1
    return 0, (1 << shape.width) - 1


def product_shape(a: Shape, b: Shape) -> Shape:
    """The narrowest shape that holds every product of two values of the given shapes."""
    products = [x * y for x in shape_range(a) for y in shape_range(b)]
    return Shape.cast(range(min(products), max(products) + 1))


def register(m: Module, value: Value) -> Signal:
    """The value one cycle later. Not reset: whether it means anything is said by a valid bit."""
    delayed = Signal(value.shape(), reset_less=True)
    m.d.sync += delayed.eq(value)
    return delayed
