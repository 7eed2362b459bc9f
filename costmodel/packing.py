"""LUT6 sites of a mapped 7-series netlist.

A LUT6 site holds one function of six inputs or two functions of together at most five
(UG474, "7 Series FPGAs Configurable Logic Block", section Look-Up Table), so the number of LUT
cells that a synthesiser prints overstates what a device spends by about 1.4. The rule here:

1. **Carry chains.** Every position of a CARRY4 in use is one site, since the propagate input S can
   only come from the O6 output of its own site; also when S is a register, a port or a constant. A
   position is in use when its sum or its carry is read, or one above it in the same CARRY4 is. The
   LUT that drives S is inside that site. The LUT that drives the data input DI moves into the
   site's second output when both together have at most five inputs; one that does not fit reaches
   DI through the bypass pin and is counted like any other.
2. **Other LUTs** are paired greedily when their joint inputs are at most five: pairs with the most
   inputs in common first, then those that share none.
3. **No partner** for LUTs in front of a wide multiplexer (MUXF7/MUXF8 occupy the site's second
   exit) and for a LUT6_2, which is a pair already.
4. **LUTs used as memory** count as the LUTs that they occupy: RAM32M 4, RAM64X1D 2, SRL16E 1, ...
5. **Inverters** (INV, or a LUT1 that inverts) cost nothing where all that they feed are LUTs: these
   read the uninverted net instead, with another truth table and no further input. An inverter that
   also feeds a flip-flop, a carry chain, a wide multiplexer, a memory, a DSP slice or an output of
   the module is a LUT of one input and goes by rules 1 to 3.

The module is pure: it reads the JSON of Yosys' ``write_json`` and knows no tool.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

from quantizers.errors import BitfrontError

Net: TypeAlias = int
Bit: TypeAlias = int | str
Inputs: TypeAlias = frozenset[Net]

PAIR_INPUTS = 5
"""Inputs that the two functions of one LUT6 may have together."""

_INVERTER_MASK = "01"
_LUTS = {f"LUT{n}" for n in range(1, 7)} | {"LUT6_2"}
_LUT_OUTPUTS = ("O", "O6", "O5")
_FLIP_FLOPS = {kind + edge for kind in ("FDRE", "FDSE", "FDCE", "FDPE") for edge in ("", "_1")}
LATCHES = {"LDCE", "LDPE"}
"""Cells counted as flip-flops that are transparent."""

_FLIP_FLOPS |= LATCHES
_WIDE_MUXES = {"MUXF7", "MUXF8"}

# LUTs per cell: UG474, tables "Distributed RAM Configuration" and "ROM Configuration"; shift registers
# are one LUT each (two SRL16E of one clock and enable could share one; that is not modelled).
_MEMORY_LUTS = {
    "RAM32M": 4, "RAM64M": 4,
    "RAM16X1D": 2, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4,
    "RAM16X1S": 1, "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4,
    "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1, "CFGLUT5": 1,
}  # fmt: skip
_ROM_LUTS = {"ROM16X1": 1, "ROM32X1": 1, "ROM64X1": 1, "ROM128X1": 2, "ROM256X1": 4}
_BLOCK_RAMS = {"RAMB18E1": 0.5, "FIFO18E1": 0.5, "RAMB36E1": 1.0, "FIFO36E1": 1.0}
_DSPS = {"DSP48E1"}
_FREE = {
    "INV", "GND", "VCC", "BUF", "BUFG", "BUFGCE", "BUFGCTRL", "BUFH", "BUFHCE", "BUFR", "BUFIO", "BUFMR",
    "IBUF", "IBUFG", "IBUFDS", "IBUFGDS", "OBUF", "OBUFT", "OBUFDS", "IOBUF",
    "$scopeinfo", "$print", "$check", "$assert", "$assume", "$cover",
}  # fmt: skip
_COUNTED = {"CARRY4"}.union(
    _LUTS, _FLIP_FLOPS, _WIDE_MUXES, _MEMORY_LUTS, _ROM_LUTS, _BLOCK_RAMS, _DSPS, _FREE
)  # fmt: skip


class PackingError(BitfrontError):
    """The netlist holds a cell for which there is no counting rule."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a mapped netlist occupies.

    Attributes:
        lut_cells: LUT1 to LUT6 cells (and LUT6_2) as the synthesiser counts them, inverters left out.
        luts: LUT6 sites, with those used as memory.
        carries: CARRY4 cells.
        carry_positions: positions of these in use.
        ffs: flip-flops and latches.
        dsps: DSP48 slices.
        brams: block RAMs of 36 Kbit; one of 18 Kbit is a half.
        lutrams: those of *luts* used as memory (RAM and shift registers): they need a SLICEM.
    """

    lut_cells: int
    luts: int
    carries: int
    carry_positions: int
    ffs: int
    dsps: int
    brams: float
    lutrams: int


@dataclass(frozen=True)
class _Lut:
    inputs: Inputs
    second_output: bool = False


def count_resources(module: Mapping[str, Any]) -> Counts:
    """Counts one flattened, mapped module as ``write_json`` describes it (an entry of its ``modules``).

    Raises:
        PackingError: a cell is neither a 7-series primitive with a counting rule nor known to be free.
    """
    cells: Sequence[Mapping[str, Any]] = list(module["cells"].values())
    kinds = Counter(cell["type"] for cell in cells)
    _check_kinds(kinds)
    memory_luts = _weigh(kinds, _MEMORY_LUTS)
    positions, free_luts = _pack_carries(module, cells)
    return Counts(
        lut_cells=sum(kinds[kind] for kind in _LUTS),
        luts=positions + count_paired(free_luts) + int(memory_luts + _weigh(kinds, _ROM_LUTS)),
        carries=kinds["CARRY4"],
        carry_positions=positions,
        ffs=sum(kinds[kind] for kind in _FLIP_FLOPS),
        dsps=sum(kinds[kind] for kind in _DSPS),
        brams=_weigh(kinds, _BLOCK_RAMS),
        lutrams=int(memory_luts),
    )


def count_paired(inputs: Iterable[Inputs]) -> int:
    """LUT6 sites of free LUTs with the given input nets, by greedy pairing (rule 2).

    An empty set stands for a LUT that takes no partner. Near linear in the number of LUTs: for each
    number k of shared inputs, LUTs meet in the buckets of their k-subsets, where the widest takes the
    widest partner that fits. Deterministic for a given order.
    """
    luts = list(inputs)
    waiting = {index: lut for index, lut in enumerate(luts) if 0 < len(lut) <= PAIR_INPUTS}
    pairs = 0
    for shared in range(PAIR_INPUTS, -1, -1):
        for bucket in _buckets(waiting, shared).values():
            pairs += _pair_bucket((index for index in bucket if index in waiting), shared, waiting)
    return len(luts) - pairs


def _buckets(waiting: Mapping[int, Inputs], shared: int) -> dict[tuple[Net, ...], list[int]]:
    """LUTs by every *shared*-subset of their inputs; a LUT that fits no partner at this level is left out."""
    buckets: dict[tuple[Net, ...], list[int]] = defaultdict(list)
    for index, lut in waiting.items():
        for subset in combinations(sorted(lut), shared):
            buckets[subset].append(index)
    return buckets


def _pair_bucket(members: Iterable[int], shared: int, waiting: dict[int, Inputs]) -> int:
    """Pairs LUTs that have *shared* inputs in common, removes them from *waiting*, returns the pairs."""
    by_width: list[list[int]] = [[] for _ in range(PAIR_INPUTS + 1)]
    for index in members:
        by_width[len(waiting[index])].append(index)
    pairs = 0
    for width in range(PAIR_INPUTS, 0, -1):
        while by_width[width]:
            first = by_width[width].pop()
            widest = min(width, PAIR_INPUTS + shared - width)
            partners = next((by_width[w] for w in range(widest, 0, -1) if by_width[w]), None)
            if partners is None:
                break
            del waiting[first], waiting[partners.pop()]
            pairs += 1
    return pairs


def _check_kinds(kinds: Mapping[str, int]) -> None:
    unknown = sorted(kind for kind in kinds if kind not in _COUNTED)
    if unknown:
        listed = ", ".join(f"{kind} ({kinds[kind]})" for kind in unknown)
        msg = f"no counting rule for these cells of the mapped netlist: {listed}"
        raise PackingError(msg)


def _weigh(kinds: Mapping[str, int], weights: Mapping[str, float]) -> float:
    return sum(kinds[kind] * weight for kind, weight in weights.items() if kind in kinds)


def _pack_carries(module: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> tuple[int, list[Inputs]]:
    """Carry positions in use, and the inputs of the LUTs outside their sites (empty: takes no partner)."""
    luts, driver = _collect_luts(module, cells)
    positions = list(_positions_in_use(module, cells))
    placed = {driver[propagate] for propagate, _ in positions if propagate in driver}
    for propagate, data in positions:
        guest = driver.get(data)
        if guest is None or guest in placed or luts[guest].second_output:
            continue
        if propagate in driver:
            host = luts[driver[propagate]]
        else:
            host = _Lut(frozenset([propagate]) if isinstance(propagate, int) else frozenset())
        if not host.second_output and len(host.inputs | luts[guest].inputs) <= PAIR_INPUTS:
            placed.add(guest)
    alone = {
        driver[net]
        for cell in cells
        if cell["type"] in _WIDE_MUXES
        for net in (*cell["connections"]["I0"], *cell["connections"]["I1"])
        if net in driver
    }
    return len(positions), [
        frozenset() if index in alone or lut.second_output else lut.inputs
        for index, lut in enumerate(luts)
        if index not in placed
    ]


def _inverter_sources(cells: Iterable[Mapping[str, Any]]) -> dict[Bit, Bit]:
    """For the output net of each inverter, what it inverts (through any further inverters)."""
    direct: dict[Bit, Bit] = {
        cell["connections"]["O"][0]: _data_bits(cell)[0] for cell in cells if _is_inverter(cell)
    }
    resolved = {}
    for output, source in direct.items():
        seen = {output}
        while source in direct and source not in seen:
            seen.add(source)
            source = direct[source]
        resolved[output] = source
    return resolved


def _is_inverter(cell: Mapping[str, Any]) -> bool:
    if cell["type"] == "LUT1":
        return str(cell["parameters"].get("INIT", "")).endswith(_INVERTER_MASK)
    return bool(cell["type"] == "INV")


def _data_bits(cell: Mapping[str, Any]) -> list[Bit]:
    """What the inputs of a LUT or an inverter read."""
    return [bits[0] for pin, bits in cell["connections"].items() if pin.startswith("I")]


def _collect_luts(
    module: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> tuple[list[_Lut], dict[Bit, int]]:
    """All LUTs, with the inverters that cost one, and for each net that one drives its index."""
    source = _inverter_sources(cells)
    kept = nets_read(module, besides=_LUTS | {"INV"}) if source else set()
    luts: list[_Lut] = []
    driver: dict[Bit, int] = {}
    for cell in cells:
        outputs = [net for pin in _LUT_OUTPUTS for net in cell["connections"].get(pin, ())]
        if kept.isdisjoint(outputs) if _is_inverter(cell) else cell["type"] not in _LUTS:
            continue
        nets = (source.get(bit, bit) for bit in _data_bits(cell))
        driver.update(dict.fromkeys(outputs, len(luts)))
        luts.append(_Lut(frozenset(net for net in nets if isinstance(net, int)), cell["type"] == "LUT6_2"))
    return luts, driver


def _positions_in_use(
    module: Mapping[str, Any], cells: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Bit, Bit]]:
    """The (S, DI) bits of every carry position in use."""
    chains = [cell["connections"] for cell in cells if cell["type"] == "CARRY4"]
    read = nets_read(module) if chains else set()
    for pins in chains:
        used = [index for pin in ("O", "CO") for index, net in enumerate(pins.get(pin, ())) if net in read]
        yield from zip(pins["S"][: max(used, default=-1) + 1], pins["DI"], strict=False)


def nets_read(module: Mapping[str, Any], besides: Collection[str] = ()) -> set[Bit]:
    """Nets that an output port or an input of a cell reads, cells of the kinds *besides* left out."""
    read: set[Bit] = set()
    for port in module["ports"].values():
        if port["direction"] != "input":
            read.update(port["bits"])
    for cell in module["cells"].values():
        if cell["type"] in besides:
            continue
        directions = cell["port_directions"]
        for pin, bits in cell["connections"].items():
            if directions[pin] != "output":
                read.update(bits)
    return read
