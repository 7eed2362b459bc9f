"""Tables in LUT RAM that are written anew for each vector, while older ones are still read."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import memory

from hw.arith._shapes import register
from hw.kv_cache.scale import ScaledConstants
from hw.lut_kernel.tables import LUTRAM


class ThresholdTables:
    """The thresholds of a search in halves.

    The first comparison of every coefficient is with the middle one of all thresholds, the next one with that
    of the half that is left, and so on. All lanes share the tables of the first two comparisons; from the
    third one on each lane has its own, read at what it has found. What is shared goes to many lanes, and is
    read a cycle ahead for that.

    Args:
        m: of the tables.
        products: gives the thresholds of each vector in ascending order.
        steps: comparisons; there are ``2**steps - 1`` thresholds.
        buffers: vectors whose thresholds are kept.
    """

    def __init__(self, m: Module, products: ScaledConstants, *, steps: int, buffers: int) -> None:
        self._m, self._products, self._steps = m, products, steps
        self._written = written_vectors(m, products, buffers)

    def limits(self, depth: int, number: Value, found: list[Value]) -> list[Value]:
        """The threshold of each lane in a step.

        Args:
            depth: of the step, from 0.
            number: of the vector of the next cycle, modulo the buffers.
            found: of each lane the results so far, the newest one in the lowest bit.
        """
        low = self._steps - 1 - depth
        place = (self._products.index + 1)[: self._steps]
        option = place[low + 1 :]
        enable = self._products.write & place[low] & ~place[:low].any()
        if depth > 1:
            current = register(self._m, number)
            return [
                self._table(f"limits{depth}_{lane}", Cat(option, self._written), enable, Cat(bits, current))
                for lane, bits in enumerate(found)
            ]
        common = [
            register(
                self._m,
                self._table(f"limits{depth}_{index}", self._written, enable & (option == index), number),
            )
            for index in range(1 << depth)
        ]
        return common * len(found) if depth == 0 else [Mux(bits[0], common[1], common[0]) for bits in found]

    def _table(self, name: str, place: Value, enable: Value, address: Value) -> Value:
        return written_table(self._m, name, place, enable, self._products.value, address)


def written_vectors(m: Module, products: ScaledConstants, buffers: int) -> Signal:
    """How many vectors' constants have been written, modulo *buffers*."""
    written = Signal(range(buffers), name="written")
    with m.If(products.write & (products.index == products.count - 1)):
        m.d.sync += written.eq(written + 1)
    return written


def written_table(m: Module, name: str, place: Value, enable: Value, value: Value, address: Value) -> Value:
    """A table with one writer; what is at the address in this cycle."""
    m.submodules[name] = table = memory.Memory(
        shape=unsigned(len(value)), depth=1 << len(address), init=[], attrs=LUTRAM
    )
    write, read = table.write_port(), table.read_port(domain="comb")
    m.d.comb += [
        write.addr.eq(place),
        write.data.eq(value),
        write.en.eq(enable),
        read.addr.eq(address),
    ]
    return read.data


def buffer_count(cycles: int, words: int) -> int:
    """Buffers, a power of two, so that one is in use for so many cycles before it is written again.

    A vector of *words* words comes every *words* cycles at the earliest.
    """
    return 1 << (-(-cycles // words) - 1).bit_length()


def magnitude_of(coefficient: Value) -> Value:
    """A negative one's bits complemented."""
    return coefficient[:-1] ^ coefficient[-1].replicate(len(coefficient) - 1)
