import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from dse.design import DesignPoint
from dse.metrics import Figure, Provenance
from dse.store import Result, ResultStore, as_table, exclusive
from quantizers.errors import UsageError

POINT = DesignPoint(
    workload="fmnist-resnet", weights="e2m1", activations="int4", edge_format="int8", integer_weights="narrow", weight_scale="mse",
    activation_scale="mse", percentile=None, bias="fixed", unsigned_activations=True, recipe="round", calibration_images=None,
    evaluation_images=100, block="mac", dot_length=4608, part="xc7z020", seed=0,
)  # fmt: skip
DONE = Result(
    key="a" * 64,
    design=POINT,
    tools={"torch": "2"},
    wall_seconds=1.5,
    host="h",
    finished_at="2026-01-01T00:00:00+00:00",
    metrics={
        "luts": Figure(80, Provenance.MEASURED),
        "accuracy": Figure(0.9, Provenance.MEASURED, (0.88, 0.92)),
    },
    details={"mac_weights": "e2m1"},
)
FAILED = replace(DONE, key="b" * 64, metrics={}, details={}, error="timed out after 8 s")


def test_results_come_back_as_they_were_put(tmp_path):
    with ResultStore(tmp_path) as store:
        store.put(DONE)
        store.put(FAILED)
    with ResultStore(tmp_path) as store:
        assert store.get(["b" * 64, "c" * 64, "a" * 64]) == {FAILED.key: FAILED, DONE.key: DONE}


def test_a_failed_point_is_replaced_when_it_succeeds(tmp_path):
    with ResultStore(tmp_path) as store:
        store.put(FAILED)
        store.put(replace(DONE, key=FAILED.key))
        assert store.get([FAILED.key])[FAILED.key].status == "done"


def test_table_has_choices_metrics_provenance_and_intervals_as_columns():
    row = as_table([DONE]).iloc[0].to_dict()
    expected = {
        "key": "a" * 64, "workload": "fmnist-resnet", "weights": "e2m1", "activations": "int4", "family": "mixed",
        "dot_length": 4608, "luts": 80, "luts_provenance": "measured", "accuracy": 0.9, "accuracy_low": 0.88,
        "accuracy_high": 0.92, "accuracy_provenance": "measured", "mac_weights": "e2m1", "status": "done",
        "version_torch": "2", "wall_seconds": 1.5,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert "luts_low" not in row
    assert "ffs" not in row


def test_rows_of_another_version_are_left_out(tmp_path):
    with ResultStore(tmp_path) as store:
        store.put(DONE)
        store.put(FAILED)
    with sqlite3.connect(tmp_path / "results.sqlite") as connection:
        connection.execute(
            "UPDATE results SET design = json_remove(design, '$.recipe') WHERE key = ?", (DONE.key,)
        )
    with ResultStore(tmp_path) as store:
        assert list(store.get([DONE.key, FAILED.key])) == [FAILED.key]


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "results.sqlite").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(UsageError, match="cannot open the result store .*file is not a database"):
        ResultStore(tmp_path)


def test_the_store_can_be_read_with_sqlite_alone(tmp_path):
    with ResultStore(tmp_path) as store:
        store.put(DONE)
    rows = sqlite3.connect(tmp_path / "results.sqlite").execute(
        "SELECT json_extract(metrics, '$.luts.value') FROM results WHERE status = 'done'"
    )
    assert rows.fetchall() == [(80,)]


def test_one_sweep_a_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from dse.store import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(
            UsageError, match="^another sweep is writing to '.*'; wait for it or choose another --out$"
        ),
        exclusive(tmp_path),
    ):
        pass
    holder.communicate()
    with exclusive(tmp_path):
        pass
