from pathlib import Path

import jupytext
import nbclient

from dse.hardware_study import HardwareStudy
from dse.sweep import run

NOTEBOOKS = Path(__file__).parents[2] / "reports" / "notebooks"


def execute(name, run, monkeypatch):
    """The outputs of a notebook for a run; an error in it is one here."""
    monkeypatch.setenv("BITFRONT_RUN", str(run.folder))
    notebook = jupytext.read(NOTEBOOKS / f"{name}.py")
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(Path.cwd()))
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def images(outputs):
    return [output for output in outputs if "image/png" in output.get("data", {})]


def test_fronts_are_drawn(finished_run, monkeypatch):
    outputs = execute("fronts", finished_run, monkeypatch)
    assert len(images(outputs)) == len(finished_run.study.fronts)


def test_recipes_are_compared(run_of_recipes, monkeypatch):
    outputs = execute("recipes", run_of_recipes, monkeypatch)
    assert len(images(outputs)) == 1
    assert outputs[0]["text"] == "small: 6 points, 2 recipes, 1 seeds\n"
    best, gains = (
        output["data"]["text/plain"] for output in outputs if "text/html" in output.get("data", {})
    )
    assert "W3A3" in best
    assert "gptq + bias_correction" in gains


def test_designs_are_set_side_by_side(tmp_path, monkeypatch):
    sizes = {"rows": 8, "columns": 8, "lanes": 1, "groups": 2}
    kinds = {"tables": {"group": 2}, "adders": {"group": 1, "storage": "registers"}}
    designs = [
        {
            "name": name,
            "block": "lut_kernel",
            "weights": "uint1",
            "activations": "int4",
            "parameters": sizes | kind,
        }
        for name, kind in kinds.items()
    ]
    fronts = [{"x": "luts_per_weight_cycle", "y": "cycles_per_vector"}]
    study = HardwareStudy.parse({"name": "engines", "designs": designs, "fronts": fronts})
    outputs = execute("lut_kernel", run(study, tmp_path), monkeypatch)
    assert len(images(outputs)) == 2
    assert outputs[0]["text"] == "engines: 2 points, 0 failed, 0 not yet evaluated\n"


def test_codecs_of_a_cache(run_of_caches, monkeypatch):
    outputs = execute("kv_cache", run_of_caches, monkeypatch)
    assert len(images(outputs)) == 2
    first, *_ = (output["text"] for output in outputs if "text" in output)
    assert first.startswith(
        "cache: 5 points, 0 failed, 0 not yet evaluated\nmeasured on text.txt, calibrated on "
    )


def test_every_notebook_is_tested():
    assert {path.stem for path in NOTEBOOKS.glob("*.py")} == {"fronts", "kv_cache", "lut_kernel", "recipes"}
