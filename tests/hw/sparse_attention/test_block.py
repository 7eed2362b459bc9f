"""Block selection by name."""

import numpy as np
import pytest

from hw.blocks import find_block
from hw.simulation import simulate_stream
from quantizers.errors import UsageError

SMALL = {
    **{"head_dim": 8, "heads": 2, "max_tokens": 96, "kernel": 4, "stride": 2, "block_size": 8, "window": 8},
    **{"topk": 4, "lanes": 4, "storage": "lutram"},
}


def built(changes):
    block = find_block("block_selector")
    arguments = block.parameters_with(changes)
    return block, block.build(**arguments), arguments


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dense_length": 60, "query_bits": 6, "key_bits": 7, "dropped_bits": 1},
        {"initial": 0, "window": 0},
    ],
)
def test_stimuli_hold_in_simulation(changes):
    block, component, arguments = built({**SMALL, **changes})
    stimuli = block.stimuli(component, np.random.default_rng(5), 30, **arguments)
    assert len(stimuli.outputs["blocks"]) >= 30
    assert stimuli.inputs["positions"][0] == 95
    run = simulate_stream(
        component,
        stimuli.inputs,
        output_count=stimuli.output_counts,
        valid_probability=0.8,
        ready_probability=0.7,
        max_cycles=40_000,
    )
    assert run.streams == stimuli.outputs


def test_speed_and_datasheet():
    block, component, arguments = built(SMALL)
    sheet = block.datasheet(component, **arguments)
    assert sheet.latency == component.cycles(95)
    assert sheet.latency_meaning == "from the position of a query at 95 to its last block"
    assert sheet.throughput == f"one query at 95 in {component.interval(95)} cycles"
    assert block.speed(component, **arguments) == {"cycles_per_vector": component.interval(95)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 3}, "kernel must be a multiple of the stride 3, not 4"),
        ({"max_tokens": 3}, "max_tokens must be at least the kernel of 4 tokens, not 3"),
        ({"window": -8}, "window must be a non-negative integer, not -8"),
        ({"dropped_bits": 3}, "dropped_bits must be an integer from 0 to 2, not 3"),
    ],
)
def test_wrong_parameters(changes, message):
    with pytest.raises(UsageError) as caught:
        built({**SMALL, **changes})
    assert str(caught.value) == message
