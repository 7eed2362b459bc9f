"""From the integer sums of the blocks of a vector to the scaled sums of the vector."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from hw._checks import check_positive
from hw._component import Component
from hw.arith._shapes import check_shape, shape_range
from hw.arith.addend import MULTIPLIERS
from hw.lut_kernel.generator import selected
from hw.lut_kernel.scaler import Scaler
from hw.mvu._counter import step
from quantizers.errors import UsageError, unknown_choice

SCALE_BITS = range(2, 17)
"""Of a scale: see :mod:`quantizers.table_lookup.fixed_scales`."""

MAX_ZERO_BITS = 4
"""Of a zero point, as of a weight."""

_NONE = unsigned(0)


class ScaleStage(Component):
    """Adds ``scale * (sum - zero * offset)`` of the blocks of a vector, for every row.

    The group-wise scales and zero points of GPTQ (arXiv 2210.17323): ``sum`` is that of a row's weight
    codes times the activations of a block, ``offset`` that of the activations alone. Everything is an
    integer; the unit of the scales is a power of two that the consumer knows.

    Ports:
        ``sums``: input stream of *lanes* sums a transfer; block by block, in each *row_folds* transfers.
        ``scales``: input stream that goes with it, *lanes* codes a transfer: the scale in the low
        *scale_bits* bits, unsigned, the zero point above it.
        ``offsets``: input stream of the offset of each block, taken with the block's last sums. Only where
        there are zero points.
        ``outputs``: output stream of *lanes* results a transfer, *row_folds* transfers a vector.

    A transfer takes :attr:`cycles_per_transfer` cycles, in each of which *multipliers* lanes are scaled.
    Results are valid :attr:`latency` cycles after the one in which the sums of the last block were taken.
    Results that nobody takes stop the stage when the next ones come. The totals of the rows wait in LUT
    RAM, ``blocks * largest * (2**scale_bits - 1)`` wide, so that nothing overflows.

    Args:
        lanes: rows worked on at a time.
        row_folds: transfers of a block.
        blocks: of a vector.
        sums: shape of a sum.
        scale_bits: of a scale: 2 to 16.
        zeros: shape of a zero point, of at most 4 bits; without bits there are none.
        offsets: shape of an offset, where there are zero points.
        largest: magnitude of ``sum - zero * offset``; by default what the shapes allow.
        multipliers: a divisor of *lanes*; by default all.
        products: ``luts``, or ``dsps``: a DSP slice a multiplier, with up to 25 bits for the sum.

    Raises:
        UsageError: an argument is of the wrong kind or out of range, or a product does not fit a DSP slice.
    """

    def __init__(
        self,
        *,
        lanes: int,
        row_folds: int,
        blocks: int,
        sums: Shape,
        scale_bits: int = 12,
        zeros: Shape = _NONE,
        offsets: Shape = _NONE,
        largest: int | None = None,
        multipliers: int | None = None,
        products: str = "luts",
    ) -> None:
        for name, value in {"lanes": lanes, "row_folds": row_folds, "blocks": blocks}.items():
            check_positive(name, value)
        check_shape("sums", sums)
        check_scale_bits(scale_bits)
        if products not in MULTIPLIERS:
            raise unknown_choice("products", products, MULTIPLIERS)
        _check_zeros(zeros, offsets)
        self.lanes, self.row_folds, self.blocks, self.scale_bits = lanes, row_folds, blocks, scale_bits
        self.multipliers = _checked_multipliers(multipliers, lanes)
        largest = _largest(sums, zeros, offsets) if largest is None else largest
        check_positive("largest", largest)
        self._zeros = zeros
        self._scalers = [
            Scaler(
                sums=sums,
                zeros=zeros,
                offsets=offsets,
                scale_bits=scale_bits,
                centred=signed(largest.bit_length() + 1),
                slots=row_folds * self.cycles_per_transfer,
                accumulator_bits=(blocks * largest * ((1 << scale_bits) - 1)).bit_length() + 1,
                products=products,
            )
            for _ in range(self.multipliers)
        ]
        streams: dict[str, Any] = {
            "sums": In(stream.Signature(data.ArrayLayout(sums, lanes))),
            "scales": In(stream.Signature(data.ArrayLayout(unsigned(scale_bits + zeros.width), lanes))),
        }
        if zeros.width:
            streams["offsets"] = In(stream.Signature(offsets))
        results = data.ArrayLayout(signed(self.accumulator_bits), lanes)
        super().__init__({**streams, "outputs": Out(stream.Signature(results))})

    @property
    def has_zeros(self) -> bool:
        """Whether there are zero points."""
        return self._zeros.width > 0

    @property
    def accumulator_bits(self) -> int:
        """Width of the results."""
        return len(self._scalers[0].total)

    @property
    def cycles_per_transfer(self) -> int:
        """Cycles in which the sums of a transfer are scaled."""
        return self.lanes // self.multipliers

    @property
    def interval(self) -> int:
        """Cycles from vector to vector."""
        return self.blocks * self.row_folds * self.cycles_per_transfer

    @property
    def latency(self) -> int:
        """Cycles from the one in which sums of the last block are taken to their results."""
        return self._scalers[0].latency + 1

    def cycles(self, vectors: int) -> int:
        """From the first offer to the last result of so many vectors, where nothing waits outside."""
        return vectors * self.interval + self.latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        advance, is_valid = Signal(), Signal()
        phase = self._add_inputs(m, advance, is_valid)
        slot, part, is_first, is_last = self._add_marks(m, advance, is_valid)
        for number, scaler in enumerate(self._scalers):
            m.submodules[f"scaler{number}"] = scaler
            self._connect_inputs(m, scaler, number, phase)
            m.d.comb += [
                scaler.advance.eq(advance),
                scaler.slot.eq(slot),
                scaler.is_first.eq(is_first),
                scaler.enable.eq(is_valid),
            ]
        self._keep_results(m, is_valid & is_last, part, advance)
        return m

    def _add_inputs(self, m: Module, advance: Value, is_valid: Signal) -> Signal:
        """Takes a transfer in its last cycle; which part of the lanes is scaled in this one.

        Sets whether there is something to add a scaler's latency later.
        """
        phase = Signal(range(self.cycles_per_transfer))
        arrives, taken = Signal(), Signal()
        m.d.comb += [
            arrives.eq(self.sums.valid & self.scales.valid),
            taken.eq(step(m, phase, self.cycles_per_transfer, arrives & advance)),
            self.sums.ready.eq(taken),
            self.scales.ready.eq(taken),
        ]
        if self.has_zeros:
            fold = Signal(range(self.row_folds))
            m.d.comb += [
                arrives.eq(self.sums.valid & self.scales.valid & self.offsets.valid),
                self.offsets.ready.eq(step(m, fold, self.row_folds, taken)),
            ]
        later = Signal(self._scalers[0].latency)
        with m.If(advance):
            m.d.sync += later.eq(Cat(arrives, later))
        m.d.comb += is_valid.eq(later[-1])
        return phase

    def _connect_inputs(self, m: Module, scaler: Scaler, number: int, phase: Signal) -> None:
        lanes = range(number, self.lanes, self.multipliers)
        code = selected([self.scales.payload[lane] for lane in lanes], phase)
        total = selected([Value.cast(self.sums.payload[lane]) for lane in lanes], phase)
        m.d.comb += [Value.cast(scaler.sum).eq(total), scaler.scale.eq(code[: self.scale_bits])]
        if self.has_zeros:
            m.d.comb += [
                Value.cast(scaler.zero).eq(code[self.scale_bits :]),
                scaler.offset.eq(self.offsets.payload),
            ]

    def _add_marks(self, m: Module, advance: Value, is_valid: Value) -> tuple[Signal, Signal, Signal, Value]:
        """Where in the vector the totals of this cycle are: slot, part of the lanes, first and last block."""
        folds, parts = self.row_folds, self.cycles_per_transfer
        slot, part, block = Signal(range(folds * parts)), Signal(range(parts)), Signal(range(self.blocks))
        moves = is_valid & advance
        step(m, part, parts, moves)
        block_ends = step(m, slot, folds * parts, moves)
        vector_ends = step(m, block, self.blocks, block_ends)
        # A register, since it gates every bit of the totals: as a function of the counter it takes the room
        # for two of them in a LUT.
        is_first = Signal(init=1)
        with m.If(block_ends):
            m.d.sync += is_first.eq(vector_ends)
        return slot, part, is_first, block == self.blocks - 1

    def _keep_results(self, m: Module, finished: Value, part: Signal, advance: Signal) -> None:
        """Results wait in registers of their own; the pipeline stops only if the next ones are finished."""
        waits = self.outputs.valid & ~self.outputs.ready
        for number, scaler in enumerate(self._scalers):
            for turn, lane in enumerate(range(number, self.lanes, self.multipliers)):
                result = Signal.like(scaler.total, name=f"result{lane}", reset_less=True)
                with m.If(finished & ~waits & (part == turn)):
                    m.d.sync += result.eq(scaler.total)
                m.d.comb += self.outputs.payload[lane].eq(result)
        is_whole = finished & (part == self.cycles_per_transfer - 1)
        m.d.sync += self.outputs.valid.eq(is_whole | waits)
        m.d.comb += advance.eq(~(finished & waits))


def check_scale_bits(scale_bits: object) -> None:
    """Raises :class:`UsageError` unless a fixed-point scale can have so many bits."""
    if isinstance(scale_bits, bool) or not isinstance(scale_bits, int) or scale_bits not in SCALE_BITS:
        bounds = f"{SCALE_BITS[0]} to {SCALE_BITS[-1]}"
        msg = f"scale_bits must be {bounds}, not {scale_bits!r}"
        raise UsageError(msg, given=repr(scale_bits), expected=[bounds])


def _check_zeros(zeros: object, offsets: object) -> None:
    if not isinstance(zeros, Shape) or zeros.width > MAX_ZERO_BITS:
        msg = f"zeros must be a shape of at most {MAX_ZERO_BITS} bits, not {zeros!r}"
        raise UsageError(msg, given=repr(zeros), expected=["unsigned(4)", "signed(4)", "unsigned(0)"])
    if zeros.width:
        check_shape("offsets", offsets)


def _checked_multipliers(multipliers: int | None, lanes: int) -> int:
    if multipliers is None:
        return lanes
    check_positive("multipliers", multipliers)
    if lanes % multipliers:
        divisors = [str(n) for n in range(1, lanes + 1) if lanes % n == 0]
        msg = f"multipliers must divide the {lanes} lanes, not be {multipliers}"
        raise UsageError(msg, given=multipliers, expected=divisors)
    return multipliers


def _largest(sums: Shape, zeros: Shape, offsets: Shape) -> int:
    """The largest magnitude of ``sum - zero * offset``."""
    parts = [max(map(abs, shape_range(shape))) if shape.width else 0 for shape in (sums, zeros, offsets)]
    return parts[0] + parts[1] * parts[2]
