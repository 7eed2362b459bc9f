"""Codecs by name: ``"kivi(bits=4, group=32)"``, ``"rotated(bits=3.25, sinks=1)"``.

A codec is written as its name, and its parameters in parentheses as TOML values. Every codec takes the
options of :class:`CacheScheme`. ``scheme.plan(calibration)`` is what is made of the cache of a model.
"""

from __future__ import annotations

from typing import Any

from quantizers.errors import UsageError
from quantizers.kv_cache.layer_schemes import LAYER_SCHEMES
from quantizers.kv_cache.merge_scheme import MergedLayers
from quantizers.kv_cache.scheme import CacheScheme, LayerScheme
from quantizers.written import describe_written, parse_written

SCHEMES: dict[str, type[CacheScheme]] = {**LAYER_SCHEMES, MergedLayers.name: MergedLayers}
"""Every codec by name."""


def parse_cache_scheme(text: str) -> CacheScheme:
    """The codec written as ``name`` or ``name(parameter=value, ...)``.

    Raises:
        UsageError: an unknown name or parameter, or a value that it cannot take.
    """
    return parse_written(
        text, SCHEMES, what="a cache codec", kind="cache codec", choices=SCHEMES, example="bits=4"
    )


def parse_layer_scheme(text: str, *, who: str) -> LayerScheme:
    """A codec that codes each layer by itself, written as :func:`parse_cache_scheme` takes it.

    Args:
        text: as written.
        who: takes these only, for the message.

    Raises:
        UsageError: see :func:`parse_cache_scheme`; or it is another one.
    """
    scheme = parse_cache_scheme(text)
    if not isinstance(scheme, LayerScheme):
        msg = (
            f"{who} takes codecs that code each layer by itself, and {scheme.name} does not; "
            f"expected one of: {', '.join(LAYER_SCHEMES)}"
        )
        raise UsageError(msg, given=text, expected=list(LAYER_SCHEMES))
    return scheme


def describe_cache_scheme(kind: type[CacheScheme]) -> dict[str, Any]:
    """Name, source, what it does and the parameters with their defaults, as they are written."""
    return describe_written(kind)
