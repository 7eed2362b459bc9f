import pandas as pd
import pytest

from reports.summary import best_by_bits, cheapest_designs, headlines, over_seeds, recipe_gains


def row(weights, family, luts, drop, selection, held_out, recipe="round", seed=0):
    return {
        "workload": "net", "weights": weights, "activations": weights, "family": family, "label": weights, "luts": luts,
        "weight_bits": 4, "activation_bits": 4, "float_accuracy": 0.9, "accuracy": 0.9 - drop / 100,
        "accuracy_drop_points": drop, "accuracy_drop_points_low": drop - 0.5, "accuracy_drop_points_high": drop + 0.5,
        "recipe": recipe, "seed": seed, "selection_accuracy": selection, "held_out_accuracy": held_out,
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
            "integer": {
                "pair": "int4",
                "recipe": "round",
                "candidates": 1,
                "accuracy": "89.00",
                "luts": "34",
            },
            "minifloat": {
                "pair": "e3m0",
                "recipe": "round",
                "candidates": 3,
                "accuracy": "87.00",
                "luts": "38",
            },
        }
    ]


def swept():
    rows = [
        row("int4", "integer", 34, drop, 0.8, 0.8, recipe, seed)
        for recipe, drops in (("round", (3.0, 4.0)), ("gptq", (1.0, 1.5)))
        for seed, drop in enumerate(drops)
    ]
    choices = {"weight_scale": "mse", "activation_scale": "mse", "integer_weights": "narrow", "bias": "fixed"}
    return pd.DataFrame([{**r, **choices} for r in rows])


def test_gains_are_means_over_formats_and_seeds_against_rounding():
    assert recipe_gains(swept()) == [
        {
            "workload": "net",
            "bits": "W4A4",
            "family": "integer",
            "points": 2,
            "rounded": "86.50",
            "gains": {"round": "+0.00 \u00b1 0.00", "gptq": "+2.25 \u00b1 0.35"},
        }
    ]
    assert recipe_gains(TABLE) == []


def test_seeds_become_one_row_with_their_spread():
    table = over_seeds(swept())
    assert table["recipe"].tolist() == ["round", "gptq"]
    assert table["accuracy"].tolist() == pytest.approx([0.865, 0.8875])
    assert table["accuracy_seed_std"].tolist() == pytest.approx([0.01 / 2**0.5, 0.005 / 2**0.5])


def unit(design, weights, figure, dsps=0):
    return {
        "design": design,
        "weights": weights,
        "activations": "int8",
        "luts_per_weight_cycle": figure,
        "dsps": dsps,
    }


def test_designs_side_by_side():
    """DSP slices do their work outside the LUTs, so they are not the best in LUTs."""
    table = pd.DataFrame(
        [
            unit("tables", "int2", 9.0),
            unit("tables", "int2", 8.0),
            unit("adders", "int2", 16.0),
            unit("slices", "int2", 5.0, dsps=4),
            unit("adders", "int4", 20.0),
        ]
    )
    assert cheapest_designs(table, "luts_per_weight_cycle") == [
        {
            "formats": "int2/int8",
            "figures": {"tables": 8.0, "adders": 16.0, "slices": 5.0},
            "best": "tables",
            "gain": 2.0,
        },
        {"formats": "int4/int8", "figures": {"adders": 20.0}, "best": "adders"},
    ]
    assert cheapest_designs(table, "luts") == []
    assert cheapest_designs(table[table["design"] == "adders"], "luts_per_weight_cycle") == []
