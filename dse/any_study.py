"""The kinds of studies, told apart by what their files list."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dse.cache_study import CacheStudy
from dse.hardware_study import HardwareStudy
from dse.study import Study
from dse.study_file import read_document

AnyStudy = Study | HardwareStudy | CacheStudy

_KINDS: dict[str, type[AnyStudy]] = {"designs": HardwareStudy, "codecs": CacheStudy}


def load_study(path: Path, overrides: Iterable[str] = ()) -> AnyStudy:
    """The study of a file: of hardware alone where it lists ``designs``, of a language model's cache where
    it lists ``codecs``, else of networks.

    Raises:
        UsageError: see :meth:`dse.study_file.StudyFile.load`.
    """
    document = read_document(path)
    kind = next((kind for key, kind in _KINDS.items() if key in document), Study)
    return kind.load(path, overrides)
