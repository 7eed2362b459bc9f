"""Models of the Llama family from a local folder in the form of Hugging Face: ``config.json``,
``model*.safetensors`` and ``tokenizer.json``. Nothing in the folder is executed and nothing is fetched.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dse.workloads.hashing import file_sha256, text_sha256
from dse.workloads.language.decoder import DecoderConfig
from dse.workloads.language.language_model import LanguageModel
from dse.workloads.language.loading import decoder_of
from dse.workloads.language.tokenizer import LibraryTokenizer, import_extra
from quantizers.errors import UsageError, unknown_choice

# Architecture: whether query, key and value projections have biases.
_ARCHITECTURES = {"LlamaForCausalLM": False, "MistralForCausalLM": False, "Qwen2ForCausalLM": True}
# What has to be off, and what off is.
_OFF: dict[str, tuple[Any, ...]] = {
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "use_sliding_window": (None, False),
    "hidden_act": (None, "silu"),
}
_DEFAULT_THETA = 10000.0
_DEFAULT_EPS = 1e-6

_LAYER_NAMES = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up",
    "mlp.down_proj": "feed_forward.down",
}
_NAMES = {"model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "head"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_DERIVED = "rotary_emb.inv_freq"  # some old files store what follows from the configuration


@dataclass(frozen=True)
class HuggingFaceFolder:
    """The model in one folder.

    Attributes:
        name: as the user wrote it, ``hf:FOLDER``.
        folder: where the files are.
    """

    name: str
    folder: Path
    needs: str = "pip install 'bitfront[language]'"

    @property
    def description(self) -> str:
        """What the configuration says."""
        config = self.config()
        return (
            f"{self.folder.resolve().name}, {config.layers} layers, {config.query_heads} query and "
            f"{config.kv_heads} KV heads of {config.head_dim}"
        )

    def check(self, data: Path | None) -> None:
        """The files are there, the architecture is supported and the library for the tokenizer installed."""
        if data is not None:
            msg = f"{self.name} names its folder; --data {data} would have no effect"
            raise UsageError(msg, given=data, expected=["no --data"])
        import_extra("tokenizers", self.name)
        self._files()
        self.config()

    def fingerprint(self, data: Path | None) -> str:
        """Of all files that are read."""
        return text_sha256(*(text for path in self._files() for text in (path.name, file_sha256(path))))

    def layers(self, data: Path | None) -> int:
        """What the configuration says."""
        return self.config().layers

    def load(self, data: Path | None) -> LanguageModel:
        """The model, in float32, and its tokenizer.

        Raises:
            UsageError: the folder does not hold a model of a supported architecture.
            MissingExtraError: the library ``tokenizers`` is not installed.
        """
        self.check(data)
        config = self.config()
        return LanguageModel(
            name=self.name,
            description=self.description,
            source=f"the folder {self.folder.resolve().name}",
            decoder=decoder_of(config, self._tensors(config), self.folder.name),
            tokenizer=LibraryTokenizer.from_file(self.folder / "tokenizer.json"),
            fingerprint=self.fingerprint(data),
        )

    def config(self) -> DecoderConfig:
        """The geometry that ``config.json`` gives.

        Raises:
            UsageError: the file is missing, or describes something that the decoder cannot do.
        """
        path = self.folder / "config.json"
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            msg = f"{path} cannot be read: {error}"
            raise UsageError(msg, given=path, expected=["config.json"]) from error
        return decoder_config(given, str(path))

    def _files(self) -> list[Path]:
        """Configuration, tokenizer and weights."""
        files = [self.folder / "config.json", self.folder / "tokenizer.json"]
        for path in files:
            if not path.is_file():
                msg = (
                    f"{path} not found: {self.name} needs a folder with config.json, tokenizer.json and "
                    "model*.safetensors"
                )
                raise UsageError(msg, given=self.folder, expected=[path.name])
        return files + self._weight_files()

    def _weight_files(self) -> list[Path]:
        # Some folders hold the same weights once more under other names.
        found = sorted(self.folder.glob("model*.safetensors")) or sorted(self.folder.glob("*.safetensors"))
        if not found:
            msg = f"{self.folder} holds no *.safetensors; other kinds of weight files are not read"
            raise UsageError(msg, given=self.folder, expected=["model*.safetensors"])
        return found

    def _tensors(self, config: DecoderConfig) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for path in self._weight_files():
            try:
                stored = load_file(path)
            except (OSError, SafetensorError) as error:
                msg = f"{path} cannot be read as safetensors: {error}"
                raise UsageError(msg, given=path) from error
            tensors |= {_module_name(n, path): t for n, t in stored.items() if not n.endswith(_DERIVED)}
        if config.tied_embeddings:
            tensors.pop("head.weight", None)
        return tensors


def decoder_config(given: Any, source: str) -> DecoderConfig:
    """The geometry in the content of a ``config.json``.

    Raises:
        UsageError: a value is missing, or asks for something that the decoder cannot do; *source* is named.
    """
    architectures = given.get("architectures") if isinstance(given, dict) else None
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if architecture not in _ARCHITECTURES:
        raise unknown_choice(f"architecture in {source}", architecture, _ARCHITECTURES)
    _check_off(given, source, architecture)
    rope = _rope(given, source)
    hidden, heads = _required(given, "hidden_size", source), _required(given, "num_attention_heads", source)
    return DecoderConfig(
        layers=_required(given, "num_hidden_layers", source),
        hidden=hidden,
        ffn=_required(given, "intermediate_size", source),
        query_heads=heads,
        kv_heads=given.get("num_key_value_heads") or heads,
        head_dim=given.get("head_dim") or hidden // heads,
        vocabulary=_required(given, "vocab_size", source),
        context=_required(given, "max_position_embeddings", source),
        rope_theta=float(rope.get("rope_theta") or given.get("rope_theta") or _DEFAULT_THETA),
        rope_pairing="half",
        norm_eps=float(given.get("rms_norm_eps") or _DEFAULT_EPS),
        tied_embeddings=bool(given.get("tie_word_embeddings", False)),
        attention_bias=_ARCHITECTURES[architecture],
    )


def _required(given: dict[str, Any], key: str, source: str) -> int:
    value = given.get(key)
    if type(value) is not int or value < 1:
        msg = f"{key} in {source} must be a positive integer, not {value!r}"
        raise UsageError(msg, given=value)
    return value


def _check_off(given: dict[str, Any], source: str, architecture: str) -> None:
    settings = dict(_OFF)
    if architecture == "MistralForCausalLM":
        settings["sliding_window"] = (None,)
    for key, off in settings.items():
        if given.get(key) not in off:
            msg = f"{key} = {given[key]!r} in {source} is not supported, expected {off[-1]!r}"
            raise UsageError(msg, given=given[key], expected=[repr(off[-1])])


def _rope(given: dict[str, Any], source: str) -> dict[str, Any]:
    """The settings of RoPE, where they are a table of their own.

    Raises:
        UsageError: they scale positions or frequencies.
    """
    table = given.get("rope_parameters") or given.get("rope_scaling") or {}
    kind = table.get("rope_type", table.get("type", "default"))
    if kind != "default":
        msg = f"RoPE of type {kind!r} in {source} is not supported, expected 'default'"
        raise UsageError(msg, given=kind, expected=["default"])
    return dict(table)


def _module_name(name: str, path: Path) -> str:
    """``model.layers.3.mlp.up_proj.weight`` as ``layers.3.feed_forward.up.weight``."""
    match = _LAYER.fullmatch(name)
    if match and match[2] in _LAYER_NAMES:
        return f"layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"
    module, _, kind = name.rpartition(".")
    if module in _NAMES:
        return f"{_NAMES[module]}.{kind}"
    msg = f"{path.name}: tensor {name} belongs to no part of a {' or '.join(_ARCHITECTURES)}"
    raise UsageError(msg, given=name)
