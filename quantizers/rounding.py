"""Fast rounding of arrays, bit for bit what ``fmt.round(x / scale) * scale`` gives in float32.

The definition is :meth:`quantizers.formats.ScalarFormat.round`; this is the same arithmetic at
memory speed. Quantities are float32: division, rounding and multiplication each round once, as in
Brevitas. Large arrays are shared among threads: the smaller of ``NUMBA_NUM_THREADS`` (the number of
processors, where it is not set) and ``OMP_NUM_THREADS``. Results do not depend on their number.
Without numba (or with ``NUMBA_DISABLE_JIT=1``) the definition itself does the work.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from quantizers.errors import UsageError
from quantizers.formats import BlockFormat, ScalarFormat

try:
    import numba

    from quantizers import _rounding_kernels as _kernels

    HAVE_KERNELS = not numba.config.DISABLE_JIT
except ImportError:
    HAVE_KERNELS = False

Float32Array = npt.NDArray[np.float32]

# Below this a second thread costs more to wake than it saves (measured: about 50 microseconds).
_ELEMENTS_PER_THREAD = 1 << 16
_pool: ThreadPoolExecutor | None = None


def round_scaled(
    x: npt.ArrayLike, fmt: ScalarFormat, scale: npt.ArrayLike = 1.0, out: Float32Array | None = None
) -> Float32Array:
    """``round(x / scale) * scale`` in float32; ties to the even code, saturating, NaN stays NaN.

    Args:
        x: any shape. Contiguous float32 in any order of axes (C, Fortran, channels last) is read in
            place; other dtypes and layouts are first copied to contiguous float32.
        scale: one value, one per channel of axis 0 (shape ``(C,)``), or one for every place of the first
            axes: the first sizes of *x*, then ones. So ``(C, 1, ..., 1)`` is one per channel, ``(*rows,
            1)`` one per row, and the shape of *x* one per element.
        out: where to put the result: float32 of the shape of *x*; may be *x* itself.

    Returns:
        float32 of the shape of *x* (and its order of axes); *out* if that was given.

    Raises:
        UsageError: *scale* or *out* does not fit *x*.
    """
    array = np.asarray(x, dtype=np.float32)
    scales = np.asarray(scale, dtype=np.float32)
    scales = scales.reshape(scale_shape(scales.shape, array.shape))
    if out is None:
        out = np.empty_like(array)
    elif out.shape != array.shape or out.dtype != np.float32:
        msg = f"out must be float32 of shape {array.shape}, not {out.dtype} of shape {out.shape}"
        raise UsageError(msg, given=f"{out.dtype} {out.shape}", expected=[f"float32 {array.shape}"])
    if not HAVE_KERNELS:
        with np.errstate(all="ignore"):
            np.multiply(fmt.round(array / scales), scales, out=out)
        return out
    leading = _scaled_axes(scales.shape)
    scales = np.ascontiguousarray(scales.reshape(-1))
    order = _storage_order(array, leading)
    source, target = array.transpose(order), out.transpose(order)
    if np.may_share_memory(source, target):  # the kernels write to memory that they do not read
        source = source.copy()
    source = np.ascontiguousarray(source)
    if target.flags.c_contiguous:
        _round_flat(source.reshape(-1), target.reshape(-1), scales, fmt)
    elif scales.size == 1 and _contiguous_axes(target):
        _round_to_rows(source, target, scales[0], fmt)
    else:
        rounded = np.empty(target.shape, np.float32)
        _round_flat(source.reshape(-1), rounded.reshape(-1), scales, fmt)
        target[...] = rounded
    return out


def round_blocks(x: npt.ArrayLike, fmt: BlockFormat, axis: int = -1) -> Float32Array:
    """*x* in a block format with its blocks along *axis*: bit for bit ``fmt.round`` there, in float32.

    Args:
        x: any shape of at least one axis. C-contiguous float32 is read in place, anything else copied
            to that first.

    Returns:
        float32 of the shape of *x*, C-contiguous.

    Raises:
        UsageError: *x* has no such axis.
    """
    array = np.ascontiguousarray(x, dtype=np.float32)
    if np.ndim(x) == 0 or not -array.ndim <= axis < array.ndim:
        msg = f"x of shape {np.shape(x)} has no axis {axis} for the blocks of {fmt}"
        raise UsageError(msg, given=axis, expected=[f"an axis of {np.shape(x)}"])
    if not HAVE_KERNELS:
        rounded = fmt.round(np.moveaxis(array, axis, -1)).astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(rounded, -1, axis))
    out = np.empty_like(array)
    if not array.size:
        return out
    axis %= array.ndim
    length, inner = array.shape[axis], math.prod(array.shape[axis + 1 :])
    kernel = _kernels.block_range if inner > 1 else _kernels.row_block_range
    shape = (-1, length, inner) if inner > 1 else (-1, length)
    source, target = array.reshape(shape), out.reshape(shape)
    steps, largest = _steps(fmt.element), math.frexp(fmt.element.maximum)[1] - 1
    _share(
        lambda start, stop: kernel(
            source, target, fmt.block_size, largest, fmt.element_exponent, start, stop, steps
        ),
        len(source),
        work_per_item=length * inner,
    )
    return out


def quantization_error(x: npt.ArrayLike, fmt: ScalarFormat, scales: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Sum over each channel of ``(round(x / s) * s - x)**2``, for every candidate scale s.

    The difference is taken in float32, the square and the sum in float64, in an order that depends
    on the length only: the same result for any number of threads. No temporary of the size of *x*.

    Args:
        x: ``(C, N)``; contiguous float32 is read in place, anything else copied to that first.
        scales: candidates, ``(C, S)``.

    Returns:
        float64 ``(C, S)``; NaN where a channel holds a NaN, infinity where it holds one.

    Raises:
        UsageError: the shapes do not fit.
    """
    array = np.ascontiguousarray(x, dtype=np.float32)
    candidates = np.ascontiguousarray(scales, dtype=np.float32)
    if array.ndim != 2 or candidates.ndim != 2 or array.shape[0] != candidates.shape[0]:
        msg = f"x and scales must be of shapes (C, N) and (C, S), not {array.shape} and {candidates.shape}"
        raise UsageError(msg, given=f"{array.shape}, {candidates.shape}", expected=["(C, N), (C, S)"])
    if not HAVE_KERNELS:
        return _error_by_definition(array, fmt, candidates)
    channels, length = array.shape
    chunks = -(-length // _kernels.ERROR_CHUNK)
    partial = np.zeros((channels, chunks, candidates.shape[1]))
    steps = _steps(fmt)
    _share(
        lambda start, stop: _kernels.error_range(array, candidates, partial, start, stop, steps),
        channels * chunks,
        work_per_item=min(length, _kernels.ERROR_CHUNK) * candidates.shape[1],
    )
    return partial.sum(axis=1)


def _error_by_definition(x: Float32Array, fmt: ScalarFormat, scales: Float32Array) -> npt.NDArray[np.float64]:
    errors = np.empty(scales.shape)
    with np.errstate(all="ignore"):
        for candidate, scale in enumerate(scales.T[:, :, None]):
            difference = (fmt.round(x / scale) * scale - x).astype(np.float64)
            errors[:, candidate] = np.square(difference).sum(axis=1)
    return errors


def scale_shape(scale: tuple[int, ...], x: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a scale of shape *scale* broadcasts against an *x* of shape *x*.

    Raises:
        UsageError: it is neither one value, nor one per channel of axis 0 or per place of the first axes.
    """
    if math.prod(scale) == 1:
        return (1,) * len(x)
    places = [x[:axes] + (1,) * (len(x) - axes) for axes in range(1, len(x) + 1)]
    if x and scale == x[:1]:
        return places[0]
    if scale in places:
        return scale
    expected = ["one value", *dict.fromkeys(str(shape) for shape in (x[:1], *places) if shape)]
    msg = f"a scale of shape {scale} does not fit x of shape {x}; expected {' or '.join(expected)}"
    raise UsageError(msg, given=scale, expected=expected)


def _scaled_axes(scale: tuple[int, ...]) -> int:
    """How many of the first axes a scale of this shape has values along."""
    return max((axis + 1 for axis, size in enumerate(scale) if size != 1), default=0)


def _storage_order(array: npt.NDArray[Any], leading: int) -> tuple[int, ...]:
    """The order of axes in which the array can be read straight through, where there is one that keeps
    the first *leading* axes first."""
    natural = tuple(range(array.ndim))
    if array.flags.c_contiguous:
        return natural
    order = tuple(sorted(natural, key=lambda axis: -array.strides[axis]))
    usable = array.transpose(order).flags.c_contiguous and order[:leading] == natural[:leading]
    return order if usable else natural


def _round_flat(x: Float32Array, out: Float32Array, scales: Float32Array, fmt: ScalarFormat) -> None:
    if not x.size:
        return
    inner = x.size // scales.size
    steps = _steps(fmt)
    _share(
        lambda start, stop: _kernels.round_range(x, out, scales, inner, start, stop, steps),
        x.size,
        work_per_item=1,
    )


def _contiguous_axes(array: npt.NDArray[Any]) -> int:
    """How many of the last axes lie in memory without a gap."""
    expected, count = array.itemsize, 0
    for size, stride in zip(reversed(array.shape), reversed(array.strides), strict=True):
        if stride != expected or stride < 0:
            break
        expected, count = expected * size, count + 1
    return count


def _round_to_rows(x: Float32Array, out: Float32Array, scale: np.float32, fmt: ScalarFormat) -> None:
    """Into an array with gaps between its rows, such as the inside of a padded one."""
    if not x.size:
        return
    rows = out.ndim - _contiguous_axes(out)
    places = np.zeros((1,) * rows, np.int64)
    for axis, (size, stride) in enumerate(zip(out.shape[:rows], out.strides[:rows], strict=True)):
        places = places + (np.arange(size) * (stride // out.itemsize)).reshape(
            [-1 if a == axis else 1 for a in range(rows)]
        )
    inner = math.prod(out.shape[rows:])
    flat = np.lib.stride_tricks.as_strided(out, (int(places.max()) + inner,), (out.itemsize,))
    offsets, values, steps = places.reshape(-1), x.reshape(-1, inner), _steps(fmt)
    _share(
        lambda start, stop: _kernels.round_rows(values, flat, offsets, scale, start, stop, steps),
        len(values),
        work_per_item=inner,
    )


@lru_cache(maxsize=256)
def _steps(fmt: ScalarFormat) -> _kernels.Steps:
    return _kernels.kernel_steps(fmt.grid)


def _share(work: Callable[[int, int], None], items: int, *, work_per_item: int) -> None:
    """Call ``work(start, stop)`` on ranges that cover *items*: in threads, where that pays."""
    threads = min(_thread_count(), items, items * work_per_item // _ELEMENTS_PER_THREAD)
    if threads <= 1:
        work(0, items)
        return
    bounds = [items * i // threads for i in range(threads + 1)]
    first, *rest = pairwise(bounds)
    others = [_threads().submit(work, *part) for part in rest]
    work(*first)
    for future in others:
        future.result()


def _thread_count() -> int:
    omp = os.environ.get("OMP_NUM_THREADS", "")
    count = int(numba.config.NUMBA_NUM_THREADS)  # numba.get_num_threads() would start an OpenMP pool
    return min(count, int(omp)) if omp.isdecimal() else count


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="rounding")
    return _pool


def _forget_threads() -> None:
    """A forked child has the pool object but none of its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
