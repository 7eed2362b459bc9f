"""ResNet-18, MobileNetV2 and ViT-B-32, the anchor study's networks, through torchvision where it is
installed.

Weights are torchvision's ``IMAGENET1K_V1`` and are never downloaded: the file has to be where ``torch.hub``
keeps them. Preprocessing is that of the weights: short side to 256 (bilinear), the middle 224 x 224,
ImageNet mean and standard deviation.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from dse.workloads.folder import ImageFolder, Preprocessing, check_pillow
from dse.workloads.hashing import file_sha256, text_sha256
from dse.workloads.workload import Counts, Workload, frozen
from quantizers.errors import MissingExtraError, UsageError


@dataclass(frozen=True)
class TorchvisionWorkload:
    """One classification network of torchvision on a folder of photographs with ``labels.csv``."""

    name: str
    description: str
    needs: str = (
        "torchvision matching the installed torch, its weights file, a folder of images with labels.csv"
    )

    def check(self, data: Path | None, counts: Counts) -> None:
        """torchvision imports, its weights file is there and unchanged, and the folder is right."""
        self._weights_file(_torchvision_models(self.name))
        check_pillow(self.name)
        ImageFolder(data, self.name).check(counts)

    def fingerprint(self, data: Path | None) -> str:
        """Hash of the weights, of ``labels.csv`` and of the images."""
        weights = self._weights_file(_torchvision_models(self.name))
        return text_sha256(self.name, file_sha256(weights), ImageFolder(data, self.name).fingerprint())

    def load(self, data: Path | None, counts: Counts) -> Workload:
        """The network with its weights and the decoded photographs."""
        self.check(data, counts)
        models = _torchvision_models(self.name)
        weights = self._weights_file(models)
        model: nn.Module = models.get_model(self.name, weights=None)
        model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
        folder = ImageFolder(data, self.name)
        calibration, evaluation = folder.load(counts, _preprocessing(self._weights(models).transforms()))
        return Workload(
            name=self.name,
            description=self.description,
            source=f"torchvision IMAGENET1K_V1, {weights.name}",
            dataset=f"{folder.folder.resolve().name}, {len(evaluation)} images",
            model=frozen(model),
            calibration=calibration,
            evaluation=evaluation,
        )

    def _weights(self, models: ModuleType) -> Any:
        return models.get_model_weights(self.name).IMAGENET1K_V1

    def _weights_file(self, models: ModuleType) -> Path:
        url = self._weights(models).url
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
        if not path.is_file():
            msg = f"weights file {path} not found: bitfront downloads nothing, fetch {url} and put it there"
            raise UsageError(msg, given=path)
        # torch.hub's convention: the name ends in the first digits of the content's sha256.
        expected = path.stem.rsplit("-", 1)[-1]
        if not file_sha256(path).startswith(expected):
            msg = f"weights file {path} is damaged (sha256 does not start with {expected}): fetch {url} again"
            raise UsageError(msg, given=path)
        return path


def _torchvision_models(workload: str) -> ModuleType:
    try:
        return importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        msg = (
            f"{workload} needs torchvision in the build that matches the installed torch {torch.__version__} "
            f"(https://pytorch.org/get-started/locally/); importing it failed: {error}"
        )
        raise MissingExtraError(msg) from error


def _preprocessing(transforms: Any) -> Preprocessing:
    """torchvision's parameters of a weights entry; its mean and deviation are for grey levels 0 ... 1."""
    return Preprocessing(
        resize=transforms.resize_size[0],
        crop=transforms.crop_size[0],
        resample=transforms.interpolation.value,
        mean=tuple(255 * value for value in transforms.mean),
        std=tuple(255 * value for value in transforms.std),
    )


TORCHVISION_WORKLOADS = (
    TorchvisionWorkload("resnet18", "ResNet-18, 11.7 M parameters, ReLU, for 224 x 224 photographs"),
    TorchvisionWorkload("mobilenet_v2", "MobileNetV2, 3.5 M parameters, ReLU6, for 224 x 224 photographs"),
    TorchvisionWorkload("vit_b_32", "ViT-B-32, 88.2 M parameters, GELU, for 224 x 224 photographs"),
)
