"""Reordering of a stream of vectors, so that groups along the tokens come out as words."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, EnableInserter, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import In, Out

from hw._component import Component
from hw.arith._shapes import register
from hw.kv_cache.quantizer import ELEMENT_BITS, check_lanes
from hw.mvu._counter import step

_BLOCK_RAM = {"ram_style": "block"}


class Transposer(Component):
    """Turns matrices that come row by row into the same matrices column by column.

    With the tokens as rows, out come *rows* consecutive tokens of channel 0, then those of channel 1, and so
    on: the groups of keys that are quantized per channel. There are *lanes* memories; lane i of row r is
    in memory ``(r + i) % lanes``, so that as many elements of a row, or of a column, are in memories of
    their own. One matrix is written while the one before it is read.

    Ports: ``inputs``: stream of *lanes* elements of a row, from the first; ``outputs``: stream of *lanes*
    elements of a column. A word a cycle, :attr:`interval` cycles a matrix without a gap between them. The
    first word of a matrix is valid :attr:`latency` cycles after the one in which its last was taken.

    Args:
        rows: of a matrix.
        columns: of a matrix.
        lanes: elements of a word; they must divide both.

    Raises:
        UsageError: an argument is no positive integer, or *lanes* do not divide *rows* and *columns*.
    """

    latency = 3
    """Cycles from a matrix' last word to its first one out."""

    def __init__(self, *, rows: int, columns: int, lanes: int) -> None:
        check_lanes(rows, lanes, of="rows")
        check_lanes(columns, lanes, of="columns")
        self._rows, self._columns, self.lanes = rows // lanes, columns // lanes, lanes
        word = data.ArrayLayout(signed(ELEMENT_BITS), lanes)
        super().__init__({"inputs": In(stream.Signature(word)), "outputs": Out(stream.Signature(word))})

    @property
    def interval(self) -> int:
        """Cycles from matrix to matrix: its words."""
        return self._rows * self._columns * self.lanes

    def elaborate(self, platform: Any) -> Module:
        m, pipeline = Module(), Module()
        advance, taken, is_read = Signal(), Signal(), Signal()
        m.submodules.pipeline = EnableInserter(advance)(pipeline)
        write_half, wrote_last, write_address, turn = self._add_writer(m, taken)
        read_half, read_last, read_addresses, back = self._add_reader(m, is_read)
        full = Signal(2)
        with m.If(wrote_last):
            m.d.sync += full.bit_select(write_half, 1).eq(1)
        with m.If(read_last):
            m.d.sync += full.bit_select(read_half, 1).eq(0)
        m.d.comb += [
            self.inputs.ready.eq(~full.bit_select(write_half, 1)),
            taken.eq(self.inputs.valid & self.inputs.ready),
            advance.eq(self.outputs.ready | ~self.outputs.valid),
            is_read.eq(full.bit_select(read_half, 1) & advance),
        ]
        late = Signal()
        m.d.sync += late.eq(taken)
        turned = register(m, _rotated(Value.cast(self.inputs.payload), turn, self.lanes))
        address = register(m, write_address)
        read = [
            self._add_bank(m, bank, late, address, turned, is_read, read_address)
            for bank, read_address in enumerate(read_addresses)
        ]
        first = register(pipeline, back)
        word = register(pipeline, _rotated(Cat(read), first, self.lanes))
        marks = Signal(2)
        with m.If(advance):
            m.d.sync += marks.eq(Cat(is_read, marks[:-1]))
        m.d.comb += [Value.cast(self.outputs.payload).eq(word), self.outputs.valid.eq(marks[-1])]
        return m

    def _add_writer(self, m: Module, taken: Value) -> tuple[Signal, Value, Value, Value]:
        """Half of the memories, whether this word is the matrix' last, its address, and its row's turn."""
        column = Signal(range(self._columns), name="write_column")
        turn = Signal(range(self.lanes), name="write_turn")
        row = Signal(range(self._rows), name="write_row")
        half = Signal(name="write_half")
        row_ends = step(m, column, self._columns, taken)
        last = step(m, row, self._rows, step(m, turn, self.lanes, row_ends))
        m.d.sync += half.eq(half ^ last)
        return half, last, Cat(column, turn, row, half), turn

    def _add_reader(self, m: Module, is_read: Value) -> tuple[Signal, Value, list[Value], Value]:
        """Half of the memories, whether this word is the matrix' last, an address a memory, and by how
        much the word that they give is to be turned."""
        column = Signal(range(self._columns), name="read_column")
        turn = Signal(range(self.lanes), name="read_turn")
        row = Signal(range(self._rows), name="read_row")
        half = Signal(name="read_half")
        column_ends = step(m, row, self._rows, is_read)
        last = step(m, column, self._columns, step(m, turn, self.lanes, column_ends))
        m.d.sync += half.eq(half ^ last)
        # Which of its rows a memory gives: they move on by one memory from column to column.
        turns = [Signal.like(turn, name=f"turn{bank}", init=bank) for bank in range(self.lanes)]
        with m.If(column_ends):
            m.d.sync += [after.eq(before) for before, after in zip(turns, turns[1:] + turns[:1], strict=True)]
        return half, last, [Cat(column, own, row, half) for own in turns], turns[0]

    def _add_bank(
        self,
        m: Module,
        index: int,
        enable: Value,
        address: Value,
        word: Value,
        read_enable: Value,
        read_address: Value,
    ) -> Value:
        """What the memory gives, a cycle after its address."""
        bank = memory.Memory(shape=unsigned(ELEMENT_BITS), depth=1 << len(address), init=[], attrs=_BLOCK_RAM)
        m.submodules[f"bank{index}"] = bank
        write = bank.write_port()
        # Of a matrix of one word a memory, that word is written as it is read.
        same = [write] if self._rows * self._columns == 1 else []
        read = bank.read_port(transparent_for=same)
        m.d.comb += [
            write.addr.eq(address),
            write.data.eq(word[index * ELEMENT_BITS : (index + 1) * ELEMENT_BITS]),
            write.en.eq(enable),
            read.addr.eq(read_address),
            read.en.eq(read_enable),
        ]
        return read.data


def _rotated(word: Value, turns: Value, lanes: int) -> Value:
    """The elements *turns* places up, around."""
    for stage in range((lanes - 1).bit_length()):
        word = Mux(turns[stage], word.rotate_left(ELEMENT_BITS << stage), word)
    return word
