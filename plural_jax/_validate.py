"""Checks of user input: one clear sentence that names the argument and its value, before anything compiles.

Every check reads values on the host with NumPy. A tracer has no value to read, so it passes: what is checked here is
checked once, eagerly, and never costs anything inside `jit`, `vmap` or `grad`.
"""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from plural_jax._pytree import is_key
from plural_jax._typing import ArrayLike

#: What JAX raises where a function wants the numbers of a traced array.
NEEDS_NUMBERS = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
)


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
    if array.dtype == object:  # printed whole, an object may fill pages
        return kind(array.item() if array.ndim == 0 else array)
    if array.ndim == 0:
        item = array.item()
        return repr(item) if isinstance(item, str) else str(item)
    text = np.array2string(array, threshold=8, edgeitems=3, precision=6, separator=", ").replace("\n", "")
    return " ".join(text.split())


def kind(value: Any) -> str:
    """What a wrong argument is, in a word or two: a number or word itself, an array of some shape, the name of its type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if is_key(value):
        return f"an array of PRNG keys of shape {value.shape}" if value.shape else "a PRNG key"
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"an array of shape {value.shape}"
    name = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    return f"the function {value.__name__}" if inspect.isroutine(value) else name


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
        traced = (
            "; it sets a shape, so it must be a Python int and not an array" if isinstance(value, jax.Array) else ""
        )
        raise ValueError(f"{name} must be a whole number of at least 1, got {shown(value)}{traced}.") from None
    if number < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {number}.")
    return number


def simplex(value: ArrayLike, name: str, size: int, advice: str = "") -> None:
    """Refuse weights that are negative, do not sum to one or are not `size` many; then `advice` ends the sentence."""
    if isinstance(value, (list, tuple)) and is_traced(value):
        raise ValueError(f"{name} must be one array where its numbers are traced: give jnp.stack([...]), not a list.")
    shape = np.shape(value)
    if shape != (size,):
        if size == 2 and np.size(value) == 1:
            advice = f"; give both, such as {name}=[0.3, 0.7], or jnp.stack([{name}, 1 - {name}]) of a traced number"
        raise ValueError(
            f"{name} must hold one weight for each of the {size} preferences (shape ({size},)), got shape {shape}{advice}."
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
        raise ValueError(
            f"{name} must sum to 1, got {shown(array)}, which sums to {total:.6g}; dividing by the sum makes it 1."
        )


def key(value: Any, because: str = "", name: str = "key") -> jax.Array:
    """`value` if it is one PRNG key: typed, or the raw uint32 of `jax.random.PRNGKey`."""
    dtype, ndim = getattr(value, "dtype", None), getattr(value, "ndim", None)
    if (is_key(value) and ndim == 0) or (dtype == np.uint32 and ndim == 1):
        return value
    reason = f", because {because}" if because else ""
    raise ValueError(f"{name} must be a PRNG key{reason}, got {kind(value)}; give jax.random.key(0), for example.")


def misfit(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """Why a function cannot be called like this, as Python would say; None where it can, or where nobody can know."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


def parameters(function: Callable[..., Any]) -> str:
    """The names of a function's parameters in parentheses."""
    return f"({', '.join(inspect.signature(function).parameters)})"


def reward_advice(result: Any, num: int) -> str:
    """End of a sentence: what to change in a reward that did not return a row for each of `num` samples."""
    if result is None:
        return "; it returned None: is its return missing?"
    shape = np.shape(result)
    if (
        isinstance(result, (list, tuple))
        or shape == (num,)
        or (len(shape) == 2 and shape[0] != num and shape[1] == num)
    ):
        return "; put the preferences on the last axis: jnp.stack([first, second], axis=-1)."
    if len(shape) == 2 and shape[0] == num:
        return "."
    return "; it gets all samples at once: reward = jax.vmap(of_one_sample) makes such a function of one for a single sample."


def nearest(word: str, known: Iterable[str]) -> str:
    """A question that names the known word which was probably meant, in parentheses after a space; else nothing."""
    plain = word.lower().replace("_", "-").lstrip("-")
    found = difflib.get_close_matches(plain, list(known), 1, 0.7)
    return f" (did you mean {found[0]}?)" if found else ""
