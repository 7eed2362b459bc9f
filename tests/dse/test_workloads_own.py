"""A model of the user's own, named as module:function, and finding workloads by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dse.workloads import (
    check_workload,
    list_workloads,
    load_workload,
    top1_accuracy,
    workload_fingerprint,
)
from dse.workloads.own import EXPECTED
from quantizers.errors import BitfrontError, UsageError

SOURCE = """
import sys
import torch
from torch import nn
from dse.workloads import ImageSet, Workload

MODEL = nn.Linear(3, 3, bias=False)
MODEL.weight.data = torch.eye(3)
DATA = torch.eye(3).repeat(4, 1)

def good():
    return MODEL, DATA[:6], DATA, torch.arange(3).repeat(4)

def described():
    images = ImageSet(DATA, torch.arange(3).repeat(4), (0.5,), (2.0,))
    return Workload("mine", "three pixels", "by hand", "the unit vectors", MODEL, images, images)

def too_few():
    return MODEL, DATA, DATA

def not_a_tuple():
    return MODEL

def not_a_model():
    return "linear", DATA, DATA, torch.arange(3).repeat(4)

def not_tensors():
    return MODEL, DATA, DATA, [0, 1, 2]

def other_length():
    return MODEL, DATA, DATA, torch.arange(3)

def other_shapes():
    return MODEL, DATA[:, :2], DATA, torch.arange(3).repeat(4)

def wrong_inputs():
    return MODEL, DATA[:, :2], DATA[:, :2], torch.arange(3).repeat(4)

def wrong_logits():
    return nn.Flatten(0), DATA, DATA, torch.arange(3).repeat(4)

def wrong_label():
    return MODEL, DATA, DATA, torch.arange(12)

def negative_label():
    return MODEL, DATA, DATA, -torch.arange(12)

def two_outputs():
    class Two(nn.Module):
        def forward(self, x):
            return x, x
    return Two(), DATA, DATA, torch.arange(3).repeat(4)

def unseeded():
    torch.seed()
    return nn.Linear(3, 3), DATA, DATA, torch.arange(3).repeat(4)

def seeded():
    torch.manual_seed(1)
    return nn.Linear(3, 3), DATA, DATA, torch.arange(3).repeat(4)

def unlabelled():
    images = ImageSet(DATA)
    return Workload("mine", "three pixels", "by hand", "the unit vectors", MODEL, images, images)

def fails():
    raise RuntimeError("no such file")

def leaves():
    sys.exit(3)

def leaves_later():
    class Leaving(nn.Module):
        def forward(self, x):
            sys.exit("enough")
    return Leaving(), DATA, DATA, torch.arange(3).repeat(4)

def _private():
    return good()

class Network(nn.Module):
    pass
"""
FUNCTIONS = (
    "good, described, too_few, not_a_tuple, not_a_model, not_tensors, other_length, other_shapes, "
    "wrong_inputs, wrong_logits, wrong_label, negative_label, two_outputs, unseeded, seeded, unlabelled, "
    "fails, leaves, leaves_later"
)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module my_networks in the current folder."""
    path = tmp_path / "my_networks.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return path


def _message(name: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_workload(name)
    return str(caught.value)


def test_a_tuple_becomes_a_workload(mine: Path) -> None:
    check_workload("my_networks:good")
    workload = load_workload("my_networks:good", calibration_images=4, evaluation_images=9)
    assert (workload.name, workload.source) == ("my_networks:good", "my_networks:good")
    assert workload.dataset == "data of my_networks:good, 12 inputs"
    assert (len(workload.calibration), len(workload.evaluation)) == (4, 9)
    assert not workload.model.training
    assert not any(parameter.requires_grad for parameter in workload.model.parameters())
    assert top1_accuracy(workload.model, workload.evaluation).fraction == 1.0


def test_a_returned_workload_keeps_its_description(mine: Path) -> None:
    workload = load_workload("my_networks:described")
    assert workload.name == "my_networks:described"
    assert (workload.description, workload.dataset) == ("three pixels", "the unit vectors")
    assert workload.evaluation.mean == (0.5,)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("too_few", f" returned a tuple of 3, expected {EXPECTED}"),
        ("not_a_tuple", f" returned Linear, expected {EXPECTED}"),
        ("not_a_model", ": model must be a torch Module, not str"),
        ("not_tensors", ": evaluation_labels must be a torch Tensor, not list"),
        (
            "other_length",
            ": labels must have one class for each of the 12 inputs, shape (12,), not (3,)",
        ),
        ("other_shapes", ": calibration inputs have the shape (2,) each, evaluation inputs (3,)"),
        (
            "wrong_inputs",
            ": the model fails on its first evaluation input: "
            "mat1 and mat2 shapes cannot be multiplied (1x2 and 3x3)",
        ),
        ("wrong_logits", ": one input must give logits of shape (1, classes), not (3,)"),
        ("wrong_label", ": label 11 is not one of the model's 3 classes"),
        ("negative_label", ": label -11 is not one of the model's 3 classes"),
        ("two_outputs", ": one input must give logits of shape (1, classes), not tuple"),
        (
            "unlabelled",
            ": the evaluation set has no labels, expected one int64 class for each input",
        ),
        ("fails", " failed: RuntimeError: no such file"),
        ("leaves", " failed: SystemExit: 3"),
        ("leaves_later", ": the model fails on its first evaluation input: enough"),
    ],
)
def test_wrong_returns_say_what_was_expected(mine: Path, function: str, problem: str) -> None:
    assert _message(f"my_networks:{function}") == f"my_networks:{function}{problem}"


def test_missing_modules_and_functions_are_named(mine: Path) -> None:
    assert _message("no_such_module:good") == (
        "workload no_such_module:good: module 'no_such_module' cannot be imported (ModuleNotFoundError: "
        f"No module named 'no_such_module'); expected a module in {mine.parent} or an installed one"
    )
    assert _message("my_networks:goood") == (
        f"unknown function in module my_networks 'goood' (did you mean 'good'?); expected one of: {FUNCTIONS}"
    )
    with pytest.raises(UsageError, match="unknown function in module my_networks 'DATA'"):
        check_workload("my_networks:DATA")


def test_a_module_that_leaves_or_has_no_function(mine: Path) -> None:
    (mine.parent / "leaving_module.py").write_text("import sys\nsys.exit(4)\n")
    assert _message("leaving_module:f") == (
        "workload leaving_module:f: module 'leaving_module' cannot be imported (SystemExit: 4); "
        f"expected a module in {mine.parent} or an installed one"
    )
    (mine.parent / "bare_module.py").write_text("import torch\n_a = len\n")
    assert _message("bare_module:f") == (
        f"module bare_module has no public function, expected one that returns {EXPECTED}"
    )


def test_fingerprint_follows_source_weights_and_data(mine: Path) -> None:
    before = workload_fingerprint("my_networks:good")
    assert workload_fingerprint("my_networks:good") == before
    module = sys.modules["my_networks"]
    module.MODEL.weight.data[0, 0] = 2.0
    after = workload_fingerprint("my_networks:good")
    assert after != before
    module.DATA[0, 0] = 3.0
    changed = workload_fingerprint("my_networks:good")
    assert changed != after
    module.MODEL.register_forward_hook(lambda *_: torch.ones(1, 3))
    assert workload_fingerprint("my_networks:good") != changed


def test_a_model_drawn_without_a_seed_has_another_fingerprint_at_each_call(mine: Path) -> None:
    prints = [str(load_workload("my_networks:unseeded").fingerprint) for _ in range(3)]
    assert len({*prints, workload_fingerprint("my_networks:unseeded")}) == 4
    assert load_workload("my_networks:seeded").fingerprint == workload_fingerprint("my_networks:seeded")


def test_fingerprint_does_not_follow_the_counts(mine: Path) -> None:
    """Points with other counts are told apart by the counts themselves."""
    few = load_workload("my_networks:good", calibration_images=1, evaluation_images=2)
    assert few.fingerprint == workload_fingerprint("my_networks:good")


def test_unknown_names_get_the_nearest() -> None:
    names = (
        "fmnist-resnet, fmnist-mobilenet, fmnist-vit, efficientnet-lite0, resnet18, mobilenet_v2, vit_b_32"
    )
    assert _message("fmnist-resnets") == (
        "unknown workload 'fmnist-resnets' (did you mean 'fmnist-resnet'?); "
        f"expected one of: {names}, MODULE:FUNCTION"
    )
    with pytest.raises(UsageError):
        check_workload("fmnist-resnets")
    with pytest.raises(UsageError):
        workload_fingerprint("fmnist-resnets")


@pytest.mark.parametrize("name", [":f", "m:", "a b:f", "m:f()", "../m:f"])
def test_malformed_names_are_refused(name: str) -> None:
    assert _message(name) == (
        f"workload {name!r} is not of the form MODULE:FUNCTION, as in my_package.models:small_network"
    )


def test_listing_says_what_is_there_and_why_not(tmp_path: Path) -> None:
    infos = {info.name: info for info in list_workloads(tmp_path)}
    assert list(infos) == [
        "fmnist-resnet", "fmnist-mobilenet", "fmnist-vit", "efficientnet-lite0",
        "resnet18", "mobilenet_v2", "vit_b_32",
    ]  # fmt: skip
    for name, info in infos.items():
        if name.startswith("fmnist-"):
            assert (info.available, info.reason, info.needs) == (True, "", "")
            continue
        assert not info.available
        with pytest.raises(BitfrontError) as caught:
            check_workload(name, tmp_path)
        assert info.reason == str(caught.value)
        assert "labels.csv" in info.needs


def test_checks_include_the_counts() -> None:
    with pytest.raises(UsageError) as caught:
        check_workload("fmnist-vit", evaluation_images=4001)
    assert str(caught.value) == "evaluation_images must be between 1 and 4000 (all there are), not 4001"


def test_small_networks_do_not_look_at_the_data_folder(tmp_path: Path) -> None:
    assert workload_fingerprint("fmnist-vit", tmp_path / "none") == workload_fingerprint("fmnist-vit")
    assert isinstance(load_workload("fmnist-vit", data=tmp_path / "none").model, torch.nn.Module)
