"""What a model really computes: every tensor operation and module call of one forward pass.

Works on any ``nn.Module`` (no symbolic tracing, so control flow and library code are fine) and is
what batch-norm folding, the sign analysis and the layer table read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, eq=False)
class Operation:
    """One ATen operation, as called: *module* is the innermost module that was running."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    module: str

    @property
    def name(self) -> str:
        """The operation without namespace, overload and the underscore of the in-place form."""
        return str(self.func._schema.name).removeprefix("aten::").rstrip("_")

    def argument(self, name: str) -> Any:
        """The argument called *name* in the operation's schema; its default where it was not given."""
        for position, parameter in enumerate(self.func._schema.arguments):
            if parameter.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, parameter.default_value)
        return None

    @property
    def operands(self) -> list[Tensor]:
        """Every tensor that goes in."""
        return list(tensors((self.args, self.kwargs)))

    @property
    def written(self) -> list[Tensor]:
        """The arguments that the operation changes in place."""
        changed = [a for a in self.func._schema.arguments if a.alias_info and a.alias_info.is_write]
        return list(tensors([self.argument(parameter.name) for parameter in changed]))


@dataclass(frozen=True, eq=False)
class Entry:
    """A module was called."""

    module: str
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Exit:
    """A module returned."""

    module: str
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Recording:
    """The events of one forward pass, in order, and what the model returned.

    Keeps every tensor of the pass alive, so storages can be told apart: record small batches.
    """

    events: list[Operation | Entry | Exit]
    output: Any

    @property
    def operations(self) -> list[Operation]:
        return [event for event in self.events if isinstance(event, Operation)]

    def calls(self, module: str) -> list[Entry]:
        """The calls of the module of this name."""
        return [event for event in self.events if isinstance(event, Entry) and event.module == module]


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for element in value:
            yield from tensors(element)


def storage_key(tensor: Tensor) -> int:
    """Equal for tensors that share memory, as long as both are alive."""
    return int(tensor.untyped_storage()._cdata)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[Operation | Entry | Exit] = []
        self.running: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        module = self.running[-1] if self.running else ""
        self.events.append(Operation(func, args, kwargs or {}, result, module))
        return result

    def watch(self, name: str, module: nn.Module) -> Iterable[Any]:
        """Hooks that record the calls of *module*."""

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.running.append(name)
            self.events.append(Entry(name, tuple(tensors((args, kwargs)))))

        def leave(_: nn.Module, _args: Any, output: Any) -> None:
            self.running.pop()
            self.events.append(Exit(name, tuple(tensors(output))))

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave)


def record(model: nn.Module, inputs: Tensor) -> Recording:
    """Run *model* on *inputs* without gradients and record what happens."""
    recorder = _Recorder()
    handles = [handle for name, module in model.named_modules() for handle in recorder.watch(name, module)]
    try:
        with torch.no_grad(), recorder:
            output = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Recording(recorder.events, output)
