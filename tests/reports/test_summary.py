import pandas as pd

from reports.summary import best_by_bits, headlines


def row(weights, family, luts, drop, selection, held_out):
    return {
        "workload": "net", "weights": weights, "activations": weights, "family": family, "luts": luts,
        "weight_bits": 4, "activation_bits": 4, "float_accuracy": 0.9, "accuracy": 0.9 - drop / 100,
        "accuracy_drop_points": drop, "accuracy_drop_points_low": drop - 0.5, "accuracy_drop_points_high": drop + 0.5,
        "selection_accuracy": selection, "held_out_accuracy": held_out,
    }  # fmt: skip


TABLE = pd.DataFrame(
    [
        row("int4", "integer", 34, 1.5, 0.88, 0.89),
        row("e1m2", "minifloat", 33, 0.9, 0.89, 0.895),
        row("e2m1", "minifloat", 40, 0.2, 0.9, 0.88),
        row("e3m0", "minifloat", 38, 0.4, 0.9, 0.87),
    ]
)


def test_the_cheapest_within_a_point_with_its_interval():
    assert headlines(TABLE) == [
        "net: float 90.00 %. Cheapest minifloat within 1 point of it: e1m2, 89.10 % "
        "(loses 0.90 [0.4, 1.4] points) at 33 LUT6 sites."
    ]
    assert headlines(TABLE, points=0.1) == ["net: float 90.00 %. No format stays within 0.1 point of it."]


def test_the_best_is_chosen_on_one_half_and_reported_on_the_other():
    assert best_by_bits(TABLE) == [
        {
            "workload": "net",
            "bits": "W4A4",
            "integer": {"pair": "int4", "candidates": 1, "accuracy": "89.00", "luts": "34"},
            "minifloat": {"pair": "e3m0", "candidates": 3, "accuracy": "87.00", "luts": "38"},
        }
    ]
