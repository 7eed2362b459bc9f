"""Design-space exploration: studies, evaluation, fronts.

Names are loaded when they are first used: a study and its runs need torch, the rest does not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dse.study import Study as Study
    from dse.sweep import Run as Run
    from dse.sweep import load_run as load_run
    from dse.sweep import run as run

_HOMES = {"Study": "study", "Run": "sweep", "load_run": "sweep", "run": "sweep"}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
