import pytest
from matplotlib.figure import Figure

from dse.pareto import compute_fronts
from reports.figures import draw_front


@pytest.mark.parametrize(
    ("x", "y", "style"), [("luts", "accuracy", "steps-post"), ("accuracy", "luts", "steps-pre")]
)
def test_the_staircase_shows_what_can_be_had(finished_run, x, y, style):
    table = finished_run.table()
    axes = Figure().subplots()
    draw_front(axes, table, compute_fronts(table, x, y)[0])
    (front,) = [line for line in axes.get_lines() if line.get_label() == "Pareto front"]
    assert front.get_drawstyle() == style
