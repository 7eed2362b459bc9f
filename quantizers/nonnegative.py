"""Which tensors of a forward pass cannot be negative, whatever the input.

A property of the operations (a ReLU's output), never of the observed values: an input image that
happens to be non-negative does not count. Signs are known per storage, so views need no rules; an
operation without a rule clears the mark, which costs a sign bit but is never wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any

from torch import Tensor

from quantizers.recording import Operation, storage_key, tensors

# fmt: off
_NEVER_NEGATIVE = frozenset({
    "relu", "sigmoid", "hardsigmoid", "_softmax", "exp", "exp2", "abs", "sqrt",
    "zeros", "zeros_like", "new_zeros", "ones",
})
# The result is not negative if no operand is. Padding and scalars are operands too.
_PRESERVING = frozenset({
    "add", "mul", "div", "mean", "sum", "amax", "maximum", "minimum",
    "clone", "_to_copy", "cat", "stack", "repeat", "constant_pad_nd",
    "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d",
    "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
    "upsample_nearest2d", "upsample_bilinear2d",
})
# fmt: on
_SCALAR_OPERANDS = ("other", "value", "alpha")


class Signs:
    """The storages known to hold no negative number, updated operation by operation."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def __contains__(self, tensor: object) -> bool:
        """Whether *tensor* cannot be negative."""
        # A tensor with the lazy negative bit reads its storage with the sign flipped.
        return isinstance(tensor, Tensor) and storage_key(tensor) in self._known and not tensor.is_neg()

    def apply(self, operation: Operation) -> None:
        """Take *operation* into account."""
        nonnegative = self._result_is_nonnegative(operation)
        self._overwrite(operation.written, nonnegative)
        operands = {storage_key(operand) for operand in operation.operands}
        for result in tensors(operation.result):
            if nonnegative and storage_key(result) not in operands:
                self._known.add(storage_key(result))

    def _overwrite(self, targets: list[Tensor], nonnegative: bool) -> None:
        for target in targets:
            whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
            if not nonnegative:
                self._known.discard(storage_key(target))
            elif whole:
                self._known.add(storage_key(target))

    def _result_is_nonnegative(self, operation: Operation) -> bool:
        name = operation.name
        if name in _NEVER_NEGATIVE:
            return True
        if name in _CONDITIONAL:
            return _CONDITIONAL[name](operation)
        if name == "copy":
            return operation.argument("src") in self
        if name == "mul" and operation.argument("self") is operation.argument("other"):
            return True
        return name in _PRESERVING and self._no_operand_is_negative(operation)

    def _no_operand_is_negative(self, operation: Operation) -> bool:
        scalars = [operation.argument(name) for name in _SCALAR_OPERANDS]
        return all(_at_least(scalar, 0) for scalar in scalars if isinstance(scalar, Number)) and all(
            operand in self for operand in operation.operands
        )


def _at_least(value: Any, bound: float) -> bool:
    return isinstance(value, int | float) and value >= bound


def _clamps_at_zero(operation: Operation) -> bool:
    lower, upper = (operation.argument("min"), operation.argument("max"))
    if operation.name == "hardtanh":
        lower, upper = (operation.argument("min_val"), operation.argument("max_val"))
    # With the bounds swapped, every value becomes the upper one.
    return _at_least(lower, 0) and (upper is None or _at_least(upper, 0))


def _is_even_power(operation: Operation) -> bool:
    exponent = operation.argument("exponent")
    return isinstance(exponent, int | float) and exponent % 2 == 0


def _has_positive_beta(operation: Operation) -> bool:
    beta = operation.argument("beta")
    return beta is None or _at_least(beta, 0)


def _replaces_negatives(operation: Operation) -> bool:
    return _at_least(operation.argument("threshold"), 0) and _at_least(operation.argument("value"), 0)


_CONDITIONAL: dict[str, Callable[[Operation], bool]] = {
    "hardtanh": _clamps_at_zero,
    "clamp": _clamps_at_zero,
    "clamp_min": _clamps_at_zero,
    "pow": _is_even_power,
    "softplus": _has_positive_beta,
    "threshold": _replaces_negatives,
}
