"""Tables that many readers share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from amaranth.hdl import Const, Module, Shape, Signal, Value
from amaranth.lib import data, memory
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.lut_kernel.generator import selected

LUTRAM = {"ram_style": "distributed"}

STORAGES = ("lutram", "registers")
"""What tables are kept in."""

_LUTRAM_READERS = 3
"""A RAM32M (UG474) keeps two bits, and reads them at three addresses beside that of the write port."""


class SharedTable(Component):
    """A table with one write port; each reader has an address of its own, and its entry in the same cycle.

    In LUT RAM three readers share a copy: in four LUTs two bits for each of them. Registers are there once,
    and each reader has a multiplexer.

    Ports: ``write``, ``write_address``, ``entry`` in; ``addresses`` in; ``entries`` out.

    Args:
        entry: shape of an entry.
        depth: addresses.
        written: those that are ever written; the others hold zero.
        readers: of the table.
        banks: parts of the depth, of which all readers read the same at a time.
        storage: one of :data:`STORAGES`.
    """

    def __init__(
        self, *, entry: Shape, depth: int, written: Collection[int], readers: int, banks: int, storage: str
    ) -> None:
        self._depth, self._written, self._storage = depth, frozenset(written), storage
        self._banks = banks
        address = Shape.cast(range(depth))
        super().__init__(
            {
                "write": In(1),
                "write_address": In(address),
                "entry": In(entry),
                "addresses": In(data.ArrayLayout(address, readers)),
                "entries": Out(data.ArrayLayout(entry, readers)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        if self._storage == "registers":
            self._add_registers(m)
        else:
            for first in range(0, len(self.entries), _LUTRAM_READERS):
                self._add_copy(m, first, min(first + _LUTRAM_READERS, len(self.entries)))
        return m

    def _add_copy(self, m: Module, first: int, end: int) -> None:
        """In LUT RAM, for some of the readers."""
        copy = memory.Memory(shape=self.entry.shape(), depth=self._depth, init=[], attrs=LUTRAM)
        m.submodules[f"copy{first}"] = copy
        write = copy.write_port()
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.write_address),
            write.data.eq(self.entry),
        ]
        for reader in range(first, end):
            port = copy.read_port(domain="comb")
            m.d.comb += [port.addr.eq(self.addresses[reader]), self.entries[reader].eq(port.data)]

    def _add_registers(self, m: Module) -> None:
        kept: list[Value] = []
        for address in range(self._depth):
            if address not in self._written:
                kept.append(Const(0, self.entry.shape()))
                continue
            register = Signal.like(self.entry, name=f"entry{address}", reset_less=True)
            with m.If(self.write & (self.write_address == address)):
                m.d.sync += register.eq(self.entry)
            kept.append(register)
        size = self._depth // self._banks
        bank_bit = (size - 1).bit_length()
        read: list[Value] = []
        for address in range(size):
            entry = Signal.like(self.entry, name=f"read{address}")
            m.d.comb += entry.eq(selected(kept[address::size], self.addresses[0][bank_bit:]))
            read.append(entry)
        for reader, address in enumerate(self.addresses):
            m.d.comb += self.entries[reader].eq(selected(read, address[:bank_bit]))
