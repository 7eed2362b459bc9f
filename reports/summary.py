"""What a run says, in sentences and in the table of best formats per bit width."""

from __future__ import annotations

from typing import Any

import pandas as pd


def headlines(table: pd.DataFrame, *, points: float = 1.0) -> list[str]:
    """For each workload: float accuracy, and the cheapest datapath that loses at most *points*.

    Where the cheapest integer and the cheapest minifloat differ, both are named.
    """
    sentences = []
    for workload, rows in table.dropna(subset=["accuracy", "luts"]).groupby("workload", sort=False):
        float_accuracy = 100 * rows["float_accuracy"].iloc[0]
        close = rows[rows["accuracy_drop_points"] <= points]
        sentence = f"{workload}: float {float_accuracy:.2f} %."
        for family, candidates in close.groupby("family", sort=True):
            best = candidates.sort_values(["luts", "accuracy"], ascending=[True, False]).iloc[0]
            sentence += (
                f" Cheapest {family} within {points:g} point of it: {_pair(best)},"
                f" {100 * best['accuracy']:.2f} % at {best['luts']:.0f} LUT6 sites."
            )
        if close.empty:
            sentence += f" No format stays within {points:g} point of it."
        sentences.append(sentence)
    return sentences


def best_by_bits(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The most accurate format pair of each family at each pair of bit widths, per workload.

    Ties go to the pair of fewer LUT6 sites.
    """
    groups = ["workload", "weight_bits", "activation_bits"]
    rows = []
    for (workload, weight_bits, activation_bits), points in table.groupby(groups, sort=True):
        row: dict[str, Any] = {"workload": workload, "bits": f"W{weight_bits:.0f}A{activation_bits:.0f}"}
        for family, candidates in points.groupby("family"):
            best = candidates.sort_values(["accuracy", "luts"], ascending=[False, True]).iloc[0]
            row[str(family)] = {
                "pair": _pair(best),
                "accuracy": f"{100 * best['accuracy']:.2f}",
                "luts": f"{best['luts']:.0f}",
            }
        rows.append(row)
    return rows


def _pair(row: pd.Series) -> str:
    if row["weights"] == row["activations"]:
        return str(row["weights"])
    return f"{row['weights']}/{row['activations']}"
