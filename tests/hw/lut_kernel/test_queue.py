import pytest

from hw.lut_kernel.queue import Queue
from hw.simulation import simulate_stream


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
@pytest.mark.parametrize(("valid", "ready"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.3), (0.6, 0.6)])
def test_order(depth, valid, ready):
    items = [17 * place % 64 for place in range(40)]
    trace = simulate_stream(
        Queue(width=6, depth=depth),
        items,
        output_count=40,
        seed=depth,
        valid_probability=valid,
        ready_probability=ready,
    )
    assert trace.outputs == items


@pytest.mark.parametrize(("depth", "cycles"), [(1, 2 * 40), (2, 41), (5, 41)])
def test_cycles(depth, cycles):
    """One a cycle, where there is more than a place."""
    trace = simulate_stream(Queue(width=6, depth=depth), list(range(40)), output_count=40)
    assert trace.cycles == cycles
