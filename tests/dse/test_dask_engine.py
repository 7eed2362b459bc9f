import math
import os
import signal

import pytest

from dse.engine import make_engine
from quantizers.errors import UsageError

pytest.importorskip("distributed", reason="the dask extra is not installed")


def root(x):
    if x == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return math.sqrt(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_items_run_on_a_cluster_and_failures_stay_with_their_item():
    with make_engine("dask", workers=1) as engine:
        outcomes = sorted(engine.run(root, [4.0, -1.0, "die", 9.0], timeout_s=60), key=lambda o: o.index)
    assert [o.value for o in outcomes] == [2.0, None, None, 3.0]
    assert outcomes[1].error == "ValueError: math domain error"
    assert outcomes[2].error.startswith("KilledWorker: ")


def test_an_address_where_nobody_is():
    with pytest.raises(UsageError, match="^no Dask scheduler answers at 'tcp://127.0.0.1:1': "):
        make_engine("dask", scheduler="tcp://127.0.0.1:1")


def test_choices_are_checked():
    with pytest.raises(
        UsageError, match=r"^unknown engine 'dusk' \(did you mean 'dask'\?\); expected one of: local, dask$"
    ):
        make_engine("dusk")
    message = "^--scheduler belongs to --engine dask; the local engine has none$"
    with pytest.raises(UsageError, match=message):
        make_engine("local", scheduler="tcp://127.0.0.1:1")
    message = "^--workers has no meaning with --scheduler: the cluster has the workers it has$"
    with pytest.raises(UsageError, match=message):
        make_engine("dask", scheduler="tcp://127.0.0.1:1", workers=2)
