"""Train a small network on Fashion-MNIST: ``python -m dse.workloads.train NETWORK --data DIR --out FILE``.

Beside the checkpoint FILE (safetensors, float32) it writes FILE with the suffix ``.json`` (how it was
trained and what it reached: the provenance of the figure) and ``fmnist.npz`` (the packed calibration and
evaluation sets). The last weights are kept, never the best epoch on the test set.

The seed fixes the initial weights, the order and the augmentation, so a run repeats on the same machine with
the same torch. It does not repeat bit for bit elsewhere: CPU kernels differ between instruction sets and
torch versions in the order of their sums, and training amplifies that. Expect the accuracy to within a few
tenths.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from dse.workloads import fmnist
from dse.workloads.hashing import file_sha256
from dse.workloads.images import top1_accuracy
from dse.workloads.networks import NETWORKS
from quantizers.errors import BitfrontError, unknown_choice

_log = logging.getLogger(__name__)
_SHIFT = 2  # pixels, in each direction


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one training run."""

    epochs: int
    peak_rate: float
    bfloat16: bool  # autocast: faster on AMX for plain convolutions, slower for depthwise ones and attention
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    batch_size: int = 128
    warmup: float = 0.05  # fraction of all steps
    decay: float = 0.35  # fraction of all steps


RECIPES = {
    "fmnist-resnet": Recipe(epochs=30, peak_rate=2e-3, bfloat16=True),
    "fmnist-mobilenet": Recipe(epochs=20, peak_rate=3e-3, bfloat16=False),
    "fmnist-vit": Recipe(epochs=16, peak_rate=1e-3, bfloat16=False, batch_size=64),
}


def warmup_stable_decay(step: int, steps: int, warmup: float, decay: float) -> float:
    """Fraction of the peak learning rate at *step* (0 ... steps - 1): linear up, constant, linear down to 0.

    Args:
        warmup: fraction of *steps* spent rising; the last step of it is the first at the full rate.
        decay: fraction of *steps* spent falling; the step after the last one would be at 0.

    Source: the WSD schedule of MiniCPM (arXiv 2404.06395, section 4) with a linear decay (arXiv 2405.18392).
    """
    rising = (step + 1) / max(1, round(warmup * steps))
    falling = (steps - step) / max(1, round(decay * steps))
    return min(1.0, rising, falling)


def augment(padded: Tensor, generator: torch.Generator) -> Tensor:
    """Random flip and shift of zero-padded ``(n, side + 2 s, side + 2 s)`` images to ``(n, side, side)``."""
    count, side = len(padded), padded.shape[1] - 2 * _SHIFT
    offset = torch.randint(2 * _SHIFT + 1, (2, count, 1), generator=generator)
    flip = torch.randint(2, (count, 1), generator=generator).bool()
    index = torch.arange(side)
    rows, columns = index + offset[0], torch.where(flip, index.flip(0), index) + offset[1]
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


class Trainer:
    """One network, its optimizer and the whole training set in memory."""

    def __init__(self, network: str, data: Path | None, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.model = NETWORKS[network]()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images, labels = fmnist.read_split(data, "train")
        self.images = functional.pad(torch.from_numpy(images), (_SHIFT,) * 4)
        self.labels = torch.from_numpy(labels).long()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), recipe.peak_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self.steps_per_epoch = len(images) // recipe.batch_size
        steps = self.steps_per_epoch * recipe.epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_stable_decay(step, steps, recipe.warmup, recipe.decay)
        )

    def epoch(self) -> float:
        """One pass over the shuffled training set; returns the mean loss."""
        self.model.train()
        order = torch.randperm(len(self.images), generator=self.generator)
        total = 0.0
        for chosen in order[: self.steps_per_epoch * self.recipe.batch_size].split(self.recipe.batch_size):
            total += self._step(augment(self.images[chosen], self.generator), self.labels[chosen])
        return total / self.steps_per_epoch

    def _step(self, images: Tensor, labels: Tensor) -> float:
        inputs = ((images.float() - fmnist.MEAN[0]) / fmnist.STD[0]).unsqueeze(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
            logits = self.model(inputs)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


def train(network: str, data: Path | None, out: Path, recipe: Recipe, seed: int = 0) -> None:
    """Train *network*, then write the checkpoint, its provenance and the packed data sets.

    Raises:
        UsageError: the network is unknown, or the Fashion-MNIST files are missing or damaged.
    """
    if network not in NETWORKS:
        raise unknown_choice("network", network, NETWORKS)
    started, cpu_started = time.perf_counter(), time.process_time()
    packed = out.with_name("fmnist.npz")
    fmnist.pack(data, packed)
    test = fmnist.image_set(*fmnist.read_split(data, "t10k"))
    trainer = Trainer(network, data, recipe, seed)
    history: list[float] = []
    for epoch in range(recipe.epochs):
        loss = trainer.epoch()
        history.append(top1_accuracy(trainer.model, test).percent)
        seconds = time.perf_counter() - started
        line = "%s epoch %d/%d: loss %.4f, test accuracy %.2f %%, %.0f s"
        _log.info(line, network, epoch + 1, recipe.epochs, loss, history[-1], seconds)
    _save(trainer.model, out)
    record = {
        "network": network,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "test_accuracy_percent": history[-1],
        "test_images": len(test),
        "evaluation_accuracy_percent": top1_accuracy(trainer.model, fmnist.load_packed(packed)[1]).percent,
        "evaluation_images": fmnist.EVALUATION_IMAGES,
        "test_accuracy_percent_per_epoch": history,
        "recipe": asdict(recipe),
        "seed": seed,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "wall_seconds": round(time.perf_counter() - started),
        "cpu_seconds": round(time.process_time() - cpu_started),
        "checkpoint_sha256": file_sha256(out),
        "data_sha256": file_sha256(packed),
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


def _save(model: nn.Module, out: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    save_file(tensors, part)
    part.replace(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (2 for wrong use)."""
    parser = argparse.ArgumentParser(
        prog="python -m dse.workloads.train", description="Train a small network."
    )
    parser.add_argument("network", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument(
        "--data", type=Path, help=f"folder of the four *-ubyte.gz files (default {fmnist.DEBIAN_FOLDER})"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write (.safetensors)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.network not in RECIPES:
            raise unknown_choice("network", options.network, RECIPES)
        train(options.network, options.data, options.out, RECIPES[options.network], options.seed)
    except BitfrontError as error:
        _log.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
