"""Three small networks that mirror the anchor study's trio at 28 x 28 pixels.

The anchor study (arXiv 2311.12359) quantizes ResNet-18, MobileNetV2 and ViT-B-32. These keep what makes the
three hard or easy to quantize: residual additions after batch normalisation, depthwise convolutions with
linear bottlenecks and ReLU6, and attention with layer normalisation and GELU. They take
``(batch, 1, 28, 28)`` normalised images and return ``(batch, 10)`` logits.

Every activation function is a module of its own, used once, so that a quantizer can replace it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

IMAGE_SIZE = 28
CLASSES = 10


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al., arXiv 1512.03385, figure 2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class SmallResNet(nn.Module):
    """Residual network: a stem at 28 x 28, then basic blocks at 14 x 14, 7 x 7 and 4 x 4."""

    def __init__(self, stem: int = 16, stages: tuple[int, ...] = (24, 48, 96), blocks: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        layers: list[nn.Module] = []
        channels = stem
        for width in stages:
            for index in range(blocks):
                layers.append(BasicBlock(channels, width, stride=2 if index == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.flatten(self.pool(x)))


def _conv_bn_relu6(
    channels_in: int, channels_out: int, kernel: int, stride: int, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand, depthwise 3 x 3, project without activation (Sandler et al., arXiv 1801.04381, figure 3)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels_out
        self.expand = _conv_bn_relu6(channels_in, hidden, 1, 1)
        self.depthwise = _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden)
        self.project = nn.Sequential(
            nn.Conv2d(hidden, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class SmallMobileNet(nn.Module):
    """Depthwise-separable network: a strided stem, then inverted residuals at 14 x 14, 7 x 7 and 4 x 4."""

    def __init__(
        self,
        stem: int = 24,
        # (channels, blocks, stride of the first block)
        stages: tuple[tuple[int, int, int], ...] = ((24, 2, 1), (40, 3, 2), (64, 2, 2)),
        expansion: int = 4,
        head: int = 256,
    ) -> None:
        super().__init__()
        self.stem = _conv_bn_relu6(1, stem, 3, 2)
        layers: list[nn.Module] = []
        channels = stem
        for width, count, stride in stages:
            for index in range(count):
                layers.append(InvertedResidual(channels, width, stride if index == 0 else 1, expansion))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.head = _conv_bn_relu6(channels, head, 1, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(head, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(self.flatten(self.pool(x)))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block on ``(batch, tokens, width)`` (arXiv 2010.11929, equations 2 and 3)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))


class SmallViT(nn.Module):
    """Vision transformer: 49 patches of 4 x 4 pixels and a class token."""

    def __init__(
        self, width: int = 64, depth: int = 4, heads: int = 4, mlp_ratio: int = 4, patch: int = 4
    ) -> None:
        super().__init__()
        tokens = (IMAGE_SIZE // patch) ** 2 + 1
        self.patch_embedding = nn.Conv2d(1, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, tokens, width))
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, mlp_ratio * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)
        token = self.class_token.expand(x.shape[0], -1, -1)
        x = self.blocks(torch.cat((token, patches), dim=1) + self.position)
        return self.fc(self.norm(x[:, 0]))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "fmnist-resnet": SmallResNet,
    "fmnist-mobilenet": SmallMobileNet,
    "fmnist-vit": SmallViT,
}
"""Workload name -> constructor of the untrained network."""
