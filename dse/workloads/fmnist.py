"""Fashion-MNIST: reading the original files, and the packed part of it that ships with the package.

The packed file is one ``.npz`` of uint8 arrays: ``calibration_images`` (512, from the training set),
``evaluation_images`` and ``evaluation_labels`` (4,000, from the test set). Both are drawn with a fixed seed
and ordered in rounds of one image of each class, so that every subset ``[:n]`` is balanced.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dse.workloads.images import ImageSet
from quantizers.errors import UsageError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CALIBRATION_IMAGES = 512
EVALUATION_IMAGES = 4000
# Mean and standard deviation of all training pixels, in grey levels 0..255.
MEAN, STD = (72.9404,), (90.0212,)

_IDX_MAGIC = {1: 0x00000801, 3: 0x00000803}
_SIDE = 28

Bytes = NDArray[np.uint8]


def image_set(images: Bytes, labels: Bytes | None = None) -> ImageSet:
    """``(n, 28, 28)`` grey levels and ``(n,)`` classes as a normalised set of ``(n, 1, 28, 28)``."""
    classes = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return ImageSet(torch.from_numpy(images).unsqueeze(1), classes, MEAN, STD)


def read_split(folder: Path | None, split: str) -> tuple[Bytes, Bytes]:
    """Images ``(n, 28, 28)`` and labels ``(n,)`` of ``"train"`` (60,000) or ``"t10k"`` (10,000).

    Args:
        folder: where the four ``*-ubyte.gz`` files are; ``None`` is the folder of the Debian package.

    Raises:
        UsageError: a file is missing or is not the idx file it should be.
    """
    where = DEBIAN_FOLDER if folder is None else folder
    images = _read_idx(where / f"{split}-images-idx3-ubyte.gz", dimensions=3)
    labels = _read_idx(where / f"{split}-labels-idx1-ubyte.gz", dimensions=1)
    if images.shape != (len(labels), _SIDE, _SIDE):
        msg = (
            f"{where}: {split} has images {images.shape} for {len(labels)} labels, expected (n, 28, 28) for n"
        )
        raise UsageError(msg, given=where)
    return images, labels


def _read_idx(path: Path, dimensions: int) -> Bytes:
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        msg = (
            f"Fashion-MNIST file {path} not found: install the Debian package dataset-fashion-mnist, "
            "or give the folder with the four *-ubyte.gz files as --data DIR"
        )
        raise UsageError(msg, given=path) from error
    except (OSError, EOFError) as error:
        msg = f"{path} cannot be read as a gzip file: {error}"
        raise UsageError(msg, given=path) from error
    start = 4 * (dimensions + 1)
    header = np.frombuffer(raw[: min(start, len(raw) // 4 * 4)], dtype=">u4")
    values = np.frombuffer(raw[start:], dtype=np.uint8)
    if len(header) <= dimensions or header[0] != _IDX_MAGIC[dimensions] or np.prod(header[1:]) != len(values):
        msg = f"{path} is not an idx file of unsigned bytes with {dimensions} dimension(s), or is cut short"
        raise UsageError(msg, given=path)
    return values.reshape(header[1:].astype(int)).copy()


def balanced_order(labels: Bytes, count: int, seed: int) -> NDArray[np.int64]:
    """Indices of *count* images in rounds: each round holds one image of every class, in random order."""
    rng = np.random.default_rng(seed)
    columns = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    rounds = -(-count // len(columns))
    table = np.stack([column[:rounds] for column in columns], axis=1)
    return rng.permuted(table, axis=1).reshape(-1)[:count]


def pack(folder: Path | None, out: Path, seed: int = 0) -> None:
    """Write the packed calibration and evaluation sets to *out*, all or nothing."""
    train_images, train_labels = read_split(folder, "train")
    test_images, test_labels = read_split(folder, "t10k")
    calibration = balanced_order(train_labels, CALIBRATION_IMAGES, seed)
    evaluation = balanced_order(test_labels, EVALUATION_IMAGES, seed)
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    with part.open("wb") as stream:
        np.savez_compressed(
            stream,
            calibration_images=train_images[calibration],
            evaluation_images=test_images[evaluation],
            evaluation_labels=test_labels[evaluation],
        )
    part.replace(out)


def load_packed(path: Path) -> tuple[ImageSet, ImageSet]:
    """The calibration and evaluation sets of a packed file.

    Raises:
        UsageError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            calibration = arrays["calibration_images"]
            images, labels = arrays["evaluation_images"], arrays["evaluation_labels"]
    except Exception as error:  # numpy, zipfile and zlib each have their own for a damaged file
        msg = f"{path} cannot be read as packed Fashion-MNIST: {error}; reinstall bitfront or train again"
        raise UsageError(msg, given=path) from error
    return image_set(calibration), image_set(images, labels)
