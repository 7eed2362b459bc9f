"""The training script's parts: schedule, augmentation, the idx reader, the packed file and the command line.

Nothing is trained here.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dse.workloads import fmnist, train
from dse.workloads.hashing import file_sha256
from dse.workloads.networks import NETWORKS
from quantizers.errors import UsageError

SPLITS = {"train": 1100, "t10k": 4100}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in the original files' format: the image's first two pixels spell its number."""
    folder = tmp_path_factory.mktemp("fashion")
    for split, count in SPLITS.items():
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(count), 256)
        labels = np.random.default_rng(1).permutation(np.arange(count) % 10).astype(np.uint8)
        _write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        _write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
    return folder


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = np.array([0x800 + array.ndim, *array.shape], dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes(), 1))


def test_schedule_rises_holds_and_falls() -> None:
    rates = [train.warmup_stable_decay(step, 100, warmup=0.1, decay=0.2) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[10:81] == [1.0] * 71
    assert rates[81:] == pytest.approx([1.0 - 0.05 * k for k in range(1, 20)])
    assert rates[99] == pytest.approx(0.05)


def test_schedule_without_warm_up_or_decay_is_constant() -> None:
    assert [train.warmup_stable_decay(step, 5, 0.0, 0.0) for step in range(5)] == [1.0] * 5


def test_augmentation_flips_and_shifts_whole_images() -> None:
    image = torch.zeros(28, 28, dtype=torch.uint8)
    image[10, 8], image[10, 9], image[11, 8] = 1, 2, 3
    padded = torch.nn.functional.pad(image, (2,) * 4).repeat(400, 1, 1)
    augmented = train.augment(padded, torch.Generator().manual_seed(0))
    assert augmented.shape == (400, 28, 28)
    expected = {
        tuple(torch.roll(source, (dy, dx), (0, 1)).flatten().tolist())
        for source in (image, image.flip(1))
        for dy in range(-2, 3)
        for dx in range(-2, 3)
    }
    assert {tuple(result.flatten().tolist()) for result in augmented} == expected


def test_originals_are_read_as_they_are(originals: Path) -> None:
    images, labels = fmnist.read_split(originals, "t10k")
    assert images.shape == (4100, 28, 28)
    assert (images[4099, 0, 0], images[4099, 0, 1]) == divmod(4099, 256)
    assert np.bincount(labels).tolist() == [410] * 10


def test_missing_files_are_named_with_the_package(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        fmnist.read_split(tmp_path, "train")
    assert str(caught.value) == (
        f"Fashion-MNIST file {tmp_path / 'train-images-idx3-ubyte.gz'} not found: install the Debian package "
        "dataset-fashion-mnist, or give the folder with the four *-ubyte.gz files as --data DIR"
    )


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x01\0\0\0\x01\0", b"\0\0\x08\x03\0\0\0\x01\0\0\0\x02"])
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(UsageError) as caught:
        fmnist.read_split(tmp_path, "train")
    assert (
        str(caught.value)
        == f"{path} is not an idx file of unsigned bytes with 3 dimension(s), or is cut short"
    )


def test_a_truncated_original_is_refused(tmp_path: Path, originals: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes((originals / path.name).read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte\.gz cannot be read as a gzip file: "):
        fmnist.read_split(tmp_path, "train")


def test_every_prefix_is_balanced_and_no_image_comes_twice() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 3000).astype(np.uint8)
    order = fmnist.balanced_order(labels, 1234, seed=0)
    assert len(set(order.tolist())) == 1234
    for count in (10, 500, 1230):
        assert np.bincount(labels[order[:count]]).tolist() == [count // 10] * 10
    assert labels[order[:10]].tolist() != labels[order[10:20]].tolist()


def test_packing_repeats_and_keeps_images_with_their_labels(originals: Path, tmp_path: Path) -> None:
    for name in ("one.npz", "two.npz"):
        fmnist.pack(originals, tmp_path / name)
    assert file_sha256(tmp_path / "one.npz") == file_sha256(tmp_path / "two.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "two.npz"]
    calibration, evaluation = fmnist.load_packed(tmp_path / "one.npz")
    assert (len(calibration), len(evaluation)) == (512, 4000)
    assert calibration.labels is None
    _, labels = fmnist.read_split(originals, "t10k")
    number = evaluation.inputs[:, 0, 0, 0].long() * 256 + evaluation.inputs[:, 0, 0, 1]
    assert evaluation.labels is not None
    assert torch.equal(evaluation.labels, torch.from_numpy(labels).long()[number])


def test_a_damaged_packed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fmnist.npz"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UsageError) as caught:
        fmnist.load_packed(path)
    assert str(caught.value) == (
        f"{path} cannot be read as packed Fashion-MNIST: File is not a zip file; "
        "reinstall bitfront or train again"
    )


def test_the_command_line_names_the_nearest_network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert train.main(["fmnist-resnt", "--out", str(tmp_path / "x.safetensors")]) == 2
    assert caplog.messages == [
        "error: unknown network 'fmnist-resnt' (did you mean 'fmnist-resnet'?); "
        "expected one of: fmnist-resnet, fmnist-mobilenet, fmnist-vit"
    ]


def test_the_command_line_writes_nothing_without_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "x.safetensors"
    assert train.main(["fmnist-vit", "--data", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert caplog.messages[0].startswith(f"error: Fashion-MNIST file {tmp_path / 'none'}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("network", NETWORKS)
def test_recipes_are_those_of_the_shipped_records(network: str) -> None:
    path = Path(train.__file__).parent / "data" / f"{network}.json"
    record = json.loads(path.read_text())
    assert record["recipe"] == train.asdict(train.RECIPES[network])
    assert len(record["test_accuracy_percent_per_epoch"]) == record["recipe"]["epochs"]


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_take_images_to_logits_and_use_each_module_once(network: str) -> None:
    model = NETWORKS[network]().eval()
    calls: dict[str, int] = {}
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert set(calls.values()) == {1}
