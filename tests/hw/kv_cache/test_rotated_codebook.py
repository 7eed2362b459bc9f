import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator

from hw.kv_cache.codebook import RotatedDequantizer, RotatedQuantizer
from hw.kv_cache.scale import ScaledConstants, ScaleEncoder
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from quantizers.kv_cache.codebook import Codebook, ScaleFormat, magnitude_sums
from quantizers.kv_cache.rotation import largest_sum, rotate


class Problem:
    """Random vectors of every magnitude as coefficients, codes, scales, and words of the streams."""

    def __init__(self, size, lanes, bits, *, vectors=10, seed=1, scale=None):
        rng = np.random.default_rng(seed)
        spreads = np.exp2(rng.uniform(-1, 15, (vectors, 1)))
        x = np.clip(rng.normal(0, spreads, (vectors, size)), -32768, 32767).astype(int)
        x[1] = 0
        w = rotate(x)
        # The largest coefficient that there is, and the smallest one.
        w[2:4, 0] = 65535 * size >> (size.bit_length() - 1) // 2, -1
        w[2:4, 1:] = 0
        fmt = scale or ScaleFormat.covering(largest_sum(size))
        book = Codebook(bits=bits, size=size)
        self.scales = fmt.encode(magnitude_sums(w))
        self.codes = book.quantize(w, fmt.decode(self.scales))
        self.levels = book.dequantize(self.codes, fmt.decode(self.scales))
        self.size, self.lanes, self.bits = size, lanes, bits
        self.words = w.reshape(-1, lanes).tolist()

    @property
    def coded(self):
        scales = np.repeat(self.scales, self.size // self.lanes)
        return [
            sum(int(code) << lane * self.bits for lane, code in enumerate(word))
            | int(scale) << len(word) * self.bits
            for word, scale in zip(self.codes.reshape(-1, self.lanes), scales, strict=True)
        ]


def product_latency(bits, size):
    book, scale = Codebook(bits=bits, size=size), ScaleFormat.covering(largest_sum(size))
    return ScaledConstants(
        constants=book.levels, shift=book.shift, scale=scale, largest=largest_sum(size)
    ).latency


SHAPES = [
    *((64, 8, bits) for bits in (1, 2, 3, 4)),
    *((8, 8, 1), (8, 1, 4), (16, 4, 3), (32, 2, 5), (32, 1, 6), (64, 4, 5), (128, 16, 4), (64, 64, 1)),
]


@pytest.mark.parametrize(("size", "lanes", "bits"), SHAPES)
def test_both_directions_and_their_cycles(size, lanes, bits):
    problem = Problem(size, lanes, bits)
    count = len(problem.words)
    quantizer = RotatedQuantizer(size=size, lanes=lanes, bits=bits)
    trace = simulate_stream(quantizer, problem.words, output_count=count)
    assert trace.outputs == problem.coded
    words, tree = size // lanes, lanes.bit_length() - 1
    search = 2 ** (bits - 1) - 1 + product_latency(bits, size) + bits if bits > 1 else 0
    assert quantizer.latency == 1 + tree + words + 3 + search
    assert trace.cycles == quantizer.cycles(10) == count + quantizer.latency

    dequantizer = RotatedDequantizer(size=size, lanes=lanes, bits=bits)
    trace = simulate_stream(dequantizer, problem.coded, output_count=count)
    assert np.array_equal(np.reshape(trace.outputs, problem.levels.shape), problem.levels)
    assert dequantizer.latency == 3 + product_latency(bits, size) + 2 ** (bits - 1)
    assert trace.cycles == dequantizer.cycles(10) == count + dequantizer.latency


@pytest.mark.parametrize(("size", "lanes", "bits"), [(64, 8, 4), (16, 2, 2), (8, 2, 3)])
@pytest.mark.parametrize(("valid", "ready"), [(0.3, 1.0), (1.0, 0.3), (0.6, 0.7)])
def test_stalls(size, lanes, bits, valid, ready):
    problem = Problem(size, lanes, bits, vectors=12, seed=size)
    for component, items, wanted in (
        (RotatedQuantizer(size=size, lanes=lanes, bits=bits), problem.words, problem.coded),
        (
            RotatedDequantizer(size=size, lanes=lanes, bits=bits),
            problem.coded,
            problem.levels.reshape(-1, lanes).tolist(),
        ),
    ):
        trace = simulate_stream(
            component,
            items,
            output_count=len(wanted),
            seed=2,
            valid_probability=valid,
            ready_probability=ready,
        )
        assert trace.outputs == wanted


@pytest.mark.parametrize(
    "scale",
    [
        ScaleFormat(exponent_bits=5, mantissa_bits=3),
        ScaleFormat(exponent_bits=5, mantissa_bits=11),
        ScaleFormat(exponent_bits=4, mantissa_bits=12),
        ScaleFormat(exponent_bits=3, mantissa_bits=5, unit=11),
        ScaleFormat(exponent_bits=2, mantissa_bits=2, unit=18),
    ],
)
def test_other_formats_of_scales(scale):
    problem = Problem(64, 8, 3, scale=scale)
    arguments = {"size": 64, "lanes": 8, "bits": 3, "scale": scale}
    trace = simulate_stream(RotatedQuantizer(**arguments), problem.words, output_count=80)
    assert trace.outputs == problem.coded
    trace = simulate_stream(RotatedDequantizer(**arguments), problem.coded, output_count=80)
    assert trace.outputs == problem.levels.reshape(-1, 8).tolist()


def run(component, drive):
    design = Module()
    design.domains += ClockDomain("sync")
    design.submodules.dut = component
    simulator = Simulator(design)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.run()


@pytest.mark.parametrize(
    ("exponent_bits", "mantissa_bits", "unit"), [(4, 4, 4), (5, 3, 0), (2, 1, 1), (3, 6, 2)]
)
def test_sums_to_codes(exponent_bits, mantissa_bits, unit):
    scale = ScaleFormat(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, unit=unit)
    largest = min(scale.largest, (1 << 22) - 1)
    rng = np.random.default_rng(1)
    sums = [
        *range(min(largest, 600) + 1),
        *np.exp2(rng.uniform(0, np.log2(largest), 600)).astype(int).tolist(),
        largest,
    ]
    codes = []
    component = ScaleEncoder(largest=largest, scale=scale)

    async def drive(ctx):
        for cycle in range(len(sums) + 3):
            ctx.set(component.total, sums[min(cycle, len(sums) - 1)])
            ctx.set(component.enable, 1)
            if cycle >= component.latency:
                codes.append(ctx.get(component.code))
            await ctx.tick()

    run(component, drive)
    assert codes == scale.encode(sums).tolist()


def test_a_code_keeps_until_the_next_sum():
    component = ScaleEncoder(largest=1000, scale=ScaleFormat())
    seen = []

    async def drive(ctx):
        for cycle in range(12):
            ctx.set(component.total, 20 + cycle)
            ctx.set(component.enable, cycle in (1, 6))
            await ctx.tick()
            seen.append(ctx.get(component.code))

    run(component, drive)
    assert seen == [0, 0, 0, *[21] * 5, *[26] * 4]


@pytest.mark.parametrize("shift", [0, 3, 9, 20])
@pytest.mark.parametrize("fields", [(4, 4, 4), (5, 3, 0), (2, 12, 6)])
def test_products_of_constants_and_scales(shift, fields):
    exponent_bits, mantissa_bits, unit = fields
    scale = ScaleFormat(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, unit=unit)
    constants = [0, 1, 100, 389]
    component = ScaledConstants(constants=constants, shift=shift, scale=scale, largest=scale.largest)
    codes = np.random.default_rng(1).integers(0, 1 << scale.bits, 40).tolist()
    codes[-1] = (1 << scale.bits) - 1
    found = []

    async def drive(ctx):
        for cycle in range(4 * len(codes) + component.latency):
            ctx.set(component.code, codes[min(cycle // 4, len(codes) - 1)])
            ctx.set(component.start, cycle % 4 == 0 and cycle < 4 * len(codes))
            assert ctx.get(component.write) == (cycle >= component.latency)
            if ctx.get(component.write):
                found.append((ctx.get(component.index), ctx.get(component.value)))
            await ctx.tick()

    run(component, drive)
    scales = scale.decode(codes).tolist()
    assert found == [
        (index, constant * value >> shift) for value in scales for index, constant in enumerate(constants)
    ]


@pytest.mark.parametrize(
    ("component", "arguments", "message"),
    [
        (
            RotatedQuantizer,
            {"bits": 5},
            "codes of 5 bits take 15 products a vector and so as many words, not 8; expected at most 4 lanes",
        ),
        (
            RotatedDequantizer,
            {"lanes": 16},
            "codes of 4 bits take 8 products a vector and so as many words, not 4; expected at most 8 lanes",
        ),
        (RotatedQuantizer, {"bits": 7}, "bits must be an integer from 1 to 6, not 7"),
        (
            RotatedQuantizer,
            {"size": 96},
            "size must be a power of two from 8 to 128, not 96; the nearest is 64",
        ),
        (
            RotatedDequantizer,
            {"scale": ScaleFormat(unit=0)},
            f"the scales reach {31 << 14}, but a vector's sum can be {64 * 65535}",
        ),
    ],
)
def test_wrong_arguments_are_refused(component, arguments, message):
    with pytest.raises(UsageError) as caught:
        component(**{"size": 64, "lanes": 8, "bits": 4, **arguments})
    assert str(caught.value) == message
