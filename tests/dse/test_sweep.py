import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pandas as pd
import pytest

from dse.engine import LocalEngine
from dse.study import Study
from dse.sweep import Silent, load_run, run
from quantizers.errors import UsageError

# What may differ between two runs of one study.
VOLATILE = ["wall_seconds", "finished_at", "host"]

STUDY = """
name = "t"
[[workloads]]
name = "fmnist-resnet"
calibration_images = 16
evaluation_images = 50
[formats]
families = ["integer", "minifloat"]
bits = [3, 4]
[hardware]
dot_length = 1024
"""


class Recorder(Silent):
    def __init__(self):
        self.events = []

    def started(self, total, done):
        self.events.append(("started", total, done))

    def float_accuracy(self, workload, accuracy, error):
        self.events.append(("float", workload, error))

    def finished(self, result):
        self.events.append(("finished", result.key))


def test_rows_are_complete(finished_run):
    table = finished_run.table()
    assert list(table["weights"]) == ["int3", "e1m1", "e2m0"]
    assert (table["family"] == ["integer", "minifloat", "minifloat"]).all()
    for name in ("accuracy", "float_accuracy", "accuracy_drop_points", "luts", "ffs", "logic_delay_ns"):
        assert (table[f"{name}_provenance"] == "measured").all()
    assert table["evaluation_images_used"].tolist() == [200] * 3
    assert (table["accuracy_low"] < table["accuracy"]).all()
    assert (table["accuracy"] < table["accuracy_high"]).all()
    drop = 100 * (table["float_accuracy"] - table["accuracy"])
    assert drop.tolist() == pytest.approx(table["accuracy_drop_points"].tolist())
    # Weights of the edges are int8, the rest has 3 bits.
    assert table["weight_memory_kib"].nunique() == 1
    # Inner inputs come out of ReLU: the MAC that is costed has unsigned activations of the same bits.
    assert table["mac_activations"].tolist() == ["uint3", "ue1m2", "ue2m1"]


def test_parquet_holds_the_same_table(finished_run):
    stored = pd.read_parquet(finished_run.folder / "results.parquet")
    pd.testing.assert_frame_equal(stored, finished_run.table(), check_dtype=False)


def test_running_again_computes_nothing(finished_run):
    recorder = Recorder()
    again = run(finished_run.study, finished_run.folder, progress=recorder)
    assert recorder.events == [("started", 3, 3)]
    pd.testing.assert_frame_equal(again.table(), finished_run.table())


def test_a_loaded_run_is_the_run(finished_run):
    loaded = load_run(finished_run.folder)
    assert loaded.study == finished_run.study
    assert loaded.results == finished_run.results
    assert (loaded.failed, loaded.missing) == ([], 0)


def test_float_accuracy_comes_first(tmp_path):
    study = Study.parse(
        {
            "name": "t",
            "workloads": [{"name": "fmnist-resnet", "calibration_images": 16, "evaluation_images": 20}],
            "formats": {"pairs": [["int8", "int8"]]},
            "hardware": {"dot_length": 1024},
        }
    )
    recorder = Recorder()
    run(study, tmp_path, progress=recorder)
    assert [event[0] for event in recorder.events] == ["started", "float", "finished"]
    assert recorder.events[1] == ("float", "fmnist-resnet", None)


OWN_MODEL = """
import os, signal, torch
from torch import nn

class Fragile(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        quantized = getattr(self.middle, "quant_weight", None)
        if quantized is not None:
            steps = len(torch.unique(torch.cat([row / row.abs().max() for row in quantized().value]).round(decimals=3)))
            if steps <= 8:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.last(torch.relu(self.middle(torch.relu(self.first(x)))))

def make():
    torch.manual_seed(0)
    model = Fragile()
    inputs = torch.randn(64, 6)
    return model, inputs, inputs, model(inputs).argmax(1)
"""


def test_a_killed_worker_costs_its_point_only(tmp_path, monkeypatch):
    (tmp_path / "fragile_model.py").write_text(OWN_MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    study = Study.parse(
        {
            "name": "t",
            "workloads": [{"name": "fragile_model:make"}],
            "formats": {"pairs": [["int8", "int8"], ["ternary", "int8"], ["int6", "int6"]]},
            "hardware": {"dot_length": 64},
        }
    )
    with LocalEngine(1) as engine:
        result = run(study, tmp_path / "run", engine=engine)
    assert [(r.design.weights, r.error) for r in result.failed] == [
        ("ternary", "the worker process died (killed by SIGKILL, perhaps out of memory)")
    ]
    assert result.table()["weights"].tolist() == ["int8", "int6"]
    assert result.table()["float_accuracy"].tolist() == [1.0, 1.0]


UNUSABLE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight.data[0, 0] = float("nan")
    inputs = torch.randn(64, 6)
    return model, inputs, inputs, torch.zeros(64, dtype=torch.int64)
"""


def test_a_network_that_cannot_be_quantized_is_tried_once(tmp_path, monkeypatch):
    (tmp_path / "unusable_model.py").write_text(UNUSABLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    study = Study.parse(
        {
            "name": "t",
            "workloads": [{"name": "unusable_model:make"}],
            "formats": {"pairs": [["int8", "int8"], ["int6", "int6"]]},
        }
    )
    recorder = Recorder()
    with LocalEngine(1) as engine:
        result = run(study, tmp_path / "run", engine=engine, progress=recorder)
    reason = "the model's '2.weight' holds numbers that are not finite"
    assert recorder.events[1] == ("float", "unusable_model:make", reason)
    assert [(r.error, r.wall_seconds) for r in result.failed] == [(reason, 0.0)] * 2


def test_a_cache_that_cannot_be_written_is_refused_before_work(tmp_path, monkeypatch, finished_run):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        UsageError, match="^cannot write to the cache folder .*; set BITFRONT_CACHE to a folder"
    ):
        run(finished_run.study, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def sweep_process(folder, cache):
    environment = {**os.environ, "BITFRONT_CACHE": str(cache)}
    command = [sys.executable, "-m", "dse.cli", "sweep", str(folder / "t.toml"), "--out", str(folder / "run")]
    return subprocess.Popen(
        [*command, "--workers", "2"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def stored_rows(folder):
    """What another process has written so far, read without touching it."""
    file = folder / "run" / "results.sqlite"
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            return set(connection.execute("SELECT key, metrics, finished_at FROM results"))
    except sqlite3.OperationalError:  # not there yet, or being made
        return set()


def kill_after(process, folder, rows):
    """Kill the sweep as soon as its folder holds so many rows; gives those that are there after."""
    deadline = time.monotonic() + 300
    while len(stored_rows(folder)) < rows and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, log = process.communicate()
    assert process.returncode == -signal.SIGKILL, log
    return stored_rows(folder)


def test_killed_three_times_and_continued_equals_undisturbed(tmp_path, monkeypatch):
    (tmp_path / "t.toml").write_text(STUDY)
    study = Study.load(tmp_path / "t.toml")
    kept = set()
    for rows in sorted(random.Random(5).sample(range(1, 5), 3)):
        before = kept
        process = sweep_process(tmp_path, tmp_path / "cache")
        kept = kill_after(process, tmp_path, max(rows, len(before) + 1))
        assert before < kept
        assert 0 < len(kept) < 7
    tables = {}
    for folder, cache in (("run", "cache"), ("undisturbed", "another cache")):
        monkeypatch.setenv("BITFRONT_CACHE", str(tmp_path / cache))
        with LocalEngine(2) as engine:
            tables[folder] = run(study, tmp_path / folder, engine=engine).table().drop(columns=VOLATILE)
    assert kept < stored_rows(tmp_path)
    assert len(tables["run"]) == len(stored_rows(tmp_path)) == 7
    pd.testing.assert_frame_equal(tables["run"], tables["undisturbed"])


def test_another_study_in_the_same_folder_is_refused(finished_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished_run.folder, folder)
    before = contents(folder)
    other = finished_run.study.model_copy(update={"name": "other"})
    with pytest.raises(UsageError) as caught:
        run(other, folder)
    assert str(caught.value) == (
        f"{str(folder)!r} holds the run of study 'small', not of 'other'; choose another --out"
    )
    assert caught.value.expected == ["an empty folder", "a folder of study 'other'"]
    assert contents(folder) == before


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
