"""Accuracies with their intervals, from which images were answered right."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dse.metrics import Figure, Provenance

Answers = npt.NDArray[np.bool_]

# 97.5 % quantile of the standard normal: all intervals are two-sided 95 % intervals.
Z_95 = 1.959964


def accuracy_figure(correct: Answers) -> Figure:
    """Fraction of correct answers with Wilson's interval (Wilson 1927, JASA 22:209)."""
    n = len(correct)
    p = float(correct.mean())
    centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
    # At both ends rounding could put the bound a last place beyond the value.
    return Figure(p, Provenance.MEASURED, (max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))))


def paired_drop(reference: Answers, answers: Answers) -> Figure:
    """Points of accuracy lost against *reference* on the same images.

    The interval is that of Agresti and Min (2005, Statistics in Medicine 24:729) for paired
    proportions: half an image is added to each of the four outcomes, so that no disagreement at all
    does not pass for certainty. It is much narrower than the difference of two separate intervals,
    since both networks err on mostly the same images.
    """
    lost = int((reference & ~answers).sum())
    won = int((~reference & answers).sum())
    n = len(reference) + 2
    centre = (lost - won) / n
    half = Z_95 * math.sqrt((lost + won + 1) / n - centre**2) / math.sqrt(n)
    value = (lost - won) / len(reference)
    return Figure(100 * value, Provenance.MEASURED, (100 * (centre - half), 100 * (centre + half)))
