import numpy as np
import pytest

from hw.kv_cache.round_trip import LoadedRoundTrip
from hw.kv_cache.transform_reader import TransformReader
from hw.kv_cache.transform_writer import TransformWriter
from hw.simulation import simulate_stream
from hw.verilator import VerilatedStream
from tests.hw.kv_cache.transform_blocks import Coded

LOADS = ("writer_load", "reader_load")


def round_trip(coded, **arguments):
    arguments |= {"geometry": coded.geometry, "word_bits": coded.word_bits}
    return LoadedRoundTrip(TransformWriter(**arguments), TransformReader(**arguments))


def test_vectors_come_back():
    coded = Coded(d=8, counts=(8, 6), max_bits=5, means=True, tokens=8)
    dut = round_trip(coded, lanes=4, pe=4, simd=2, multipliers="dsps")
    items = {**dut.loads(coded.blocks, coded.means), "inputs": coded.x.reshape(-1, 4).tolist()}
    wanted = coded.decoded.reshape(-1, 4).tolist()
    trace = simulate_stream(dut, items, output_count=len(wanted), first=LOADS, ready_probability=0.8)
    assert trace.outputs == wanted


@pytest.mark.slow
@pytest.mark.parametrize("multipliers", ["luts", "dsps"])
def test_many_vectors_of_three_heads_come_back(multipliers):
    coded = Coded(d=64, counts=(60, 64, 51), max_bits=7, means=True, word_bits=32, tokens=300)
    dut = round_trip(coded, multipliers=multipliers)
    model = VerilatedStream(dut)
    items = {**dut.loads(coded.blocks, coded.means), "inputs": coded.x.reshape(-1, 8)}
    wanted = coded.decoded.reshape(-1, 8)
    for seed, chance in enumerate((1.0, 0.6)):
        trace = model.run(
            items,
            output_count=len(wanted),
            first=LOADS,
            seed=seed,
            valid_probability=chance,
            ready_probability=chance,
        )
        np.testing.assert_array_equal(trace.outputs, wanted)
