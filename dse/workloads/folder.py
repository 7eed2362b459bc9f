"""A folder of labelled photographs, decoded to uint8 crops.

The folder holds ``labels.csv`` with the columns ``file``, ``split`` (``calibration`` or ``evaluation``) and
``class_index`` (0 ... 999); other columns are not looked at. Files are in ``images/``, or beside
``labels.csv`` where there is no such folder. Rows are taken in the order of the hash of their file name, so
that the first *n* of a split are a random sample whatever the order of the table.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dse.workloads.hashing import file_sha256, text_sha256
from dse.workloads.images import ImageSet, checked_count
from dse.workloads.workload import Counts
from quantizers.errors import MissingExtraError, UsageError

COLUMNS = ("file", "split", "class_index")
SPLITS = ("calibration", "evaluation")
CLASSES = 1000
HOW_TO_GIVE = 'give one as data = "..." in the study or --data DIR'


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side, crop the middle, then ``(x - mean) / std`` on grey levels 0 ... 255.

    Attributes:
        resample: ``"bilinear"`` or ``"bicubic"``, with antialiasing (Pillow's).
    """

    resize: int
    crop: int
    resample: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Photograph:
    """One row of ``labels.csv``; *file* as written there."""

    file: str
    path: Path
    split: str
    class_index: int


class ImageFolder:
    """The checked table of one folder; images are decoded on request.

    Raises:
        UsageError: no folder was given, it or ``labels.csv`` is missing or unreadable, a column is missing,
            a cell is wrong, a split is empty, a file is named twice or does not exist.
    """

    def __init__(self, folder: Path | None, workload: str) -> None:
        if folder is None:
            msg = f"{workload} needs a folder of images with labels.csv: {HOW_TO_GIVE}"
            raise UsageError(msg)
        if not folder.is_dir():
            msg = (
                f"image folder {folder} not found: {workload} needs a folder of images with labels.csv "
                f"(columns {', '.join(COLUMNS)}); {HOW_TO_GIVE}"
            )
            raise UsageError(msg, given=folder)
        self.folder = folder
        self.table = folder / "labels.csv"
        self.photographs = self._read_table()
        self._check_files()

    def split(self, name: str, count: int | None) -> list[Photograph]:
        """The first *count* photographs of ``"calibration"`` or ``"evaluation"``; ``None`` is all."""
        chosen = [photograph for photograph in self.photographs if photograph.split == name]
        return chosen[: checked_count(f"{name}_images", count, len(chosen))]

    def check(self, counts: Counts) -> None:
        """Both splits hold as many images as are wanted."""
        self.split("calibration", counts.calibration)
        self.split("evaluation", counts.evaluation)

    def fingerprint(self) -> str:
        """Hash of the contents of ``labels.csv`` and of the images."""
        images = (f"{p.file} {file_sha256(p.path)}" for p in self.photographs)
        return text_sha256(file_sha256(self.table), *images)

    def load(self, counts: Counts, preprocessing: Preprocessing) -> tuple[ImageSet, ImageSet]:
        """The calibration and evaluation sets, decoded once and kept as uint8."""
        calibration = _decode(self.split("calibration", counts.calibration), preprocessing)
        chosen = self.split("evaluation", counts.evaluation)
        labels = torch.tensor([photograph.class_index for photograph in chosen])
        mean, std = preprocessing.mean, preprocessing.std
        return (
            ImageSet(calibration, None, mean, std),
            ImageSet(_decode(chosen, preprocessing), labels, mean, std),
        )

    def _read_table(self) -> list[Photograph]:
        try:
            with self.table.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                self._check_columns(reader.fieldnames or ())
                photographs = [self._row(row, reader.line_num) for row in reader]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            missing = isinstance(error, FileNotFoundError)
            why = "not found" if missing else f"cannot be read ({error})"
            msg = f"{self.table} {why}: expected a CSV file with the columns {', '.join(COLUMNS)}"
            raise UsageError(msg, given=self.table) from error
        for split in SPLITS:
            if not any(photograph.split == split for photograph in photographs):
                msg = (
                    f"{self.table} has no row with the split {split}: both {' and '.join(SPLITS)} are needed"
                )
                raise UsageError(msg, given=self.table, expected=SPLITS)
        return sorted(photographs, key=lambda photograph: text_sha256(photograph.file))

    def _check_columns(self, present: Sequence[str]) -> None:
        missing = [column for column in COLUMNS if column not in present]
        if missing:
            msg = f"{self.table} lacks the column(s) {', '.join(missing)}; expected {', '.join(COLUMNS)}"
            raise UsageError(msg, given=", ".join(present), expected=COLUMNS)

    def _row(self, row: dict[str, str | None], line: int) -> Photograph:
        file, split, index = (row[column] or "" for column in COLUMNS)
        if split not in SPLITS:
            msg = f"{self.table} line {line}: split must be {' or '.join(SPLITS)}, not {split!r}"
            raise UsageError(msg, given=split, expected=SPLITS)
        if not (index.isdecimal() and int(index) < CLASSES):
            msg = f"{self.table} line {line}: class_index must be 0 to {CLASSES - 1}, not {index!r}"
            raise UsageError(msg, given=index)
        return Photograph(file, self._images() / file, split, int(index))

    def _images(self) -> Path:
        inside = self.folder / "images"
        return inside if inside.is_dir() else self.folder

    def _check_files(self) -> None:
        twice = [path for path, times in Counter(p.path for p in self.photographs).items() if times > 1]
        if twice:
            msg = f"{self.table} names {twice[0].name} more than once: each image belongs to one split"
            raise UsageError(msg, given=twice[0])
        missing = sorted(p.path for p in self.photographs if not p.path.is_file())
        if missing:
            msg = f"{self.table} names {len(missing)} image(s) that are not there, the first is {missing[0]}"
            raise UsageError(msg, given=missing[0])


def check_pillow(workload: str) -> None:
    """Raise the error that names the extra, where Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        msg = f"{workload} needs Pillow to decode images: pip install 'bitfront[imagenet]'"
        raise MissingExtraError(msg) from error


def _decode(photographs: Sequence[Photograph], preprocessing: Preprocessing) -> Tensor:
    crop = preprocessing.crop
    pixels = np.empty((len(photographs), 3, crop, crop), np.uint8)
    for index, photograph in enumerate(photographs):
        pixels[index] = _crop(photograph.path, preprocessing).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _crop(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    from PIL import Image

    resample = Image.Resampling[preprocessing.resample.upper()]
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        msg = f"{path} cannot be decoded as an image: {error}"
        raise UsageError(msg, given=path) from error
    short = min(rgb.size)
    # The long side is cut, not rounded, and the crop starts at the rounded middle: as torchvision does both.
    width, height = (preprocessing.resize * side // short for side in rgb.size)
    left, top = (round((side - preprocessing.crop) / 2) for side in (width, height))
    resized = rgb.resize((width, height), resample)
    return np.asarray(resized.crop((left, top, left + preprocessing.crop, top + preprocessing.crop)))
