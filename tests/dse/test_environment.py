"""Which tools and which code belong to the key of a result."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from dse import environment as module
from dse.environment import accuracy_tools, code_digest, cost_tools, environment, tool_versions

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the layout in which every file can be changed."""
    for name in (
        "quantizers/formats.py",
        "dse/workloads/images.py",
        "dse/accuracy.py",
        "dse/statistics.py",
        "dse/costing.py",
        "dse/evaluation.py",
        "dse/sweep.py",
        "hw/arith/table.py",
        "hw/mac.py",
        "costmodel/packing.py",
        "reports/html.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"name = {name!r}\n")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "dse" / "environment.py"))
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    accuracy_tools.cache_clear()
    cost_tools.cache_clear()


def _digests() -> tuple[str, str]:
    _forget()
    tools = tool_versions()
    return tools["bitfront_accuracy"], tools["bitfront_cost"]


@pytest.mark.parametrize(
    ("name", "accuracy_changes", "cost_changes"),
    [
        ("quantizers/formats.py", True, True),
        ("dse/workloads/images.py", True, False),
        ("dse/accuracy.py", True, False),
        ("dse/statistics.py", True, False),
        ("dse/costing.py", False, True),
        ("dse/evaluation.py", False, True),
        ("hw/arith/table.py", False, True),
        ("hw/mac.py", False, True),
        ("costmodel/packing.py", False, True),
        ("dse/sweep.py", False, False),
        ("reports/html.py", False, False),
    ],
)
def test_changed_code_makes_new_results_where_it_decides_them(
    project: Path, name: str, accuracy_changes: bool, cost_changes: bool
) -> None:
    accuracy, cost = _digests()
    (project / name).write_text("changed = True\n")
    changed_accuracy, changed_cost = _digests()
    assert (changed_accuracy != accuracy, changed_cost != cost) == (accuracy_changes, cost_changes)


def test_digest_follows_names_and_contents_of_python_files_only(project: Path) -> None:
    before = code_digest(["hw"])
    assert len(before) == 12
    (project / "hw" / "notes.txt").write_text("nothing to run")
    assert code_digest(["hw"]) == before
    assert code_digest(["hw", "costmodel"]) not in {before, code_digest(["costmodel", "hw"])}
    (project / "hw" / "mac.py").rename(project / "hw" / "unit.py")
    renamed = code_digest(["hw"])
    assert renamed != before
    (project / "hw" / "new.py").write_text("")
    assert code_digest(["hw"]) not in {before, renamed}


@pytest.mark.parametrize("place", [*module._ACCURACY_CODE, *module._COST_CODE])
def test_every_place_holds_code(place: str) -> None:
    """A place that was moved would drop out of the digest without a word."""
    path = ROOT / place
    assert path.is_file() or any(path.rglob("*.py"))


def test_versions_of_what_decides_an_accuracy() -> None:
    tools = accuracy_tools()
    code = tools.pop("bitfront_accuracy")
    accuracy_tools.cache_clear()
    assert code == code_digest(["quantizers", "dse/workloads", "dse/accuracy.py", "dse/statistics.py"])
    assert tools["torch"] == metadata.version("torch")
    assert set(tools) <= {"brevitas", "numba", "numpy", "pillow", "torch", "torchvision"}
    assert {"brevitas", "numba", "numpy", "torch"} <= set(tools)


def test_versions_of_results_are_those_of_accuracy_and_of_cost() -> None:
    added = {name: text for name, text in tool_versions().items() if name not in accuracy_tools()}
    assert added == {
        "amaranth": metadata.version("amaranth"),
        "pyosys": metadata.version("pyosys"),
        "bitfront_cost": code_digest(
            ["quantizers/formats.py", "hw", "costmodel", "dse/costing.py", "dse/evaluation.py"]
        ),
    }
    assert tool_versions().items() >= accuracy_tools().items()


def test_a_package_that_is_not_installed_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ACCURACY_TOOLS", ("numpy", "no-such-package"))
    _forget()
    assert set(accuracy_tools()) == {"numpy", "bitfront_accuracy"}
    _forget()


def test_the_report_names_the_machine() -> None:
    found = environment()
    assert found["bitfront"] == metadata.version("bitfront")
    assert found.items() >= tool_versions().items()
    assert {name: found[name] for name in ("python", "system", "machine", "cores", "host")} == {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "host": platform.node(),
    }
