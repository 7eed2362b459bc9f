"""Statistics of random correlated keys and values, for tests of codecs that need no model."""

from __future__ import annotations

import numpy as np

from quantizers.kv_cache.calibration import Calibration

SCHEMES = [
    "exact",
    "kivi(bits=4, group=8)",
    "kivi(bits=3, group=16, value_group=8)",
    "per_token(bits=3, group=8)",
    "format(format='mxfp4')",
    "format(format='e2m1', group=8)",
    "format(format='e3m2', group=16, scale='power')",
    "format(format='int4', group=8)",
    "oaken(outer=0.1, inner=0.15)",
    "rotated(bits=3)",
    "rotated(bits=3.5, allocated=true)",
    "transform(bits=3.5)",
    "transform(bits=2.5, span='side')",
    "transform(bits=2.25, span='joint', entry_bits=10, tempering=0.0)",
]


def random_calibration(
    *, layers: int = 2, heads: int = 4, head_dim: int = 8, tokens: int = 400, seed: int = 3
) -> Calibration:
    """Channels with means far from zero and spreads over a factor of 30, mixed within each layer."""
    rng = np.random.default_rng(seed)
    width = 2 * heads * head_dim
    spreads = np.exp(rng.uniform(np.log(20), np.log(600), (layers, 1, width)))
    mixing = rng.normal(size=(layers, width, width)) / np.sqrt(width)
    means = rng.normal(0, 200, (layers, 1, width))
    rows = (rng.normal(size=(layers, tokens, width)) * spreads) @ mixing + means
    samples = np.clip(np.rint(rows), -32768, 32767).astype(np.int16)
    importances = rng.normal(size=(layers, width, width)) * 1e-4
    return Calibration(
        text="random",
        heads=heads,
        head_dim=head_dim,
        rope=False,
        fractions=np.full((layers, 2), 9),
        means=samples.mean(axis=1),
        covariances=np.stack([np.cov(x.T.astype(np.float64)) for x in samples]),
        importances=importances @ importances.transpose(0, 2, 1),
        samples=samples,
    )
