"""The LUT6-site rule, clause by clause, on netlists made by hand."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from costmodel._loops import has_combinational_loop
from costmodel.packing import Counts, PackingError, count_paired, count_resources

_OUTPUTS = {"O", "O5", "O6", "CO", "Q", "DOA", "DOB", "DOC", "DOD", "DPO", "SPO", "P"}


class Netlist:
    """Builds a module in the form of Yosys' ``write_json``; bits are integers, constants '0' and '1'."""

    def __init__(self) -> None:
        self.cells: dict[str, dict] = {}
        self.ports: dict[str, dict] = {}
        self._nets = 100

    def net(self) -> int:
        self._nets += 1
        return self._nets

    def nets(self, count: int) -> list[int]:
        return [self.net() for _ in range(count)]

    def cell(self, kind: str, **pins: list) -> None:
        directions = {pin: "output" if pin in _OUTPUTS else "input" for pin in pins}
        cell = {"type": kind, "connections": pins, "port_directions": directions, "parameters": {}}
        self.cells[f"u{len(self.cells)}"] = cell

    def lut(self, *inputs: int | str) -> int:
        output = self.net()
        self.cell(f"LUT{len(inputs)}", O=[output], **{f"I{i}": [net] for i, net in enumerate(inputs)})
        self.cells[f"u{len(self.cells) - 1}"]["parameters"]["INIT"] = "10"
        return output

    def lut1(self, source: int, mask: str) -> int:
        output = self.lut(source)
        self.cells[f"u{len(self.cells) - 1}"]["parameters"] = {"INIT": mask}
        return output

    def inverter(self, source: int) -> int:
        output = self.net()
        self.cell("INV", I=[source], O=[output])
        return output

    def carry(self, s: list, di: list) -> tuple[list[int], list[int]]:
        """A CARRY4, its S and DI padded with zeros; returns its O and CO bits."""
        o, co = self.nets(4), self.nets(4)
        pad = ["0"] * (4 - len(s))
        self.cell("CARRY4", CI=["0"], CYINIT=["0"], S=[*s, *pad], DI=[*di, *pad], O=o, CO=co)
        return o, co

    def drive(self, *nets: int) -> None:
        """Makes *nets* outputs of the module."""
        self.ports[f"y{len(self.ports)}"] = {"direction": "output", "bits": list(nets)}

    @property
    def module(self) -> dict:
        return {"ports": self.ports, "cells": self.cells}

    def count(self) -> Counts:
        return count_resources(self.module)


def test_counts_by_kind() -> None:
    n = Netlist()
    a = n.nets(6)
    n.lut(*a)
    for kind in ("FDRE", "FDSE", "FDCE", "FDPE", "FDRE_1", "LDCE"):
        n.cell(kind, D=[a[0]], Q=[n.net()])
    n.cell("DSP48E1", A=a, P=[n.net()])
    n.cell("RAMB36E1", ADDR=a)
    n.cell("RAMB18E1", ADDR=a)
    n.cell("BUFG", I=[a[0]], O=[n.net()])
    assert n.count() == Counts(
        lut_cells=1, luts=1, carries=0, carry_positions=0, ffs=6, dsps=1, brams=1.5, lutrams=0
    )


@pytest.mark.parametrize(
    ("kind", "luts"),
    [("RAM32M", 4), ("RAM64M", 4), ("RAM32X1D", 2), ("RAM64X1D", 2), ("RAM128X1D", 4), ("SRL16E", 1)],
)
def test_memory_counts_its_luts(kind: str, luts: int) -> None:
    n = Netlist()
    n.cell(kind, A=n.nets(5))
    n.lut(*n.nets(6))
    counts = n.count()
    assert (counts.lut_cells, counts.luts, counts.lutrams) == (1, luts + 1, luts)


def test_rom_is_not_memory_of_a_slicem() -> None:
    n = Netlist()
    n.cell("ROM128X1", A=n.nets(7))
    assert (n.count().luts, n.count().lutrams) == (2, 0)


def test_unknown_cells_are_named() -> None:
    n = Netlist()
    n.cell("XORCY", I=[n.net()])
    n.cell("XORCY", I=[n.net()])
    n.cell("$mul", A=[n.net()])
    with pytest.raises(PackingError) as caught:
        n.count()
    assert str(caught.value) == "no counting rule for these cells of the mapped netlist: $mul (1), XORCY (2)"


@pytest.mark.parametrize(("first", "second", "shared", "sites"), [
    (5, 5, 5, 1), (5, 5, 4, 2), (5, 4, 4, 1), (4, 4, 3, 1), (4, 4, 2, 2), (3, 2, 0, 1), (3, 3, 0, 2),
    (3, 3, 1, 1), (6, 1, 1, 2), (6, 6, 6, 2),
])  # fmt: skip
def test_two_luts_share_up_to_five_inputs(first: int, second: int, shared: int, sites: int) -> None:
    n = Netlist()
    common = n.nets(shared)
    n.lut(*common, *n.nets(first - shared))
    n.lut(*common, *n.nets(second - shared))
    assert (n.count().luts, n.count().lut_cells) == (sites, 2)


def test_constant_inputs_do_not_count() -> None:
    n = Netlist()
    a = n.nets(4)
    n.lut(*a, "0", "1")
    n.lut(*a, n.net())
    assert n.count().luts == 1


def test_most_shared_inputs_are_paired_first() -> None:
    """The first fit (ab with axy) would leave two five-input LUTs alone."""
    n = Netlist()
    a, b, x, y, p, q, r, v, w = n.nets(9)
    n.lut(a, b)
    n.lut(a, x, y)
    n.lut(a, b, p, q, r)
    n.lut(a, x, y, v, w)
    assert n.count().luts == 2


def test_at_most_two_functions_a_site() -> None:
    n = Netlist()
    a = n.nets(5)
    for _ in range(5):
        n.lut(*a)
    assert n.count().luts == 3


@pytest.mark.parametrize(("mask", "sites"), [("01", 1), ("0001", 1), ("10", 2), ("00", 2)])
def test_inverting_lut1_before_luts_is_absorbed(mask: str, sites: int) -> None:
    n = Netlist()
    a = n.nets(5)
    n.lut(n.lut1(a[0], mask), *a[1:])
    n.lut(*a)
    assert (n.count().luts, n.count().lut_cells) == (sites, 3)


def _feed_flip_flop(n: Netlist, net: int) -> None:
    n.cell("FDRE", D=[net], Q=[n.net()])


def _feed_memory(n: Netlist, net: int) -> None:
    n.cell("RAMB36E1", ADDR=[net])


def _feed_select(n: Netlist, net: int) -> None:
    n.cell("MUXF7", I0=["0"], I1=["1"], S=[net], O=[n.net()])


def _feed_carry_in(n: Netlist, net: int) -> None:
    n.cell("CARRY4", CI=["0"], CYINIT=[net], S=["0"] * 4, DI=["0"] * 4, O=n.nets(4), CO=n.nets(4))


@pytest.mark.parametrize("feed", [Netlist.drive, _feed_flip_flop, _feed_memory, _feed_select, _feed_carry_in])
@pytest.mark.parametrize("kind", ["INV", "LUT1"])
def test_inverter_that_feeds_more_than_luts_keeps_its_site(
    kind: str, feed: Callable[[Netlist, int], None]
) -> None:
    n = Netlist()
    a = n.nets(6)
    inverted = n.inverter(a[0]) if kind == "INV" else n.lut1(a[0], "01")
    n.lut(inverted, *a[1:])
    assert n.count().luts == 1
    feed(n, inverted)
    assert n.count().luts == 2


def test_lut1_without_a_truth_table_is_no_inverter() -> None:
    n = Netlist()
    n.cell("LUT1", I0=[n.net()], O=[n.net()])
    assert n.count().luts == 1


def test_kept_inverters_are_paired_like_any_lut() -> None:
    n = Netlist()
    n.drive(n.inverter(n.net()), n.inverter(n.net()), n.inverter(n.net()))
    assert (n.count().luts, n.count().lut_cells) == (2, 0)


def test_inverters_cost_nothing_and_are_seen_through() -> None:
    n = Netlist()
    a = n.nets(5)
    inverted = n.inverter(n.inverter(a[0]))
    n.lut(*a)
    n.lut(inverted, *a[1:])
    assert (n.count().luts, n.count().lut_cells) == (1, 2)


def test_luts_of_a_wide_multiplexer_stay_alone() -> None:
    n = Netlist()
    a = n.nets(3)
    first, second = n.lut(*a), n.lut(*a)
    n.lut(*a)
    output = n.net()
    n.cell("MUXF7", I0=[first], I1=[second], S=[n.net()], O=[output])
    n.drive(output)
    assert n.count().luts == 3


def test_lut6_2_is_one_cell_and_one_site() -> None:
    n = Netlist()
    a = n.nets(2)
    inputs = {f"I{i}": [net] for i, net in enumerate([*a, "0", "0", "0", "1"])}
    n.cell("LUT6_2", **inputs, O6=[n.net()], O5=[n.net()])
    n.lut(*a)
    assert (n.count().luts, n.count().lut_cells) == (2, 2)


def test_every_carry_position_in_use_is_a_site_with_the_lut_on_s() -> None:
    n = Netlist()
    data = n.nets(4)
    o, _ = n.carry([n.lut(x, n.net()) for x in data], data)
    n.drive(*o)
    assert n.count() == Counts(
        lut_cells=4, luts=4, carries=1, carry_positions=4, ffs=0, dsps=0, brams=0, lutrams=0
    )


def test_bare_carry_positions_count() -> None:
    """S from registers, ports or constants still needs the O6 output of its own site."""
    n = Netlist()
    o, _ = n.carry([n.net(), n.net(), "0", "1"], n.nets(4))
    n.drive(*o)
    assert (n.count().luts, n.count().lut_cells) == (4, 0)


@pytest.mark.parametrize(
    ("pin", "index", "positions"), [("o", 0, 1), ("o", 2, 3), ("co", 1, 2), ("co", 3, 4)]
)
def test_positions_up_to_the_highest_one_read_are_in_use(pin: str, index: int, positions: int) -> None:
    n = Netlist()
    o, co = n.carry(n.nets(4), n.nets(4))
    n.drive({"o": o, "co": co}[pin][index])
    assert (n.count().luts, n.count().carry_positions, n.count().carries) == (positions, positions, 1)


def test_unused_position_frees_its_lut() -> None:
    n = Netlist()
    propagate = [n.lut(*n.nets(5)) for _ in range(4)]
    o, _ = n.carry(propagate, n.nets(4))
    n.drive(o[0])
    assert (n.count().carry_positions, n.count().luts) == (1, 4)


def test_carry_read_by_the_next_chain_counts() -> None:
    n = Netlist()
    _, co = n.carry(n.nets(4), n.nets(4))
    upper = n.net()
    n.cell("CARRY4", CI=[co[3]], CYINIT=["0"], S=["0"] * 4, DI=["0"] * 4, O=[upper, *n.nets(3)], CO=n.nets(4))
    n.drive(upper)
    assert (n.count().carry_positions, n.count().carries) == (5, 2)


@pytest.mark.parametrize(("private", "sites"), [(2, 1), (3, 2)])
def test_data_lut_shares_the_site_up_to_five_inputs(private: int, sites: int) -> None:
    n = Netlist()
    common = n.nets(2)
    o, _ = n.carry([n.lut(*common, n.net())], [n.lut(*common, *n.nets(private))])
    n.drive(o[0])
    assert n.count().luts == sites


def test_data_lut_shares_the_site_of_a_bare_position() -> None:
    n = Netlist()
    o, _ = n.carry([n.net()], [n.lut(*n.nets(4))])
    n.drive(o[0])
    assert n.count().luts == 1


def test_data_lut_of_two_positions_is_placed_once() -> None:
    n = Netlist()
    data = n.lut(*n.nets(4))
    o, _ = n.carry(n.nets(2), [data, data])
    n.drive(*o[:2])
    assert n.count().luts == 2


def test_lut_on_s_of_two_positions_costs_both_sites() -> None:
    n = Netlist()
    propagate = n.lut(*n.nets(2))
    o, _ = n.carry([propagate, propagate], n.nets(2))
    n.drive(*o[:2])
    assert (n.count().luts, n.count().lut_cells) == (2, 1)


def test_a_site_takes_no_free_lut_beside_its_carry() -> None:
    """LUTs that feed a carry chain are not paired with unrelated ones, however few inputs they have."""
    n = Netlist()
    x = n.net()
    o, _ = n.carry([n.lut(x)], ["0"])
    n.lut(x)
    n.drive(o[0])
    assert n.count().luts == 2


def test_inverters_before_s_and_di_take_the_luts_of_the_site() -> None:
    n = Netlist()
    x, y = n.nets(2)
    o, _ = n.carry([n.inverter(x)], [n.inverter(y)])
    n.drive(o[0])
    assert n.count().luts == 1
    n.lut(x)
    assert n.count().luts == 2


def test_pairing_is_deterministic_and_never_worse_than_half() -> None:
    rng = random.Random(1)
    luts = [frozenset(rng.sample(range(60), rng.randint(1, 6))) for _ in range(500)]
    sites = count_paired(luts)
    wide = sum(len(lut) == 6 for lut in luts)
    assert sites == count_paired(luts)
    assert wide + (len(luts) - wide) / 2 <= sites < len(luts)


def test_five_thousand_luts_take_well_under_a_second() -> None:
    rng = random.Random(2)
    luts = [frozenset([1, *rng.sample(range(2, 4000), rng.randint(1, 5))]) for _ in range(5000)]
    start = time.process_time()
    count_paired(luts)
    assert time.process_time() - start < 1.0


def test_loop_through_luts_is_found() -> None:
    n = Netlist()
    back = n.net()
    n.cell("LUT1", I0=[n.lut(back, n.net())], O=[back])
    assert has_combinational_loop(n.module)


def test_register_and_memory_data_break_a_loop() -> None:
    n = Netlist()
    q, d = n.nets(2)
    n.cell("FDRE", D=[n.lut(q)], Q=[q])
    n.cell("RAM32M", DIA=[n.lut(d)], ADDRA=n.nets(5), DOA=[d])
    assert not has_combinational_loop(n.module)


def test_sum_that_feeds_a_higher_position_is_no_loop() -> None:
    n = Netlist()
    o, co = n.nets(4), n.nets(4)
    n.cell("CARRY4", CI=["0"], CYINIT=["0"], S=[n.net(), o[0], o[1], o[2]], DI=["0"] * 4, O=o, CO=co)
    assert not has_combinational_loop(n.module)
    n.cell("CARRY4", CI=["0"], CYINIT=[o[3]], S=["0"] * 4, DI=["0"] * 4, O=(last := n.nets(4)), CO=n.nets(4))
    n.cells["u0"]["connections"]["S"][1] = last[0]
    assert has_combinational_loop(n.module)
