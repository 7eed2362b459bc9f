"""From keys or values to rotated codes of as many bits as each coefficient has, packed, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Module, Signal, Value, unsigned
from amaranth.lib import data, memory, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import register
from hw.kv_cache.codebook import QuantizerStage, most_lanes
from hw.kv_cache.graded import CuttingStage, GradedDequantizerStage, SplittingStage, width_field
from hw.kv_cache.hadamard import HadamardStage, check_hadamard_size, exchanged_order
from hw.kv_cache.lane_table import LaneTable, table_rows
from hw.kv_cache.lockstep import Lockstep, word_count
from hw.kv_cache.rotated_stages import (
    CENTRING_FIELD,
    DIFFERENCE,
    ELEMENT,
    RESTORING_FIELD,
    CentringStage,
    Chain,
    RestoringStage,
    centring_rows,
    restoring_rows,
)
from hw.kv_cache.transform_load import LoadRouter, TokenGate
from hw.kv_cache.transform_packing import MixedPacker, MixedUnpacker
from hw.lut_kernel.tables import LUTRAM
from hw.mvu._counter import step
from quantizers.errors import UsageError
from quantizers.kv_cache.codebook import ScaleFormat
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.packing import WORD_BITS
from quantizers.kv_cache.rotated import Rotation
from quantizers.kv_cache.rotation import halvings


@dataclass(frozen=True, kw_only=True)
class RotatedGeometry:
    """What the hardware is made for; its tables are loaded.

    Attributes:
        heads: vectors of a token.
        size: elements of a vector: 8, 16, 32, 64 or 128.
        lanes: elements of a word, a power of two; a vector has ``2**(finest - 1)`` words or more.
        finest: bits of a code at most, 2 to 6.
        scale: format of the scales; it reaches every vector.

    Raises:
        UsageError: a number that is out of range.
    """

    heads: int
    size: int
    lanes: int
    finest: int
    scale: ScaleFormat

    def __post_init__(self) -> None:
        check_positive("heads", self.heads)
        check_hadamard_size(self.size)
        check_range("finest", self.finest, 2, 6)
        most = most_lanes(self.size, self.finest)
        if word_count(self.size, self.lanes) < 1 << (self.finest - 1):
            msg = (
                f"codes of {self.finest} bits take {1 << (self.finest - 1)} products a vector and so as many "
                f"words; expected at most {most} lanes, not {self.lanes}"
            )
            raise UsageError(msg, given=self.lanes, expected=[f"at most {most} lanes", "fewer bits"])

    @classmethod
    def covering(cls, vectors: Sequence[Rotation], *, lanes: int) -> RotatedGeometry:
        """That of the vectors of a token, with as many lanes at most as have codes for one word of memory.

        With more lanes words were wider, and a token that fills whole words of memory would not fill them.

        Raises:
            UsageError: vectors of several kinds, or of a size that the hardware cannot rotate.
        """
        first = vectors[0]
        kinds = {(v.elements, v.finest, v.scale) for v in vectors}
        if len(kinds) != 1 or first.elements != len(first.bits):
            msg = "all vectors must have one size, a power of two, one finest width and one format of scales"
            raise UsageError(msg, given=f"{len(kinds)} kinds of {first.elements} elements")
        codes = max(1, (WORD_BITS - first.scale.bits) // first.finest)
        lanes = min(lanes, 1 << codes.bit_length() - 1)
        return cls(
            heads=len(vectors), size=first.elements, lanes=lanes, finest=first.finest, scale=first.scale
        )

    @property
    def words(self) -> int:
        """Of a token's elements."""
        return self.heads * self.size // self.lanes

    @property
    def item_bits(self) -> int:
        """The codes of a word and a scale, at most."""
        return self.scale.bits + self.lanes * self.finest

    @property
    def word_bits(self) -> int:
        """Of a word of packed codes: the fewest times those of a memory that hold the codes of a word."""
        return WORD_BITS * -(-self.item_bits // WORD_BITS)

    def check(self, vectors: Sequence[Rotation]) -> None:
        """Raises :class:`UsageError` unless the tables fit."""
        wanted = self._kind(self.heads, self.size, self.finest, self.scale)
        kinds = {self._kind(len(vectors), v.elements, v.finest, v.scale) for v in vectors}
        if kinds != {wanted}:
            given = "; and ".join(sorted(kinds))
            msg = f"the hardware is made for {wanted}; the tables are for {given}"
            raise UsageError(msg, given=given, expected=[wanted])

    @staticmethod
    def _kind(heads: int, size: int, finest: int, scale: ScaleFormat) -> str:
        return (
            f"{heads} vectors of {size} elements, codes of at most {finest} bits and scales of "
            f"{scale.bits} bits in units of 2**{scale.unit}"
        )

    def width_rows(self, vectors: Sequence[Rotation]) -> list[int]:
        """Widths of all codes in the order in which they come."""
        widths = {"width": self._widths(vectors)}
        return table_rows(widths, {"width": width_field(self.finest)}, self.lanes)

    def item_widths(self, vectors: Sequence[Rotation]) -> list[int]:
        """Bits of the codes of each word, with those of the scale in a vector's first."""
        totals = self._widths(vectors).reshape(self.heads, -1, self.lanes).sum(axis=2)
        totals[:, 0] += self.scale.bits
        return [int(total) for total in totals.reshape(-1)]

    def _widths(self, vectors: Sequence[Rotation]) -> npt.NDArray[np.int64]:
        """Shape (heads, size)."""
        widths = np.array([vector.bits for vector in vectors], np.int64)
        return widths[:, exchanged_order(self.size, self.lanes)]


def _means_and_flips(vectors: Sequence[Rotation]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Shape (heads, size) each."""
    means = np.array([vector.offsets for vector in vectors])
    return means, np.array([vector.signs for vector in vectors]) < 0


class KvAllocatedWriter(Component):
    """Keys or values of a token's heads to the packed codes of :class:`quantizers.kv_cache.rotated.Rotated`.

    Bit for bit. Means, signs and widths are loaded.

    Ports:
        ``load``: stream of :meth:`load_words`. It is taken between tokens, and no token starts before its
            end.
        ``inputs``: stream of words of *lanes* 16-bit elements; the vectors of a token in turn.
        ``words``: stream of words of codes. A token begins with a new one, and what is left of its last one
            is zero. Of each vector there come the scale, and its codes in the order of
            :func:`hw.kv_cache.hadamard.exchanged_order`, the first ones in the lowest bits.

    A word of elements a cycle, and :attr:`latency`; where a token's last codes go on in a word of their own,
    a cycle more.

    Args:
        geometry: what there must be room for.
    """

    def __init__(self, *, geometry: RotatedGeometry) -> None:
        self.geometry = geometry
        lanes, size = geometry.lanes, geometry.size
        words = word_count(size, lanes)
        self._centring = LaneTable(field=data.StructLayout(CENTRING_FIELD), lanes=lanes, depth=geometry.words)
        self._widths = LaneTable(field=width_field(geometry.finest), lanes=lanes, depth=geometry.words)
        self._pipeline = Lockstep(
            Chain(
                [
                    CentringStage(size=size, table=self._centring),
                    HadamardStage(
                        size=size, lanes=lanes, input_bits=DIFFERENCE.width, halvings=halvings(size)
                    ),
                    QuantizerStage(size=size, lanes=lanes, bits=geometry.finest, scale=geometry.scale),
                    CuttingStage(
                        finest=geometry.finest,
                        scale_bits=geometry.scale.bits,
                        words=words,
                        table=self._widths,
                    ),
                ]
            )
        )
        super().__init__(
            {
                "load": In(stream.Signature(max(self._centring.width, self._widths.width))),
                "inputs": In(stream.Signature(data.ArrayLayout(ELEMENT, lanes))),
                "words": Out(stream.Signature(geometry.word_bits)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the one in which a word of elements was taken to the one in which its codes are
        packed; a word of codes that they fill is offered in the next one."""
        return self._pipeline.latency

    @property
    def interval(self) -> int:
        """Cycles from token to token."""
        return self.geometry.words

    def load_words(self, vectors: Sequence[Rotation]) -> list[int]:
        """The words of the load stream for the vectors of a token.

        Raises:
            UsageError: they do not fit the geometry.
        """
        self.geometry.check(vectors)
        rows = centring_rows(*_means_and_flips(vectors), self.geometry.lanes)
        return [*rows, *self.geometry.width_rows(vectors)]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        geometry = self.geometry
        m.submodules.pipeline = pipeline = self._pipeline
        m.submodules.packer = packer = MixedPacker(max_bits=geometry.item_bits, word_bits=geometry.word_bits)
        m.submodules.gate = gate = TokenGate(shape=self.inputs.payload.shape(), items=geometry.words)
        m.submodules.router = router = _router(m, [self._centring, self._widths], len(self.load.payload))
        connect(m, flipped(self.load), router.load)
        connect(m, flipped(self.inputs), gate.inputs)
        connect(m, gate.outputs, pipeline.inputs)
        connect(m, packer.outputs, flipped(self.words))
        item, taken, is_last = pipeline.outputs, Signal(), Signal()
        position = Signal(range(geometry.words))
        m.d.sync += gate.finished.eq(step(m, position, geometry.words, taken))
        m.d.comb += [
            packer.inputs.valid.eq(item.valid),
            item.ready.eq(packer.inputs.ready),
            packer.inputs.payload.code.eq(item.payload.code),
            packer.inputs.payload.width.eq(item.payload.width),
            packer.inputs.payload.is_last.eq(is_last),
            is_last.eq(position == geometry.words - 1),
            taken.eq(item.valid & item.ready),
            gate.may_start.eq(router.may_start),
            router.is_idle.eq(gate.is_idle),
        ]
        return m


class KvAllocatedReader(Component):
    """The inverse of :class:`KvAllocatedWriter`: ``Rotated.decode``, bit for bit.

    Ports:
        ``load``: stream of :meth:`load_words`, as of the writer.
        ``words``: stream as the writer gives it.
        ``outputs``: stream of words of *lanes* 16-bit elements; the vectors of a token in turn.

    A word of elements a cycle, see :attr:`latency`; where a token's last codes go on in a word of their own,
    the next token begins a cycle later.

    Args:
        geometry: what there must be room for.
    """

    def __init__(self, *, geometry: RotatedGeometry) -> None:
        self.geometry = geometry
        lanes, size = geometry.lanes, geometry.size
        words = word_count(size, lanes)
        self._widths = LaneTable(field=width_field(geometry.finest), lanes=lanes, depth=geometry.words)
        self._restoring = LaneTable(
            field=data.StructLayout(RESTORING_FIELD), lanes=lanes, depth=geometry.words
        )
        levels = GradedDequantizerStage(size=size, lanes=lanes, finest=geometry.finest, scale=geometry.scale)
        transform = HadamardStage(size=size, lanes=lanes, input_bits=len(Value.cast(levels.outputs[0])))
        self._pipeline = Lockstep(
            Chain(
                [
                    SplittingStage(
                        finest=geometry.finest,
                        scale_bits=geometry.scale.bits,
                        words=words,
                        table=self._widths,
                    ),
                    levels,
                    transform,
                    RestoringStage(
                        size=size,
                        table=self._restoring,
                        input_bits=len(Value.cast(transform.outputs[0])),
                    ),
                ]
            )
        )
        self._unpacker = MixedUnpacker(max_bits=geometry.item_bits, word_bits=geometry.word_bits)
        width = max(self._widths.width, self._restoring.width, len(self._unpacker.width))
        super().__init__(
            {
                "load": In(stream.Signature(width)),
                "words": In(stream.Signature(geometry.word_bits)),
                "outputs": Out(stream.Signature(data.ArrayLayout(ELEMENT, lanes))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the one in which the last of a word's codes were taken, where none before them wait, to
        the one in which its elements are offered."""
        return self._pipeline.latency + 1

    @property
    def interval(self) -> int:
        """Cycles from token to token."""
        return self.geometry.words

    def load_words(self, vectors: Sequence[Rotation]) -> list[int]:
        """The words of the load stream for the vectors of a token.

        Raises:
            UsageError: they do not fit the geometry.
        """
        self.geometry.check(vectors)
        rows = restoring_rows(*_means_and_flips(vectors), self.geometry.lanes)
        return [*self.geometry.item_widths(vectors), *self.geometry.width_rows(vectors), *rows]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        geometry, unpacker = self.geometry, self._unpacker
        m.submodules.pipeline, m.submodules.unpacker = self._pipeline, unpacker
        pipeline = self._pipeline
        m.submodules.gate = gate = TokenGate(shape=unsigned(geometry.item_bits), items=geometry.words)
        m.submodules.totals = totals = memory.Memory(
            shape=unpacker.width.shape(), depth=geometry.words, init=[], attrs=LUTRAM
        )
        m.submodules.router = router = _router(
            m, [totals, self._widths, self._restoring], len(self.load.payload)
        )
        connect(m, flipped(self.load), router.load)
        connect(m, flipped(self.words), unpacker.inputs)
        connect(m, unpacker.outputs, gate.inputs)
        connect(m, gate.outputs, pipeline.inputs)
        connect(m, pipeline.outputs, flipped(self.outputs))
        # The width of the next item is read when the one before it is taken: the unpacker needs it at once.
        total, width = totals.read_port(domain="comb"), Signal.like(unpacker.width)
        following, taken = Signal(range(geometry.words), init=1), gate.inputs.valid & gate.inputs.ready
        step(m, following, geometry.words, taken)
        with m.If(taken):
            m.d.sync += width.eq(total.data)
        with m.Elif(router.write[0] & (router.address == 0)):
            m.d.sync += width.eq(router.word)
        given = self.outputs.valid & self.outputs.ready
        m.d.sync += gate.finished.eq(
            step(m, Signal(range(geometry.words), name="given"), geometry.words, given)
        )
        m.d.comb += [
            total.addr.eq(following),
            unpacker.width.eq(width),
            unpacker.is_last.eq(following == 0),
            gate.may_start.eq(router.may_start),
            router.is_idle.eq(gate.is_idle),
        ]
        return m


def _router(m: Module, tables: Sequence[LaneTable | memory.Memory], width: int) -> LoadRouter:
    """Writes the tables one after the other, a cycle late: whether a word is taken is known late in its own.
    It is in its place before a token's first word, which is in a register first, is looked up for."""
    router = LoadRouter(sizes=[table.depth for table in tables], width=width)
    late_write = Signal(len(tables))
    m.d.sync += late_write.eq(router.write)
    late_address, late_word = register(m, router.address), register(m, router.word)
    for number, table in enumerate(tables):
        if isinstance(table, LaneTable):
            enable, address, word = table.write, table.address, table.word
        else:
            port = table.write_port()
            enable, address, word = port.en, port.addr, port.data
        m.d.comb += [enable.eq(late_write[number]), address.eq(late_address), word.eq(late_word)]
    return router
