import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dse.pareto import Front, compute_fronts
from reports.figures import draw_front, is_logarithmic, is_right_label, member_labels


@pytest.mark.parametrize(
    ("x", "y", "style"), [("luts", "accuracy", "steps-post"), ("accuracy", "luts", "steps-pre")]
)
def test_the_staircase_shows_what_can_be_had(finished_run, x, y, style):
    table = finished_run.table()
    axes = Figure().subplots()
    draw_front(axes, table, compute_fronts(table, x, y)[0])
    (front,) = [line for line in axes.get_lines() if line.get_label() == "Pareto front"]
    assert front.get_drawstyle() == style


def test_members_at_one_place_share_a_label():
    rows = pd.DataFrame(
        {
            "label": ["int3", "e2m0", "e2m1/int8"],
            "luts": [20, 20, 30],
            "accuracy": [0.5, 0.5, 0.75],
        }
    )
    front = Front("luts", "accuracy", "w", "all", rows, None, None)
    assert member_labels(front) == [(20.0, 50.0, "int3, e2m0"), (30.0, 75.0, "e2m1/int8")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 20, 199], False), ([1, 20, 201], True), ([-1, 20, 500], False), ([0, 1, 2], False)],
)
def test_axes_of_values_far_apart_are_logarithmic(values, expected):
    assert is_logarithmic(pd.Series(values)) is expected


@pytest.mark.parametrize(
    ("place", "values", "expected"),
    [
        (10, [10, 20, 100], (True, True)),
        (50, [10, 20, 100], (False, True)),
        (90, [10, 20, 100], (False, False)),
        (100, [1, 100, 10_000], (False, True)),
        (5, [1, 100, 10_000], (True, True)),
        (7, [7], (False, True)),
    ],
)
def test_labels_stay_inside_the_axes(place, values, expected):
    assert tuple(is_right_label(place, np.array(values, float), index) for index in (0, 1)) == expected
