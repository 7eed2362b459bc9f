"""Statistics of keys and values, and their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quantizers.errors import UsageError
from quantizers.kv_cache.calibration import Calibration, calibrate
from quantizers.kv_cache.fixed_point import NotFiniteError
from quantizers.kv_store import HistoryStore, Seen
from tests.dse.workloads_language.tiny_decoder import random_decoder, random_tokens


class Shifted(HistoryStore):
    """Records, and adds *offset* to the values of layer 1."""

    def __init__(self, offset: Tensor | float = 0.0) -> None:
        super().__init__()
        self.offset = offset
        self.rows: dict[int, np.ndarray] = {}

    def see(self, layer: int, keys: Tensor, values: Tensor) -> Seen:
        both = torch.cat([keys, values], dim=1)
        self.rows[layer] = both[0].transpose(0, 1).flatten(1).numpy()
        return Seen.always(keys, values + self.offset if layer == 1 else values)


def test_statistics_are_those_of_the_keys_and_values() -> None:
    decoder, windows = random_decoder(), random_tokens(3, 20)
    found = calibrate(decoder, windows, text="random", skip=2)
    assert (found.layers, found.heads, found.head_dim, found.channels) == (2, 2, 8, 16)
    for layer in range(2):
        rows, largest = [], np.zeros(2)
        for window in windows:
            store = Shifted()
            decoder(window[None], store)
            rows.append(store.rows[layer][2:])
            largest = np.maximum(largest, [np.abs(h).max() for h in np.split(store.rows[layer], 2, axis=1)])
        units = np.exp2(np.repeat(found.fractions[layer], 16))
        x = np.concatenate(rows) * units
        assert found.means[layer] == pytest.approx(x.mean(axis=0), rel=1e-3, abs=1)
        assert found.covariances[layer] == pytest.approx(np.cov(x.T, bias=True), rel=1e-3, abs=1e3)
        assert np.all(largest * 2.0 ** found.fractions[layer] <= 2**14)
        assert np.all(largest * 2.0 ** found.fractions[layer] >= 2**13)
        assert found.samples.shape == (2, 54, 32)
        assert np.array_equal(np.sort(found.samples[layer, :, 3]), np.sort(np.rint(x[:, 3])))


def test_importances_are_gradients_squared() -> None:
    """The last two tokens of a window, one channel: against finite differences of the loss."""
    decoder, windows = random_decoder(), random_tokens(1, 6)
    found = calibrate(decoder, windows, text="random", skip=4)
    drawn_by = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = torch.multinomial(decoder(windows)[0].softmax(-1), 1, generator=drawn_by)[:, 0]

    def loss(position: int, step: float) -> float:
        offset = torch.zeros(1, 2, 6, 8)
        offset[0, 1, position, 3] = step
        return float(F.cross_entropy(decoder(windows, Shifted(offset))[0], drawn, reduction="sum"))

    slopes = np.array([(loss(p, 1e-2) - loss(p, -1e-2)) / 2e-2 for p in (4, 5)])
    slopes /= 2.0 ** found.fractions[1, 1]
    assert found.importances[1, 27, 27] == pytest.approx(np.square(slopes).mean(), rel=0.02)
    eigenvalues = np.linalg.eigvalsh(found.importances[1])
    assert np.abs(eigenvalues[:-2]).max() < 1e-6 * eigenvalues[-2]


def test_file_comes_back_the_same(tmp_path: Path) -> None:
    found = calibrate(random_decoder(), random_tokens(2, 12), text="random", rope=True)
    found.save(tmp_path / "calibration.npz")
    again = Calibration.load(tmp_path / "calibration.npz")
    for name, value in vars(found).items():
        assert np.array_equal(getattr(again, name), value)
        assert type(getattr(again, name)) is type(value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, means=np.zeros(3))
    with pytest.raises(UsageError) as caught:
        Calibration.load(path)
    assert str(caught.value) == (
        f"calibration {path} must hold text, heads, head_dim, rope, fractions, means, covariances, "
        "importances, samples; it holds means"
    )
    np.savez(path, means=np.array([{}], dtype=object))
    with pytest.raises(UsageError, match="cannot be read: Object arrays cannot be loaded"):
        Calibration.load(path)


def test_windows_must_be_long_enough() -> None:
    with pytest.raises(UsageError) as caught:
        calibrate(random_decoder(), random_tokens(2, 2), text="short")
    assert str(caught.value) == "calibration windows must be of shape (windows, 3 or more), not (2, 2)"


def test_a_broken_model_is_named() -> None:
    decoder = random_decoder()
    decoder.layers[1].attention.key.weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError) as caught:
        calibrate(decoder, random_tokens(1, 6), text="random")
    assert str(caught.value) == "keys or values of layer 1 hold nan at position 0"
