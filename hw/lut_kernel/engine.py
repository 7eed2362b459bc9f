"""The table-lookup engine: products of a matrix that streams in with vectors, without multipliers."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._checks import check_positive
from hw._component import Component
from hw.arith.adder_tree import sum_shape
from hw.lut_kernel.chunk_sums import ChunkSums
from hw.lut_kernel.encoding import Encoding
from hw.lut_kernel.generator import TableGenerator
from hw.lut_kernel.lane import Lane
from hw.lut_kernel.partial_sums import SUM_MEMORIES, PartialSums
from hw.lut_kernel.tables import STORAGES, SharedTable
from hw.mvu._counter import step
from hw.reference.widths import exact_accumulator_bits, fixed_point_range, largest_magnitude
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import IntegerFormat, MinifloatFormat, ScalarFormat, TernaryFormat

_BANKS = (1, 2)
_MAX_ACTIVATION_BITS = 32
_MARKS = data.StructLayout({"is_valid": 1, "starts": 1, "ends": 1, "is_first": 1, "is_last": 1})
"""Of look-ups: there are some; of the first and last pass of a row; of the first and last chunk."""


class TableLookupEngine(Component):
    """Sums of activations that a row's weights choose are looked up, not computed.

    T-MAC (arXiv 2407.00088) on LUT RAM. The columns are cut into chunks of ``groups * group``. A chunk's
    activations are made into a table a group, with all their possible sums; then every cycle each of the
    *lanes* looks one row's indices up in all tables, in *planes* bit planes, and when it has been through
    all planes, adds the entries to the row's sum, which waits in a memory for the next chunk. With two banks
    the tables of the next chunk are written meanwhile.

    Ports:
        ``activations``: input stream of words of ``writers * group`` activations, the first in the low
        bits; ``groups / writers`` words a chunk. See :func:`hw.lut_kernel.activation_words`.
        ``weights``: input stream of the indices of one chunk and *lanes* rows, an array of lanes, *planes*
        planes and groups, the last fastest. Once through the matrix for every vector, chunk by chunk, in
        each all rows, of each the highest planes first. See :func:`hw.lut_kernel.weight_words`.
        ``outputs``: output stream of *lanes* sums a transfer, ``ceil(rows / lanes)`` transfers a vector.
        Lanes beyond the last row hold what their weights, which are to be zero, gave.

    :attr:`interval` cycles from vector to vector. The first results are valid :attr:`latency` cycles after
    the one in which the first rows' last weights of the last chunk were taken, the others of the vector
    follow, one transfer in :attr:`passes` cycles. Results that nobody takes stop the unit when the next ones
    are complete.

    Args:
        weights: ``uint1`` to ``uint4``, ``int2`` to ``int4``, ``ternary``.
        activations: integers, or minifloats whose codes are all numbers: as the integers that they are in
            units of their smallest step.
        rows: of the matrix.
        columns: of the matrix.
        lanes: rows worked on at a time.
        groups: tables; in each a lane looks up an index a plane and cycle.
        planes: looked up in a cycle, a divisor of the bits of a weight; all of them by default.
        group: activations that share a table: 1 to 5 (4 by default), for ternary weights 1 to 3 (3). Of one
            activation a table in registers is but that and zero: gates in front of adders.
        table: ``full``, or ``mirrored``: half the entries, negated by a sign.
        storage: of the tables: ``lutram``, or ``registers``, which all lanes share.
        banks: 2: tables are written while others are read; 1: half the memory.
        writers: tables that are filled side by side, a divisor of *groups*; all by default.
        sums: memory in which the sums wait: ``lutram``, or ``bram`` for many rows a lane.
        accumulator_bits: of the sums; by default what no sum overflows. At least that.

    Raises:
        UsageError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        *,
        weights: ScalarFormat,
        activations: ScalarFormat,
        rows: int,
        columns: int,
        lanes: int = 8,
        groups: int = 8,
        group: int | None = None,
        planes: int | None = None,
        table: str = "full",
        storage: str = "lutram",
        banks: int = 2,
        writers: int | None = None,
        sums: str = "lutram",
        accumulator_bits: int | None = None,
    ) -> None:
        sizes = {"rows": rows, "columns": columns, "lanes": lanes, "groups": groups}
        for name, value in sizes.items():
            check_positive(name, value)
        self.encoding = Encoding(weights, _default_group(weights) if group is None else group, table)
        self.rows, self.columns, self.lanes, self.groups = rows, columns, lanes, groups
        for name, choice, choices in (("storage", storage, STORAGES), ("sums", sums, tuple(SUM_MEMORIES))):
            if choice not in choices:
                raise unknown_choice(name, choice, choices)
        self.storage, self.sums = storage, sums
        self.banks, self.writers = (
            _checked_banks(banks),
            _checked_divisor("writers", writers, "groups", groups),
        )
        self.planes = _checked_divisor("planes", planes, f"planes of {weights}", self.encoding.planes)
        bits = _accumulator_bits(weights, activations, columns, accumulator_bits)
        self.activations_format = activations
        self._activation_range = fixed_point_range(activations)
        self._low, self._high = self.encoding.entry_range(*self._activation_range)
        wide = sum_shape(1, low=self._low, high=self._high, has_carry=False)
        self._entry = wide if self._low < 0 else Shape(wide.width - 1)
        word = self.writers * self.encoding.group
        self.lookups = lanes * self.planes * groups
        super().__init__(
            {
                "activations": In(stream.Signature(data.ArrayLayout(Shape(activations.bits), word))),
                "weights": In(stream.Signature(data.ArrayLayout(self.encoding.index_bits, self.lookups))),
                "outputs": Out(stream.Signature(data.ArrayLayout(signed(bits), lanes))),
            }
        )

    @property
    def accumulator_bits(self) -> int:
        """Width of the sums."""
        return Shape.cast(self.outputs.payload.shape().elem_shape).width

    @property
    def row_folds(self) -> int:
        """Turns in which the lanes work on the rows."""
        return -(-self.rows // self.lanes)

    @property
    def passes(self) -> int:
        """Cycles in which a lane works on a chunk of a row."""
        return self.encoding.planes // self.planes

    @property
    def lookup_cycles(self) -> int:
        """Cycles in which a chunk's tables are read."""
        return self.row_folds * self.passes

    @property
    def chunks(self) -> int:
        """Parts of a vector that are in the tables at a time."""
        return -(-self.columns // (self.groups * self.encoding.group))

    @property
    def table_cycles(self) -> int:
        """Cycles in which a chunk's tables are written."""
        return self.groups // self.writers * len(self.encoding.walk)

    @property
    def interval(self) -> int:
        """Cycles from vector to vector."""
        if self.banks == 1:
            return self.chunks * (self.lookup_cycles + self.table_cycles)
        return self.chunks * max(self.lookup_cycles, self.table_cycles)

    @property
    def latency(self) -> int:
        """Cycles from a row's last weights to its sum."""
        return 3

    def cycles(self, vectors: int) -> int:
        """From the first offer to the last result of so many vectors, where nothing waits outside."""
        return self.table_cycles + 1 + vectors * self.interval - self._wait_after_last + self.latency

    @property
    def _wait_after_last(self) -> int:
        return self.interval // self.chunks - self.lookup_cycles

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        advance, bank, fold, now = self._add_control(m)
        looked_up = self._add_lookups(m, bank)
        marks = _delayed(m, now, 2, advance)
        folds = _delayed(m, fold, 2, advance)
        entries = Signal(data.ArrayLayout(self._entry, self.lookups), reset_less=True)
        signs = Signal(self.lookups * self.encoding.is_mirrored, reset_less=True)
        indices = self.weights.payload
        with m.If(advance):
            m.d.sync += Value.cast(entries).eq(looked_up)
            if self.encoding.is_mirrored:
                m.d.sync += signs.eq(Cat(index[-1] for index in indices))
        m.submodules.sums = sums = PartialSums(
            lanes=self.lanes,
            rows=self.row_folds,
            addend=self._chunk_sum,
            bits=self.accumulator_bits,
            storage=self.sums,
        )
        m.d.comb += [
            sums.advance.eq(advance),
            sums.next_fold.eq(folds[1]),
            sums.fold.eq(folds[2]),
            sums.is_first.eq(marks[2].is_first),
            sums.enable.eq(marks[2].is_valid & marks[2].ends),
        ]
        offset = self._add_offset(m, bank, now, advance)
        share = self.lookups // self.lanes
        for number in range(self.lanes):
            m.submodules[f"lane{number}"] = lane = Lane(
                encoding=self.encoding,
                groups=self.groups,
                planes=self.planes,
                low=self._low,
                high=self._high,
                entry=self._entry,
                offset=offset.shape(),
                total=self._chunk_sum,
            )
            m.d.comb += [
                lane.enable.eq(advance & (marks[1].is_valid if self.passes > 1 else 1)),
                lane.starts.eq(marks[1].starts),
                Value.cast(lane.entries).eq(Cat(entries[number * share + k] for k in range(share))),
                lane.signs.eq(signs[number * share : (number + 1) * share]),
                lane.offset.eq(offset),
                sums.addends[number].eq(lane.sum),
            ]
        finished = marks[2].is_valid & marks[2].ends & marks[2].is_last
        self._keep_results(m, finished, advance, Value.cast(sums.totals))
        return m

    @property
    def _chunk_sum(self) -> Shape:
        """Of a row's products in one chunk."""
        low, high = self._activation_range
        weights = fixed_point_range(self.encoding.weights)
        products = [w * x for w in weights for x in (low, high)]
        terms = self.groups * self.encoding.group
        return sum_shape(terms, low=min(products), high=max(products), has_carry=False)

    def _add_offset(self, m: Module, bank: Signal, now: Any, advance: Signal) -> Signal:
        """What the sum of a chunk's activations adds to every row, in the pass in which it does."""
        if not self.encoding.offset_factor:
            return Signal(0)
        generator = self._generator
        sum_ = sum_shape(self.groups, low=self._low, high=self._high, has_carry=False)
        m.submodules.chunk_sums = chunk_sums = ChunkSums(
            tables=self.writers,
            low=self._low,
            high=self._high,
            entry=self._entry,
            sum_=sum_,
            banks=self.banks,
        )
        m.d.comb += [
            chunk_sums.enable.eq(generator.write & (generator.address == self.encoding.sum_address)),
            chunk_sums.is_first.eq(self._round == 0),
            chunk_sums.bank.eq(self._writing),
            chunk_sums.entries.eq(generator.entries),
        ]
        sum_of_chunk = Signal(sum_)
        m.d.comb += sum_of_chunk.eq(chunk_sums.sums[bank])
        offset = -sum_of_chunk
        if self.encoding.offset_factor > 0:  # one less than a power of two
            offset = (sum_of_chunk << self.encoding.offset_factor.bit_length()) - sum_of_chunk
        kept = Signal(offset.shape(), name="offset", reset_less=True)
        with m.If(advance):
            m.d.sync += kept.eq(Mux(now.ends, offset, 0))
        return kept

    def _add_control(self, m: Module) -> tuple[Signal, Signal, Signal, Any]:
        encoding = self.encoding
        m.submodules.generator = self._generator = generator = TableGenerator(
            activations=self.activations_format,
            group=encoding.group,
            tables=self.writers,
            entry=self._entry,
            walk=encoding.walk,
            address=encoding.address,
            address_bits=encoding.address_bits,
        )
        connect(m, flipped(self.activations), generator.activations)
        advance = Signal()
        claimed, full = Signal(self.banks), Signal(self.banks)
        writing = Signal(range(self.banks))
        reading = Signal(range(self.banks))
        round_ = Signal(range(self.groups // self.writers))
        self._round, self._writing = Signal.like(round_), Signal.like(writing)
        pass_ = Signal(range(self.passes))
        fold = Signal(range(self.row_folds))
        chunk = Signal(range(self.chunks))
        now = Signal(_MARKS)
        issues = Signal()
        written = step(m, round_, self.groups // self.writers, generator.is_last)
        read = step(m, fold, self.row_folds, step(m, pass_, self.passes, issues))
        step(m, chunk, self.chunks, read)
        was_written = Signal()
        with m.If(read):
            m.d.sync += [claimed.bit_select(reading, 1).eq(0), full.bit_select(reading, 1).eq(0)]
        with m.If(written):
            m.d.sync += claimed.bit_select(writing, 1).eq(1)
        with m.If(was_written):
            m.d.sync += full.bit_select(self._writing, 1).eq(1)
        if self.banks == 2:
            m.d.sync += [writing.eq(writing ^ written), reading.eq(reading ^ read)]
        m.d.sync += [self._round.eq(round_), self._writing.eq(writing), was_written.eq(written)]
        readable = Signal()
        m.d.comb += [
            readable.eq(full.bit_select(reading, 1)),
            generator.is_free.eq(~claimed.bit_select(writing, 1) | (read & (writing == reading))),
            now.is_valid.eq(self.weights.valid & readable),
            now.starts.eq(pass_ == 0),
            now.ends.eq(pass_ == self.passes - 1),
            now.is_first.eq(chunk == 0),
            now.is_last.eq(chunk == self.chunks - 1),
            issues.eq(now.is_valid & advance),
            self.weights.ready.eq(readable & advance),
        ]
        return advance, reading, fold, now

    def _add_lookups(self, m: Module, bank: Signal) -> Value:
        """The entries of all indices of the weights' payload, in their order."""
        encoding = self.encoding
        looked_up: list[Value] = [Value.cast(0)] * self.lookups
        generator = self._generator
        for number in range(self.groups):
            readers = range(number, self.lookups, self.groups)
            table = SharedTable(
                entry=self._entry,
                depth=self.banks << encoding.address_bits,
                written=self._written_addresses,
                readers=len(readers),
                banks=self.banks,
                storage=self.storage,
            )
            m.submodules[f"table{number}"] = table
            m.d.comb += [
                table.write.eq(generator.write & (self._round == number // self.writers)),
                table.write_address.eq(Cat(generator.address, self._writing)),
                table.entry.eq(generator.entries[number % self.writers]),
            ]
            for place, reader in enumerate(readers):
                address = self.weights.payload[reader][: encoding.address_bits]
                m.d.comb += table.addresses[place].eq(Cat(address, bank))
                looked_up[reader] = Value.cast(table.entries[place])
        return Cat(*looked_up)

    @property
    def _written_addresses(self) -> list[int]:
        bits = self.encoding.address_bits
        steps = self.encoding.walk
        return [bank << bits | self.encoding.address(s) for bank in range(self.banks) for s in steps]

    def _keep_results(self, m: Module, finished: Value, advance: Signal, totals: Value) -> None:
        """Results wait in registers of their own; the pipeline stops only if the next ones are finished."""
        waits = self.outputs.valid & ~self.outputs.ready
        results = Signal.like(self.outputs.payload, reset_less=True)
        with m.If(finished & ~waits):
            m.d.sync += Value.cast(results).eq(totals)
        m.d.sync += self.outputs.valid.eq(finished | waits)
        m.d.comb += [self.outputs.payload.eq(results), advance.eq(~(finished & waits))]


def _default_group(weights: ScalarFormat) -> int:
    return 3 if isinstance(weights, TernaryFormat) else 4


def _checked_banks(banks: int) -> int:
    if banks not in _BANKS:
        msg = f"banks must be 1 or 2, not {banks!r}"
        raise UsageError(msg, given=repr(banks), expected=["1", "2"])
    return banks


def _checked_divisor(name: str, value: int | None, whole_name: str, whole: int) -> int:
    """*value*, or all of *whole* where it is not given."""
    if value is None:
        return whole
    check_positive(name, value)
    if whole % value:
        divisors = [str(n) for n in range(1, whole + 1) if whole % n == 0]
        msg = f"{name} must divide the {whole} {whole_name}, not be {value}"
        raise UsageError(msg, given=value, expected=divisors)
    return value


def _delayed(m: Module, first: Any, cycles: int, advance: Signal) -> list[Any]:
    """A signal, and what it was so many moves of the pipeline ago."""
    values = [first]
    for cycle in range(1, cycles + 1):
        later = Signal.like(first, name=f"{Value.cast(first).name}{cycle}")
        with m.If(advance):
            m.d.sync += later.eq(values[-1])
        values.append(later)
    return values


def _accumulator_bits(
    weights: ScalarFormat, activations: ScalarFormat, columns: int, given: int | None
) -> int:
    if not isinstance(activations, IntegerFormat | MinifloatFormat):
        msg = f"activations must be integers or minifloats, not {activations}"
        raise UsageError(msg, given=str(activations), expected=["int8", "int4", "uint8", "e4m3"])
    if (width := largest_magnitude(activations).bit_length() + activations.signed) > _MAX_ACTIVATION_BITS:
        msg = (
            f"activations must fit {_MAX_ACTIVATION_BITS} bits as integers in units of their smallest step; "
            f"{activations} needs {width} bits"
        )
        raise UsageError(msg, given=str(activations), expected=["e4m3", "int16"])
    exact = exact_accumulator_bits(weights, activations, columns)
    if given is None:
        return exact
    check_positive("accumulator_bits", given)
    if given < exact:
        msg = (
            f"accumulator_bits must be at least {exact} for sums of {columns} products of {weights} and "
            f"{activations}, not {given}"
        )
        raise UsageError(msg, given=given, expected=[str(exact)])
    return given
