"""What a result depends on besides its design: tool versions, this project's code, the machine."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

# The packages and the code that decide a figure: a change there makes a new result, not a stale one.
# Accuracy and cost are kept apart, so that a change of the hardware does not discard accuracies.
_ACCURACY_TOOLS = ("brevitas", "numba", "numpy", "pillow", "torch", "torchvision")
_ACCURACY_CODE = ("quantizers", "dse/workloads", "dse/accuracy.py", "dse/statistics.py")
_CACHE_TOOLS = ("gguf", "tokenizers")
_CACHE_CODE = (
    *("quantizers", "dse/workloads/language", "dse/caches.py"),
    *("dse/cache_costs.py", "dse/cache_engines.py", "dse/merge_engines.py"),
)
_COST_TOOLS = ("amaranth", "pyosys")
_COST_CODE = ("quantizers/formats.py", "hw", "costmodel", "dse/costing.py", "dse/evaluation.py")


def code_digest(places: Iterable[str]) -> str:
    """Digest of the Python source in *places* (files and folders of this project)."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for place in places:
        path = root / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=1)
def accuracy_tools() -> dict[str, str]:
    """Versions that an accuracy depends on."""
    return {**_versions(_ACCURACY_TOOLS), "bitfront_accuracy": code_digest(_ACCURACY_CODE)}


@lru_cache(maxsize=1)
def cost_tools() -> dict[str, str]:
    """Versions that the cost of a datapath depends on."""
    return {**_versions(_COST_TOOLS), "bitfront_cost": code_digest(_COST_CODE)}


@lru_cache(maxsize=1)
def cache_tools() -> dict[str, str]:
    """Versions that belong to the key of every result of a cache."""
    versions = _versions((*_ACCURACY_TOOLS, *_CACHE_TOOLS))
    return {**versions, "bitfront_cache": code_digest(_CACHE_CODE), **cost_tools()}


def tool_versions() -> dict[str, str]:
    """Versions that belong to the key of every result of a network."""
    return {**accuracy_tools(), **cost_tools()}


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed ones of *packages*."""
    found = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def environment() -> dict[str, str]:
    """The tools and the machine, for the report."""
    return {
        **_versions(["bitfront"]),
        **tool_versions(),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "host": platform.node(),
    }
