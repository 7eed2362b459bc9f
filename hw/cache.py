"""Where files that can be made again are kept, by every room from here on."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def default_cache_root() -> Path:
    """``$BITFRONT_CACHE``, or the platform's place for caches (``~/.cache/bitfront`` on Linux)."""
    chosen = os.environ.get("BITFRONT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "bitfront"


def cache_folder(kind: str) -> Path:
    """The folder for one kind of file, made if absent."""
    folder = default_cache_root() / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder
