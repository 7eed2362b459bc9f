"""What a run says, in sentences and in the table of best formats per bit width."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pandas as pd

from dse.design import DesignPoint, formats_label
from dse.metrics import METRICS
from quantizers.recipes import ROUND, recipe_label
from reports.text import with_interval


def headlines(table: pd.DataFrame, *, points: float = 1.0) -> list[str]:
    """For each workload: float accuracy, and the cheapest datapath that loses at most *points*.

    Where the cheapest integer and the cheapest minifloat differ, both are named. Accuracies come
    with their loss against float and its 95 % interval.
    """
    if not {"luts", "accuracy"} <= set(table):
        return []
    cost = _cost(table)
    sentences = []
    for workload, rows in table.dropna(subset=["accuracy", "luts"]).groupby("workload", sort=False):
        float_accuracy = 100 * rows["float_accuracy"].iloc[0]
        close = rows[rows["accuracy_drop_points"] <= points]
        sentence = f"{workload}: float {float_accuracy:.2f} %."
        for family, candidates in close.groupby("family", sort=True):
            best = candidates.sort_values([cost, "accuracy"], ascending=[True, False]).iloc[0]
            loss = with_interval(best.to_dict(), METRICS["accuracy_drop_points"])
            sentence += (
                f" Cheapest {family} within {points:g} point of it: {best['label']},"
                f" {100 * best['accuracy']:.2f} % (loses {loss} points) at {best['luts']:.0f} LUT6 sites"
                f"{_pauses(best)}."
            )
        if close.empty:
            sentence += f" No format stays within {points:g} point of it."
        sentences.append(sentence)
    return sentences


def _cost(table: pd.DataFrame) -> str:
    """The column by which datapaths are compared; runs of before there were pauses have only their area."""
    return "lut_cycles_per_product" if "lut_cycles_per_product" in table else "luts"


def _pauses(row: Any) -> str:
    cycles = row.get("cycles_per_product", 1.0)
    return "" if pd.isna(cycles) or cycles == 1 else f" and {cycles:.2f} cycles per product"


def best_by_bits(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The best point of each family at each pair of bit widths, per workload.

    Chosen by ``selection_accuracy``, shown with ``held_out_accuracy``: the best of many is too good on
    the images that chose it. Points that differ in nothing but the seed count as one, by their mean.
    Ties go to fewer LUT6 sites.
    """
    if "selection_accuracy" not in table:
        return []
    rows = []
    for (workload, weight_bits, activation_bits), points in over_seeds(table).groupby(_WIDTHS, sort=True):
        row: dict[str, Any] = {"workload": workload, "bits": f"W{weight_bits:.3g}A{activation_bits:.3g}"}
        for family, candidates in points.groupby("family"):
            by = [name for name in ("selection_accuracy", _cost(table)) if name in table]
            best = candidates.sort_values(by, ascending=[name != "selection_accuracy" for name in by]).iloc[0]
            luts = best.get("luts")
            row[str(family)] = {
                "pair": best["label"],
                "recipe": recipe_label(str(best["recipe"])),
                "candidates": len(candidates),
                "accuracy": with_interval(best.to_dict(), METRICS["held_out_accuracy"]),
                "luts": "" if pd.isna(luts) else f"{luts:.0f}",
            }
        rows.append(row)
    return rows


def cheapest_designs(table: pd.DataFrame, metric: str) -> list[dict[str, Any]]:
    """For each pair of formats of a study of hardware the least *metric* that each of its designs reaches.

    Each row has ``formats``, ``figures`` by design, and of the designs without DSP slices (whose area is
    not in LUTs) the ``best`` and, where there is another, ``gain``: how many times its figure the
    next best one has.
    """
    if not {metric, "design", "weights"} <= set(table) or table["design"].nunique() < 2:
        return []
    rows = []
    for (weights, activations), points in table.dropna(subset=[metric]).groupby(
        ["weights", "activations"], sort=False
    ):
        least = points.groupby("design", sort=False)[metric].min()
        dsps = points["dsps"] if "dsps" in points else 0 * points[metric]
        in_luts = least[sorted(set(points.loc[dsps == 0, "design"]), key=list(least.index).index)]
        row: dict[str, Any] = {
            "formats": formats_label(str(weights), str(activations)),
            "figures": least.to_dict(),
        }
        if len(in_luts):
            ranked = in_luts.sort_values()
            row["best"] = ranked.index[0]
            if len(ranked) > 1:
                row["gain"] = ranked.iloc[1] / ranked.iloc[0]
        rows.append(row)
    return rows


def recipe_gains(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What each recipe adds to rounding to nearest, in points of accuracy, by family and bit widths.

    The mean over the family's formats and seeds that have both, so that nothing is chosen by its
    result; with the standard deviation of these gains where there are several.
    """
    if "recipe" not in table or table["recipe"].nunique() < 2 or ROUND not in set(table["recipe"]):
        return []
    same = [name for name in (*_CHOICES, "seed") if name in table and name != "recipe"]
    base = table.loc[table["recipe"] == ROUND, [*same, "accuracy"]]
    # Unlike join, merge takes two absent values (no percentile, no weight groups) for the same.
    joined = table.merge(base.rename(columns={"accuracy": "rounded"}), on=same, how="inner")
    joined["gain"] = 100 * (joined["accuracy"] - joined["rounded"])
    rows = []
    for (workload, weight_bits, activation_bits, family), points in joined.groupby([*_WIDTHS, "family"]):
        cells = {}
        for recipe, gains in points.groupby("recipe", sort=False)["gain"]:
            spread = f" \u00b1 {gains.std():.2f}" if len(gains) > 1 else ""
            cells[recipe_label(str(recipe))] = f"{gains.mean():+.2f}{spread}"
        rounded = points.loc[points["recipe"] == ROUND, "accuracy"]
        rows.append(
            {
                "workload": workload,
                "bits": f"W{weight_bits:.3g}A{activation_bits:.3g}",
                "family": family,
                "points": len(rounded),
                "rounded": f"{100 * rounded.mean():.2f}",
                "gains": cells,
            }
        )
    return rows


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """One row for points that differ in the seed only: means of figures and of their intervals.

    ``accuracy_seed_std`` is the standard deviation of the accuracy over seeds, where there are several.
    """
    if "seed" not in table or table["seed"].nunique() < 2:
        return table
    numbers = [name for name in table.columns if name.removesuffix("_low").removesuffix("_high") in METRICS]
    choices = [name for name in _CHOICES if name in table]
    grouped = table.groupby(choices, sort=False, dropna=False)
    means = grouped[numbers].mean()
    means["accuracy_seed_std"] = grouped["accuracy"].std()
    return means.reset_index()


_WIDTHS = ["workload", "weight_bits", "activation_bits"]
_CHOICES = [
    name for name in (*(field.name for field in fields(DesignPoint)), "family", "label") if name != "seed"
]
