import itertools

import numpy as np
import pandas as pd
import pytest

from dse.pareto import compute_fronts
from quantizers.errors import UsageError


def table(points, workload="w", family="integer"):
    rows = [
        {
            "key": f"k{i}", "workload": workload, "family": family, "weights": f"int{i}", "activations": f"int{i}",
            "luts": luts, "luts_provenance": "measured", "accuracy": accuracy, "accuracy_provenance": "measured",
        }
        for i, (luts, accuracy) in enumerate(points)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_front_keeps_what_nothing_beats_and_orders_it():
    front = compute_fronts(
        table([(30, 0.9), (10, 0.5), (20, 0.4), (30, 0.8), (40, 0.9)]), "luts", "accuracy"
    )[0]
    assert list(front.rows["key"]) == ["k1", "k0"]
    # Reference: worst of each axis, (40, 0.4). Rectangles: (40-10)*(0.5-0.4) + (40-30)*(0.9-0.5).
    assert front.reference == (40.0, 0.4)
    assert front.hypervolume == pytest.approx(30 * 0.1 + 10 * 0.4)


def test_front_agrees_with_the_definition_on_random_points():
    rng = np.random.default_rng(7)
    points = np.column_stack([rng.integers(0, 30, 200), rng.integers(0, 30, 200) / 30])
    kept = set(compute_fronts(table(points), "luts", "accuracy")[0].rows["key"])
    for i, (x, y) in enumerate(points):
        beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert (f"k{i}" in kept) == (not beaten)


def test_families_and_workloads_have_their_own_fronts_and_one_reference():
    parts = [
        table([(10, 0.5), (20, 0.6)], "a", "integer"),
        table([(12, 0.7), (50, 0.2)], "a", "minifloat"),
        table([(5, 0.9)], "b", "integer"),
    ]
    fronts = compute_fronts(pd.concat(parts, ignore_index=True), "luts", "accuracy")
    assert [(f.workload, f.family, len(f.rows)) for f in fronts] == [
        ("a", "all", 2), ("a", "integer", 2), ("a", "minifloat", 1), ("b", "all", 1),
    ]  # fmt: skip
    assert {f.reference for f in fronts if f.workload == "a"} == {(50.0, 0.2)}
    assert fronts[3].hypervolume is None
    assert "hypervolume" not in fronts[3].as_json()


def test_rows_without_a_figure_take_no_part():
    points = table([(10, 0.5), (20, 0.9)])
    points.loc[1, "luts"] = np.nan
    assert list(compute_fronts(points, "luts", "accuracy")[0].rows["key"]) == ["k0"]


def test_bad_metrics_are_explained():
    points = table([(10, 0.5)])
    with pytest.raises(UsageError, match="^a front needs two different metrics, not 'luts' twice$"):
        compute_fronts(points, "luts", "luts")
    with pytest.raises(
        UsageError, match=r"^unknown metric 'lut' \(did you mean 'luts'\?\); expected one of: "
    ):
        compute_fronts(points, "lut", "accuracy")
    message = "^unknown metric of this run 'ffs'; expected one of: luts, accuracy$"
    with pytest.raises(UsageError, match=message):
        compute_fronts(points, "ffs", "accuracy")


def test_minimised_pairs():
    points = table([(1, 3), (2, 2), (3, 1), (3, 3)]).rename(
        columns={"accuracy": "ffs", "accuracy_provenance": "ffs_provenance"}
    )
    front = compute_fronts(points, "luts", "ffs")[0]
    assert list(itertools.chain(front.rows["key"])) == ["k0", "k1", "k2"]
