"""The shipped networks: what their records say is what they do, and damage is reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dse.workloads import load_workload, top1_accuracy
from dse.workloads.hashing import file_sha256
from dse.workloads.small import PACKAGE_DATA, SmallNetwork
from dse.workloads.workload import Counts
from quantizers.errors import UsageError

TARGETS = {"fmnist-resnet": 91.0, "fmnist-mobilenet": 91.0, "fmnist-vit": 88.0}
NAME = "fmnist-mobilenet"


@pytest.fixture
def copy(tmp_path: Path) -> SmallNetwork:
    """A network whose files may be damaged."""
    for file in (f"{NAME}.safetensors", f"{NAME}.json", "fmnist.npz"):
        shutil.copy(PACKAGE_DATA / file, tmp_path)
    return SmallNetwork(NAME, "a copy", tmp_path)


def _remedy(network: SmallNetwork) -> str:
    return f"reinstall bitfront, or run python -m dse.workloads.train {NAME} --out {network.checkpoint}"


def _message(network: SmallNetwork, counts: Counts | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        network.load(None, counts or Counts())
    return str(caught.value)


@pytest.mark.parametrize("name", TARGETS)
def test_shipped_checkpoint_reaches_its_recorded_accuracy(name: str) -> None:
    workload = load_workload(name)
    record = SmallNetwork(name, "").record()
    measured = top1_accuracy(workload.model, workload.evaluation)
    assert record["test_accuracy_percent"] >= TARGETS[name]
    assert record["test_images"] == 10_000
    assert abs(measured.percent - record["test_accuracy_percent"]) < 2 * measured.standard_error
    assert abs(measured.percent - record["evaluation_accuracy_percent"]) < 0.1
    assert sum(p.numel() for p in workload.model.parameters()) == record["parameters"]


@pytest.mark.parametrize("name", TARGETS)
def test_shipped_files_are_small(name: str) -> None:
    assert (PACKAGE_DATA / f"{name}.safetensors").stat().st_size <= 2_000_000
    assert (PACKAGE_DATA / "fmnist.npz").stat().st_size <= 4_000_000


def test_workload_is_frozen_and_describes_itself() -> None:
    workload = load_workload(NAME, calibration_images=100, evaluation_images=200)
    assert (len(workload.calibration), len(workload.evaluation)) == (100, 200)
    assert not workload.model.training
    assert not any(parameter.requires_grad for parameter in workload.model.parameters())
    assert workload.name == NAME
    assert workload.dataset == "Fashion-MNIST, 200 of the 10000 test images"
    assert workload.source == "trained by dse.workloads.train, fmnist-mobilenet.safetensors"
    assert workload.calibration.labels is None
    assert workload.evaluation.inputs.dtype == torch.uint8


def test_subsets_are_balanced_prefixes() -> None:
    whole, part = load_workload(NAME), load_workload(NAME, evaluation_images=500)
    assert torch.equal(part.evaluation.inputs, whole.evaluation.inputs[:500])
    assert part.evaluation.labels is not None
    assert part.evaluation.labels.bincount().tolist() == [50] * 10


def test_no_calibration_image_is_an_evaluation_image() -> None:
    workload = load_workload(NAME)
    calibration = {image.numpy().tobytes() for image in workload.calibration.inputs}
    evaluation = {image.numpy().tobytes() for image in workload.evaluation.inputs}
    assert len(calibration) == 512
    assert not calibration & evaluation


def test_calibration_inputs_are_normalised() -> None:
    ((inputs, _),) = load_workload(NAME).calibration.batches(512)
    assert abs(inputs.mean().item()) < 0.05
    assert abs(inputs.std().item() - 1) < 0.05


def test_too_many_images_are_refused(copy: SmallNetwork) -> None:
    assert _message(copy, Counts(calibration=513)) == (
        "calibration_images must be between 1 and 512 (all there are), not 513"
    )
    assert _message(copy, Counts(evaluation=4001)) == (
        "evaluation_images must be between 1 and 4000 (all there are), not 4001"
    )


def test_a_truncated_checkpoint_is_reported(copy: SmallNetwork) -> None:
    expected = file_sha256(copy.checkpoint)
    copy.checkpoint.write_bytes(copy.checkpoint.read_bytes()[:-1000])
    assert _message(copy) == (
        f"{copy.checkpoint} is damaged: its sha256 is {file_sha256(copy.checkpoint)[:12]}..., "
        f"{NAME}.json records {expected[:12]}...; {_remedy(copy)}"
    )


def test_a_truncated_checkpoint_with_a_matching_record_is_reported(copy: SmallNetwork) -> None:
    copy.checkpoint.write_bytes(copy.checkpoint.read_bytes()[:100])
    _record_checkpoint(copy)
    message = _message(copy)
    assert message.startswith(f"{copy.checkpoint} does not fit the network {NAME}: ")
    assert message.endswith(f"; {_remedy(copy)}")


def test_a_checkpoint_of_another_shape_is_reported(copy: SmallNetwork) -> None:
    tensors = load_file(copy.checkpoint)
    save_file({**tensors, "fc.weight": torch.zeros(7, 256)}, copy.checkpoint)
    _record_checkpoint(copy)
    assert _message(copy) == (
        f"{copy.checkpoint} does not fit the network {NAME}: "
        "Error(s) in loading state_dict for SmallMobileNet: "
        "size mismatch for fc.weight: copying a param with shape torch.Size([7, 256]) from checkpoint, "
        f"the shape in current model is torch.Size([10, 256]).; {_remedy(copy)}"
    )


def test_missing_files_are_reported(copy: SmallNetwork) -> None:
    copy.checkpoint.unlink()
    assert _message(copy) == f"{copy.checkpoint} not found; {_remedy(copy)}"


def test_damaged_images_are_reported(copy: SmallNetwork) -> None:
    with copy.images.open("ab") as stream:
        stream.write(b"x")
    assert _message(copy).startswith(f"{copy.images} is damaged: its sha256 is ")


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_damaged_record_is_reported(copy: SmallNetwork, content: str) -> None:
    path = copy.folder / f"{NAME}.json"
    path.write_text(content)
    message = _message(copy)
    assert message.startswith(f"{path} cannot be read as a training record (")
    assert message.endswith(f"); {_remedy(copy)}")


def test_fingerprint_follows_the_checkpoint(copy: SmallNetwork) -> None:
    before = copy.fingerprint(None)
    assert before == SmallNetwork(NAME, "another description").fingerprint(None)
    tensors = load_file(copy.checkpoint)
    save_file({**tensors, "fc.bias": tensors["fc.bias"] + 1}, copy.checkpoint)
    _record_checkpoint(copy)
    assert copy.fingerprint(None) != before


def _record_checkpoint(network: SmallNetwork) -> None:
    path = network.folder / f"{NAME}.json"
    record = {**json.loads(path.read_text()), "checkpoint_sha256": file_sha256(network.checkpoint)}
    path.write_text(json.dumps(record))
