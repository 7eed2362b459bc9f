"""What a result depends on besides its design: tool versions, this project's code, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import lru_cache
from importlib import metadata
from pathlib import Path

_RESULT_TOOLS = ("amaranth", "brevitas", "numba", "numpy", "pyosys", "torch")
# The rooms whose code decides a figure; a change there makes a new result, not a stale one.
_RESULT_ROOMS = ("quantizers", "hw", "costmodel", "dse/workloads", "dse/evaluation.py")


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Digest of the source that decides results (quantizers, hw, costmodel, workloads, evaluation)."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in _RESULT_ROOMS:
        path = root / room
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=1)
def tool_versions() -> dict[str, str]:
    """Versions that belong to the key of every result."""
    versions = {name: metadata.version(name) for name in _RESULT_TOOLS}
    return {**versions, "bitfront": f"{project_version()}+{code_digest()}"}


def project_version() -> str:
    """The installed version of bitfront; ``0+source`` when it runs from an uninstalled checkout."""
    try:
        return metadata.version("bitfront")
    except metadata.PackageNotFoundError:
        return "0+source"


def environment() -> dict[str, str]:
    """The tools and the machine, for the report."""
    return {
        **tool_versions(),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "host": platform.node(),
    }
