import numpy as np
import pytest
from amaranth.hdl import unsigned

from hw.kv_cache.transform_lanes import Gatherer, Serializer
from hw.simulation import simulate_stream

STALLS = [(1.0, 1.0), (0.6, 0.5)]


@pytest.mark.parametrize(("valid", "ready"), STALLS)
@pytest.mark.parametrize(("lanes", "elements"), [(4, 10), (1, 3), (3, 9), (5, 2)])
def test_lanes(lanes, elements, valid, ready):
    vectors = np.random.default_rng(1).integers(1, 256, (6, elements))
    chances = {"valid_probability": valid, "ready_probability": ready, "seed": 1}
    words = np.pad(vectors, [(0, 0), (0, -elements % lanes)]).reshape(-1, lanes)
    serializer = Serializer(shape=unsigned(8), lanes=lanes, elements=elements)
    trace = simulate_stream(serializer, words.tolist(), output_count=vectors.size, **chances)
    assert trace.outputs == vectors.reshape(-1).tolist()
    gatherer = Gatherer(shape=unsigned(8), lanes=lanes, elements=elements)
    trace = simulate_stream(gatherer, trace.outputs, output_count=len(words), **chances)
    found = np.array(trace.outputs).reshape(6, -1)[:, :elements]
    assert found.tolist() == vectors.tolist()
