"""The project's one exception tree.

Library code raises these and never prints; the command line turns them into one message
(exit code 2) or one JSON document ``{"error", "given", "expected"}``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BitfrontError(Exception):
    """Base of every error this project raises on purpose."""


class UsageError(BitfrontError, ValueError):
    """Wrong input, found before any work starts.

    Attributes:
        given: what was passed, as text.
        expected: the valid choices, nearest first; empty where they cannot be listed.
    """

    def __init__(self, message: str, *, given: object = "", expected: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.given = str(given)
        self.expected = list(expected)


class MissingExtraError(BitfrontError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def unknown_choice(kind: str, given: object, choices: Iterable[str]) -> UsageError:
    """The error for a name that is not one of *choices*: says which is nearest and lists them all."""
    ordered = list(choices)
    near = difflib.get_close_matches(str(given), ordered, n=3, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    msg = f"unknown {kind} {str(given)!r}{hint}; expected one of: {', '.join(ordered)}"
    return UsageError(msg, given=given, expected=near + [c for c in ordered if c not in near])
