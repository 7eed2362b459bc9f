"""The table-lookup engine: products of a matrix that streams in with vectors, without multipliers."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Shape, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, connect, flipped

from hw._checks import check_positive
from hw._component import Component
from hw.arith.adder_tree import sum_shape
from hw.lut_kernel.encoding import Encoding
from hw.lut_kernel.generator import TableGenerator
from hw.lut_kernel.lane import Lane
from hw.lut_kernel.tables import STORAGES, SharedTable
from hw.mvu._counter import step
from hw.reference.widths import exact_accumulator_bits
from quantizers.errors import UsageError, unknown_choice
from quantizers.formats import IntegerFormat, ScalarFormat, TernaryFormat

_BANKS = (1, 2)
_MARKS = data.StructLayout({"is_valid": 1, "is_first": 1, "is_last": 1})


class TableLookupEngine(Component):
    """Sums of activations that a row's weights choose are looked up, not computed.

    T-MAC (arXiv 2407.00088) on LUT RAM. The columns are cut into chunks of ``groups * group``. A chunk's
    activations are made into a table a group, with all their possible sums; then every cycle each of the
    *lanes* looks one row's indices up in all tables and in all bit planes, and adds the entries to the
    row's sum, which waits in LUT RAM for the next chunk. With two banks the tables of the next chunk are
    written meanwhile.

    Ports:
        ``activations``: input stream of words of ``writers * group`` activations, the first in the low
        bits; ``groups / writers`` words a chunk. See :func:`hw.lut_kernel.activation_words`.
        ``weights``: input stream of the indices of one chunk and *lanes* rows, an array of lanes, planes
        and groups, the last fastest. Once through the matrix for every vector, chunk by chunk, in each
        all rows. See :func:`hw.lut_kernel.weight_words`.
        ``outputs``: output stream of *lanes* sums a transfer, ``ceil(rows / lanes)`` transfers a vector.
        Lanes beyond the last row hold what their weights, which are to be zero, gave.

    :attr:`interval` cycles from vector to vector. The first results are valid :attr:`latency` cycles after
    the one in which the first rows' weights of the last chunk were taken, the others of the vector follow
    in consecutive cycles. Results that nobody takes stop the unit when the next ones are complete.

    Args:
        weights: ``uint1`` to ``uint4``, ``int2`` to ``int4``, ``ternary``.
        activations: integers.
        rows: of the matrix.
        columns: of the matrix.
        lanes: rows worked on at a time.
        groups: tables; in each a lane looks up an index a plane and cycle.
        group: activations that share a table: 1 to 5 (4 by default), for ternary weights 1 to 3 (3). Of one
            activation a table in registers is but that and zero: gates in front of adders.
        table: ``full``, or for ternary weights ``mirrored``: half the entries, negated by a sign.
        storage: of the tables: ``lutram``, or ``registers``, which all lanes share.
        banks: 2: tables are written while others are read; 1: half the memory.
        writers: tables that are filled side by side, a divisor of *groups*; all by default.
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
        table: str = "full",
        storage: str = "lutram",
        banks: int = 2,
        writers: int | None = None,
        accumulator_bits: int | None = None,
    ) -> None:
        sizes = {"rows": rows, "columns": columns, "lanes": lanes, "groups": groups}
        for name, value in sizes.items():
            check_positive(name, value)
        self.encoding = Encoding(weights, _default_group(weights) if group is None else group, table)
        self.rows, self.columns, self.lanes, self.groups = rows, columns, lanes, groups
        if storage not in STORAGES:
            raise unknown_choice("storage", storage, STORAGES)
        self.storage = storage
        self.banks, self.writers = _checked_banks(banks), _checked_writers(writers, groups)
        bits = _accumulator_bits(weights, activations, columns, accumulator_bits)
        self.activation = Shape(activations.bits, signed=activations.signed)
        self._low, self._high = self.encoding.entry_range(int(activations.minimum), int(activations.maximum))
        wide = sum_shape(1, low=self._low, high=self._high, has_carry=False)
        self._entry = wide if self._low < 0 else Shape(wide.width - 1)
        word = self.writers * self.encoding.group
        self.lookups = lanes * self.encoding.planes * groups
        super().__init__(
            {
                "activations": In(stream.Signature(data.ArrayLayout(self.activation, word))),
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
            return self.chunks * (self.row_folds + self.table_cycles)
        return self.chunks * max(self.row_folds, self.table_cycles)

    @property
    def latency(self) -> int:
        """Cycles from a row's last weights to its sum."""
        return 3

    def cycles(self, vectors: int) -> int:
        """From the first offer to the last result of so many vectors, where nothing waits outside."""
        return self.table_cycles + 1 + vectors * self.interval - self._wait_after_last + self.latency

    @property
    def _wait_after_last(self) -> int:
        return self.interval // self.chunks - self.row_folds

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        advance, bank, fold, now = self._add_control(m)
        looked_up = self._add_lookups(m, bank)
        marks = [now]
        for cycle in (1, 2):
            mark = Signal(_MARKS, name=f"marks{cycle}")
            with m.If(advance):
                m.d.sync += mark.eq(marks[-1])
            marks.append(mark)
        folds = [fold]
        for cycle in (1, 2):
            later = Signal.like(fold, name=f"fold{cycle}")
            with m.If(advance):
                m.d.sync += later.eq(folds[-1])
            folds.append(later)
        entries = Signal(data.ArrayLayout(self._entry, self.lookups), reset_less=True)
        signs = Signal(self.lookups * self.encoding.has_sign, reset_less=True)
        indices = self.weights.payload
        with m.If(advance):
            m.d.sync += Value.cast(entries).eq(looked_up)
            if self.encoding.has_sign:
                m.d.sync += signs.eq(Cat(index[-1] for index in indices))
        share = self.lookups // self.lanes
        results = []
        for number in range(self.lanes):
            m.submodules[f"lane{number}"] = lane = Lane(
                encoding=self.encoding,
                groups=self.groups,
                low=self._low,
                high=self._high,
                entry=self._entry,
                rows=self.row_folds,
                accumulator_bits=self.accumulator_bits,
            )
            m.d.comb += [
                lane.advance.eq(advance),
                lane.fold.eq(folds[-1]),
                lane.is_first.eq(marks[-1].is_first),
                lane.enable.eq(marks[-1].is_valid),
                Value.cast(lane.entries).eq(Cat(entries[number * share + k] for k in range(share))),
                lane.signs.eq(signs[number * share : (number + 1) * share]),
            ]
            results.append(lane.total)
        self._keep_results(m, marks[-1].is_valid & marks[-1].is_last, advance, results)
        return m

    def _add_control(self, m: Module) -> tuple[Signal, Signal, Signal, Any]:
        encoding = self.encoding
        m.submodules.generator = self._generator = generator = TableGenerator(
            activation=self.activation,
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
        fold = Signal(range(self.row_folds))
        chunk = Signal(range(self.chunks))
        now = Signal(_MARKS)
        issues = Signal()
        written = step(m, round_, self.groups // self.writers, generator.is_last)
        read = step(m, fold, self.row_folds, issues)
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

    def _keep_results(self, m: Module, finished: Value, advance: Signal, totals: list[Value]) -> None:
        """Results wait in registers of their own; the pipeline stops only if the next ones are finished."""
        waits = self.outputs.valid & ~self.outputs.ready
        results = Signal.like(self.outputs.payload, reset_less=True)
        with m.If(finished & ~waits):
            m.d.sync += Value.cast(results).eq(Cat(*totals))
        m.d.sync += self.outputs.valid.eq(finished | waits)
        m.d.comb += [self.outputs.payload.eq(results), advance.eq(~(finished & waits))]


def _default_group(weights: ScalarFormat) -> int:
    return 3 if isinstance(weights, TernaryFormat) else 4


def _checked_banks(banks: int) -> int:
    if banks not in _BANKS:
        msg = f"banks must be 1 or 2, not {banks!r}"
        raise UsageError(msg, given=repr(banks), expected=["1", "2"])
    return banks


def _checked_writers(writers: int | None, groups: int) -> int:
    if writers is None:
        return groups
    check_positive("writers", writers)
    if groups % writers:
        divisors = [str(n) for n in range(1, groups + 1) if groups % n == 0]
        msg = f"writers must divide the {groups} groups, not be {writers}"
        raise UsageError(msg, given=writers, expected=divisors)
    return writers


def _accumulator_bits(
    weights: ScalarFormat, activations: ScalarFormat, columns: int, given: int | None
) -> int:
    if not isinstance(activations, IntegerFormat):
        msg = f"activations must be integers, not {activations}"
        raise UsageError(msg, given=str(activations), expected=["int8", "int4", "uint8"])
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
