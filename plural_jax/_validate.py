"""Checks of user input: one clear sentence that names the argument and its value, before anything compiles.

Every check reads values on the host with NumPy. A tracer has no value to read, so it passes: what is checked here is
checked once, eagerly, and never costs anything inside `jit`, `vmap` or `grad`.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import numpy as np

from plural_jax._typing import ArrayLike


def concrete(value: Any) -> np.ndarray | None:
    """The value as a NumPy array, or None where it is (or contains) a tracer."""
    return None if is_traced(value) else np.asarray(value)


def is_traced(value: Any) -> bool:
    """Whether any leaf of the value is a tracer, which has no number to read."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def shown(value: Any) -> str:
    """A value short enough for an error message."""
    array = concrete(value)
    if array is None:
        return "<traced>"
    if array.ndim == 0:
        return str(array.item())
    text = np.array2string(array, threshold=8, edgeitems=3, precision=6, separator=", ").replace("\n", "")
    return " ".join(text.split())


def real_array(value: ArrayLike, name: str) -> np.ndarray | None:
    """`value` on the host as real numbers (None for a tracer); refuses text, complex numbers and ragged lists."""
    try:
        array = concrete(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of real numbers, but its rows have different lengths.") from error
    if array is None:
        return None
    if array.dtype.kind not in "fiub" and not jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
        raise ValueError(f"{name} must be an array of real numbers, got {shown(array)}.")
    return array


def finite(value: ArrayLike, name: str) -> None:
    """Refuse NaN and infinity, and say where the first one is."""
    array = real_array(value, name)
    if array is None:
        return
    bad = ~np.isfinite(array.astype(np.float64))
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f" at index {index}" if index else ""
        raise ValueError(f"{name} must be finite, got {array[index]}{where} ({int(bad.sum())} of {array.size} values).")


def positive(value: ArrayLike, name: str) -> None:
    """Refuse anything that is not a finite number above zero."""
    finite(value, name)
    array = concrete(value)
    if array is not None and not (array > 0).all():
        raise ValueError(f"{name} must be positive, got {shown(array)}.")


def positive_integer(value: Any, name: str) -> int:
    """`value` as a Python int of at least one."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.") from None
    if number < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {number}.")
    return number


def simplex(value: ArrayLike, name: str, size: int) -> None:
    """Refuse weights that are negative, do not sum to one or are not `size` many."""
    shape = np.shape(value)
    if shape != (size,):
        raise ValueError(
            f"{name} must hold one weight for each of the {size} preferences (shape ({size},)), got shape {shape}."
        )
    finite(value, name)
    array = real_array(value, name)
    if array is None:
        return
    if (array < 0).any():
        raise ValueError(f"{name} must not be negative, got {shown(array)}.")
    total = float(array.astype(np.float64).sum())
    # Weights written in float32 sum to one only to about m * 6e-8.
    if abs(total - 1.0) > 1e-5:
        raise ValueError(f"{name} must sum to 1, got {shown(array)}, which sums to {total:.6g}.")
