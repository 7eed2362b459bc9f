"""Language models whose cache of keys and values, and whose linear layers, other code can replace.

model = load_language_model("smollm2-135m")
windows = windows_of(model, load_text(Path("wikitext2.test.raw")))
perplexity(model, windows).perplexity
compare(model, windows, store=MyStore()).ratio
"""

from dse.workloads.language.capture import CapturedLinear, capture_linear, linear_names
from dse.workloads.language.decoder import Decoder, DecoderConfig, decode
from dse.workloads.language.language_model import LanguageModel, Tokenizer
from dse.workloads.language.perplexity import Comparison, Perplexity, compare, perplexity
from dse.workloads.language.registry import (
    check_language_model,
    is_language_model,
    language_fingerprint,
    language_layers,
    list_language_models,
    load_language_model,
)
from dse.workloads.language.text import Text, Windows, load_text, windows_of

__all__ = [
    "CapturedLinear",
    "Comparison",
    "Decoder",
    "DecoderConfig",
    "LanguageModel",
    "Perplexity",
    "Text",
    "Tokenizer",
    "Windows",
    "capture_linear",
    "check_language_model",
    "compare",
    "decode",
    "is_language_model",
    "language_fingerprint",
    "language_layers",
    "linear_names",
    "list_language_models",
    "load_language_model",
    "load_text",
    "perplexity",
    "windows_of",
]
