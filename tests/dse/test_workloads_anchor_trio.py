"""The torchvision workloads, against a stand-in for torchvision with the parts that are used."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dse.workloads import check_workload, load_workload, workload_fingerprint
from dse.workloads.hashing import file_sha256
from quantizers.errors import MissingExtraError, UsageError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (bitfront[imagenet])")


def _network() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photographs"
    root.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((300, 256, 3), 124, np.uint8)).save(root / name)
    (root / "labels.csv").write_text("file,split,class_index\na.png,calibration,1\nb.png,evaluation,2\n")
    return root


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts torchvision's stand-in in place; returns the weights file, named by its hash as torch.hub does."""
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(_network().state_dict(), checkpoints / "new.pth")
    path = checkpoints / f"resnet18-{file_sha256(checkpoints / 'new.pth')[:8]}.pth"
    (checkpoints / "new.pth").rename(path)
    transforms = SimpleNamespace(
        resize_size=[256],
        crop_size=[224],
        interpolation=SimpleNamespace(value="bilinear"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    entry = SimpleNamespace(url=f"https://example.org/models/{path.name}", transforms=lambda: transforms)
    stand_in = ModuleType("torchvision.models")
    stand_in.get_model_weights = lambda name: SimpleNamespace(IMAGENET1K_V1=entry)  # type: ignore[attr-defined]
    stand_in.get_model = lambda name, weights: _network()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", stand_in)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return path


def test_workload_has_the_weights_and_their_preprocessing(folder: Path, weights: Path) -> None:
    workload = load_workload("resnet18", data=folder)
    assert workload.source == f"torchvision IMAGENET1K_V1, {weights.name}"
    assert workload.dataset == "photographs, 1 images"
    expected = torch.load(weights, weights_only=True)
    assert torch.equal(workload.model.state_dict()["2.weight"], expected["2.weight"])
    ((inputs, _),) = workload.evaluation.batches(1)
    assert inputs.shape == (1, 3, 224, 224)
    per_channel = [(124 / 255 - 0.485) / 0.229, (124 / 255 - 0.456) / 0.224, (124 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(inputs[0, :, 5, 9], torch.tensor(per_channel))
    assert workload_fingerprint("resnet18", folder) == workload_fingerprint("resnet18", folder)


def test_missing_weights_are_named_and_not_fetched(folder: Path, weights: Path) -> None:
    weights.unlink()
    with pytest.raises(UsageError) as caught:
        check_workload("resnet18", folder)
    url = f"https://example.org/models/{weights.name}"
    assert str(caught.value) == (
        f"weights file {weights} not found: bitfront downloads nothing, fetch {url} and put it there"
    )


def test_damaged_weights_are_reported(folder: Path, weights: Path) -> None:
    digits = weights.stem.rsplit("-", 1)[-1]
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UsageError) as caught:
        check_workload("resnet18", folder)
    assert str(caught.value) == (
        f"weights file {weights} is damaged (sha256 does not start with {digits}): "
        f"fetch https://example.org/models/{weights.name} again"
    )


def test_a_folder_is_asked_for(weights: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_workload("mobilenet_v2")
    assert str(caught.value) == (
        "mobilenet_v2 needs a folder of images with labels.csv: "
        'give one as data = "..." in the study or --data DIR'
    )


def test_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtraError) as caught:
        check_workload("vit_b_32", Path("nowhere"))
    assert str(caught.value).startswith(
        f"vit_b_32 needs torchvision in the build that matches the installed torch {torch.__version__} "
        "(https://pytorch.org/get-started/locally/); importing it failed: "
    )
