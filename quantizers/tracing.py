"""Symbolic traces of models, with an error that says where tracing failed."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from torch import fx, nn

from quantizers.errors import BitfrontError


class TracingError(BitfrontError):
    """A model cannot be traced; the text names the module and what its code raised."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place} cannot be traced: {reason}")
        self.place = place


class _Tracer(fx.Tracer):
    def __init__(self, is_leaf: Callable[[nn.Module, str], bool]) -> None:
        super().__init__()
        self._is_leaf = is_leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m, module_qualified_name)


def is_library_module(module: nn.Module, name: str) -> bool:
    """Whether fx by itself calls *module* as it is: one of ``torch.nn`` that is no sequence."""
    return fx.Tracer().is_leaf_module(module, name)


def trace(model: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> fx.GraphModule:
    """The graph of *model*, which shares its layers.

    Optional arguments keep their defaults: proxies in their place would change what the model does.

    Args:
        is_leaf: called with a module and its name: whether it is called as it is, not traced.

    Raises:
        TracingError: the model's code depends on values, or does what cannot be traced.
    """
    tracer = _Tracer(is_leaf)
    try:
        return fx.GraphModule(model, tracer.trace(model, concrete_args=_defaults(model)))
    except Exception as error:  # whatever the model's code raises when it meets a proxy
        name, kind = next(reversed(tracer.module_stack.values()), ("", type(model)))
        raise TracingError(place(name, kind), str(error)) from error


def place(name: str, kind: Any) -> str:
    """A module in words: its name and class."""
    shown = getattr(kind, "__name__", kind)
    return f"layer {name!r} ({shown})" if name else f"the model ({shown})"


def _defaults(model: nn.Module) -> dict[str, Any]:
    parameters = signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
