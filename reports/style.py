"""Colours and marks that every figure shares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """How the points of a family are drawn.

    Attributes:
        plotly, matplotlib: the shape's name in each.
    """

    colour: str
    plotly: str
    matplotlib: str


# Okabe and Ito's palette: told apart with every common colour blindness and in print.
_FORMATS = {
    "integer": Mark("#0072B2", "circle", "o"),
    "minifloat": Mark("#D55E00", "triangle-up", "^"),
    "mixed": Mark("#009E73", "square", "s"),
    "ternary": Mark("#CC79A7", "diamond", "D"),
    "mx": Mark("#56B4E9", "star", "*"),
}
_OTHERS = (
    *_FORMATS.values(),
    Mark("#E69F00", "triangle-down", "v"),
    Mark("#000000", "cross", "P"),
    Mark("#999999", "x", "X"),
)
# Shapes of all colours when these have been used once.
_FURTHER = (("triangle-left", "<"), ("triangle-right", ">"), ("pentagon", "p"))
RECIPE_COLOURS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00"]
FRONT_OF_ALL = "#333333"
FLOAT_LINE = "#777777"


def marks_of(families: Iterable[str]) -> dict[str, Mark]:
    """A mark for each family, in alphabetical order: formats have theirs, designs take them in turn."""
    names = sorted(set(families))
    if set(names) <= set(_FORMATS):
        return {name: _FORMATS[name] for name in names}
    return {name: _mark(index) for index, name in enumerate(names)}


def _mark(index: int) -> Mark:
    """The colours in turn, each time around in another shape."""
    around, place = divmod(index, len(_OTHERS))
    if around == 0:
        return _OTHERS[place]
    plotly, matplotlib = _FURTHER[(around - 1) % len(_FURTHER)]
    return Mark(_OTHERS[place].colour, plotly, matplotlib)
