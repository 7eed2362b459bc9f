"""stories260K, a model of 260 thousand parameters that tells stories (arXiv 2305.07759), from files in the
format of llama2.c, version 0.

The checkpoint is seven int32 (hidden, ffn, layers, query heads, KV heads, vocabulary, context; a negative
vocabulary announces an output layer of its own), then float32 weights, each kind for all layers at once. The
files are the user's; nothing is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dse.workloads.hashing import file_sha256, text_sha256
from dse.workloads.language.decoder import DecoderConfig
from dse.workloads.language.language_model import LanguageModel
from dse.workloads.language.loading import decoder_of
from dse.workloads.language.score_tokenizer import ScoreTokenizer
from quantizers.errors import UsageError

CHECKPOINT = "stories260K.bin"
VOCABULARY = "tok512.bin"
_HEADER = 7
_EXPECTED = f"a folder with {CHECKPOINT} and {VOCABULARY}"


@dataclass(frozen=True)
class Stories:
    """The one model of this module."""

    name: str = "stories260k"
    description: str = "stories260K, 5 layers, 8 query and 4 KV heads of 8; trained on TinyStories, float32"
    needs: str = _EXPECTED

    def check(self, data: Path | None) -> None:
        """Both files are there."""
        self._files(data)

    def fingerprint(self, data: Path | None) -> str:
        """Of both files."""
        return text_sha256(self.name, *(file_sha256(path) for path in self._files(data)))

    def layers(self, data: Path | None) -> int:
        """What the checkpoint's header says."""
        return read_checkpoint(self._files(data)[0])[0].layers

    def load(self, data: Path | None) -> LanguageModel:
        """The model and its tokenizer.

        Raises:
            UsageError: a file is missing, or is not what its name says.
        """
        checkpoint, vocabulary = self._files(data)
        config, tensors = read_checkpoint(checkpoint)
        return LanguageModel(
            name=self.name,
            description=self.description,
            source=f"{checkpoint.name} and {vocabulary.name} of {checkpoint.parent.resolve().name}",
            decoder=decoder_of(config, tensors, checkpoint.name),
            tokenizer=ScoreTokenizer.from_file(vocabulary, config.vocabulary),
            fingerprint=self.fingerprint(data),
        )

    def _files(self, data: Path | None) -> tuple[Path, Path]:
        if data is None:
            msg = f"{self.name} needs {_EXPECTED}: give one as --data DIR"
            raise UsageError(msg, expected=["--data DIR"])
        folder = data if data.is_dir() else data.parent
        checkpoint = folder / CHECKPOINT if data.is_dir() else data
        for path in (checkpoint, folder / VOCABULARY):
            if not path.is_file():
                msg = f"{path} not found: {self.name} needs {_EXPECTED}"
                raise UsageError(msg, given=data, expected=[_EXPECTED])
        return checkpoint, folder / VOCABULARY


def read_checkpoint(path: Path) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """The geometry, and the weights by the decoder's names.

    Raises:
        UsageError: the file does not have the length that its header promises.
    """
    content = path.read_bytes()
    header = np.frombuffer(content[: 4 * _HEADER], "<i4")
    if len(header) < _HEADER or not (np.delete(header, 5) > 0).all() or header[0] % header[3]:
        msg = f"{path.name} is not a checkpoint of llama2.c, version 0: its header is {header.tolist()}"
        raise UsageError(msg, given=path)
    config = _config(*(int(value) for value in header))
    shapes = _stored_shapes(config)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    given = len(content) - 4 * _HEADER
    if given != 4 * sum(sizes):
        msg = f"{path.name} holds {given} bytes of weights, but its header promises {4 * sum(sizes)}"
        raise UsageError(msg, given=given, expected=[str(4 * sum(sizes))])
    weights = torch.from_numpy(np.frombuffer(content, "<f4", offset=4 * _HEADER).astype(np.float32))
    parts = weights.split(sizes)
    stored = {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
    return config, _by_layer(stored, config.layers)


def _config(
    hidden: int, ffn: int, layers: int, query_heads: int, kv_heads: int, vocabulary: int, context: int
) -> DecoderConfig:
    return DecoderConfig(
        layers=layers,
        hidden=hidden,
        ffn=ffn,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=hidden // query_heads,
        vocabulary=abs(vocabulary),
        context=context,
        rope_pairing="interleaved",
        tied_embeddings=vocabulary > 0,
    )


def _stored_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """In the order of the file; names with a ``*`` are of all layers, whose number is the first dimension."""
    layers, hidden, ffn = config.layers, config.hidden, config.ffn
    queries, keys = config.query_heads * config.head_dim, config.kv_heads * config.head_dim
    angles = (config.context, config.head_dim // 2)
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.weight": (config.vocabulary, hidden),
        "layers.*.attention_norm.weight": (layers, hidden),
        "layers.*.attention.query.weight": (layers, queries, hidden),
        "layers.*.attention.key.weight": (layers, keys, hidden),
        "layers.*.attention.value.weight": (layers, keys, hidden),
        "layers.*.attention.output.weight": (layers, hidden, queries),
        "layers.*.feed_forward_norm.weight": (layers, hidden),
        "layers.*.feed_forward.gate.weight": (layers, ffn, hidden),
        "layers.*.feed_forward.down.weight": (layers, hidden, ffn),
        "layers.*.feed_forward.up.weight": (layers, ffn, hidden),
        "norm.weight": (hidden,),
        "cosine": angles,
        "sine": angles,
    }
    if not config.tied_embeddings:
        shapes["head.weight"] = (config.vocabulary, hidden)
    return shapes


def _by_layer(stored: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """One tensor a layer; without the table of angles, which the decoder makes itself."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if "*" in name:
            tensors |= {name.replace("*", str(index)): tensor[index] for index in range(layers)}
        elif name not in ("cosine", "sine"):
            tensors[name] = tensor
    return tensors
