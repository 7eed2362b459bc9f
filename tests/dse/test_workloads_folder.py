"""Folders of labelled photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dse.workloads.folder import ImageFolder, Preprocessing
from dse.workloads.workload import Counts
from quantizers.errors import UsageError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (bitfront[imagenet])")

PLAIN = Preprocessing(resize=8, crop=4, resample="bilinear", mean=(127.0,), std=(128.0,))
ROWS = ["a.png,calibration,5", "b.png,evaluation,7", "c.png,evaluation,999", "d.png,evaluation,0"]
EXPECTED = "expected a CSV file with the columns file, split, class_index"


def _folder(root: Path, rows: list[str], header: str = "file,split,class_index") -> Path:
    images = root / "images"
    images.mkdir()
    for row in rows:
        name = row.split(",")[0]
        grey = np.full((16, 12, 3), 10 * (1 + ord(name[0]) - ord("a")), np.uint8)
        Image.fromarray(grey).save(images / name)
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def _message(folder: Path | None) -> str:
    with pytest.raises(UsageError) as caught:
        ImageFolder(folder, "some-net")
    return str(caught.value)


def test_images_come_with_their_labels_whatever_the_order_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    sets = [
        ImageFolder(_folder(tmp_path / name, rows), "some-net").load(Counts(), PLAIN)
        for name, rows in (("one", ROWS), ("two", ROWS[::-1]))
    ]
    calibration, evaluation = sets[0]
    assert torch.equal(sets[0][1].inputs, sets[1][1].inputs)
    assert calibration.labels is None
    assert torch.equal(calibration.inputs, torch.full((1, 3, 4, 4), 10, dtype=torch.uint8))
    assert evaluation.labels is not None
    pairs = set(zip(evaluation.inputs[:, 0, 0, 0].tolist(), evaluation.labels.tolist(), strict=True))
    assert pairs == {(20, 7), (30, 999), (40, 0)}
    assert (evaluation.mean, evaluation.std) == ((127.0,), (128.0,))


def test_counts_take_prefixes(tmp_path: Path) -> None:
    folder = ImageFolder(_folder(tmp_path, ROWS), "some-net")
    whole, part = folder.split("evaluation", None), folder.split("evaluation", 2)
    assert part == whole[:2]
    with pytest.raises(UsageError) as caught:
        folder.check(Counts(evaluation=4))
    assert str(caught.value) == "evaluation_images must be between 1 and 3 (all there are), not 4"


def test_the_middle_of_the_resized_image_is_taken(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[2:6, 6:10] = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    folder = _folder(tmp_path, ROWS)
    Image.fromarray(pixels).save(folder / "images" / "a.png")
    calibration, _ = ImageFolder(folder, "some-net").load(Counts(), PLAIN)
    assert calibration.inputs[0, 1].tolist() == np.arange(16).reshape(4, 4).tolist()


def test_images_may_lie_beside_the_table(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ROWS)
    for image in (folder / "images").iterdir():
        image.rename(folder / image.name)
    (folder / "images").rmdir()
    assert len(ImageFolder(folder, "some-net").photographs) == 4


def test_fingerprint_follows_labels_and_files(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ROWS)
    before = ImageFolder(folder, "some-net").fingerprint()
    assert ImageFolder(folder, "another").fingerprint() == before
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(folder / "images" / "a.png")
    after = ImageFolder(folder, "some-net").fingerprint()
    assert after != before
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text().replace(",7", ",8"))
    assert ImageFolder(folder, "some-net").fingerprint() != after


def test_a_folder_must_be_given() -> None:
    assert _message(None) == (
        "some-net needs a folder of images with labels.csv: "
        'give one as data = "..." in the study or --data DIR'
    )


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    assert _message(tmp_path / "none") == (
        f"image folder {tmp_path / 'none'} not found: some-net needs a folder of images with labels.csv "
        '(columns file, split, class_index); give one as data = "..." in the study or --data DIR'
    )


def test_a_missing_table_is_reported(tmp_path: Path) -> None:
    assert _message(tmp_path) == f"{tmp_path / 'labels.csv'} not found: {EXPECTED}"


def test_an_unreadable_table_is_reported(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"file,split,class_index\n\xff\xfe\n")
    message = _message(tmp_path)
    assert message.startswith(f"{tmp_path / 'labels.csv'} cannot be read (")
    assert message.endswith(f"): {EXPECTED}")


def test_missing_columns_are_named(tmp_path: Path) -> None:
    _folder(tmp_path, ROWS, header="file,part,label")
    assert _message(tmp_path) == (
        f"{tmp_path / 'labels.csv'} lacks the column(s) split, class_index; expected file, split, class_index"
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("e.png,test,3", "line 6: split must be calibration or evaluation, not 'test'"),
        ("e.png", "line 6: split must be calibration or evaluation, not ''"),
        ("e.png,evaluation,1000", "line 6: class_index must be 0 to 999, not '1000'"),
        ("e.png,evaluation,cat", "line 6: class_index must be 0 to 999, not 'cat'"),
        ("a.png,evaluation,5", "names a.png more than once: each image belongs to one split"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: str, problem: str) -> None:
    _folder(tmp_path, [*ROWS, row])
    assert _message(tmp_path) == f"{tmp_path / 'labels.csv'} {problem}"


def test_both_splits_are_needed(tmp_path: Path) -> None:
    _folder(tmp_path, ROWS[1:])
    assert _message(tmp_path) == (
        f"{tmp_path / 'labels.csv'} has no row with the split calibration: "
        "both calibration and evaluation are needed"
    )


def test_missing_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    _folder(tmp_path, ROWS)
    for name in ("c.png", "b.png"):
        (tmp_path / "images" / name).unlink()
    assert _message(tmp_path) == (
        f"{tmp_path / 'labels.csv'} names 2 image(s) that are not there, "
        f"the first is {tmp_path / 'images' / 'b.png'}"
    )


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = _folder(tmp_path, ROWS) / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UsageError) as caught:
        ImageFolder(tmp_path, "some-net").load(Counts(), PLAIN)
    assert str(caught.value).startswith(f"{path} cannot be decoded as an image: ")
