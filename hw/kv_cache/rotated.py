"""From keys or values to rotated codes, and back: the whole data paths of the rotated cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, memory

from hw.arith._shapes import add_with_carry, register
from hw.kv_cache.codebook import DequantizerStage, QuantizerStage
from hw.kv_cache.hadamard import HadamardStage, check_hadamard_size
from hw.kv_cache.lockstep import Lockstep, Stage, flag_line, word_count
from hw.mvu._counter import step
from quantizers.errors import UsageError
from quantizers.kv_cache.codebook import ScaleFormat
from quantizers.kv_cache.fixed_point import BITS, HIGHEST, LOWEST
from quantizers.kv_cache.integers import check_integers
from quantizers.kv_cache.rotation import halvings

ELEMENT = signed(BITS)
"""Of a key or a value."""

DIFFERENCE_BITS = BITS + 1
"""Of an element less a mean."""

IN_LOGIC = {"rom_style": "logic"}
"""A table that synthesis makes of LUTs, not of a block RAM, however many heads it has."""

IntegerArray = npt.NDArray[Any]


class KvRotatedWriter(Lockstep):
    """Keys or values of some heads to codes and scales.

    ``rotate``, ``magnitude_sums``, ``ScaleFormat.encode`` and ``Codebook.quantize`` of
    :mod:`quantizers.kv_cache`, one after the other, bit for bit.

    Ports:
        ``inputs``: stream of words of *lanes* 16-bit elements; a vector for each head, the heads of a
            token in turn.
        ``outputs``: stream of words of *lanes* ``codes`` and the ``scale`` of their vector. The codes of a
            vector come in the order of :func:`hw.kv_cache.hadamard.exchanged_order`.

    One word a cycle, :attr:`latency` cycles.

    Args:
        means: of the channels of each head, 16-bit integers, shape (heads, size): a table in the design.
        signs: 1 and -1, of the same shape, or (size,) for all heads.
        lanes: elements of a word, a power of two.
        bits: of a code.
        scale: format of the scales; by default 8 bits that reach every vector.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        means: npt.ArrayLike,
        signs: npt.ArrayLike,
        lanes: int,
        bits: int,
        scale: ScaleFormat | None = None,
    ) -> None:
        offsets, flips = _checked_tables(means, signs)
        size = offsets.shape[1]
        stages = [
            CentringStage(means=offsets, flips=flips, lanes=lanes),
            HadamardStage(size=size, lanes=lanes, input_bits=DIFFERENCE_BITS, halvings=halvings(size)),
            QuantizerStage(size=size, lanes=lanes, bits=bits, scale=scale),
        ]
        super().__init__(Chain(stages))


class KvRotatedReader(Lockstep):
    """Codes and scales to keys or values: ``Codebook.dequantize`` and ``unrotate``, bit for bit.

    Ports: ``inputs``: what :class:`KvRotatedWriter` gives; ``outputs``: stream of words of *lanes* 16-bit
    elements. One word a cycle, :attr:`latency` cycles.

    Args:
        means, signs, lanes, bits, scale: as of the writer.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        means: npt.ArrayLike,
        signs: npt.ArrayLike,
        lanes: int,
        bits: int,
        scale: ScaleFormat | None = None,
    ) -> None:
        offsets, flips = _checked_tables(means, signs)
        size = offsets.shape[1]
        levels = DequantizerStage(size=size, lanes=lanes, bits=bits, scale=scale)
        transform = HadamardStage(size=size, lanes=lanes, input_bits=len(Value.cast(levels.outputs[0])))
        output_bits = len(Value.cast(transform.outputs[0]))
        restoring = RestoringStage(means=offsets, flips=flips, lanes=lanes, input_bits=output_bits)
        super().__init__(Chain([levels, transform, restoring]))


class Chain(Stage):
    """Stages one after the other.

    Args:
        stages: of vectors of as many words, each of which takes what the one before it gives.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)
        super().__init__(
            inputs=stages[0].inputs.shape(), outputs=stages[-1].outputs.shape(), words=stages[0].words
        )

    @property
    def latency(self) -> int:
        """The sum of theirs."""
        return sum(stage.latency for stage in self._stages)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        word: Value = Value.cast(self.inputs)
        valid: Value = self.valid
        for index, stage in enumerate(self._stages):
            m.submodules[f"stage{index}"] = stage
            m.d.comb += [Value.cast(stage.inputs).eq(word), stage.valid.eq(valid)]
            word = Value.cast(stage.outputs)
            valid = flag_line(m, valid, stage.latency)[-1]
        m.d.comb += Value.cast(self.outputs).eq(word)
        return m


class CentringStage(Stage):
    """``sign * (element - mean)``, in two cycles.

    Structure: the opposite of a difference is the sum of the mean and the element's complement, and one; with
    the one in the table it takes the same adder.

    Args:
        means: shape (heads, size).
        flips: where the sign is negative, of the same shape.
        lanes: elements of a word.
    """

    latency = 2

    def __init__(self, *, means: IntegerArray, flips: IntegerArray, lanes: int) -> None:
        self._lanes = lanes
        self._offsets, self._flips = np.where(flips, means + 1, -means), flips
        super().__init__(
            inputs=data.ArrayLayout(ELEMENT, lanes),
            outputs=data.ArrayLayout(signed(DIFFERENCE_BITS), lanes),
            words=word_count(means.shape[1], lanes),
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        table = _table_of_lanes(m, self, self._offsets, self._flips, signed(DIFFERENCE_BITS))
        for lane, (offset, flip) in enumerate(table):
            element = register(m, self.inputs[lane])
            flipped = _flipped(element, flip)
            m.d.comb += self.outputs[lane].eq(register(m, (flipped + offset)[:DIFFERENCE_BITS]))
        return m


class RestoringStage(Stage):
    """``saturate(mean + sign * round_half_even(2**h * input / size))``, in three cycles.

    Structure: the opposite of a rounded number is the complement of its floor, and a one where it was not
    rounded up; so sign, rounding and mean take one adder.

    Args:
        means: shape (heads, size).
        flips: where the sign is negative, of the same shape.
        lanes: elements of a word.
        input_bits: of a signed number that comes in.
    """

    latency = 3

    def __init__(self, *, means: IntegerArray, flips: IntegerArray, lanes: int, input_bits: int) -> None:
        self._lanes, self._means, self._flips = lanes, means, flips
        size = means.shape[1]
        self._shift = size.bit_length() - 1 - halvings(size)
        super().__init__(
            inputs=data.ArrayLayout(signed(input_bits), lanes),
            outputs=data.ArrayLayout(ELEMENT, lanes),
            words=word_count(size, lanes),
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        table = _table_of_lanes(m, self, self._means, self._flips, ELEMENT)
        for lane, (mean, flip) in enumerate(table):
            number = register(m, self.inputs[lane])
            floor = number[self._shift :].as_signed()
            half, rest = number[self._shift - 1], number[: self._shift - 1]
            carry = (half & (rest.any() | floor[0])) ^ flip
            flipped = _flipped(floor, flip)
            total = register(m, add_with_carry(flipped, mean, carry, width=len(floor) + 1))
            high = total[BITS - 1 :]
            fits = high.all() | ~high.any()
            limit = Cat((~total[-1]).replicate(BITS - 1), total[-1])
            m.d.comb += self.outputs[lane].eq(register(m, Mux(fits, total[:BITS], limit)))
        return m


def _flipped(number: Value, flip: Value) -> Value:
    """The number, or its complement."""
    return (number.as_unsigned() ^ flip.replicate(len(number))).as_signed()


def _table_of_lanes(
    m: Module, stage: Stage, values: IntegerArray, flips: IntegerArray, shape: Shape
) -> list[tuple[Value, Value]]:
    """Of each lane the value and the flip that go with the word of a cycle before."""
    lanes = values.shape[1] // stage.words
    width = shape.width + 1
    mask = (1 << shape.width) - 1
    rows = [
        sum(
            ((int(value) & mask) | int(flip) << shape.width) << (lane * width)
            for lane, (value, flip) in enumerate(zip(row, row_flips, strict=True))
        )
        for row, row_flips in zip(values.reshape(-1, lanes), flips.reshape(-1, lanes), strict=True)
    ]
    m.submodules.table = table = memory.Memory(
        shape=unsigned(lanes * width), depth=len(rows), init=rows, attrs=IN_LOGIC
    )
    read = table.read_port(domain="comb")
    place = Signal(range(len(rows)), name="place")
    step(m, place, len(rows), stage.valid)
    m.d.comb += read.addr.eq(place)
    word = register(m, read.data)
    fields = [word[lane * width : (lane + 1) * width] for lane in range(lanes)]
    return [(field[:-1].as_signed(), field[-1]) for field in fields]


def _checked_tables(means: npt.ArrayLike, signs: npt.ArrayLike) -> tuple[IntegerArray, IntegerArray]:
    """The means as int64, and where signs are negative, both of shape (heads, size)."""
    offsets, factors = np.asarray(means), np.asarray(signs)
    if offsets.ndim != 2 or not offsets.size:
        msg = f"means must be of shape (heads, size), not {offsets.shape}"
        raise UsageError(msg, given=offsets.shape, expected=["(heads, size)"])
    check_hadamard_size(offsets.shape[1])
    check_integers("means", offsets, LOWEST, HIGHEST)
    if factors.shape not in (offsets.shape, offsets.shape[1:]):
        msg = f"signs must be of shape {offsets.shape} or {offsets.shape[1:]}, not {factors.shape}"
        raise UsageError(msg, given=factors.shape, expected=[str(offsets.shape), str(offsets.shape[1:])])
    check_integers("signs", factors, -1, 1)
    if not factors.all():
        msg = "signs must be 1 or -1; one is 0"
        raise UsageError(msg, given=0, expected=["1", "-1"])
    return offsets.astype(np.int64), np.broadcast_to(factors < 0, offsets.shape)
