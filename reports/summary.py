"""What a run says, in sentences and in the table of best formats per bit width."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dse.metrics import METRICS
from reports.text import pair_label, with_interval


def headlines(table: pd.DataFrame, *, points: float = 1.0) -> list[str]:
    """For each workload: float accuracy, and the cheapest datapath that loses at most *points*.

    Where the cheapest integer and the cheapest minifloat differ, both are named. Accuracies come
    with their loss against float and its 95 % interval.
    """
    sentences = []
    for workload, rows in table.dropna(subset=["accuracy", "luts"]).groupby("workload", sort=False):
        float_accuracy = 100 * rows["float_accuracy"].iloc[0]
        close = rows[rows["accuracy_drop_points"] <= points]
        sentence = f"{workload}: float {float_accuracy:.2f} %."
        for family, candidates in close.groupby("family", sort=True):
            best = candidates.sort_values(["luts", "accuracy"], ascending=[True, False]).iloc[0]
            loss = with_interval(best.to_dict(), METRICS["accuracy_drop_points"])
            sentence += (
                f" Cheapest {family} within {points:g} point of it: {pair_label(best)},"
                f" {100 * best['accuracy']:.2f} % (loses {loss} points) at {best['luts']:.0f} LUT6 sites."
            )
        if close.empty:
            sentence += f" No format stays within {points:g} point of it."
        sentences.append(sentence)
    return sentences


def best_by_bits(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The best point of each family at each pair of bit widths, per workload.

    Chosen by ``selection_accuracy``, shown with ``held_out_accuracy``: the best of many is too good on
    the images that chose it. Ties go to fewer LUT6 sites.
    """
    groups = ["workload", "weight_bits", "activation_bits"]
    rows = []
    for (workload, weight_bits, activation_bits), points in table.groupby(groups, sort=True):
        row: dict[str, Any] = {"workload": workload, "bits": f"W{weight_bits:.0f}A{activation_bits:.0f}"}
        for family, candidates in points.groupby("family"):
            best = candidates.sort_values(["selection_accuracy", "luts"], ascending=[False, True]).iloc[0]
            row[str(family)] = {
                "pair": pair_label(best),
                "recipe": str(best["recipe"]),
                "candidates": len(candidates),
                "accuracy": with_interval(best.to_dict(), METRICS["held_out_accuracy"]),
                "luts": f"{best['luts']:.0f}",
            }
        rows.append(row)
    return rows
