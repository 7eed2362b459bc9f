"""The HTML report: one self-contained page that works offline."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from dse.metrics import METRICS, Metric, metric
from dse.pareto import Front
from dse.sweep import Run
from quantizers.recipes import recipe_label
from reports.figures import is_logarithmic, is_right_label, member_labels, scaled, write_figures
from reports.style import FLOAT_LINE, FRONT_OF_ALL, Mark, marks_of
from reports.summary import best_by_bits, cheapest_designs, headlines, recipe_gains
from reports.text import with_interval

_TEMPLATES = Path(__file__).parent / "templates"
# Columns of the table of points, in order, where the run has them.
_TABLE_COLUMNS = (
    "workload", "family", "weights", "activations", "variant", "accuracy", "accuracy_drop_points",
    "codec", "evaluation", "perplexity", "perplexity_increase", "next_token_agreement", "mean_kl_nats",
    "bits_per_element_seen", "bits_per_element",
    "luts_per_weight_cycle", "luts_per_weight_bit_cycle", "luts_per_element_cycle", "weights_per_cycle",
    "weight_bits_per_cycle", "elements_per_cycle", "cycles_per_vector", "luts", "lut_cells", "carries",
    "ffs", "lutrams", "brams", "dsps", "accumulator_bits", "logic_delay_ns", "weight_memory_kib",
    "mac_weights", "mac_activations", "recipe", "integer_weights",
    "weight_scale", "weight_group", "activation_scale", "activation_granularity", "residual_format", "bias",
)  # fmt: skip

# One tick a decade; plotly's own have digits in between that read like values.
_SCALES: dict[str, dict[str, Any]] = {"linear": {"type": "linear"}, "log": {"type": "log", "dtick": 1}}

# Left out of the hover text where they are zero; the table has them.
_MOSTLY_ZERO = ("dsps", "brams", "lutrams")


def write_report(run: Run) -> Path:
    """Write ``report.html`` and the figures of a run; gives the page's path."""
    page = render_report(run)
    if run.results and not run.table().empty:
        write_figures(run)
    file = run.folder / "report.html"
    temporary = file.with_suffix(".html.part")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(file)
    return file


def render_report(run: Run) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    table = run.table()
    fronts = run.fronts()
    marks = marks_of(table["family"]) if not table.empty else {}
    return environment.get_template("report.html.j2").render(
        study=run.study,
        study_json=json.dumps(run.study.model_dump(mode="json"), indent=2),
        run=run,
        headlines=headlines(table) if not table.empty else [],
        has_images="accuracy" in table,
        charts=[_chart(table, fronts, front) for front in fronts if front.family == "all"],
        front_lists=fronts,
        in_float=run.layers_in_float,
        gains=recipe_gains(table) if not table.empty else [],
        recipes={recipe_label(text): text for text in table["recipe"].unique()} if "recipe" in table else {},
        best=best_by_bits(table) if not table.empty else [],
        cheapest=_cheapest(run, table),
        families=list(marks),
        colours={family: mark.colour for family, mark in marks.items()},
        columns=[name for name in _TABLE_COLUMNS if name in table],
        titles={
            name: f"{METRICS[name].label}; {_provenance(table, name)}" for name in METRICS if name in table
        },
        rows=[] if table.empty else _table_rows(table),
        metrics=[METRICS[name] for name in METRICS if name in table],
        provenance={name: _provenance(table, name) for name in METRICS if name in table},
        environment=run.environment,
        plotly=get_plotlyjs(),
    )


def _cheapest(run: Run, table: pd.DataFrame) -> dict[str, Any] | None:
    """The designs of a study of hardware side by side, by the metric of its first front."""
    by = metric(run.study.fronts[0].x) if run.study.fronts else None
    rows = cheapest_designs(table, by.name) if by else []
    if not by or not rows:
        return None
    return {"label": by.label, "designs": list(dict.fromkeys(table["design"])), "rows": rows}


def _provenance(table: pd.DataFrame, name: str) -> str:
    return ", ".join(sorted(table[f"{name}_provenance"].dropna().unique()))


def _table_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for record in table.to_dict(orient="records"):
        cells = {name: _cell(record, name) for name in _TABLE_COLUMNS if name in table}
        rows.append({"family": record["family"], "workload": record["workload"], "cells": cells})
    return rows


def _cell(record: Mapping[Hashable, Any], name: str) -> dict[str, Any]:
    """Text to show and the number to sort by."""
    value = record[name]
    if pd.isna(value):
        return {"text": "", "sort": None}
    if name not in METRICS:
        return {"text": str(value), "sort": None}
    return {"text": with_interval(record, METRICS[name]), "sort": float(value)}


def _chart(table: pd.DataFrame, fronts: list[Front], whole: Front) -> dict[str, str]:
    points = table[table["workload"] == whole.workload].dropna(subset=[whole.x, whole.y])
    x, y = metric(whole.x), metric(whole.y)
    marks = marks_of(table["family"])
    figure = go.Figure()
    for family, rows in points.groupby("family", sort=True):
        figure.add_trace(_points(rows, str(family), x, y, marks[str(family)]))
    for front in fronts:
        if (front.workload, front.x, front.y) == (whole.workload, whole.x, whole.y):
            figure.add_trace(_front_line(front, x, y, marks.get(front.family)))
    axes = {
        axis: "log" if is_logarithmic(points[of.name]) else "linear" for axis, of in {"x": x, "y": y}.items()
    }
    _name_members(figure, whole, axes, scaled(points[x.name], x))
    if y.name == "accuracy" and "float_accuracy" in points:
        level = 100 * points["float_accuracy"].iloc[0]
        figure.add_hline(level, line_dash="dash", line_color=FLOAT_LINE, line_width=1,
                         annotation_text=f"float {level:.2f} %", annotation_position="top right")  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=520, hovermode="closest", margin={"t": 30, "r": 20, "b": 60, "l": 70},
        xaxis={"title": x.label, **_SCALES[axes["x"]]}, yaxis={"title": y.label, **_SCALES[axes["y"]]},
        font={"size": 14}, legend={"orientation": "h", "yanchor": "top", "y": -0.16, "x": 0},
    )  # fmt: skip
    return {"title": f"{whole.workload}: {y.label} against {x.label}", "json": _embed(figure)}


def _name_members(figure: go.Figure, front: Front, axes: Mapping[str, str], xs: np.ndarray) -> None:
    for index, (px, py, label) in enumerate(member_labels(front)):
        # Plotly takes annotations of a logarithmic axis at the logarithm.
        left, up = (math.log10(v) if axes[a] == "log" else v for a, v in {"x": px, "y": py}.items())
        below = bool(index % 2)  # neighbours on a front are close; their labels take turns
        right = is_right_label(px, xs, index)
        figure.add_annotation(
            x=left, y=up, text=label, showarrow=False, font={"size": 12},
            xanchor="left" if right else "right", yanchor="top" if below else "bottom",
            xshift=5 if right else -5, yshift=-3 if below else 3,
        )  # fmt: skip


def _embed(figure: go.Figure) -> str:
    """The figure's JSON, safe inside a script element."""
    return str(figure.to_json()).replace("</", "<\\/")


def _points(rows: pd.DataFrame, family: str, x: Metric, y: Metric, mark: Mark) -> go.Scatter:
    records = rows.to_dict(orient="records")
    return go.Scatter(
        x=scaled(rows[x.name], x),
        y=scaled(rows[y.name], y),
        mode="markers",
        name=family,
        meta={"family": family},
        marker={
            "color": mark.colour,
            "symbol": mark.plotly,
            "size": 10,
            "opacity": 0.85,
        },
        error_y=_error_bars(rows, y),
        hovertext=[_hover(record) for record in records],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _error_bars(rows: pd.DataFrame, of: Metric) -> dict[str, Any] | None:
    low, high = f"{of.name}_low", f"{of.name}_high"
    if low not in rows:
        return None
    centre = scaled(rows[of.name], of)
    return {
        "type": "data",
        "symmetric": False,
        "array": scaled(rows[high], of) - centre,
        "arrayminus": centre - scaled(rows[low], of),
        "thickness": 1,
        "width": 2,
    }


def _hover(record: Mapping[Hashable, Any]) -> str:
    design = f"{escape(record['design'])}: " if "design" in record else ""
    what = escape(record["label"])
    if not pd.isna(record.get("weights")):
        what = f"weights {record['weights']}, activations {record['activations']}"
    lines = [f"<b>{design}{what}</b>"]
    for of in METRICS.values():
        value = record.get(of.name)
        if not (value is None or pd.isna(value) or (value == 0 and of.name in _MOSTLY_ZERO)):
            lines.append(f"{of.label}: {with_interval(record, of)}  ({record[of.name + '_provenance']})")
    if not pd.isna(record.get("mac_weights")):
        lines.append(f"MAC costed: {record['mac_weights']} x {record['mac_activations']}")
    if "recipe" in record:
        lines.append(f"recipe: {record['recipe']}")
        lines.append(f"scales: weights {record['weight_scale']}, activations {record['activation_scale']}")
    if "parameters" in record:
        lines.append(f"{record['block']}: {escape(record['parameters'])}")
    return "<br>".join(lines)


def _front_line(front: Front, x: Metric, y: Metric, mark: Mark | None) -> go.Scatter:
    return go.Scatter(
        x=scaled(front.rows[x.name], x),
        y=scaled(front.rows[y.name], y),
        mode="lines",
        line={
            "shape": "vh" if x.maximise else "hv",
            "color": mark.colour if mark else FRONT_OF_ALL,
            "width": 1.2 if mark else 2,
            "dash": "dot" if mark else "solid",
        },
        name=f"front, {front.family}" if mark else "front of all (dotted: of each family)",
        showlegend=mark is None,
        meta={"family": front.family if mark else None},
        hoverinfo="skip",
    )
