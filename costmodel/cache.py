"""Content-addressed JSON cache: the same question is never computed twice, whoever asks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from hw.cache import default_cache_root
from quantizers.errors import UsageError

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9_-]*")


def content_key(key: object) -> str:
    """SHA-256, in hexadecimal, of the canonical JSON of *key*.

    Canonical: sorted keys, no blanks, ASCII only, so that equal values give equal keys in every process.

    Raises:
        UsageError: *key* holds something that JSON does not (an object, a set, NaN, an infinity).
    """
    return hashlib.sha256(_canonical(key).encode()).hexdigest()


class ContentCache:
    """Maps JSON values to JSON values, one file an entry; safe for any number of processes.

    Entries are written to a temporary file and renamed, so a reader sees a whole entry or none. An
    entry that is truncated or altered is treated as absent.

    Args:
        root: folder of the cache, made if absent; :func:`default_cache_root` when not given.
        namespace: sub-folder that keeps one kind of result apart from the others.

    Raises:
        UsageError: the folder cannot be made or written to, or *namespace* is not a plain lower-case name.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, *, namespace: str = "synthesis") -> None:
        if not _NAMESPACE.fullmatch(namespace):
            msg = f"a cache namespace is lower-case letters, digits, '-' and '_', not {namespace!r}"
            raise UsageError(msg, given=namespace)
        self.folder = (default_cache_root() if root is None else Path(root)) / namespace
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise self._unwritable(error) from error

    def get(self, key: object) -> Any | None:
        """The value stored for *key*, or None when there is none (or none that is whole)."""
        path = self._path(key)
        try:
            entry = json.loads(path.read_bytes())
            value = entry["value"]
            whole = entry["sha256"] == content_key(value)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return value if whole else None

    def put(self, key: object, value: object) -> None:
        """Stores *value*, which is JSON and not None, for *key*, over any earlier entry.

        Raises:
            UsageError: *key* or *value* is not JSON, or the folder has become unwritable or full.
        """
        path = self._path(key)
        text = json.dumps({"sha256": content_key(value), "value": value})
        try:
            path.parent.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(text)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _path(self, key: object) -> Path:
        digest = content_key(key)
        return self.folder / digest[:2] / f"{digest}.json"

    def _unwritable(self, error: OSError) -> UsageError:
        msg = (
            f"cannot write to the cache folder {self.folder}: {error.strerror or error}; "
            "set BITFRONT_CACHE to a folder that can be written"
        )
        return UsageError(msg, given=self.folder)


def _canonical(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        msg = f"a cache key or value must be plain JSON: {error}"
        raise UsageError(msg, given=type(value).__name__) from error
