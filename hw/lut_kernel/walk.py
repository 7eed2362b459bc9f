"""In which order one adder fills a table: every entry is the one before, plus or minus an activation.

An entry is known by the weights of its group, a vector of digits. Steps between neighbours change one
digit, by one or from minus to plus one or back (for binary weights: a Gray code, F. Gray, US patent
2632058). The entry of zero weights is never written: memories start as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Digits: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One entry of a table.

    Attributes:
        digits: the weights that it stands for.
        operand: the activation that is added to the entry before, by its place in the group.
        is_negative: it is subtracted.
        is_doubled: it counts twice.
        restarts: the entry before is that of zero weights, not that of the step before.
    """

    digits: Digits
    operand: int
    is_negative: bool
    is_doubled: bool
    restarts: bool


def binary_walk(group: int) -> list[Step]:
    """The ``2**group - 1`` sums of subsets of *group* activations."""
    return _steps([_gray(code, group) for code in range(1, 1 << group)])


def sign_walk(group: int) -> list[Step]:
    """The ``2**(group - 1)`` sums of all activations with signs, the last one's plus.

    Before the first of them come ``group - 1`` sums of fewer activations, their digits zero where one is
    missing.
    """
    ones = [-1] * (group - 1) + [1]
    path = [tuple([0] * place + ones[place:]) for place in reversed(range(1, group))]
    for code in range(1 << (group - 1)):
        path.append((*(2 * bit - 1 for bit in _gray(code, group - 1)), 1))
    return _steps(path)


def ternary_walk(group: int, *, is_mirrored: bool) -> list[Step]:
    """The ``3**group - 1`` sums with weights of -1, 0 and 1, or of each pair w and -w the one whose value
    ``sum_j 3**(group-1-j) * w_j`` is positive (see :func:`quantizers.table_lookup.planes.ternary_indices`).
    """
    half = _positive_half(group)
    steps = _steps(half)
    return steps if is_mirrored else steps + _steps([_negated(digits) for digits in half])


def _gray(code: int, group: int) -> Digits:
    return tuple((code ^ code >> 1) >> place & 1 for place in range(group))


def _negated(digits: Digits) -> Digits:
    return tuple(-digit for digit in digits)


def _positive_half(group: int) -> list[Digits]:
    """The digits of positive value, as a path from a neighbour of zero to a corner."""
    if group == 1:
        return [(1,)]
    lower = _positive_half(group - 1)
    return [(0, *digits) for digits in lower] + [(1, *digits) for digits in _snake(lower[-1])]


def _snake(corner: Digits) -> list[Digits]:
    """All digits, as a path from one corner to another."""
    if not corner:
        return [()]
    first, *rest = corner
    path: list[Digits] = []
    for digit in (first, 0, -first):
        path += [(digit, *digits) for digits in _snake(path[-1][1:] if path else tuple(rest))]
    return path


def _steps(path: list[Digits]) -> list[Step]:
    steps = []
    before: Digits = (0,) * len(path[0])
    for place, digits in enumerate(path):
        [(operand, change)] = [
            (j, new - old) for j, (new, old) in enumerate(zip(digits, before, strict=True)) if new != old
        ]
        steps.append(Step(digits, operand, change < 0, abs(change) == 2, place == 0))
        before = digits
    return steps
