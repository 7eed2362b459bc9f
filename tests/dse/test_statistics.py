"""Accuracies and losses with their intervals, against the formulas at 50 digits and published figures."""

from __future__ import annotations

from decimal import Decimal, localcontext
from statistics import NormalDist

import numpy as np
import pytest

from dse.metrics import Figure, Provenance
from dse.statistics import Answers, accuracy_figure, paired_drop

Z = NormalDist().inv_cdf(0.975)


def answers(right: int, wrong: int) -> Answers:
    return np.array([True] * right + [False] * wrong)


def ends(figure: Figure) -> list[float]:
    assert figure.provenance is Provenance.MEASURED
    assert figure.interval is not None
    return list(figure.interval)


def wilson(right: int, n: int) -> list[float]:
    """Where ``|p - right / n| = z sqrt(p (1 - p) / n)``: the roots of a quadratic in p."""
    with localcontext(prec=50):
        z2 = Decimal(Z) ** 2
        a, b, c = n + z2, -(2 * right + z2), Decimal(right) ** 2 / n
        root = (b * b - 4 * a * c).sqrt()
        return [float((-b - root) / (2 * a)), float((-b + root) / (2 * a))]


def agresti_min(lost: int, won: int, n: int) -> list[float]:
    """Wald's interval for paired proportions after half an image was added to each of four cells."""
    with localcontext(prec=50):
        p_lost, p_won = ((count + Decimal("0.5")) / (n + 2) for count in (lost, won))
        difference = p_lost - p_won
        error = ((p_lost + p_won - difference**2) / (n + 2)).sqrt()
        return [float(100 * (difference + sign * Decimal(Z) * error)) for sign in (-1, 1)]


@pytest.mark.parametrize(
    ("right", "n", "published"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_intervals_as_published(right: int, n: int, published: tuple[float, float]) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert ends(accuracy_figure(answers(right, n - right))) == pytest.approx(published, abs=5.1e-5)


@pytest.mark.parametrize(("right", "n"), [(1, 1), (0, 1), (4, 4), (0, 7), (1, 2), (173, 200), (3621, 4000)])
def test_accuracy_has_wilsons_interval(right: int, n: int) -> None:
    figure = accuracy_figure(answers(right, n - right))
    assert figure.value == right / n
    assert ends(figure) == pytest.approx(wilson(right, n), rel=1e-7, abs=1e-12)


def test_no_interval_of_an_accuracy_is_a_point() -> None:
    """With all answers right, the lower end is n / (n + z**2); with none, the upper z**2 / (n + z**2)."""
    for n in (1, 4, 100):
        assert ends(accuracy_figure(answers(n, 0))) == pytest.approx([n / (n + Z**2), 1], rel=1e-7)
        assert ends(accuracy_figure(answers(0, n))) == pytest.approx(
            [0, Z**2 / (n + Z**2)], rel=1e-7, abs=1e-12
        )


def paired(lost: int, won: int, n: int) -> tuple[Answers, Answers]:
    """Answers of two networks that are both right where they agree."""
    agreed = n - lost - won
    reference = np.array([True] * lost + [False] * won + [True] * agreed)
    return reference, np.array([False] * lost + [True] * won + [True] * agreed)


@pytest.mark.parametrize(
    ("lost", "won", "n"),
    [
        (0, 0, 98),
        (0, 0, 1),
        (1, 0, 1),
        (0, 1, 1),
        (7, 2, 100),
        (2, 7, 100),
        (5, 5, 40),
        (30, 0, 30),
        (150, 86, 1600),
    ],
)
def test_losses_have_the_interval_of_agresti_and_min(lost: int, won: int, n: int) -> None:
    figure = paired_drop(*paired(lost, won, n))
    assert figure.value == 100 * ((lost - won) / n)
    assert ends(figure) == pytest.approx(agresti_min(lost, won, n), rel=1e-7)


def test_no_disagreement_is_not_certainty() -> None:
    """Nothing lost, nothing won: z / (n + 2) on either side; which answers are right has no part in it."""
    rng = np.random.default_rng(1)
    same = rng.random(98) < 0.7
    figure = paired_drop(same, same.copy())
    assert figure.value == 0
    assert ends(figure) == pytest.approx([-Z, Z], rel=1e-7)


def test_only_disagreements_and_the_count_matter() -> None:
    reference, quantized = paired(7, 2, 100)
    agreed = reference & quantized
    assert paired_drop(reference & ~agreed, quantized & ~agreed) == paired_drop(reference, quantized)


def test_gain_and_loss_mirror_each_other() -> None:
    reference, quantized = paired(7, 2, 100)
    loss, gain = paired_drop(reference, quantized), paired_drop(quantized, reference)
    assert (loss.value, gain.value) == (5, -5)
    assert ends(gain) == pytest.approx([-end for end in reversed(ends(loss))])


def test_pairing_is_what_narrows_the_interval() -> None:
    """5 points lost by 9 disagreements: 100 / 102 * (5 +- z * sqrt(10 - 25 / 102)); 12 points wide, not 27."""
    reference, quantized = paired(7, 2, 100)
    reference[50:] = quantized[50:] = False
    low, high = ends(paired_drop(reference, quantized))
    (low_r, high_r), (low_q, high_q) = (ends(accuracy_figure(a)) for a in (reference, quantized))
    assert (low, high) == pytest.approx((-1.0995332, 10.9034548), abs=1e-7)
    assert 100 * np.hypot(high_r - low_r, high_q - low_q) == pytest.approx(27.06, abs=0.01)


@pytest.mark.parametrize("right", [True, False])
def test_the_interval_holds_the_value_at_both_ends(right: bool) -> None:
    """Rounding put it a last place beyond, and an error bar of negative length stopped the report."""
    for n in range(1, 2001):
        figure = accuracy_figure(np.full(n, right))
        low, high = ends(figure)
        assert 0 <= low <= figure.value <= high <= 1
