import json
import re

import pytest

from dse.metrics import METRICS
from reports import write_report


@pytest.fixture(scope="module")
def page(finished_run):
    return write_report(finished_run).read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_outside(page):
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", page)


def test_charts_hold_every_point_with_units_and_intervals(page, finished_run):
    charts = [
        json.loads(text) for text in re.findall(r'type="application/json"[^>]*>(.*?)</script>', page, re.S)
    ]
    assert len(charts) == len(finished_run.study.fronts)
    first = charts[0]
    assert first["layout"]["xaxis"]["title"]["text"] == METRICS["luts"].label
    assert first["layout"]["yaxis"]["title"]["text"] == "top-1 accuracy (%)"
    points = [trace for trace in first["data"] if trace["mode"] == "markers"]
    assert {trace["name"] for trace in points} == {"integer", "minifloat"}
    hovers = [text for trace in points for text in trace["hovertext"]]
    assert len(hovers) == 3
    assert all("(measured)" in text and "95 %" not in text for text in hovers)
    assert all(trace["error_y"]["type"] == "data" for trace in points)


def test_every_point_is_a_row_that_can_be_sorted(page):
    rows = re.findall(r'<tr data-family="(\w+)">(.*?)</tr>', page, re.S)
    assert [family for family, _ in rows] == ["integer", "minifloat", "minifloat"]
    assert all(len(re.findall(r'data-sort="-?[\d.e+-]+"', cells)) >= 8 for _, cells in rows)


def test_the_page_says_where_figures_come_from(page, finished_run):
    for name, version in finished_run.environment.items():
        assert f"<td>{name}</td>" in page
        assert version in page
    assert "Yosys" in page or "pyosys" in page
    assert finished_run.study.name in page


def test_figures_are_written(finished_run):
    write_report(finished_run)
    stems = ["fmnist-resnet_accuracy_luts", "fmnist-resnet_accuracy_weight_memory_kib"]
    names = sorted(path.name for path in (finished_run.folder / "figures").iterdir())
    assert names == sorted(f"{stem}.{kind}" for stem in stems for kind in ("png", "svg"))
    assert (finished_run.folder / "figures" / f"{stems[0]}.png").stat().st_size > 10_000
