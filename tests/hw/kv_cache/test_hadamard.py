import random

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Module, signed, unsigned
from amaranth.lib import data
from amaranth.sim import Simulator

from costmodel import synthesize
from hw.kv_cache.hadamard import HadamardTransform, exchanged_order
from hw.kv_cache.lockstep import Delay
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from quantizers.errors import UsageError
from quantizers.kv_cache.rotation import hadamard


def random_configurations(count):
    choice = random.Random(5)
    sizes = [choice.choice([8, 16, 32, 64, 128]) for _ in range(count)]
    return [(size, 1 << choice.randrange(size.bit_length()), choice.randint(1, 18)) for size in sizes]


def vectors_of(size, bits, count, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (count, size))
    x[0] = -(1 << (bits - 1))
    return x


@pytest.mark.parametrize(("size", "lanes", "bits"), random_configurations(24))
def test_transforms_and_their_cycles(size, lanes, bits):
    x = vectors_of(size, bits, 4)
    component = HadamardTransform(size=size, lanes=lanes, input_bits=bits)
    words, stages = size // lanes, size.bit_length() - 1
    assert component.outputs.payload.shape() == data.ArrayLayout(signed(bits + stages), lanes)
    assert component.latency == words - 1 + stages + 1
    trace = simulate_stream(component, x.reshape(-1, lanes).tolist(), output_count=4 * words)
    order = exchanged_order(size, lanes)
    assert np.array_equal(np.reshape(trace.outputs, x.shape), hadamard(x)[:, order])
    assert trace.cycles == component.cycles(4) == 4 * words + component.latency


STALLS = [(0.3, 1.0), (1.0, 0.3), (0.6, 0.7)]


@pytest.mark.parametrize(("size", "lanes"), [(8, 8), (16, 4), (32, 1), (128, 16)])
@pytest.mark.parametrize(("valid", "ready"), STALLS)
def test_stalls(size, lanes, valid, ready):
    x = vectors_of(size, 5, 6, seed=size)
    trace = simulate_stream(
        HadamardTransform(size=size, lanes=lanes, input_bits=5),
        x.reshape(-1, lanes).tolist(),
        output_count=x.size // lanes,
        seed=3,
        valid_probability=valid,
        ready_probability=ready,
    )
    assert np.array_equal(np.reshape(trace.outputs, x.shape), hadamard(x)[:, exchanged_order(size, lanes)])


@pytest.mark.parametrize(("valid", "ready"), STALLS)
def test_stalls_of_many_vectors(valid, ready):
    x = vectors_of(64, 17, 3000)
    trace = VerilatedStream(HadamardTransform(size=64, lanes=8, input_bits=17)).run(
        x.reshape(-1, 8), output_count=24000, seed=3, valid_probability=valid, ready_probability=ready
    )
    assert np.array_equal(trace.outputs.reshape(x.shape), hadamard(x)[:, exchanged_order(64, 8)])


@pytest.mark.parametrize(("size", "lanes"), [(64, 8), (32, 4), (64, 2), (32, 16), (8, 1)])
def test_of_vectors_in_exchanged_order_the_results_are_in_their_own(size, lanes):
    x, order = vectors_of(size, 9, 4), exchanged_order(size, lanes)
    component = HadamardTransform(size=size, lanes=lanes, input_bits=9)
    trace = simulate_stream(component, x[:, order].reshape(-1, lanes).tolist(), output_count=x.size // lanes)
    assert np.array_equal(np.reshape(trace.outputs, x.shape), hadamard(x))


def test_the_exchanged_order():
    assert exchanged_order(16, 4).tolist() == [lane * 4 + word for word in range(4) for lane in range(4)]
    assert exchanged_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert exchanged_order(8, 4).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    assert exchanged_order(8, 8).tolist() == exchanged_order(8, 1).tolist() == list(range(8))


def test_each_word_comes_out_once_while_a_vector_stands_still():
    """The eighth word comes late, when the first result is there already: that is taken, and not offered again."""
    x = vectors_of(16, 8, 2)
    component = HadamardTransform(size=16, lanes=4, input_bits=8)
    words = x.reshape(-1, 4).tolist()
    taken = []

    async def drive(ctx):
        ctx.set(component.outputs.ready, 1)
        for cycle in range(60):
            offered = min(cycle, 7)
            ctx.set(component.inputs.valid, cycle < 7 or cycle == 45)
            ctx.set(component.inputs.payload, words[offered])
            _, _, valid, payload = await ctx.tick().sample(component.outputs.valid, component.outputs.payload)
            if valid:
                taken.append((cycle, list(payload)))

    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.run()
    assert [word for _, word in taken] == hadamard(x)[:, exchanged_order(16, 4)].reshape(-1, 4).tolist()
    assert [cycle for cycle, _ in taken] == [component.latency, *range(47, 54)]


@pytest.mark.parametrize("cycles", [0, 1, 2, 3, 4, 9])
def test_a_delay_in_registers_or_memory(cycles):
    component = Delay(shape=unsigned(6), cycles=cycles)
    seen = []

    async def drive(ctx):
        for value in range(40):
            ctx.set(component.inputs, value)
            seen.append(ctx.get(component.outputs))
            await ctx.tick()

    design = Module()
    design.domains += ClockDomain("sync")
    design.submodules.delay = component
    simulator = Simulator(design)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.run()
    assert seen[cycles:] == list(range(40 - cycles))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 48}, "size must be a power of two from 8 to 128, not 48; the nearest is 32"),
        ({"size": 256}, "size must be a power of two from 8 to 128, not 256; the nearest is 128"),
        (
            {"lanes": 6},
            "lanes must be a power of two of at most the 64 elements of a vector, not 6; the nearest is 4",
        ),
        (
            {"lanes": 128},
            "lanes must be a power of two of at most the 64 elements of a vector, not 128; the nearest is 64",
        ),
        ({"lanes": 0}, "lanes must be a positive integer, not 0"),
        ({"input_bits": 0}, "input_bits must be a positive integer, not 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(UsageError) as caught:
        HadamardTransform(**{"size": 64, "lanes": 8, "input_bits": 8, **arguments})
    assert str(caught.value) == message


def test_sums_take_a_carry_position_a_bit():
    """An adder a lane, of the width that the sums have there; two bits of a multiplexer share a LUT."""
    resources = synthesize(HadamardTransform(size=16, lanes=4, input_bits=8), name="hadamard")
    adders, exchanges, output = 4 * (9 + 10 + 11 + 12), 4 * (9 + 11) / 4, 4 * 12 / 2
    assert resources.carry_positions == adders
    assert resources.luts <= 1.1 * (adders + exchanges + output)
    assert resources.dsps == 0
