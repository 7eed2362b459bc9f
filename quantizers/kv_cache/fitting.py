"""Tables of the calibrated codecs: matrices, thresholds, levels and bits, found from statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.kv_cache.allocation import WIDEST, allocate
from quantizers.kv_cache.calibration import Calibration
from quantizers.kv_cache.codebook import MAX_BITS, ScaleFormat, normal_codebook
from quantizers.kv_cache.fixed_point import HIGHEST, LOWEST
from quantizers.kv_cache.integers import check_range
from quantizers.kv_cache.limits import check_rotations, check_transforms
from quantizers.kv_cache.rotated import Rotation, padded_size
from quantizers.kv_cache.rotation import hadamard, halvings, largest_sum, random_signs
from quantizers.kv_cache.transform import LEVEL_BITS, MAX_ENTRY_BITS, Block

FloatArray = npt.NDArray[np.float64]

# A direction that never varies, or never matters, would make a matrix singular.
_RELATIVE_FLOOR = 1e-6

# Of a number of words, as floats have it.
_ROUNDING = 1e-9

# To which the limits of bits an element are said, inwards.
_DECIMALS = 10_000

TEMPERING = 1.0
"""Exponent of the importances."""

FLOOR = 0.0
"""Of the mean error, added to each coefficient's."""

Spans = Sequence[slice]
"""The channels of each vector of a layer; keys first, then values."""


def integer_means(calibration: Calibration, layer: int) -> npt.NDArray[np.int64]:
    """Offline means of all channels of a layer, shape (2c,)."""
    return np.clip(np.rint(calibration.means[layer]), LOWEST, HIGHEST).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Basis:
    """Coefficients of one vector before it is known how many bits each gets.

    Attributes:
        forward: shape (n, d): coefficients from elements.
        inverse: shape (d, n).
        variances: of the coefficients, shape (n,).
        errors: what losing each costs: its variance times its importance, shape (n,).
    """

    forward: FloatArray
    inverse: FloatArray
    variances: FloatArray
    errors: FloatArray

    @classmethod
    def of(cls, forward: FloatArray, covariance: FloatArray, importance: FloatArray) -> Basis:
        """The statistics of the coefficients ``forward @ y``."""
        inverse = np.linalg.inv(forward).astype(np.float64)
        variances = np.einsum("ij,jk,ik->i", forward, covariance, forward, optimize=True)
        weights = np.einsum("ji,jk,ki->i", inverse, importance, inverse, optimize=True)
        return cls(forward, inverse, np.maximum(variances, 0), np.maximum(variances * weights, 0))


def principal_basis(
    covariance: FloatArray, importance: FloatArray, *, entry_bits: int, floor: float = 0.0
) -> Basis:
    """Coefficients that do not correlate, in the metric of *importance*; rows of integers.

    With R the square root of the importance, the rows of ``U^T R`` for the eigenvectors U of
    ``R covariance R``: the Karhunen-Loeve transform of what the loss sees. Each row is stretched so that its
    largest entry is the largest of *entry_bits* bits, and rounded. *floor* of the mean error is added to that
    of every coefficient, and to its variance what makes it: on other text none may be so small.
    """
    check_range("entry_bits", entry_bits, 4, MAX_ENTRY_BITS)
    root = _square_root(importance)
    _, vectors = np.linalg.eigh(root @ covariance @ root)
    rows = vectors[:, ::-1].T @ root
    largest = (1 << (entry_bits - 1)) - 1
    integers = np.rint(rows * (largest / np.abs(rows).max(axis=1, keepdims=True)))
    basis = Basis.of(integers, covariance, importance)
    added = floor * basis.errors.mean()
    variances = basis.variances * (1 + added / np.maximum(basis.errors, np.finfo(np.float64).tiny))
    return Basis(basis.forward, basis.inverse, variances, basis.errors + added)


def tempered(importance: FloatArray, units: FloatArray, exponent: float) -> FloatArray:
    """*importance* with its eigenvalues, in units of the model's own numbers, to the power of *exponent*.

    The Fisher information tells the cost of small errors that are independent of each other. Those of
    coefficients with no bits or one are not small: they are nearly the coefficient itself.

    Args:
        importance: shape (d, d), in units of the integers.
        units: integers in 1, of each channel, shape (d,).
        exponent: 0 gives all directions the same importance.
    """
    outer = np.outer(units, units)
    values, vectors = np.linalg.eigh(importance * outer)
    floored = np.maximum(values, max(float(values.max()), np.finfo(np.float64).tiny) * _RELATIVE_FLOOR)
    return (vectors * floored**exponent) @ vectors.T / outer


def _importance(calibration: Calibration, layer: int, span: slice, exponent: float) -> FloatArray:
    units = np.exp2(np.repeat(calibration.fractions[layer], calibration.channels))[span]
    return tempered(calibration.importances[layer, span, span], units, exponent)


def hadamard_basis(covariance: FloatArray, importance: FloatArray, signs: npt.NDArray[np.int8]) -> Basis:
    """The coefficients of `quantizers.kv_cache.rotation.rotate`, of vectors filled up with zeros."""
    size, d = len(signs), len(covariance)
    matrix = (hadamard(np.diag(signs.astype(np.int64))).T / 2.0 ** halvings(size)).astype(np.float64)
    padding = (0, size - d)
    filled_covariance = np.pad(covariance, [padding, padding])
    return Basis.of(matrix, filled_covariance, np.pad(importance, [padding, padding]))


def transforms(
    calibration: Calibration,
    spans: Spans,
    *,
    bits: float,
    entry_bits: int = 8,
    tempering: float = TEMPERING,
    floor: float = FLOOR,
    records: int = 1,
    word_bits: int = 1,
) -> list[list[Block]]:
    """For each layer the blocks of *spans*, with bits given to all coefficients of all layers at once.

    Args:
        calibration: statistics.
        spans: channels of each block.
        bits: an element, over all layers, at most 8; there is no metadata.
        entry_bits: of the matrices, 4 to 12.
        tempering: see :func:`tempered`, 0 to 1.
        floor: see :func:`principal_basis`, at least 0.
        records: of a token in one layer: codes of as many *spans* lie one after the other.
        word_bits: a record is a whole number of words of so many bits.

    Raises:
        UsageError: a number out of range, or more bits than the codes can take.
    """
    check_transforms(bits=bits, entry_bits=entry_bits, tempering=tempering, floor=floor)
    bases = [
        [
            principal_basis(
                calibration.covariances[n, span, span],
                _importance(calibration, n, span, tempering),
                entry_bits=entry_bits,
                floor=floor,
            )
            for span in spans
        ]
        for n in range(calibration.layers)
    ]
    account = _Account(
        elements=sum(span.stop - span.start for span in spans), records=records, word_bits=word_bits
    )
    shares = account.shares(bases, bits, highest=WIDEST)
    return [
        [_block(basis, share, entry_bits) for basis, share in zip(layer, of_layer, strict=True)]
        for layer, of_layer in zip(bases, shares, strict=True)
    ]


def rotations(
    calibration: Calibration,
    spans: Spans,
    *,
    bits: float,
    scale_bits: int = 8,
    seed: int = 0,
    allocated: bool = True,
    lowest: int = 0,
    highest: int = MAX_BITS,
    tempering: float = TEMPERING,
    records: int = 1,
    word_bits: int = 1,
) -> list[list[Rotation]]:
    """For each layer a rotation of each of *spans*.

    Args:
        calibration: statistics.
        spans: channels of each vector.
        bits: an element, scales included. Without *allocated*: of each code, an integer, 1 to 6.
        scale_bits: of a vector's scale, 5 to 16.
        seed: of the signs, below 2**32.
        allocated: bits of each coefficient from the statistics; False: all alike, data-oblivious.
        lowest, highest: bits that every coefficient has, and that none has more of; at most 6.
        tempering: see :func:`tempered`, 0 to 1.
        records, word_bits: as of :func:`transforms`, where *allocated*.

    Raises:
        UsageError: a number out of range, *bits* that is no integer where it must be one, or more, or fewer,
            than the codes can take.
    """
    check_rotations(
        bits=bits,
        scale_bits=scale_bits,
        seed=seed,
        allocated=allocated,
        lowest=lowest,
        highest=highest,
        tempering=tempering,
    )
    signs = [random_signs(padded_size(span.stop - span.start), seed + n) for n, span in enumerate(spans)]
    bases = [
        [
            hadamard_basis(
                calibration.covariances[n, span, span], _importance(calibration, n, span, tempering), sign
            )
            for span, sign in zip(spans, signs, strict=True)
        ]
        for n in range(calibration.layers)
    ]
    if allocated:
        account = _Account(
            elements=sum(span.stop - span.start for span in spans),
            records=records,
            word_bits=word_bits,
            metadata=scale_bits,
        )
        shares = account.shares(bases, bits, highest=highest, lowest=lowest)
    else:
        shares = [[np.full(len(basis.variances), int(bits)) for basis in layer] for layer in bases]
    # Where no coefficient has any bits there is no codebook to read, but a vector names one.
    finest = max(1, *(int(share.max()) for layer in shares for share in layer))
    return [
        [
            Rotation(
                elements=span.stop - span.start,
                bits=tuple(int(b) for b in share),
                finest=finest,
                signs=tuple(int(s) for s in sign),
                scale=ScaleFormat.covering(largest_sum(len(sign)), bits=scale_bits),
            )
            for span, sign, share in zip(spans, signs, layer, strict=True)
        ]
        for layer in shares
    ]


@dataclass(frozen=True, kw_only=True)
class _Account:
    """The bits of all layers, on which all coefficients draw.

    Attributes:
        elements: of a token in one layer.
        records: in which these lie; each has the codes of as many vectors.
        word_bits: a record is a whole number of such words.
        metadata: bits of each vector besides its codes.
    """

    elements: int
    records: int
    word_bits: int
    metadata: int = 0

    def shares(
        self, bases: list[list[Basis]], bits: float, *, highest: int, lowest: int = 0
    ) -> list[list[npt.NDArray[np.int64]]]:
        """Bits of every coefficient, for *bits* bits an element over all layers.

        Raises:
            UsageError: these are more, or fewer, than the codes can have.
        """
        per_record = len(bases[0]) // self.records
        records = [
            [basis.errors for basis in layer[start : start + per_record]]
            for layer in bases
            for start in range(0, len(layer), per_record)
        ]
        sizes = np.array([sum(map(len, record)) for record in records])
        metadata = self.metadata * per_record
        limits = _Limits(lowest, highest, self.word_bits)
        fewest, most = limits.words(sizes, metadata)
        words = limits.whole(bits, self.elements * len(bases), int(fewest.sum()), int(most.sum()))
        flat = allocate(
            np.concatenate([e for record in records for e in record]),
            words * self.word_bits - metadata * len(records),
            lowest=lowest,
            highest=highest,
        )
        wanted = np.array([part.sum() for part in np.split(flat, np.cumsum(sizes)[:-1])])
        totals = self.word_bits * _whole_words(
            (wanted + metadata) / self.word_bits, words, lowest=fewest, highest=most
        )
        vectors: list[npt.NDArray[np.int64]] = []
        for record, total in zip(records, totals.tolist(), strict=True):
            share = allocate(np.concatenate(record), total - metadata, lowest=lowest, highest=highest)
            vectors += np.split(share, np.cumsum([len(e) for e in record])[:-1])
        parts = iter(vectors)
        return [[next(parts) for _ in layer] for layer in bases]


@dataclass(frozen=True)
class _Limits:
    """What codes of *lowest* to *highest* bits take in words of so many bits."""

    lowest: int
    highest: int
    word_bits: int

    def words(
        self, sizes: npt.NDArray[np.int64], metadata: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The fewest and the most words that each record of so many codes can fill.

        Raises:
            UsageError: there is no whole number of them.
        """
        least, largest = sizes * self.lowest + metadata, sizes * self.highest + metadata
        fewest, most = -(-least // self.word_bits), largest // self.word_bits
        if (fewest > most).any():
            place = int(np.argmax(fewest > most))
            msg = (
                f"{self}, take {least[place]} to {largest[place]} bits of a token, between which there is no "
                f"whole number of words of {self.word_bits} bits"
            )
            raise UsageError(
                msg, given=f"{self.lowest} to {self.highest}", expected=["a wider range of bits"]
            )
        return fewest, most

    def whole(self, bits: float, elements: int, fewest: int, most: int) -> int:
        """The words that *bits* bits an element are, of so many elements, rounded down.

        Raises:
            UsageError: fewer than *fewest* or more than *most*.
        """
        # What was written in decimals may be a hair below a whole number of words.
        wanted = bits * elements / self.word_bits + _ROUNDING
        if fewest <= wanted < most + 1:
            return int(wanted)
        scale = _DECIMALS * self.word_bits
        least, largest = -(-fewest * scale // elements) / _DECIMALS, most * scale // elements / _DECIMALS
        words = "" if self.word_bits == 1 else f" and in whole words of {self.word_bits} bits"
        msg = f"{self}{words}, take {least:g} to {largest:g} bits an element, not {bits:g}"
        raise UsageError(msg, given=bits, expected=[f"{least:g} to {largest:g}"])

    def __str__(self) -> str:
        return f"codes of {self.lowest} to {self.highest} bits, with what is stored beside them"


def _whole_words(
    wanted: FloatArray, total: int, *, lowest: npt.NDArray[np.int64], highest: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """*total* words for records that want so many each: those that lack most round up.

    The limits of each record allow it, and those of all together the total.
    """
    words = np.clip(np.floor(wanted).astype(np.int64), lowest, highest)
    while words.sum() != total:
        step = 1 if words.sum() < total else -1
        has_room = words < highest if step > 0 else words > lowest
        lack = np.where(has_room, step * (wanted - words), -np.inf)
        words[np.argmax(lack)] += step
    return words


def _block(basis: Basis, bits: npt.NDArray[np.int64], entry_bits: int) -> Block:
    """Tables of the coefficients that have bits."""
    kept = np.flatnonzero(bits)
    spreads = np.sqrt(basis.variances[kept])
    columns = basis.inverse[:, kept]
    largest = (1 << (entry_bits - 1)) - 1
    units = np.abs(columns).max(axis=0) / largest
    books = [_codebook(int(b)) for b in bits[kept]]
    # The largest level of all coefficients fills its 16 bits; the unit of levels is the same for all.
    reach = max(
        (levels[-1] * s * u for (_, levels), s, u in zip(books, spreads, units, strict=True)), default=1
    )
    shift = int(np.clip(np.floor(np.log2(((1 << (LEVEL_BITS - 1)) - 1) / reach)), 0, 30))
    limit = (1 << (LEVEL_BITS - 1)) - 1
    return Block(
        forward=basis.forward[kept].astype(np.int64),
        inverse=np.rint(columns / units).astype(np.int64),
        shift=shift,
        thresholds=tuple(_integers(t * s) for (t, _), s in zip(books, spreads, strict=True)),
        levels=tuple(
            _integers(np.clip(levels * (s * u * 2.0**shift), -limit, limit))
            for (_, levels), s, u in zip(books, spreads, units, strict=True)
        ),
    )


def _integers(values: FloatArray) -> tuple[int, ...]:
    return tuple(np.rint(values).astype(np.int64).tolist())


def _codebook(bits: int) -> tuple[FloatArray, FloatArray]:
    """Thresholds and levels for the unit normal density, both signs.

    Where `quantizers.kv_cache.codebook` ends, the levels of Panter and Dite (1951): quantiles of a normal
    density of variance 3, next to optimal for so many bits.
    """
    if bits > MAX_BITS:
        wide, count = NormalDist(0, 3**0.5), 1 << bits
        levels = np.array([wide.inv_cdf((k + 0.5) / count) for k in range(count)])
        return (levels[1:] + levels[:-1]) / 2, levels
    half = normal_codebook(bits)
    above, levels = np.array(half.thresholds), np.array(half.levels)
    return np.concatenate([-above[::-1], [0.0], above]), np.concatenate([-levels[::-1], levels])


def _square_root(matrix: FloatArray) -> FloatArray:
    """The symmetric square root, its eigenvalues kept away from zero."""
    values, vectors = np.linalg.eigh(matrix)
    floored = np.maximum(values, max(float(values.max()), np.finfo(np.float64).tiny) * _RELATIVE_FLOOR)
    return (vectors * np.sqrt(floored)) @ vectors.T
