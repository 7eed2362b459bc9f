import numpy as np
import pytest

from hw.blocks import find_block
from hw.simulation import simulate_stream
from quantizers.formats import parse_scalar_format


def build(weights, activations, **changes):
    block = find_block("lut_kernel")
    formats = {"weights": parse_scalar_format(weights), "activations": parse_scalar_format(activations)}
    arguments = {**formats, **block.parameters_with(changes)}
    return block, block.build(**arguments), arguments


@pytest.mark.parametrize(
    ("formats", "changes"),
    [
        ("int2 int8", {}),
        ("int4 int4", {"group": 5, "banks": 1}),
        ("ternary uint8", {"table": "mirrored", "writers": 1}),
        ("uint1 int16", {"group": 2, "accumulator_bits": 30}),
    ],
)
def test_stimuli(formats, changes):
    sizes = {"rows": 5, "columns": 20, "lanes": 2, "groups": 2}
    block, component, arguments = build(*formats.split(), **sizes, **changes)
    stimuli = block.stimuli(component, np.random.default_rng(3), 20, **arguments)
    assert len(stimuli.outputs["outputs"]) == 21
    assert len(set(stimuli.outputs["outputs"])) > 10
    run = simulate_stream(component, stimuli.inputs, output_count=21, ready_probability=0.7)
    bits = component.accumulator_bits
    mask = (1 << bits) - 1
    assert [(x & mask) | (y & mask) << bits for x, y in run.outputs] == stimuli.outputs["outputs"]


def test_speed_and_datasheet():
    sizes = {"rows": 64, "columns": 64, "lanes": 4, "groups": 4}
    block, component, arguments = build("int2", "int8", **sizes)
    assert block.speed(component, **arguments) == {
        "cycles_per_vector": 64,
        "weights_per_cycle": 64,
        "weight_bits_per_cycle": 128,
    }
    datasheet = block.datasheet(component, **arguments)
    assert (datasheet.latency, datasheet.throughput) == (3, "one vector in 64 cycles")
    assert datasheet.streams == {
        "activations": "16 activation codes of a vector, 16 a chunk",
        "weights": "indices of a chunk: 4 groups of 4 weights, 2 planes, 4 rows",
        "outputs": "4 sums; each the sum of the products, in units of 2**0",
    }
