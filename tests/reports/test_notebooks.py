from pathlib import Path

import jupytext
import nbclient
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "reports" / "notebooks"


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.py")))
def test_notebook_runs_and_draws(name, finished_run, monkeypatch):
    monkeypatch.setenv("BITFRONT_RUN", str(finished_run.folder))
    notebook = jupytext.read(NOTEBOOKS / f"{name}.py")
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(Path.cwd()))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    drawn = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(drawn) == len(finished_run.study.fronts)
