"""What codecs are told about a model: statistics of its keys and values on a calibration text.

Keys and values of one layer are taken as one vector of ``2 * heads * head_dim`` integers, keys first. The
text must not overlap with what the codecs are then measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantizers.errors import UsageError
from quantizers.kv_cache.fixed_point import fraction_bits, to_integers
from quantizers.kv_store import HistoryStore, Seen

FloatArray = npt.NDArray[np.float64]

SAMPLES = 2048
"""Tokens whose integers are kept, evenly over the text."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """Statistics in units of the integers; c is ``heads * head_dim``.

    Attributes:
        text: what they were found on; quote it.
        heads, head_dim: of keys and of values.
        rope: whether the keys were rotated by their position.
        fractions: fraction bits of the integers, shape (layers, 2): of keys and of values.
        means: shape (layers, 2c).
        covariances: shape (layers, 2c, 2c).
        importances: shape (layers, 2c, 2c): mean over tokens of ``g g^T``, g the gradient of the negative log
            likelihood of all predictions of a window, of tokens drawn from the model's own distribution:
            the Fisher information. Half of ``e^T importance e`` estimates what an error e costs, in nats.
        samples: int16, shape (layers, tokens, 2c).
    """

    text: str
    heads: int
    head_dim: int
    rope: bool
    fractions: npt.NDArray[np.int64]
    means: FloatArray
    covariances: FloatArray
    importances: FloatArray
    samples: npt.NDArray[np.int16]

    @property
    def layers(self) -> int:
        """Of the model."""
        return len(self.means)

    @property
    def channels(self) -> int:
        """c."""
        return self.heads * self.head_dim

    def save(self, path: Path) -> None:
        """As an NPZ file."""
        np.savez_compressed(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """What :meth:`save` wrote; nothing in the file is executed.

        Raises:
            UsageError: the file is not one of these.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                found = {name: stored[name] for name in stored.files}
        except (OSError, ValueError) as error:
            msg = f"calibration {path} cannot be read: {error}"
            raise UsageError(msg, given=path) from error
        wanted = [field.name for field in fields(cls)]
        if sorted(found) != sorted(wanted):
            msg = (
                f"calibration {path} must hold {', '.join(wanted)}; it holds {', '.join(found) or 'nothing'}"
            )
            raise UsageError(msg, given=path, expected=wanted)
        plain: dict[str, Any] = {"text": str, "heads": int, "head_dim": int, "rope": bool}
        return cls(**{name: plain[name](v.item()) if name in plain else v for name, v in found.items()})


def calibrate(
    decoder: nn.Module,
    windows: Tensor,
    *,
    text: str,
    rope: bool = False,
    skip: int = 1,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Calibration:
    """Run *decoder* forwards and backwards on each window.

    Args:
        decoder: called with tokens ``(1, length)`` and a store; gives logits ``(1, length, vocabulary)``.
        windows: int64, shape (windows, length).
        text: name of the text, and which part of it.
        rope: give statistics of rotated keys.
        skip: tokens at the beginning of each window that do not count: the sinks, which are far from all
            others and are kept exact.
        seed: of the tokens drawn for the gradients.
        progress: wraps the loop over windows.

    Raises:
        UsageError: windows too short.
        NotFiniteError: a key or a value is NaN or infinite.
    """
    if windows.dim() != 2 or windows.shape[1] < skip + 2:
        msg = (
            f"calibration windows must be of shape (windows, {skip + 2} or more), not {tuple(windows.shape)}"
        )
        raise UsageError(msg, given=tuple(windows.shape), expected=[f"(windows, >= {skip + 2})"])
    sums = _Sums(skip, keep=-(-SAMPLES // len(windows)))
    generator = torch.Generator().manual_seed(seed)
    for index in progress(range(len(windows))):
        recorder = _Recorder(rope)
        with torch.enable_grad():
            logits = decoder(windows[index : index + 1], recorder)[0]
            drawn = torch.multinomial(F.softmax(logits.detach(), dim=-1), 1, generator=generator)[:, 0]
            offsets = [recorder.offsets[layer] for layer in sorted(recorder.offsets)]
            gradients = torch.autograd.grad(F.cross_entropy(logits, drawn, reduction="sum"), offsets)
        for layer, gradient in enumerate(gradients):
            sums.add(layer, recorder.seen[layer], _side_by_side(gradient))
    heads, head_dim = recorder.shape
    return sums.calibration(text=text, heads=heads, head_dim=head_dim, rope=rope)


class _Recorder(HistoryStore):
    """Keeps what it is given, and adds zeros to it whose gradients are those of keys and values."""

    def __init__(self, rope: bool) -> None:
        super().__init__()
        self.rope_before_store = rope
        self.seen: dict[int, npt.NDArray[np.float32]] = {}
        self.offsets: dict[int, Tensor] = {}
        self.shape = (0, 0)

    def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
        both = torch.stack([keys, values])
        self.shape = (keys.shape[1], keys.shape[3])
        self.seen[layer] = _side_by_side(both)
        self.offsets[layer] = torch.zeros_like(both, requires_grad=True)
        keys, values = both.detach() + self.offsets[layer] if layer == 0 else both + self.offsets[layer]
        return Seen.always(keys, values)


def _side_by_side(both: Tensor) -> npt.NDArray[np.float32]:
    """(2, 1, heads, tokens, head_dim) as (tokens, 2 * heads * head_dim), keys first."""
    return np.ascontiguousarray(both.detach()[:, 0].permute(2, 0, 1, 3).flatten(1).numpy())


class _Sums:
    """Running sums of each layer, in floats: the fraction bits are known at the end only."""

    def __init__(self, skip: int, keep: int) -> None:
        self._skip, self._keep = skip, keep
        self._tokens = 0
        self._sum: dict[int, FloatArray] = {}
        self._square: dict[int, FloatArray] = {}
        self._fisher: dict[int, FloatArray] = {}
        self._samples: dict[int, list[npt.NDArray[np.float32]]] = {}
        self._largest: dict[int, npt.NDArray[np.float32]] = {}

    def add(self, layer: int, rows: npt.NDArray[np.float32], gradients: npt.NDArray[np.float32]) -> None:
        """One window of one layer."""
        largest = np.abs(rows).max(axis=0)
        if not np.isfinite(largest).all():
            to_integers(rows, 0, what="keys or values", layer=layer)
        x, g = rows[self._skip :].astype(np.float64), gradients[self._skip :].astype(np.float64)
        self._tokens += len(x) if layer == 0 else 0
        zeros = np.zeros((x.shape[1], x.shape[1]))
        self._sum[layer] = self._sum.get(layer, np.zeros(x.shape[1])) + x.sum(axis=0)
        self._square[layer] = self._square.get(layer, zeros) + x.T @ x
        self._fisher[layer] = self._fisher.get(layer, zeros) + g.T @ g
        places = np.linspace(self._skip, len(rows) - 1, min(self._keep, len(x))).round().astype(int)
        self._samples.setdefault(layer, []).append(rows[places])
        self._largest[layer] = np.maximum(self._largest.get(layer, largest), largest)

    def calibration(self, *, text: str, heads: int, head_dim: int, rope: bool) -> Calibration:
        """All layers, in units of their integers."""
        c = heads * head_dim
        layers = range(len(self._sum))
        fractions = np.array(
            [[fraction_bits(float(half.max())) for half in np.split(self._largest[n], 2)] for n in layers]
        )
        unit = np.exp2(np.repeat(fractions, c, axis=1))
        means = np.stack([self._sum[n] for n in layers]) / self._tokens
        squares = np.stack([self._square[n] for n in layers]) / self._tokens
        outer = unit[:, :, None] * unit[:, None, :]
        samples = [np.concatenate(self._samples[n]) for n in layers]
        return Calibration(
            text=text,
            heads=heads,
            head_dim=head_dim,
            rope=rope,
            fractions=fractions,
            means=means * unit,
            covariances=(squares - means[:, :, None] * means[:, None, :]) * outer,
            importances=np.stack([self._fisher[n] for n in layers]) / self._tokens / outer,
            samples=np.stack(
                [
                    np.concatenate(
                        [
                            to_integers(half, int(f), layer=n)
                            for half, f in zip(np.split(rows, 2, axis=1), fractions[n], strict=True)
                        ],
                        axis=1,
                    )
                    for n, rows in zip(layers, samples, strict=True)
                ]
            ).astype(np.int16),
        )
