from __future__ import annotations

from itertools import pairwise

import pytest

from costmodel.geometries import GEOMETRIES, Matrix
from costmodel.lookup_accelerator import LookupCost, LookupDesign, matrix_cycles
from costmodel.lookup_record import PART, lookup_cost, measure, read_record, recorded_designs
from costmodel.synthesis import synthesize
from costmodel.yosys import yosys_version
from quantizers.errors import UsageError

TERNARY = LookupDesign(weights="ternary")
INT2 = LookupDesign(weights="int2", groups=2)
COST = LookupCost(lanes=(3, 6, 12), luts=(250, 401, 700), lutrams=(61, 120, 240), ffs=(90, 180, 360))


def matrix(rows: int, columns: int) -> Matrix:
    return Matrix(name="any", rows=rows, columns=columns)


@pytest.mark.parametrize("design", [TERNARY, INT2, LookupDesign(weights="int4", planes=1)])
@pytest.mark.parametrize("lanes", [3, 9])
def test_cycles_of_one_block_are_those_of_the_engine(design: LookupDesign, lanes: int) -> None:
    for rows, columns in ((1, 1), (lanes, 24), (lanes * 7 + 1, 100), (lanes * design.folds, 257)):
        engine = design.build(lanes, rows=rows, columns=columns)
        assert matrix_cycles(design, matrix(rows, columns), lanes) == engine.cycles(1)


def test_full_blocks_take_as_long_as_vectors_of_an_engine() -> None:
    rows = 3 * INT2.folds
    engine = INT2.build(3, rows=rows, columns=40)
    assert matrix_cycles(INT2, matrix(5 * rows, 40), 3) == engine.cycles(5)


def test_a_short_last_block_waits_for_its_tables() -> None:
    # 5 chunks of 8 columns. A full block looks 32 turns up in each, and the last block one, but its tables
    # take 15 cycles.
    engine = INT2.build(3, rows=3, columns=40)
    assert engine.interval == 5 * engine.table_cycles == 5 * 15
    full = matrix_cycles(INT2, matrix(3 * 32, 40), 3)
    assert matrix_cycles(INT2, matrix(3 * 33, 40), 3) == 5 * 32 + engine.cycles(1)
    assert full < matrix_cycles(INT2, matrix(3 * 33, 40), 3)


def test_more_lanes_never_take_longer() -> None:
    for rows in (500, 1600, 3200):
        cycles = [matrix_cycles(TERNARY, matrix(rows, 960), lanes) for lanes in range(3, 120, 3)]
        assert all(few >= many for few, many in pairwise(cycles))


def test_engines_are_wide_enough_for_every_model() -> None:
    widest = max(m.columns for geometry in GEOMETRIES.values() for m in geometry.products)
    assert widest == TERNARY.columns
    with pytest.raises(UsageError) as caught:
        matrix_cycles(TERNARY, matrix(1, widest + 1), 3)
    assert str(caught.value) == "any has 16385 columns, and the engine's sums are for 16384"


@pytest.mark.parametrize(
    ("weights", "bits", "rows"),
    [
        ("ternary", 1, 1), ("ternary", 2, 2), ("ternary", 3, 2), ("ternary", 4, 3), ("ternary", 8, 6),
        ("int2", 4, 2), ("int4", 4, 1), ("int4", 8, 2), ("int3", 4, 2),
    ],
)  # fmt: skip
def test_rows_for_wider_integers(weights: str, bits: int, rows: int) -> None:
    assert LookupDesign(weights=weights).head_rows(bits) == rows
    if weights == "ternary":  # so many balanced digits hold the most negative number, and one fewer do not
        assert (3**rows - 1) // 2 >= 2 ** (bits - 1) > (3 ** (rows - 1) - 1) // 2


def test_indices_and_weights_of_a_cycle() -> None:
    assert TERNARY.index_bits == 5 / 3
    assert TERNARY.weights_per_lane == 24
    assert LookupDesign(weights="int3").index_bits == 3
    serial = LookupDesign(weights="int4", planes=1)
    assert (serial.index_bits, serial.weights_per_lane) == (4, 8)
    assert serial.name == "int4 int8 groups=8 group=4 planes=1 table=full folds=32 columns=16384"


def test_the_line_through_measured_sizes() -> None:
    assert COST.luts_per_lane == 50
    assert COST.fixed_luts == 100
    assert COST.luts_of(100) == 5100
    assert COST.lutrams_per_lane == 61 / 3
    assert COST.ffs_per_lane == 30
    assert COST.line_error == pytest.approx(1 / 401)
    assert COST.fmax_mhz is None


def test_lanes_come_in_threes() -> None:
    assert COST.lanes_within(luts=100 + 12 * 50, lutrams=1e6) == 12
    assert COST.lanes_within(luts=99 + 12 * 50, lutrams=1e6) == 9
    assert COST.lanes_within(luts=1e6, lutrams=130) == 6
    assert COST.lanes_within(luts=200, lutrams=1e6) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "e2m1"}, "weights must be integers of up to 4 bits or ternary, not e2m1"),
        ({"weights": "int4", "folds": 0}, "folds must be a positive integer, not 0"),
    ],
)
def test_designs_that_there_is_no_engine_for(arguments, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        LookupDesign(**arguments)
    assert str(caught.value) == message


def test_the_record_holds_the_usual_engines_as_this_yosys_makes_them() -> None:
    record = read_record()
    assert sorted(record) == sorted(recorded_designs())
    for cost in record.values():
        assert cost.tools["yosys"] == yosys_version()
        assert cost.line_error < 0.005
        assert 1 <= len(cost.seeds_mhz) <= 5
        assert 50 < min(cost.seeds_mhz) <= cost.fmax_mhz <= max(cost.seeds_mhz) < 400


@pytest.mark.parametrize("name", list(recorded_designs()))
def test_the_smallest_recorded_engine_is_what_it_was(name: str) -> None:
    recorded = read_record()[name]
    now = synthesize(recorded_designs()[name].build(recorded.lanes[0]), name=name, part=PART)
    assert now.luts == pytest.approx(recorded.luts[0], rel=0.03)
    assert now.lutrams == pytest.approx(recorded.lutrams[0], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(recorded_designs()))
def test_the_line_holds_beyond_the_sizes_that_it_was_drawn_through(name: str) -> None:
    recorded = read_record()[name]
    now = synthesize(recorded_designs()[name].build(24), name=name, part=PART)
    assert recorded.luts_of(24) == pytest.approx(now.luts, rel=0.02)
    assert 24 * recorded.lutrams_per_lane == pytest.approx(now.lutrams, rel=0.02)


def test_an_engine_that_is_not_on_record_is_measured(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path))
    monkeypatch.setattr("costmodel.lookup_record.LANES", (3, 6))
    told: list[str] = []
    design = LookupDesign(weights="uint1", groups=1, columns=64, folds=4)
    cost = lookup_cost(design, is_placed=False, tell=told.append)
    name = "uint1 int8 groups=1 group=4 planes=1 table=full folds=4 columns=64"
    assert told == [f"synthesising {name} of {lanes} lanes" for lanes in (3, 6)]
    assert (list(cost.lanes), cost.fmax_mhz) == ([3, 6], None)
    assert cost.luts[0] == synthesize(design.build(3), name="again", part=PART).luts
    assert 0 < cost.luts_per_lane < 100
    monkeypatch.setattr("costmodel.synthesis._run_flow", lambda *_: pytest.fail("synthesised a second time"))
    assert LookupCost.from_json(measure(design, is_placed=False)) == cost
