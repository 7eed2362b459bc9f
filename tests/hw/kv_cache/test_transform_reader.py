from dataclasses import replace

import pytest

from hw.kv_cache.transform_reader import TransformReader
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from quantizers.kv_cache.codec import Centred
from quantizers.kv_cache.transform import Transformed
from tests.hw.kv_cache.transform_blocks import CONFIGURATIONS, Coded, configured


def simulated(number, *, tokens=3, **chances):
    coded, arguments = configured(number, tokens=tokens)
    pe = max(pe for pe in range(1, arguments["pe"] + 1) if coded.geometry.elements % pe == 0)
    arguments["simd"] = min(arguments["simd"], coded.geometry.coefficients)
    reader = TransformReader(**{**arguments, "pe": pe})
    items = {"load": reader.load_words(coded.blocks, coded.means), "words": coded.words}
    assert len(items["load"]) == reader.load_count
    count = coded.x.size // arguments["lanes"]
    trace = simulate_stream(reader, items, output_count=count, first=("load",), **chances)
    assert trace.outputs == coded.decoded.reshape(-1, arguments["lanes"]).tolist()
    return coded, reader, trace


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_elements_and_cycles(number):
    coded, reader, trace = simulated(number)
    interval = reader.interval(coded.blocks)
    _, arguments = configured(number)
    column_folds = -(-coded.geometry.coefficients // arguments["simd"])
    late = trace.cycles - (reader.load_count + reader.latency + 2 * interval + 1)
    assert 0 <= late <= max(0, arguments["pe"] - column_folds)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7])
@pytest.mark.parametrize(("valid", "ready"), [(0.3, 1.0), (1.0, 0.2), (0.7, 0.5)])
def test_stalls(number, valid, ready):
    simulated(number, tokens=5, valid_probability=valid, ready_probability=ready, seed=number)


def test_elements_saturate():
    coded = Coded(d=8, counts=(8,), means=True, tokens=6)
    coded.blocks[0] = replace(coded.blocks[0], shift=0)
    coded.codec = Centred(Transformed(coded.blocks), means=coded.means)
    assert (coded.decoded.min(), coded.decoded.max()) == (-32768, 32767)
    reader = TransformReader(geometry=coded.geometry, lanes=4, pe=2, simd=4, word_bits=16, multipliers="dsps")
    items = {"load": reader.load_words(coded.blocks, coded.means), "words": coded.words}
    trace = simulate_stream(reader, items, output_count=12, first=("load",))
    assert trace.outputs == coded.decoded.reshape(-1, 4).tolist()


def test_a_vector_of_64_every_64_cycles():
    coded = Coded(d=64, counts=(60,))
    assert TransformReader(geometry=coded.geometry).interval(coded.blocks) == 64


def test_pe_must_divide_a_vector():
    with pytest.raises(UsageError) as caught:
        TransformReader(geometry=Coded(d=8, counts=(6,)).geometry, lanes=4, pe=3)
    assert str(caught.value) == "pe must divide vector (8), which 3 does not; the nearest that does is 2"
