"""Shapes and registers: what the arithmetic components share."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Shape, Signal, Value

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


def add_with_carry(running: Value, addend: Value, carry: Value, *, width: int) -> Value:
    """``running + addend + carry`` modulo ``2**width``, on one carry chain of *width* positions.

    Both are extended to the same width as unsigned numbers; of signed ones of other widths the chain is
    longer. Yosys decides which of them becomes the chain's data input: where one of the two is logic that
    is to share the LUTs of the propagate inputs, see :func:`accumulate`.
    """
    return (_extended(running, width) + _extended(addend, width) + carry)[:width]


def accumulate(register: Value, addend: Value, carry: Value, *, width: int) -> Value:
    """``register + addend + carry`` modulo ``2**width``, where *addend* is logic.

    Written as a difference, whose operands keep their places: of a sum Yosys may take either for the data
    input of the carry chain, and only the register comes there without LUTs of its own. The position
    below the lowest one makes the carry.
    """
    running = Cat(carry, _extended(register, width))
    return (running - Cat(C(1, 1), ~_extended(addend, width)))[1 : width + 1]


def _extended(value: Value, width: int) -> Value:
    if len(value) >= width:
        return value[:width]
    fill = value[-1] if value.shape().signed and len(value) else C(0, 1)
    return Cat(value, fill.replicate(width - len(value)))
