"""Bits of cache codecs for the heads of a published model, without its weights or a calibration text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from costmodel.geometries import Decoder
from costmodel.kv_cache import CacheCoding, Coded
from costmodel.token_rate import Input
from quantizers.kv_cache.calibration import Calibration
from quantizers.kv_cache.codec import Codec
from quantizers.kv_cache.layer_schemes import CalibratedTransform, HadamardCodes, Oaken
from quantizers.kv_cache.registry import parse_layer_scheme
from quantizers.kv_cache.scheme import LayerScheme

_UNIT = "bits an element"


def codings(geometry: Decoder, names: Iterable[str]) -> list[CacheCoding]:
    """What codecs make of the keys and values of one layer.

    Where layers are merged, what is stored once is read for each layer, and how much it is depends on a text.

    Args:
        names: as :func:`quantizers.kv_cache.registry.parse_layer_scheme` takes them.

    Raises:
        UsageError: no such codec, or one that does not fit the model's heads.
    """
    return [_coding(geometry, name) for name in dict.fromkeys(name.strip() for name in names)]


def _coding(geometry: Decoder, name: str) -> CacheCoding:
    scheme = parse_layer_scheme(name, who="an estimate without a text")
    # These code head by head, so the bits of one head are those of all; a matrix of all channels is large.
    by_head = isinstance(scheme, HadamardCodes | CalibratedTransform)
    plan = scheme.plan(_statistics(1 if by_head else geometry.kv_heads, geometry.head_dim, whole=by_head))
    keys, values = (
        _coded(scheme, stream.codec, geometry) for stream in (plan.layers[0][0], plan.layers[0][-1])
    )
    return CacheCoding(name=name, keys=keys, values=values, kept=scheme.kept)


def _coded(scheme: LayerScheme, codec: Codec, geometry: Decoder) -> Coded:
    if isinstance(scheme, CalibratedTransform) or (isinstance(scheme, HadamardCodes) and scheme.allocated):
        source = "the codec's parameter: so many are shared out among the coefficients"
        return Coded(Input(scheme.bits, _UNIT, source))
    source = f"the codec's own count for {geometry.kv_heads} KV heads of {geometry.head_dim}"
    if isinstance(scheme, Oaken):
        source += "; a mean, with its fraction of outliers"
    return Coded(Input(codec.bits_per_element, _UNIT, source), codec.tokens)


def _statistics(heads: int, head_dim: int, *, whole: bool) -> Calibration:
    """Those of white noise in one layer: how many bits a codec takes does not depend on them.

    Args:
        whole: with covariances and importances, which only the codecs that are fitted to them need.
    """
    both = 2 * heads * head_dim
    white = np.eye(both if whole else 0)[None]
    return Calibration(
        text="white noise",
        heads=heads,
        head_dim=head_dim,
        rope=False,
        fractions=np.zeros((1, 2), np.int64),
        means=np.zeros((1, both)),
        covariances=white * _VARIANCE,
        importances=white,
        samples=np.zeros((1, 1, both), np.int16),
    )


_VARIANCE = 2.0**20
