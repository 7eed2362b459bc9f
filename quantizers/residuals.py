"""Additions of two activations, as residual connections are, made modules of their own.

They are found by running the model and taken out of its code by symbolic tracing. Only modules that
add are traced; all others are called as they are.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn

from quantizers.calibration import TensorStatistics, collect_statistics
from quantizers.errors import UsageError
from quantizers.formats import ScalarFormat
from quantizers.nonnegative import Signs
from quantizers.recording import Operation, Recording, record, storage_key, tensors
from quantizers.torch_rounding import fake_quantize
from quantizers.tracing import TracingError, place, trace

_ADDITIONS: frozenset[tuple[str, Any]] = frozenset(
    {("call_function", function) for function in (operator.add, operator.iadd, torch.add)}
    | {("call_method", method) for method in ("add", "add_")}
)


class Addition(nn.Module):
    """The sum of two tensors or numbers."""

    def forward(self, left: Any, right: Any) -> Any:
        return left + right


class QuantAddition(nn.Module):
    """The sum of two activations, both rounded to one format with one scale.

    ``(round(left / scale) + round(right / scale)) * scale``: the two are added on one grid, as an integer
    adder does, and the exact sum is rounded to float32 only after it was scaled.
    """

    scale: Tensor

    def __init__(self, number_format: ScalarFormat, scale: float) -> None:
        super().__init__()
        self.number_format = number_format
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        total = self._rounded(left).double() + self._rounded(right).double()
        return (total * self.scale.double()).to(left.dtype)

    def _rounded(self, x: Tensor) -> Tensor:
        return fake_quantize(x / self.scale, self.number_format, 1.0)


@dataclass(frozen=True, eq=False)
class ResidualAdd:
    """An addition of two activations.

    Attributes:
        name: where its :class:`Addition` is in the traced model.
        nonnegative: whether neither operand can be negative whatever the data.
        statistics: one sample of both operands.
    """

    name: str
    nonnegative: bool
    statistics: TensorStatistics


@dataclass(frozen=True, eq=False)
class Residuals:
    """A model whose additions are modules.

    Attributes:
        model: computes what the original does, with its layers under the same names; do not change it.
        adds: the additions of two activations, in the order in which they run.
    """

    model: nn.Module
    adds: tuple[ResidualAdd, ...]


def extract_residuals(model: nn.Module, inputs: Tensor, batches: Sequence[Tensor], seed: int) -> Residuals:
    """The additions of two activations in *model*, calibrated.

    One of an activation and a parameter, constant or number (a position embedding, a bias) does not
    count. A model without any is returned as it is.

    Args:
        inputs: a small batch that shows all that the model does.
        batches, seed: for the samples.

    Raises:
        UsageError: a module that adds cannot be traced, or adds in another way than ``x + y``,
            ``x += y`` and ``add``.
    """
    recording = record(model, inputs)
    wanted = Counter(operation.module for operation, _ in _additions(recording, inputs))
    if not wanted:
        return Residuals(model, ())
    traced, origins = _traced(model, frozenset(wanted))
    again = record(traced, inputs)
    found = {o.module: positive for o, positive in _additions(again, inputs) if o.module in origins}
    _check_found(wanted, Counter(origins[name] for name in found), model)
    if not torch.equal(again.output, recording.output):
        msg = (
            "residual adds cannot be quantized: traced, the model computes something else; it changes "
            "tensors in place that are used elsewhere, or depends on the input's values"
        )
        raise UsageError(msg, given=type(model).__name__, expected=["residuals in float"])
    samples = collect_statistics(traced, list(found), batches, seed, pooled=True)
    return Residuals(traced, tuple(ResidualAdd(name, found[name], samples[name][0]) for name in found))


def _additions(recording: Recording, inputs: Tensor) -> Iterator[tuple[Operation, bool]]:
    """The additions of two activations, and whether neither operand can be negative."""
    activations = {storage_key(inputs)}
    signs = Signs()
    for operation in recording.operations:
        operands = operation.operands
        from_activations = [storage_key(operand) in activations for operand in operands]
        if operation.name == "add" and len(operands) > 1 and all(from_activations):
            yield operation, all(operand in signs for operand in operands)
        if any(from_activations) and not _takes_only_the_shape(operation):
            activations.update(map(storage_key, tensors(operation.result)))
            activations.update(map(storage_key, operation.written))
        signs.apply(operation)


def _takes_only_the_shape(operation: Operation) -> bool:
    return operation.name.endswith("_like") or operation.name.startswith("new_")


def _traced(model: nn.Module, adding: frozenset[str]) -> tuple[fx.GraphModule, dict[str, str]]:
    """The model with every ``+`` of the modules *adding* a module; from its name to where it was."""

    def adds_nothing(_: nn.Module, name: str) -> bool:
        return not any(adds == name or adds.startswith(f"{name}.") for adds in adding)

    try:
        traced = trace(model, adds_nothing)
    except TracingError as error:
        msg = f"residual adds cannot be quantized: {error}"
        raise UsageError(msg, given=error.place, expected=["residuals in float"]) from error
    taken = {name for name, _ in model.named_modules()}
    origins: dict[str, str] = {}
    for node in list(traced.graph.nodes):
        if (node.op, node.target) not in _ADDITIONS or len(node.args) != 2 or node.kwargs:
            continue
        origin = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", None))[0]
        prefix = f"{origin}." if origin else ""
        name = next(n for n in (f"{prefix}residual_add_{k}" for k in count()) if n not in taken)
        taken.add(name)
        origins[name] = origin
        traced.add_submodule(name, Addition())
        with traced.graph.inserting_after(node):
            replacement = traced.graph.call_module(name, node.args)
        node.replace_all_uses_with(replacement)
        traced.graph.erase_node(node)
    traced.recompile()
    return traced.eval(), origins


def _check_found(wanted: Counter[str], found: Counter[str], model: nn.Module) -> None:
    for name, adds in wanted.items():
        if found[name] != adds:
            where = place(name, type(model.get_submodule(name)))
            msg = (
                f"residual adds cannot be quantized: {where} adds activations {adds} times, {found[name]} "
                "of them as x + y, x += y or add without alpha"
            )
            raise UsageError(msg, given=name, expected=["x + y", "residuals in float"])
