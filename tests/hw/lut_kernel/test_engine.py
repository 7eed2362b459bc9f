import random

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring

from hw.lut_kernel import BlockAligner, TableLookupEngine, activation_words, vector_results, weight_words
from hw.reference import matrix_vector
from hw.reference.lut_kernel import table_lookup_matrix_vector
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format
from quantizers.table_lookup.alignment import align
from quantizers.table_lookup.wide_float import wide_float

INT8, INT4, INT2, TERNARY = map(parse_scalar_format, ("int8", "int4", "int2", "ternary"))
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


@pytest.mark.parametrize("group", [2, 3, 5])
@pytest.mark.parametrize("weights", ["uint1", "uint2", "int2", "int3", "int4", "uint4"])
def test_half_of_a_table(weights, group):
    """Bits as signs: tables of half the entries, and the sum of the activations apart."""
    problem = Problem(weights, group=group, table="mirrored")
    assert simulate(problem) == (problem.sums.tolist(), problem.cycles)


@pytest.mark.parametrize("table", ["full", "mirrored"])
@pytest.mark.parametrize(
    ("weights", "planes"), [("int2", 1), ("uint3", 1), ("int4", 1), ("int4", 2), ("uint4", 2)]
)
def test_planes_in_passes(weights, planes, table):
    problem = Problem(weights, planes=planes, table=table, is_extreme=True)
    assert problem.engine.passes > 1
    assert simulate(problem) == (problem.sums.tolist(), problem.cycles)


@pytest.mark.parametrize("activations", ["e4m3", "e2m1", "ue3m2", "e1m2", "e4m2"])
@pytest.mark.parametrize(
    ("weights", "table"), [("int3", "full"), ("int3", "mirrored"), ("ternary", "mirrored")]
)
def test_minifloat_activations(weights, activations, table):
    problem = Problem(weights, activations, table=table, group=3)
    assert simulate(problem) == (problem.sums.tolist(), problem.cycles)


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
@pytest.mark.parametrize("weights", ["int2", "ternary"])
def test_sums_in_block_ram(rows, weights):
    """Also where a row's turn comes again after that of one other."""
    problem = Problem(weights, rows=rows, sums="bram")
    assert simulate(problem) == (problem.sums.tolist(), problem.cycles)


@pytest.mark.parametrize(
    ("weights", "table"),
    [("int2", "full"), ("int2", "mirrored"), ("ternary", "full"), ("ternary", "mirrored")],
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
        "group": choice.randint(2, 3 if is_ternary else 5),
        "planes": choice.choice([1, None]),
        "table": choice.choice(["full", "mirrored"]),
        "sums": choice.choice(["lutram", "bram"]),
        "storage": choice.choice(["lutram", "registers"]),
        "banks": choice.randint(1, 2),
        "writers": writers,
    }


@pytest.mark.parametrize("seed", range(24))
def test_cycles(seed):
    """The documented number of cycles is the simulated one."""
    problem = Problem(**_random_engine(seed))
    assert simulate(problem) == (problem.sums.tolist(), problem.cycles)


@pytest.mark.parametrize(("banks", "sums"), [(1, "bram"), (2, "lutram")])
@pytest.mark.parametrize("lanes", [2, 7])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize(("valid", "ready"), [(0.5, 1.0), (1.0, 0.2), (0.6, 0.4)])
def test_back_pressure(banks, lanes, planes, sums, valid, ready):
    sizes = {"rows": 14, "columns": 20, "lanes": lanes}
    problem = Problem(**sizes, banks=banks, planes=planes, sums=sums, vectors=5)
    sums, cycles = simulate(problem, seed=3, valid_probability=valid, ready_probability=ready)
    assert sums == problem.sums.tolist()
    assert cycles >= problem.cycles


class FloatEngine(wiring.Component):
    """A block aligner in front of a table-lookup engine; the exponents are left out."""

    def __init__(self, aligner, engine):
        self.aligner, self.engine = aligner, engine
        streams = {"activations": aligner, "weights": engine, "outputs": engine}
        super().__init__({name: part.signature.members[name] for name, part in streams.items()})

    def elaborate(self, platform):
        m = Module()
        m.submodules.aligner, m.submodules.engine = aligner, engine = self.aligner, self.engine
        wiring.connect(m, wiring.flipped(self.activations), aligner.activations)
        wiring.connect(m, wiring.flipped(self.weights), engine.weights)
        wiring.connect(m, wiring.flipped(self.outputs), engine.outputs)
        m.d.comb += [
            engine.activations.payload.eq(aligner.outputs.payload.codes),
            engine.activations.valid.eq(aligner.outputs.valid),
            aligner.outputs.ready.eq(engine.activations.ready),
        ]
        return m


def test_bfloat16_activations():
    """As integers of 12 bits that share an exponent a vector: within the bound of their rounding."""
    fmt, rows, columns, vectors = wide_float("bf16"), 6, 32, 3
    rng = np.random.default_rng(5)
    codes = fmt.encode(rng.standard_normal((vectors, columns)))
    weights = rng.integers(0, 16, (rows, columns))
    engine = TableLookupEngine(
        weights=INT4, activations=parse_scalar_format("int12"), rows=rows, columns=columns, lanes=2, groups=2
    )
    aligner = BlockAligner(activations=fmt, lanes=8, words=4, bits=12)
    trace = simulate_stream(
        FloatEngine(aligner, engine),
        {
            "activations": codes.reshape(-1, 8).tolist(),
            "weights": weight_words(engine, weights).tolist() * vectors,
        },
        output_count=vectors * engine.row_folds,
        seed=2,
        valid_probability=0.8,
        ready_probability=0.8,
    )
    aligned = [align(fmt.decode(vector), bits=12, block=columns) for vector in codes]
    sums = vector_results(engine, trace.outputs)
    assert (sums == np.stack([one.codes for one in aligned]) @ INT4.decode(weights).T).all()
    got = sums * np.exp2([one.unit_exponents.astype(float) for one in aligned])
    wanted = fmt.decode(codes) @ INT4.decode(weights).T
    bound = (
        0.5
        * np.abs(INT4.decode(weights)).sum(axis=1)
        * np.exp2([one.unit_exponents.astype(float) for one in aligned])
    )
    assert (np.abs(got - wanted) <= bound).all()


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
        ({"planes": 3}, "planes must divide the 2 planes of int2, not be 3"),
        ({"group": 6}, "group must be 1 to 5 for full tables of int2 weights, not 6"),
        ({"group": 4, "weights": TERNARY}, "group must be 1 to 3 for full tables of ternary weights, not 4"),
        (
            {"group": 1, "table": "mirrored"},
            "group must be 2 to 5 for mirrored tables of int2 weights, not 1",
        ),
        ({"weights": INT8}, "weights must be integers of up to 4 bits or ternary, not int8"),
        (
            {"activations": parse_scalar_format("e5m2")},
            "activations must fit 32 bits as integers in units of their smallest step; e5m2 needs 34 bits",
        ),
        ({"activations": TERNARY}, "activations must be integers or minifloats, not ternary"),
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
    [
        ("table", "fulll", "full, mirrored"),
        ("storage", "ram", "lutram, registers"),
        ("sums", "ram", "lutram, bram"),
    ],
)
def test_unknown_choices(name, given, choices):
    arguments = {"weights": INT2, "activations": INT8, "rows": 8, "columns": 16, name: given}
    with pytest.raises(UsageError) as caught:
        TableLookupEngine(**arguments)
    assert str(caught.value).startswith(f"unknown {name} {given!r}")
    assert str(caught.value).endswith(f"expected one of: {choices}")
