import numpy as np
import pytest

from hw.kv_cache.transform_matrices import MatricesInTurn
from hw.simulation import simulate_stream
from quantizers.errors import UsageError
from quantizers.formats import IntegerFormat

STALLS = [(1.0, 1.0), (0.6, 0.5)]


@pytest.mark.parametrize(("valid", "ready"), STALLS)
@pytest.mark.parametrize(
    ("matrices", "rows", "columns", "pe", "simd"), [(3, 5, 6, 2, 4), (1, 4, 4, 4, 4), (2, 3, 8, 1, 2)]
)
def test_matrices_in_turn(matrices, rows, columns, pe, simd, valid, ready):
    rng = np.random.default_rng(1)
    held = rng.integers(-128, 128, (matrices, rows, columns))
    held[0, 0] = -128
    vectors = rng.integers(-32768, 32768, (4, matrices, columns))
    vectors[0] = -32768
    unit = MatricesInTurn(
        weights=IntegerFormat(bits=8),
        activations=IntegerFormat(bits=16),
        matrices=matrices,
        rows=rows,
        columns=columns,
        pe=pe,
        simd=simd,
        memory="lutram",
        multipliers="dsps",
    )
    folding, count = unit.folding, 4 * matrices
    words = np.pad(vectors, [(0, 0), (0, 0), (0, folding.spare_lanes)], constant_values=7).reshape(-1, simd)
    items = {"load": unit.load_words(held), "inputs": (words & 0xFFFF).tolist()}
    trace = simulate_stream(
        unit,
        items,
        output_count=count * folding.row_folds,
        first=("load",),
        valid_probability=valid,
        ready_probability=ready,
    )
    wanted = np.einsum("mrc,tmc->tmr", held, vectors).reshape(count, rows)
    assert np.array(trace.outputs).reshape(count, -1)[:, :rows].tolist() == wanted.tolist()
    if valid == ready == 1:
        first = folding.column_folds - 1 + unit.latency
        later = count * folding.cycles - folding.column_folds
        assert trace.cycles == unit.load_count + first + later + 1


def test_an_unknown_memory():
    with pytest.raises(UsageError) as caught:
        MatricesInTurn(
            weights=IntegerFormat(bits=8),
            activations=IntegerFormat(bits=16),
            matrices=1,
            rows=2,
            columns=2,
            pe=1,
            simd=1,
            memory="uram",
        )
    assert (
        str(caught.value)
        == "unknown memory 'uram' (did you mean 'lutram'?); expected one of: lutram, bram, registers"
    )
