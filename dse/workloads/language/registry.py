"""Finding language models by name."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dse.workloads.language.huggingface import HuggingFaceFolder
from dse.workloads.language.language_model import LanguageModel
from dse.workloads.language.smollm2 import SmolLm2
from dse.workloads.language.stories import Stories
from dse.workloads.registry import WorkloadInfo
from quantizers.errors import BitfrontError, unknown_choice

FOLDER_FORM = "hf:FOLDER"
_FOLDER_PREFIX = "hf:"


class LanguageSource(Protocol):
    """One named language model that can be checked, identified and loaded."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def needs(self) -> str:
        """What has to be installed or given."""

    def check(self, data: Path | None) -> None:
        """Raise the error that :meth:`load` would, as far as it is found without loading or fetching."""

    def fingerprint(self, data: Path | None) -> str:
        """Hex hash of the files that make the model and its tokenizer."""

    def layers(self, data: Path | None) -> int:
        """Of the decoder; found without loading or fetching the weights."""

    def load(self, data: Path | None) -> LanguageModel: ...


_SOURCES: dict[str, LanguageSource] = {source.name: source for source in (SmolLm2(), Stories())}


def load_language_model(name: str, data: Path | None = None) -> LanguageModel:
    """The model with its tokenizer.

    Args:
        name: one of :func:`list_language_models`, or ``hf:FOLDER`` for a local folder in the form of Hugging
            Face.
        data: the model's file, or the folder it is in.

    Raises:
        UsageError: the name is unknown, or a file is missing, damaged or cannot be fetched.
        MissingExtraError: an optional package is not installed; the message names the extra.
    """
    return _source(name).load(data)


def check_language_model(name: str, data: Path | None = None) -> None:
    """Raise the error that :func:`load_language_model` would, as far as it shows without loading."""
    _source(name).check(data)


def language_fingerprint(name: str, data: Path | None = None) -> str:
    """Hex sha256 of the model and its tokenizer, for cache keys."""
    return _source(name).fingerprint(data)


def language_layers(name: str, data: Path | None = None) -> int:
    """Layers of the model's decoder, before it is loaded.

    Raises:
        UsageError: see :func:`check_language_model`.
    """
    return _source(name).layers(data)


def is_language_model(name: str) -> bool:
    """Whether *name* is for this registry and not for that of image classifiers."""
    return name in _SOURCES or name.startswith(_FOLDER_PREFIX)


def list_language_models(data: Path | None = None) -> list[WorkloadInfo]:
    """All named models, and whether each can be loaded here with *data*."""
    return [_info(source, data) for source in _SOURCES.values()]


def _source(name: str) -> LanguageSource:
    if name in _SOURCES:
        return _SOURCES[name]
    if name.startswith(_FOLDER_PREFIX) and name != _FOLDER_PREFIX:
        return HuggingFaceFolder(name, Path(name.removeprefix(_FOLDER_PREFIX)).expanduser())
    raise unknown_choice("language model", name, [*_SOURCES, FOLDER_FORM])


def _info(source: LanguageSource, data: Path | None) -> WorkloadInfo:
    reason = ""
    try:
        source.check(data)
    except BitfrontError as error:
        reason = str(error)
    return WorkloadInfo(source.name, source.description, source.needs, not reason, reason)
