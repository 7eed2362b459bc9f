import numpy as np
import pytest

from hw.kv_cache.transposer import Transposer
from hw.simulation import simulate_stream
from quantizers.errors import UsageError


def assert_transposed(matrices, lanes, **stalls):
    """Returns the cycles."""
    _, rows, columns = matrices.shape
    dut = Transposer(rows=rows, columns=columns, lanes=lanes)
    expected = matrices.transpose(0, 2, 1).reshape(-1, lanes).tolist()
    trace = simulate_stream(dut, matrices.reshape(-1, lanes).tolist(), output_count=len(expected), **stalls)
    assert trace.outputs == expected
    return trace.cycles


@pytest.mark.parametrize("seed", range(20))
def test_random_sizes_cycles_and_stalls(seed):
    rng = np.random.default_rng(seed)
    lanes = int(rng.integers(1, 9))
    rows, columns = (lanes * int(rng.integers(1, 5)) for _ in range(2))
    count = int(rng.integers(1, 5))
    matrices = rng.integers(-32768, 32768, (count, rows, columns))
    dut = Transposer(rows=rows, columns=columns, lanes=lanes)
    assert dut.interval == rows * columns // lanes
    assert assert_transposed(matrices, lanes) == (count + 1) * dut.interval + dut.latency - 1
    for valid, ready in ((1.0, 0.4), (0.4, 1.0), (0.6, 0.6)):
        assert_transposed(matrices, lanes, seed=seed, valid_probability=valid, ready_probability=ready)


def test_one_word_a_memory():
    matrices = np.arange(7 * 16).reshape(7, 4, 4)
    assert assert_transposed(matrices, 4) == 8 * 4 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"rows": 32, "columns": 60, "lanes": 8},
            "lanes must divide columns (60), which 8 does not; the nearest that does is 6",
        ),
        (
            {"rows": 9, "columns": 60, "lanes": 2},
            "lanes must divide rows (9), which 2 does not; the nearest that does is 1",
        ),
        ({"rows": 0, "columns": 60, "lanes": 2}, "rows must be a positive integer, not 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError) as caught:
        Transposer(**arguments)
    assert str(caught.value) == message
