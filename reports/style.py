"""Colours and marks that every figure shares."""

from __future__ import annotations

# Okabe and Ito's palette: told apart with every common colour blindness and in print.
FAMILY_COLOURS = {
    "integer": "#0072B2",
    "minifloat": "#D55E00",
    "mixed": "#009E73",
    "ternary": "#CC79A7",
    "mx": "#56B4E9",
}
RECIPE_COLOURS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00"]
FRONT_OF_ALL = "#333333"
FLOAT_LINE = "#777777"

# plotly name, matplotlib name
FAMILY_MARKS = {
    "integer": ("circle", "o"),
    "minifloat": ("triangle-up", "^"),
    "mixed": ("square", "s"),
    "ternary": ("diamond", "D"),
    "mx": ("star", "*"),
}
