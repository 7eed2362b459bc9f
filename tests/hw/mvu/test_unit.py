import numpy as np
import pytest
from amaranth.hdl import Value, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In
from amaranth.sim import Simulator

from costmodel import synthesize
from hw.arith.requantizer import Requantization
from hw.mvu import MatrixVectorUnit, input_words, load_words, output_count, vector_results
from hw.reference import exact_accumulator_bits, matrix_vector, requantize
from hw.simulation import SimulationError, simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.formats import parse_format, parse_scalar_format

PAIRS = [
    "int8 int8",
    "int4 uint4",
    "e4m3 e4m3",
    "e2m1 e2m1",
    "ternary int8",
    "ternary ternary",
    "e2m1 int8",
    "int4n e3m2",
]
SHAPES = [(8, 8, 4, 4), (7, 9, 4, 4), (5, 3, 2, 1), (5, 7, 5, 2), (3, 10, 2, 10), (4, 6, 4, 6), (1, 1, 1, 1)]
CODES = {"format": parse_scalar_format("int4"), "multiplier_bits": 6, "shifts": range(5, 9)}


class Problem:
    """Random weights, vectors and parameters for a unit, and the results that they must give."""

    def __init__(self, pair="int4 int4", shape=(7, 9, 4, 4), vectors=4, seed=1, output=None, **arguments):
        weights, activations = map(parse_scalar_format, pair.split())
        rows, columns, pe, simd = shape
        self.arguments = {
            "weights": weights,
            "activations": activations,
            **{"rows": rows, "columns": columns, "pe": pe, "simd": simd},
            **{"output": Requantization(**output) if output else None, **arguments},
        }
        self.unit = MatrixVectorUnit(**self.arguments)
        self.output_count = output_count(self.unit, vectors)
        self._rng = np.random.default_rng(seed)
        w, a = self._codes(weights, (rows, columns)), self._codes(activations, (vectors, columns))
        parameters = {name: self._parameter(field, rows) for name, field in self.unit.parameter_layout}
        self.items = {
            "load": load_words(self.unit, w, **parameters),
            "inputs": input_words(self.unit, a).tolist(),
        }
        sums = matrix_vector(
            w,
            a,
            weights=weights,
            activations=activations,
            biases=parameters.get("bias"),
            accumulator_bits=self.unit.accumulator_bits,
        )
        settings = self.arguments["output"]
        factors = parameters.get("multiplier", 1)
        shifts = parameters.get("shift", settings.shifts[0] if settings else 0)
        self.results = (
            requantize(sums, factors, shifts, output=settings.format, relu=settings.relu)
            if settings
            else sums
        )

    def _codes(self, fmt, shape):
        return self._rng.choice(np.flatnonzero(np.isfinite(fmt.values())), shape)

    def _parameter(self, field, rows):
        settings = self.arguments["output"]
        shape = field.shape
        if settings and shape == settings.shift_shape:
            return self._rng.choice(np.array(settings.shifts), rows)
        if not shape.signed:
            return self._rng.integers(0, 1 << shape.width, rows)
        limit = 1 << min(shape.width - 2, 60)
        return self._rng.integers(-limit, limit, rows)

    def cycles(self, unit):
        """From the first word of the load to the last result, without stalls: the documented formula."""
        vectors = self.output_count // unit.folding.row_folds
        return len(self.items["load"]) + vectors * unit.interval + unit.latency - 1


def simulate(problem, **settings):
    trace = simulate_stream(
        problem.unit, problem.items, output_count=problem.output_count, max_cycles=20_000, **settings
    )
    return vector_results(problem.unit, trace.outputs).tolist(), trace.cycles


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_shapes_and_cycles(shape, has_bias):
    """Sums and cycles, with rows and columns that are no multiples, and without any folding."""
    problem = Problem(shape=shape, has_bias=has_bias)
    assert simulate(problem) == (problem.results.tolist(), problem.cycles(problem.unit))


@pytest.mark.parametrize("pair", PAIRS)
def test_formats(pair):
    problem = Problem(pair=pair, shape=(5, 7, 2, 3), has_bias=True)
    assert simulate(problem) == (problem.results.tolist(), problem.cycles(problem.unit))


@pytest.mark.parametrize("pair", ["int8 int8", "int5 uint4", "int3 int8"])
def test_multipliers_of_dsp_slices(pair):
    problem = Problem(pair=pair, shape=(5, 7, 2, 3), has_bias=True, multipliers="dsps")
    assert simulate(problem) == (problem.results.tolist(), problem.cycles(problem.unit))


@pytest.mark.parametrize("memory", ["lutram", "bram", "registers"])
@pytest.mark.parametrize(
    "output",
    [
        None,
        CODES,
        {**CODES, "relu": True},
        {"format": parse_scalar_format("uint4"), "multiplier_bits": 0, "shifts": range(8, 12)},
        {"format": parse_scalar_format("e4m3"), "shifts": range(8, 24)},
    ],
)
def test_memories_and_outputs(memory, output):
    problem = Problem(shape=(5, 9, 2, 4), memory=memory, output=output, has_bias=output is not None)
    assert simulate(problem) == (problem.results.tolist(), problem.cycles(problem.unit))


@pytest.mark.parametrize("shape", [(7, 9, 4, 4), (3, 5, 1, 5), (3, 5, 3, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("output", [None, CODES])
@pytest.mark.parametrize(("valid", "ready"), [(0.5, 1.0), (1.0, 0.2), (0.6, 0.4)])
def test_back_pressure(shape, output, valid, ready):
    problem = Problem(shape=shape, output=output, vectors=8, has_bias=True)
    results, cycles = simulate(problem, seed=3, valid_probability=valid, ready_probability=ready)
    assert results == problem.results.tolist()
    assert cycles > problem.cycles(problem.unit)


def test_a_slow_consumer_does_not_stop_the_next_results():
    """Results may wait as long as the next ones take: one a fold of four words costs nothing."""
    problem = Problem(shape=(4, 16, 2, 4), vectors=20)
    results, cycles = simulate(problem, seed=1, ready_probability=0.75)
    assert results == problem.results.tolist()
    assert cycles <= problem.cycles(problem.unit) + 4


def test_vectors_stream_in_while_another_is_computed():
    """With six folds of rows, inputs at a quarter of the rate are fast enough."""
    problem = Problem(shape=(12, 8, 2, 2), vectors=10)
    results, cycles = simulate(problem, seed=2, valid_probability=0.25)
    first = simulate(Problem(shape=(12, 8, 2, 2), vectors=1), seed=2, valid_probability=0.25)[1]
    assert results == problem.results.tolist()
    assert cycles == first + 9 * problem.unit.interval


def test_no_vector_starts_before_the_load_is_complete():
    problem = Problem()
    items = {**problem.items, "load": problem.items["load"][:-1]}
    with pytest.raises(SimulationError) as caught:
        simulate_stream(problem.unit, items, output_count=1, max_cycles=500)
    assert str(caught.value) == "MatrixVectorUnit gave 0 of 1 outputs in 500 cycles"


def test_another_matrix_can_be_loaded():
    """The same vectors through one matrix and then another; the second load is offered all the while."""
    first, second = (Problem(output=CODES, has_bias=True, vectors=1, seed=seed) for seed in (1, 2))
    dut, outputs = first.unit, []

    async def send(ctx, sink, words):
        for word in words:
            ctx.set(Value.cast(sink.payload) if isinstance(word, int) else sink.payload, word)
            ctx.set(sink.valid, 1)
            taken = 0
            while not taken:
                *_, taken = await ctx.tick().sample(sink.ready)
            ctx.set(sink.valid, 0)

    async def load(ctx):
        await send(ctx, dut.load, first.items["load"])
        # Once the first vector is on its way, the second load must wait for its end.
        await ctx.tick().repeat(6)
        await send(ctx, dut.load, second.items["load"])

    async def drive(ctx):
        await send(ctx, dut.inputs, first.items["inputs"])
        await send(ctx, dut.inputs, second.items["inputs"])

    async def consume(ctx):
        ctx.set(dut.outputs.ready, 1)
        while len(outputs) < 4:
            _, _, valid, payload = await ctx.tick().sample(dut.outputs.valid, dut.outputs.payload)
            if valid:
                outputs.append(list(payload))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(load, background=True)
    simulator.add_testbench(drive, background=True)
    simulator.add_testbench(consume)
    simulator.run()
    expected = np.concatenate([first.results, second.results])
    assert vector_results(dut, outputs).tolist() == expected.tolist()


@pytest.mark.parametrize("pair", ["int8 int8", "uint4 uint4", "e3m2 e2m1"])
def test_the_exact_width_is_just_enough(pair):
    """All codes at the ends: the largest sums there are, and one bit less wraps them."""
    weights, activations = map(parse_scalar_format, pair.split())
    exact = exact_accumulator_bits(weights, activations, 21)
    for bits in (exact, exact - 1):
        problem = Problem(pair, (2, 21, 2, 4), 2, accumulator_bits=bits, overflow="wrap")
        ends = [int(pick(weights.values())) for pick in (np.argmax, np.argmin)]
        w = np.repeat([[ends[0]], [ends[1]]], 21, axis=1)
        a = np.repeat([[int(pick(activations.values()))] for pick in (np.argmax, np.argmin)], 21, axis=1)
        items = {"load": load_words(problem.unit, w), "inputs": input_words(problem.unit, a).tolist()}
        trace = simulate_stream(problem.unit, items, output_count=2)
        sums = matrix_vector(w, a, weights=weights, activations=activations)
        wrapped = matrix_vector(w, a, weights=weights, activations=activations, accumulator_bits=bits)
        assert trace.outputs == wrapped.tolist()
        assert (wrapped.tolist() == sums.tolist()) == (bits == exact)


def test_what_is_sent_beyond_the_last_column_does_not_count():
    problem = Problem(shape=(3, 5, 2, 4))
    spare = 0xFFF0
    items = {
        "load": [word | (spare if index % 2 else 0) for index, word in enumerate(problem.items["load"])],
        "inputs": [
            [*word[:1], 9, 7, 15] if index % 2 else word for index, word in enumerate(problem.items["inputs"])
        ],
    }
    trace = simulate_stream(problem.unit, items, output_count=problem.output_count)
    assert vector_results(problem.unit, trace.outputs).tolist() == problem.results.tolist()


def test_lanes_beyond_the_last_row_are_zero():
    problem = Problem(shape=(5, 4, 4, 2), output={**CODES, "shifts": range(1)}, has_bias=True)
    outputs = simulate_stream(problem.unit, problem.items, output_count=problem.output_count).outputs
    assert [output[1:] for output in outputs[1::2]] == [[0, 0, 0]] * 4


@pytest.mark.parametrize(
    ("pair", "shape", "output"),
    [
        ("int8 int8", (33, 50, 8, 8), None),
        ("e4m3 e4m3", (9, 40, 4, 3), {"format": parse_scalar_format("e4m3"), "shifts": range(20, 40)}),
        ("int4 uint4", (30, 40, 6, 8), {"format": parse_scalar_format("uint4"), "relu": True}),
        ("e5m2 e5m2", (3, 12, 2, 4), None),
    ],
)
def test_long_runs_in_compiled_simulation(pair, shape, output):
    """A few hundred vectors at full rate, then with stalls on all sides."""
    problem = Problem(pair, shape, 200, output=output, has_bias=True)
    cycles = problem.cycles(problem.unit)
    unit = MatrixVectorUnit(**problem.arguments)
    stream = VerilatedStream(unit)
    fast = stream.run(problem.items, output_count=problem.output_count, max_cycles=10 * cycles)
    slow = stream.run(
        problem.items,
        output_count=problem.output_count,
        seed=1,
        valid_probability=0.3,
        ready_probability=0.2,
        max_cycles=10 * cycles,
    )
    assert fast.cycles == cycles
    for trace in (fast, slow):
        assert vector_results(problem.unit, trace.outputs).tolist() == problem.results.tolist()


@pytest.mark.parametrize(
    ("shape", "output", "interval", "latency"),
    [
        ((8, 8, 4, 4), None, 4, 5),
        ((7, 9, 4, 1), None, 18, 4),
        ((16, 64, 16, 16), None, 4, 6),
        ((7, 9, 4, 4), CODES, 6, 9),
    ],
)
def test_interval_and_latency(shape, output, interval, latency):
    unit = Problem(shape=shape, output=output).unit
    assert (unit.interval, unit.latency) == (interval, latency)


def test_ports():
    problem = Problem("e4m3 int5", (7, 9, 4, 2), has_bias=True, output=CODES)
    unit = problem.unit
    assert unit.accumulator_bits == exact_accumulator_bits(*map(parse_scalar_format, ("e4m3", "int5")), 9) + 1
    assert unit.parameter_layout == data.StructLayout(
        {"bias": signed(unit.accumulator_bits), "multiplier": unsigned(6), "shift": unsigned(4)}
    )
    members = unit.signature.members
    assert members["load"] == In(stream.Signature(unit.accumulator_bits + 10))
    assert members["inputs"] == In(stream.Signature(data.ArrayLayout(5, 2)))
    assert members["outputs"].signature == stream.Signature(data.ArrayLayout(4, 4))
    raw = Problem("e4m3 int5", (7, 9, 4, 4)).unit
    assert raw.signature.members["load"] == In(stream.Signature(32))
    assert raw.signature.members["outputs"].signature == stream.Signature(
        data.ArrayLayout(signed(raw.accumulator_bits), 4)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pe": 9}, "pe must be at most rows (8), not 9"),
        ({"simd": 17}, "simd must be at most columns (16), not 17"),
        ({"rows": 0}, "rows must be a positive integer, not 0"),
        (
            {"memory": "uram"},
            "unknown memory 'uram' (did you mean 'lutram'?); expected one of: lutram, bram, registers",
        ),
        ({"overflow": "saturate"}, "unknown overflow 'saturate'; expected one of: error, wrap"),
        (
            {"accumulator_bits": 19},
            "accumulator_bits must be at least 20 for sums of 16 products of int8 and int8, not 19; or ask for overflow='wrap'",
        ),
        (
            {"accumulator_bits": 20, "has_bias": True},
            "accumulator_bits must be at least 21 for sums of 16 products of int8 and int8 and a bias, not 20; or ask for overflow='wrap'",
        ),
        ({"accumulator_bits": 0}, "accumulator_bits must be a positive integer, not 0"),
        (
            {"weights": parse_format("mxfp4")},
            "weights must be a scalar number format, such as parse_format('e4m3'), not mxfp4",
        ),
        (
            {"activations": parse_format("e5m2ieee")},
            "activations has codes for NaN or infinity, which this datapath cannot carry: e5m2ieee",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    int8 = parse_scalar_format("int8")
    shape = {"rows": 8, "columns": 16, "pe": 4, "simd": 4}
    with pytest.raises(UsageError) as caught:
        MatrixVectorUnit(**{"weights": int8, "activations": int8, **shape, **arguments})
    assert str(caught.value) == message


def test_dsp_slices_replace_the_multipliers():
    """One for each of 6 lanes. Measured: 106 sites; 373 with multipliers of LUTs."""
    resources = synthesize(Problem(pair="int8 int8", shape=(4, 6, 2, 3), multipliers="dsps").unit, name="mvu")
    assert resources.dsps == 6
    assert resources.luts <= 112


@pytest.mark.parametrize(
    ("memory", "brams", "lutrams", "most_luts"),
    [("lutram", 0, 108, 275), ("bram", 1, 12, 160), ("registers", 0, 12, 2350)],
)
def test_the_memory_of_the_weights(memory, brams, lutrams, most_luts):
    """2 x 256 words of 8 bits; what else is LUT RAM buffers the input. Measured: 265, 149, 2284 sites."""
    unit = Problem(shape=(16, 64, 2, 2), memory=memory).unit
    resources = synthesize(unit, name="mvu")
    assert (resources.brams, resources.lutrams) == (brams, lutrams)
    assert resources.luts <= most_luts
