import random

import numpy as np
import pytest

from hw.lut_kernel.grouped import GroupedLookupEngine
from hw.lut_kernel.grouped_streams import (
    activation_words,
    format_codes,
    scale_words,
    vector_results,
    weight_words,
)
from hw.reference.grouped_lookup import grouped_matrix_vector
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.formats import parse_scalar_format
from quantizers.table_lookup.fixed_scales import fixed_scales
from quantizers.table_lookup.weights import quantize_groups, quantize_ternary, table_gemv

FORMATS = ["uint1", "uint2", "uint3", "uint4", "int2", "int3", "int4", "int4n", "ternary"]


class Problem:
    """Random or extreme weights, scales, zero points and vectors for an engine, and what they must give."""

    def __init__(self, weights="uint4", activations="int8", vectors=2, seed=1, is_extreme=False, **arguments):
        formats = {
            "weights": parse_scalar_format(weights),
            "activations": parse_scalar_format(activations),
        }
        sizes = {"rows": 7, "columns": 37, "block": 16, "lanes": 2, "groups": 2}
        self.engine = engine = GroupedLookupEngine(**formats, **{**sizes, **arguments})
        rng = np.random.default_rng(seed)
        blocks = (engine.rows, engine.blocks)
        matrix = _codes(formats["weights"], (engine.rows, engine.columns), rng, is_extreme)
        inputs = _codes(formats["activations"], (vectors, engine.columns), rng, is_extreme)
        scales = _numbers(range(1 << engine.scale_bits), blocks, rng, is_extreme)
        zeros = _numbers(zero_range(engine), blocks, rng, is_extreme) if engine.has_zeros else None
        group = engine.engine.encoding.group
        self.results = grouped_matrix_vector(
            matrix, inputs, scales, zeros, **formats, block=engine.block, group=group
        )
        self.items = {
            "activations": activation_words(engine, inputs).tolist(),
            "weights": weight_words(engine, matrix).tolist() * vectors,
            "scales": scale_words(engine, scales, zeros).tolist() * vectors,
        }
        self.output_count = vectors * engine.row_folds
        self.cycles = engine.cycles(vectors)


def zero_range(engine):
    size = 1 << engine.zero_shape.width
    return range(-(size // 2), size // 2) if engine.zero_shape.signed else range(size)


def _codes(fmt, shape, rng, is_extreme):
    values = fmt.values()
    ends = [np.nanargmin(values), np.nanargmax(values)]
    return rng.choice(ends if is_extreme else np.flatnonzero(~np.isnan(values)), shape)


def _numbers(numbers, shape, rng, is_extreme):
    return rng.choice([numbers[0], numbers[-1]] if is_extreme else numbers, shape)


def simulate(problem, **settings):
    trace = simulate_stream(
        problem.engine, problem.items, output_count=problem.output_count, max_cycles=30_000, **settings
    )
    return vector_results(problem.engine, trace.outputs).tolist(), trace.cycles


@pytest.mark.parametrize(
    ("weights", "has_zeros"),
    [(weights, has_zeros) for weights in FORMATS for has_zeros in (False, True)][:-1],
)
def test_weights(weights, has_zeros):
    """All but ternary weights with and without zero points."""
    problem = Problem(weights, has_zeros=has_zeros, group=3)
    assert simulate(problem) == (problem.results.tolist(), problem.cycles)


@pytest.mark.parametrize("weights", ["uint4", "ternary"])
@pytest.mark.parametrize("activations", ["int4", "uint8", "int16"])
@pytest.mark.parametrize("products", ["luts", "dsps"])
def test_extreme_values(weights, activations, products):
    problem = Problem(weights, activations, is_extreme=True, products=products, scale_bits=16, multipliers=1)
    assert simulate(problem) == (problem.results.tolist(), problem.cycles)


@pytest.mark.parametrize(
    ("weights", "code", "value", "zero"), [("uint4", 15, 15, 0), ("uint4", 0, 0, 15), ("int4", 8, -8, 7)]
)
def test_the_largest_results_there_are(weights, code, value, zero):
    """Every weight at one end of the codes, every zero point at the other one, the scales the largest."""
    engine = Problem(weights, columns=32, rows=1, has_zeros=True).engine
    items = {
        "activations": activation_words(engine, np.full((1, 32), 0x80)).tolist(),
        "weights": weight_words(engine, np.full((1, 32), code)).tolist(),
        "scales": scale_words(engine, np.full((1, 2), 4095), np.full((1, 2), zero)).tolist(),
    }
    trace = simulate_stream(engine, items, output_count=1)
    assert vector_results(engine, trace.outputs).tolist() == [[32 * (value - zero) * -128 * 4095]]
    assert (32 * 15 * 128 * 4095).bit_length() + 1 == engine.accumulator_bits


@pytest.mark.parametrize("block", [32, 64, 128, 31, 150, None])
@pytest.mark.parametrize("weights", ["uint4", "ternary"])
def test_blocks(block, weights):
    problem = Problem(weights, rows=3, columns=150, block=block, groups=4)
    assert problem.engine.blocks == -(-150 // (block or 150))
    assert simulate(problem) == (problem.results.tolist(), problem.cycles)


def _random_engine(seed):
    choice = random.Random(seed)
    weights = choice.choice(FORMATS)
    is_ternary = weights == "ternary"
    writers, lanes, columns = choice.randint(1, 2), choice.choice([1, 2, 3, 4, 6]), choice.randint(1, 60)
    return {
        "weights": weights,
        "activations": choice.choice(["int4", "int8", "uint8"]),
        "vectors": choice.randint(1, 3),
        "rows": choice.randint(1, 40),
        "columns": columns,
        "block": choice.choice([None, choice.randint(1, columns)]),
        "has_zeros": None if is_ternary else choice.choice([None, True, False]),
        "lanes": lanes,
        "groups": writers * choice.randint(1, 2),
        "group": choice.randint(2, 3 if is_ternary else 4),
        "planes": choice.choice([1, None]),
        "table": choice.choice(["full", "mirrored"]),
        "banks": choice.randint(1, 2),
        "sums": choice.choice(["lutram", "bram"]),
        "writers": writers,
        "scale_bits": choice.randint(8, 16),
        "multipliers": choice.choice([n for n in range(1, lanes + 1) if lanes % n == 0]),
        "products": choice.choice(["luts", "dsps"]),
    }


@pytest.mark.parametrize("seed", range(24))
def test_cycles(seed):
    """The documented number of cycles is the simulated one."""
    problem = Problem(**_random_engine(seed))
    assert simulate(problem) == (problem.results.tolist(), problem.cycles)


@pytest.mark.parametrize("multipliers", [1, 3, 6])
@pytest.mark.parametrize("rows", [1, 6, 30])
def test_tables_faster_than_scales(multipliers, rows):
    """A table of one entry: the engine runs ahead of the stage, and the sums of activations with it."""
    problem = Problem(
        "uint1", rows=rows, columns=40, block=4, lanes=6, group=1, groups=4, storage="registers",
        multipliers=multipliers, vectors=3,
    )  # fmt: skip
    assert simulate(problem) == (problem.results.tolist(), problem.cycles)


@pytest.mark.parametrize("multipliers", [1, 4])
@pytest.mark.parametrize("weights", ["uint2", "int2"])
@pytest.mark.parametrize(("valid", "ready"), [(0.5, 1.0), (1.0, 0.2), (0.6, 0.4)])
def test_back_pressure(multipliers, weights, valid, ready):
    problem = Problem(weights, rows=13, columns=20, block=8, lanes=4, multipliers=multipliers, vectors=4)
    results, cycles = simulate(problem, seed=3, valid_probability=valid, ready_probability=ready)
    assert results == problem.results.tolist()
    assert cycles > problem.cycles


def test_many_vectors_in_verilog():
    problem = Problem("uint3", rows=50, columns=99, block=20, lanes=4, groups=4, multipliers=2, vectors=40)
    trace = VerilatedStream(problem.engine).run(
        problem.items, output_count=problem.output_count, seed=2, valid_probability=0.8, ready_probability=0.7
    )
    assert vector_results(problem.engine, trace.outputs).tolist() == problem.results.tolist()


@pytest.mark.parametrize(
    ("bits", "symmetric", "fmt"),
    [
        (1, False, "uint1"),
        (2, False, "uint2"),
        (3, False, "uint3"),
        (4, False, "uint4"),
        (4, False, "int4"),
        (2, True, "int2"),
        (3, True, "int3"),
        (4, True, "int4"),
        (2, True, "ternary"),
    ],
)
def test_quantized_matrix(bits, symmetric, fmt):
    """From a matrix of real numbers to results that are those of its software product but for the scales."""
    rng = np.random.default_rng(5)
    matrix, vector = rng.standard_normal((6, 50)), rng.integers(-128, 128, 50)
    if fmt == "ternary":
        weights = quantize_ternary(matrix, block=16)
    else:
        weights = quantize_groups(matrix, bits, block=16, symmetric=symmetric)
    scales = fixed_scales(weights, 14)
    engine = GroupedLookupEngine(
        weights=parse_scalar_format(fmt), activations=parse_scalar_format("int8"), rows=6, columns=50,
        block=16, has_zeros=not symmetric, lanes=3, groups=2, scale_bits=14, multipliers=1,
    )  # fmt: skip
    codes, zeros = format_codes(weights, engine.weight_format)
    items = {
        "activations": activation_words(engine, vector[None] & 255).tolist(),
        "weights": weight_words(engine, codes).tolist(),
        "scales": scale_words(engine, scales.multiples, None if symmetric else zeros).tolist(),
    }
    trace = simulate_stream(engine, items, output_count=2)
    [results] = np.ldexp(vector_results(engine, trace.outputs).astype(float), scales.exponent)
    columns = np.repeat(np.arange(engine.blocks), 16)[:50]
    steps = weights.codes.astype(float) - 2 ** (bits - 1) - weights.zero_matrix[:, columns]
    assert results.tolist() == (steps * scales.values[:, columns] @ vector).tolist()
    reference = table_gemv(weights, vector).reference
    assert np.linalg.norm(results - reference) < 1e-4 * np.linalg.norm(reference)


def test_interval():
    """Fewer multipliers cost no time where a block's chunks take the engine as many cycles."""
    arguments = {"rows": 80, "columns": 256, "lanes": 4, "groups": 4}
    intervals = {
        (block, multipliers): Problem(**arguments, block=block, multipliers=multipliers).engine.interval
        for block in (16, 64)
        for multipliers in (4, 2, 1)
    }
    chunks, folds = 256 // 16, 20
    assert intervals == {
        (16, 4): chunks * folds,
        (16, 2): chunks * folds * 2,
        (16, 1): chunks * folds * 4,
        (64, 4): chunks * folds,
        (64, 2): chunks * folds,
        (64, 1): chunks * folds,
    }


def test_latency():
    """From the engine's last weights through the stage, with a queue between where lanes take turns."""
    assert Problem("int4").engine.latency == 3 + Problem("int4").engine.stage.latency
    slow = Problem("int4", multipliers=1).engine
    assert slow.latency == 3 + 1 + 1 + slow.stage.latency


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": 0}, "columns must be a positive integer, not 0"),
        ({"block": 0}, "block must be a positive integer, not 0"),
        ({"block": 38}, "block must be at most the 37 columns, not 38"),
        ({"has_zeros": 1}, "has_zeros must be true or false, not 1"),
        ({"weights": "ternary", "has_zeros": True}, "ternary weights have no zero points"),
        ({"activations": "e2m1"}, "zero points need activations that are integers, not e2m1"),
        ({"multipliers": 3}, "multipliers must divide the 2 lanes, not be 3"),
        ({"scale_bits": 17}, "scale_bits must be 2 to 16, not 17"),
        (
            {"activations": "int16", "block": 37, "products": "dsps"},
            "products of 26 and 12 bits do not fit a DSP slice, whose wider factor has 25",
        ),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(UsageError) as caught:
        Problem(**changes)
    assert str(caught.value) == message
