"""The three Fashion-MNIST networks whose checkpoints ship with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from dse.workloads import fmnist
from dse.workloads.hashing import file_sha256, text_sha256
from dse.workloads.images import checked_count
from dse.workloads.networks import NETWORKS
from dse.workloads.workload import Counts, Workload, frozen
from quantizers.errors import UsageError

PACKAGE_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class SmallNetwork:
    """A network of :mod:`dse.workloads.networks` with its trained checkpoint.

    Attributes:
        folder: holds ``NAME.safetensors``, ``NAME.json`` (its provenance) and ``fmnist.npz``, as
            :mod:`dse.workloads.train` writes them.
    """

    name: str
    description: str
    folder: Path = PACKAGE_DATA
    needs: str = ""

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def images(self) -> Path:
        return self.folder / "fmnist.npz"

    def record(self) -> dict[str, Any]:
        """How the checkpoint was trained and what it reached, as the training script wrote it.

        Raises:
            UsageError: the record is missing or is not JSON.
        """
        path = self.folder / f"{self.name}.json"
        try:
            content = json.loads(path.read_text())
            return {
                **content,
                "checkpoint_sha256": content["checkpoint_sha256"],
                "data_sha256": content["data_sha256"],
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"{path} cannot be read as a training record ({error!r}); {self._remedy()}"
            raise UsageError(msg, given=path) from error

    def check(self, data: Path | None, counts: Counts) -> None:
        """Checkpoint and images are there and unchanged, and hold as many images as are wanted.

        Raises:
            UsageError: a file is missing or damaged, or a count is too large.
        """
        record = self.record()
        self._check_content(self.checkpoint, record["checkpoint_sha256"])
        self._check_content(self.images, record["data_sha256"])
        checked_count("calibration_images", counts.calibration, fmnist.CALIBRATION_IMAGES)
        checked_count("evaluation_images", counts.evaluation, fmnist.EVALUATION_IMAGES)

    def fingerprint(self, data: Path | None) -> str:
        """Hash of the checkpoint and of the packed images, both verified."""
        self.check(data, Counts())
        record = self.record()
        return text_sha256(self.name, record["checkpoint_sha256"], record["data_sha256"])

    def load(self, data: Path | None, counts: Counts) -> Workload:
        """The network with its weights; *data* is not looked at."""
        self.check(data, counts)
        model = NETWORKS[self.name]()
        try:
            model.load_state_dict(load_file(self.checkpoint))
        except (SafetensorError, RuntimeError) as error:  # RuntimeError: names or shapes differ
            why = _first_lines(error)
            msg = f"{self.checkpoint} does not fit the network {self.name}: {why}; {self._remedy()}"
            raise UsageError(msg, given=self.checkpoint) from error
        calibration, evaluation = fmnist.load_packed(self.images)
        evaluation = evaluation.first(counts.evaluation, "evaluation_images")
        return Workload(
            name=self.name,
            description=self.description,
            source=f"trained by dse.workloads.train, {self.checkpoint.name}",
            dataset=f"Fashion-MNIST, {len(evaluation)} of the 10000 test images",
            model=frozen(model),
            calibration=calibration.first(counts.calibration, "calibration_images"),
            evaluation=evaluation,
        )

    def _check_content(self, path: Path, expected: str) -> None:
        if not path.is_file():
            msg = f"{path} not found; {self._remedy()}"
            raise UsageError(msg, given=path)
        actual = file_sha256(path)
        if actual != expected:
            msg = (
                f"{path} is damaged: its sha256 is {actual[:12]}..., {self.name}.json records "
                f"{expected[:12]}...; {self._remedy()}"
            )
            raise UsageError(msg, given=path, expected=[expected])

    def _remedy(self) -> str:
        return f"reinstall bitfront, or run python -m dse.workloads.train {self.name} --out {self.checkpoint}"


def _first_lines(error: Exception) -> str:
    """What load_state_dict complains about, without the list of all the rest."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(lines[:2])


SMALL_NETWORKS = (
    SmallNetwork("fmnist-resnet", "residual network, 6 basic blocks, ReLU, for 28 x 28 images"),
    SmallNetwork(
        "fmnist-mobilenet", "depthwise-separable network, 7 inverted residuals, ReLU6, for 28 x 28 images"
    ),
    SmallNetwork("fmnist-vit", "vision transformer, 4 blocks of width 64, GELU, for 28 x 28 images"),
)
