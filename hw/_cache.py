"""Where files that can be made again are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder for one kind of file, made if absent.

    Below ``$BITFRONT_CACHE``, or the platform's place for caches (``~/.cache/bitfront`` on Linux).
    """
    chosen = os.environ.get("BITFRONT_CACHE")
    if chosen:
        base = Path(chosen).expanduser()
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches" / "bitfront"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitfront"
    folder = base / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder
