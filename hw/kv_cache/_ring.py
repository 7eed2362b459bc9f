"""A ring of words that wait until something is known of all of them."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value, unsigned
from amaranth.lib import memory

from hw.lut_kernel.tables import LUTRAM
from hw.mvu._counter import step


def add_ring(m: Module, name: str, depth: int, *, word: Value, enters: Value, leaves: Value) -> Value:
    """A queue in LUT RAM; returns its oldest word, which was written a cycle ago or earlier.

    Args:
        depth: words that it holds; nothing watches that there are no more.
        word: that *enters* writes.
        leaves: that the oldest word is read for the last time.
    """
    shape = unsigned(len(word))
    ring = memory.Memory(shape=shape, depth=depth, init=[], attrs=LUTRAM)
    m.submodules[name] = ring
    write, read = ring.write_port(), ring.read_port(domain="comb")
    first, end = (Signal(range(depth), name=f"{name}_{end}") for end in ("first", "end"))
    step(m, end, depth, enters)
    step(m, first, depth, leaves)
    m.d.comb += [write.addr.eq(end), write.data.eq(word), write.en.eq(enters), read.addr.eq(first)]
    return read.data


def counted(m: Module, name: str, most: int, *, enters: Value, leaves: Value) -> tuple[Signal, Signal]:
    """Whether some have entered and not left, and whether there is room for one more, of *most*.

    Both come straight from registers, since everything in front and behind waits for them.
    """
    count = Signal(range(most + 1), name=name)
    some, room = Signal(name=f"{name}_some"), Signal(name=f"{name}_room", init=1)
    m.d.sync += [
        count.eq(count + enters - leaves),
        some.eq(enters | (count > 1) | ((count == 1) & ~leaves)),
        room.eq(leaves | (count < most - 1) | ((count == most - 1) & ~enters)),
    ]
    return some, room
