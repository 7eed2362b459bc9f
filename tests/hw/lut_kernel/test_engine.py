import random

import numpy as np
import pytest

from hw.lut_kernel import TableLookupEngine, activation_words, vector_results, weight_words
from hw.reference import matrix_vector
from hw.reference.lut_kernel import table_lookup_matrix_vector
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format

INT8, INT2, TERNARY = map(parse_scalar_format, ("int8", "int2", "ternary"))
WEIGHTS = ["uint1", "uint2", "int2", "int3", "int4", "uint4", "int4n", "ternary"]


class Problem:
    """Random or extreme weights and vectors for an engine, and the sums that they must give."""

    def __init__(self, weights="int2", activations="int8", vectors=3, seed=1, is_extreme=False, **arguments):
        formats = {
            "weights": parse_scalar_format(weights),
            "activations": parse_scalar_format(activations),
        }
        sizes = {"rows": 7, "columns": 37, "lanes": 2, "groups": 2}
        self.engine = TableLookupEngine(**formats, **{**sizes, **arguments})
        rng = np.random.default_rng(seed)
        shapes = {
            "weights": (self.engine.rows, self.engine.columns),
            "activations": (vectors, self.engine.columns),
        }
        matrix, inputs = (_codes(formats[name], shape, rng, is_extreme) for name, shape in shapes.items())
        group = self.engine.encoding.group
        self.sums = table_lookup_matrix_vector(matrix, inputs, **formats, group=group)
        assert (self.sums == matrix_vector(matrix, inputs, **formats)).all()
        self.items = {
            "weights": weight_words(self.engine, matrix).tolist() * vectors,
            "activations": activation_words(self.engine, inputs).tolist(),
        }
        self.output_count = vectors * self.engine.row_folds
        self.cycles = self.engine.cycles(vectors)


def _codes(fmt, shape, rng, is_extreme):
    values = fmt.values()
    allowed = (
        [np.nanargmin(values), np.nanargmax(values)] if is_extreme else np.flatnonzero(~np.isnan(values))
    )
    return rng.choice(allowed, shape)


def simulate(problem, **settings):
    trace = simulate_stream(
        problem.engine, problem.items, output_count=problem.output_count, max_cycles=20_000, **settings
    )
    return vector_results(problem.engine, trace.outputs).tolist(), trace.cycles


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("banks", [1, 2])
def test_weights(weights, banks):
    problem = Problem(weights, banks=banks, group=3)
    assert simulate(problem) == (problem.sums.tolist(), problem.cycles)


@pytest.mark.parametrize(
    ("weights", "group", "table"),
    [("uint1", group, "full") for group in (1, 2, 3, 4, 5)]
    + [("ternary", group, table) for group in (1, 2, 3) for table in ("full", "mirrored")],
)
def test_groups(weights, group, table):
    problem = Problem(weights, group=group, table=table)
    assert simulate(problem) == (problem.sums.tolist(), problem.cycles)


@pytest.mark.parametrize(
    ("weights", "table"), [("int2", "full"), ("ternary", "full"), ("ternary", "mirrored")]
)
@pytest.mark.parametrize("banks", [1, 2])
def test_tables_in_registers(weights, table, banks):
    problem = Problem(weights, group=3, table=table, banks=banks, storage="registers")
    assert simulate(problem) == (problem.sums.tolist(), problem.cycles)


@pytest.mark.parametrize("activations", ["int2", "int4", "uint4", "int8n", "uint8", "int16"])
@pytest.mark.parametrize("weights", ["int4", "ternary"])
def test_extreme_values(weights, activations):
    """Where every weight and activation is its format's smallest or largest, sums use their whole width."""
    problem = Problem(weights, activations, is_extreme=True, group=3)
    assert simulate(problem) == (problem.sums.tolist(), problem.cycles)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("columns", [1, 7, 8, 9])
@pytest.mark.parametrize("lanes", [1, 5])
def test_edges_of_the_matrix(rows, columns, lanes):
    problem = Problem(rows=rows, columns=columns, lanes=lanes)
    assert simulate(problem) == (problem.sums.tolist(), problem.cycles)


def _random_engine(seed):
    choice = random.Random(seed)
    weights = choice.choice(WEIGHTS)
    is_ternary = weights == "ternary"
    writers = choice.randint(1, 3)
    return {
        "weights": weights,
        "activations": choice.choice(["int4", "int8", "uint8"]),
        "vectors": choice.randint(1, 3),
        "rows": choice.randint(1, 90),
        "columns": choice.randint(1, 60),
        "lanes": choice.randint(1, 4),
        "groups": writers * choice.randint(1, 3),
        "group": choice.randint(1, 3 if is_ternary else 5),
        "table": choice.choice(["full", "mirrored"]) if is_ternary else "full",
        "storage": choice.choice(["lutram", "registers"]),
        "banks": choice.randint(1, 2),
        "writers": writers,
    }


@pytest.mark.parametrize("seed", range(24))
def test_cycles(seed):
    """The documented number of cycles is the simulated one."""
    problem = Problem(**_random_engine(seed))
    assert simulate(problem) == (problem.sums.tolist(), problem.cycles)


@pytest.mark.parametrize("banks", [1, 2])
@pytest.mark.parametrize("lanes", [2, 7])
@pytest.mark.parametrize(("valid", "ready"), [(0.5, 1.0), (1.0, 0.2), (0.6, 0.4)])
def test_back_pressure(banks, lanes, valid, ready):
    problem = Problem(rows=14, columns=20, banks=banks, lanes=lanes, vectors=5)
    sums, cycles = simulate(problem, seed=3, valid_probability=valid, ready_probability=ready)
    assert sums == problem.sums.tolist()
    assert cycles > problem.cycles


def test_many_vectors_in_verilog():
    problem = Problem("int3", rows=50, columns=99, lanes=3, groups=4, writers=2, vectors=50)
    trace = VerilatedStream(problem.engine).run(
        problem.items, output_count=problem.output_count, seed=2, valid_probability=0.8, ready_probability=0.7
    )
    assert vector_results(problem.engine, trace.outputs).tolist() == problem.sums.tolist()


def test_interval():
    """Tables are written behind the look-ups; with one bank in turns with them."""
    arguments = {"weights": INT2, "activations": INT8, "columns": 64, "lanes": 4, "groups": 4}
    assert TableLookupEngine(**arguments, rows=80).interval == 4 * 20
    assert TableLookupEngine(**arguments, rows=8).interval == 4 * 15
    assert TableLookupEngine(**arguments, rows=80, banks=1).interval == 4 * (20 + 15)
    assert TableLookupEngine(**arguments, rows=80, writers=2).interval == 4 * 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows must be a positive integer, not 0"),
        ({"lanes": 1.5}, "lanes must be a positive integer, not 1.5"),
        ({"banks": 3}, "banks must be 1 or 2, not 3"),
        ({"writers": 3}, "writers must divide the 8 groups, not be 3"),
        ({"group": 6}, "group must be 1 to 5 for int2 weights, not 6"),
        ({"group": 4, "weights": TERNARY}, "group must be 1 to 3 for ternary weights, not 4"),
        ({"table": "mirrored"}, "mirrored tables are for ternary weights, not int2"),
        ({"weights": INT8}, "weights must be integers of up to 4 bits or ternary, not int8"),
        ({"activations": TERNARY}, "activations must be integers, not ternary"),
        (
            {"accumulator_bits": 12},
            "accumulator_bits must be at least 14 for sums of 16 products of int2 and int8, not 12",
        ),
    ],
)
def test_wrong_arguments(changes, message):
    arguments = {"weights": INT2, "activations": INT8, "rows": 8, "columns": 16}
    with pytest.raises(UsageError) as caught:
        TableLookupEngine(**{**arguments, **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "given", "choices"),
    [("table", "fulll", "full, mirrored"), ("storage", "ram", "lutram, registers")],
)
def test_unknown_choices(name, given, choices):
    arguments = {"weights": INT2, "activations": INT8, "rows": 8, "columns": 16, name: given}
    with pytest.raises(UsageError) as caught:
        TableLookupEngine(**arguments)
    assert str(caught.value).startswith(f"unknown {name} {given!r}")
    assert str(caught.value).endswith(f"expected one of: {choices}")
