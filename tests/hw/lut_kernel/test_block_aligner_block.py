"""The block aligner by name."""

import numpy as np
import pytest

from hw.blocks import find_block
from hw.simulation import simulate_stream
from quantizers.errors import UsageError


def built(changes):
    block = find_block("block_aligner")
    arguments = block.parameters_with(changes)
    return block, block.build(**arguments), arguments


@pytest.mark.parametrize(
    "changes", [{}, {"input": "fp16", "lanes": 3, "words": 5, "bits": 8}, {"input": "tf32", "words": 1}]
)
def test_stimuli_hold_in_simulation(changes):
    block, component, arguments = built(changes)
    stimuli = block.stimuli(component, np.random.default_rng(5), 60, **arguments)
    assert len(stimuli.outputs["outputs"]) >= 60
    run = simulate_stream(
        component, stimuli.inputs, output_count=stimuli.output_counts, ready_probability=0.7
    )
    assert run.streams == stimuli.outputs


def test_speed_and_datasheet():
    block, component, arguments = built({})
    sheet = block.datasheet(component, **arguments)
    assert sheet.latency == component.latency
    assert sheet.throughput == "one word a cycle, 8 words a block"
    assert sheet.streams["outputs"].startswith(
        # The last of 12 bits is worth 2**(1 - 11) of what the exponent is, with a bias of 127.
        "4 integers and the exponent of their block: of value integer * 2**(exponent - 137); "
    )
    assert block.speed(component, **arguments) == {"elements_per_cycle": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"input": "bf17"},
            "unknown floating-point format 'bf17' (did you mean 'bf16'?); expected one of: bf16, fp16, tf32",
        ),
        ({"input": 16}, "input must be a name, not 16"),
        ({"bits": 3}, "bits must be 4 to 16, not 3"),
    ],
)
def test_wrong_parameters(changes, message):
    with pytest.raises(UsageError) as caught:
        built(changes)
    assert str(caught.value) == message
