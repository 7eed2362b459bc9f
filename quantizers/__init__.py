"""Number formats, rounding, and post-training quantization with Brevitas.

Names are loaded when they are first used: formats need numpy only, the rest needs torch. The two
functions that share their module's name are imported from there: ``quantizers.prepare.prepare``
and ``quantizers.quantize.quantize``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantizers.errors import BitfrontError as BitfrontError
    from quantizers.errors import UsageError as UsageError
    from quantizers.formats import Format as Format
    from quantizers.formats import ScalarFormat as ScalarFormat
    from quantizers.formats import parse_format as parse_format
    from quantizers.formats import parse_scalar_format as parse_scalar_format
    from quantizers.prepare import PreparedModel as PreparedModel
    from quantizers.quantize import LayerSummary as LayerSummary
    from quantizers.quantize import QuantizationSettings as QuantizationSettings
    from quantizers.quantize import QuantizedModel as QuantizedModel
    from quantizers.quantize import layer_summary as layer_summary
    from quantizers.rounding import quantization_error as quantization_error
    from quantizers.rounding import round_scaled as round_scaled
    from quantizers.torch_rounding import fake_quantize as fake_quantize

_HOMES = {
    "BitfrontError": "errors",
    "UsageError": "errors",
    "Format": "formats",
    "ScalarFormat": "formats",
    "parse_format": "formats",
    "parse_scalar_format": "formats",
    "PreparedModel": "prepare",
    "LayerSummary": "quantize",
    "QuantizationSettings": "quantize",
    "QuantizedModel": "quantize",
    "layer_summary": "quantize",
    "quantization_error": "rounding",
    "round_scaled": "rounding",
    "fake_quantize": "torch_rounding",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
