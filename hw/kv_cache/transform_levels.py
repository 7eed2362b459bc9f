"""Words of packed codes to the levels that stand for them."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, Signal, signed, unsigned
from amaranth.lib import memory, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._component import Component
from hw.kv_cache.transform_load import TokenGate
from hw.kv_cache.transform_packing import MixedUnpacker
from hw.lut_kernel.tables import LUTRAM
from hw.mvu._counter import step
from quantizers.kv_cache.transform import LEVEL_BITS


class LevelLookup(Component):
    """Unpacks codes of a width each, and looks each one up in its own table.

    The tables lie one after the other in block RAM; a running sum of their lengths finds each one.

    Ports:
        ``words``: stream of packed codes, a token from a new word on.
        ``outputs``: stream of levels.
        ``may_start``, ``finished``, ``is_idle``: see :class:`hw.kv_cache.transform_load.TokenGate`.
        ``write`` in: bit 0 writes the width of a coefficient, bit 1 a level; ``address``, ``word``.

    A level a cycle, :attr:`latency` cycles after its code's word was taken; where a token's last code goes on
    in a word of its own, the next token begins a cycle later.

    Args:
        coefficients: of a token.
        levels: of all of them.
        max_bits: of a code.
        word_bits: of a word.
    """

    latency = 3

    def __init__(self, *, coefficients: int, levels: int, max_bits: int, word_bits: int) -> None:
        self._coefficients, self._levels, self._max_bits = coefficients, levels, max_bits
        self._unpacker = MixedUnpacker(max_bits=max_bits, word_bits=word_bits)
        super().__init__(
            {
                "words": In(stream.Signature(word_bits)),
                "outputs": Out(stream.Signature(signed(LEVEL_BITS))),
                "may_start": In(1),
                "finished": In(1),
                "is_idle": Out(1),
                "write": In(2),
                "address": In(Shape.cast(range(max(self.sizes)))),
                "word": In(LEVEL_BITS),
            }
        )

    @property
    def sizes(self) -> list[int]:
        """Words that are written: widths, and levels."""
        return [self._coefficients, self._levels]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unpacker = unpacker = self._unpacker
        m.submodules.gate = gate = TokenGate(shape=unsigned(self._max_bits), items=self._coefficients)
        connect(m, flipped(self.words), unpacker.inputs)
        connect(m, unpacker.outputs, gate.inputs)
        width_shape = unpacker.width.shape()
        widths = self._memory(m, "widths", 0, width_shape, LUTRAM)
        levels = self._memory(m, "levels", 1, signed(LEVEL_BITS), {"ram_style": "block"})
        width, level = widths.read_port(domain="comb"), levels.read_port()
        position = Signal(range(self._coefficients))
        base, address = Signal.like(level.addr), Signal.like(level.addr, reset_less=True)
        taken, advance, is_last = Signal(), Signal(), position == self._coefficients - 1
        has_address, has_level = Signal(), Signal()
        step(m, position, self._coefficients, taken)
        with m.If(taken):
            m.d.sync += base.eq(Mux(is_last, 0, base + (1 << width.data)))
        with m.If(advance):
            m.d.sync += [
                address.eq(base + gate.outputs.payload),
                has_address.eq(taken),
                has_level.eq(has_address),
            ]
        m.d.comb += [
            width.addr.eq(position),
            unpacker.width.eq(width.data),
            unpacker.is_last.eq(is_last),
            gate.may_start.eq(self.may_start),
            gate.finished.eq(self.finished),
            self.is_idle.eq(gate.is_idle),
            advance.eq(~has_level | self.outputs.ready),
            gate.outputs.ready.eq(advance),
            taken.eq(gate.outputs.valid & advance),
            level.addr.eq(address),
            level.en.eq(advance),
            self.outputs.valid.eq(has_level),
            self.outputs.payload.eq(level.data),
        ]
        return m

    def _memory(
        self, m: Module, name: str, number: int, shape: Shape, attrs: dict[str, str]
    ) -> memory.Memory:
        m.submodules[name] = table = memory.Memory(
            shape=shape, depth=self.sizes[number], init=[], attrs=attrs
        )
        write = table.write_port()
        m.d.comb += [
            write.en.eq(self.write[number]),
            write.addr.eq(self.address),
            write.data.eq(self.word),
        ]
        return table
