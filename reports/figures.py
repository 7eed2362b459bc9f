"""Paper figures with matplotlib: one front a file, as SVG and PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dse.metrics import Metric, metric
from dse.pareto import Front
from dse.sweep import Run
from quantizers.recipes import recipe_label
from reports.style import FLOAT_LINE, FRONT_OF_ALL, RECIPE_COLOURS, marks_of

_SIZE_INCHES = (6.4, 4.2)
_PNG_DPI = 160
# Of the range of x, left and right: the first label is left of its point.
_MARGIN = 0.08
# Parts of an axis, left and right, where labels point to the other end.
_ENDS = 0.35
# The largest value over the smallest from which on an axis is logarithmic.
_FAR_APART = 200


def write_figures(run: Run) -> list[Path]:
    """One figure for each workload and each front of the study, in ``figures/`` of the run folder."""
    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    table = run.table()
    fronts = run.fronts()
    files = []
    for whole in (front for front in fronts if front.family == "all"):
        points = table[table["workload"] == whole.workload]
        # Not pyplot: its global backend is the notebook's or the user's business.
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        draw_front(figure.subplots(), points, whole)
        stem = folder / f"{_file_name(whole.workload)}_{whole.y}_{whole.x}"
        for file in (stem.with_suffix(".svg"), stem.with_suffix(".png")):
            figure.savefig(file, dpi=_PNG_DPI)
            files.append(file)
    return files


def _file_name(workload: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in workload)


def draw_front(axes: Axes, points: pd.DataFrame, front: Front) -> None:
    """Points by family with their intervals, the front over all of them, its members named."""
    x, y = metric(front.x), metric(front.y)
    marks = marks_of(points["family"])
    for family, rows in points.dropna(subset=[x.name, y.name]).groupby("family", sort=True):
        axes.errorbar(
            scaled(rows[x.name], x),
            scaled(rows[y.name], y),
            yerr=_error_lengths(rows, y),
            fmt=marks[str(family)].matplotlib,
            color=marks[str(family)].colour,
            markersize=5,
            elinewidth=0.6,
            alpha=0.8,
            label=str(family),
        )
    xs, ys = scaled(front.rows[x.name], x), scaled(front.rows[y.name], y)
    # Between two members only the worse in x can be had: to the left where less is better.
    side: Literal["pre", "post"] = "pre" if x.maximise else "post"
    axes.step(xs, ys, where=side, color=FRONT_OF_ALL, linewidth=1.2, label="Pareto front", zorder=0)
    for index, (px, py, label) in enumerate(member_labels(front)):
        below = bool(index % 2)  # neighbours on a front are close; their labels take turns
        right = is_right_label(px, scaled(points[x.name].dropna(), x), index)
        axes.annotate(
            label,
            (px, py),
            xytext=(5 if right else -5, -11 if below else 6),
            ha="left" if right else "right",
            textcoords="offset points",
            fontsize=8,
        )
    if y.name == "accuracy" and "float_accuracy" in points:
        level = 100 * points["float_accuracy"].iloc[0]
        axes.axhline(level, color=FLOAT_LINE, linestyle="--", linewidth=1, label=f"float, {level:.1f} %")
    axes.set_xscale("log" if is_logarithmic(points[x.name]) else "linear")
    axes.set_yscale("log" if is_logarithmic(points[y.name]) else "linear")
    axes.margins(x=_MARGIN)
    axes.set_xlabel(x.label)
    axes.set_ylabel(y.label)
    axes.set_title(front.workload, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right" if y.maximise else "upper right")


def is_logarithmic(values: pd.Series) -> bool:
    """Whether an axis shows these better by their magnitude: all above zero, and far apart."""
    low, high = values.min(), values.max()
    return bool(low > 0 and high / low > _FAR_APART)


def is_right_label(place: float, values: np.ndarray, index: int) -> bool:
    """Whether the label of a point is to its right: at the left end of an axis it is, in the middle they take
    turns by *index*, at the right end it is not."""
    low, high = values.min(), values.max()
    if is_logarithmic(pd.Series(values)):
        place, low, high = np.log(place), np.log(low), np.log(high)
    part = (place - low) / (high - low) if high > low else 0.5
    return bool(part < _ENDS or (part <= 1 - _ENDS and index % 2))


def member_labels(front: Front) -> list[tuple[float, float, str]]:
    """Where the members of a front are on the axes, and their formats; those at one place share a label."""
    x, y = metric(front.x), metric(front.y)
    places = zip(scaled(front.rows[x.name], x), scaled(front.rows[y.name], y), strict=True)
    labels: dict[tuple[float, float], list[str]] = {}
    for place, row in zip(places, front.rows.itertuples(), strict=True):
        labels.setdefault(place, []).append(str(row.label))
    return [(*place, ", ".join(names)) for place, names in labels.items()]


def scaled(values: pd.Series, of: Metric) -> np.ndarray:
    """Values as the axis shows them: fractions in percent."""
    return values.to_numpy(dtype=float) * (100 if of.percent else 1)


def _error_lengths(rows: pd.DataFrame, of: Metric) -> np.ndarray | None:
    low, high = f"{of.name}_low", f"{of.name}_high"
    if low not in rows:
        return None
    centre = scaled(rows[of.name], of)
    return np.stack([centre - scaled(rows[low], of), scaled(rows[high], of) - centre])


def draw_gains(axes: Axes, points: pd.DataFrame) -> None:
    """Mean accuracy of each recipe against the bits of weights and activations, by family.

    *points* are those of one workload; the mean is over all formats and seeds of a family.
    """
    widths = sorted({(row.weight_bits, row.activation_bits) for row in points.itertuples()})
    places = {pair: index for index, pair in enumerate(widths)}
    marks = marks_of(points["family"])
    recipes = list(points["recipe"].unique())
    colours = dict(zip(recipes, RECIPE_COLOURS * len(recipes), strict=False))
    for (family, recipe), rows in points.groupby(["family", "recipe"], sort=False):
        means = rows.groupby(["weight_bits", "activation_bits"])["accuracy"].mean()
        axes.plot(
            [places[pair] for pair in means.index],
            100 * means,
            marker=marks[str(family)].matplotlib,
            linestyle="-" if family == "integer" else "--",
            color=colours[str(recipe)],
            label=f"{family}, {recipe_label(str(recipe))}",
        )
    axes.set_xticks(range(len(widths)), [f"W{w:.0f}A{a:.0f}" for w, a in widths], rotation=60)
    axes.set_ylabel("mean accuracy (%)")
    axes.legend(fontsize=7)
