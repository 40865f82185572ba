"""Rewards for images that a classifier takes for a wanted class."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._pytree import pytree_dataclass, static_field
from plural_jax._typing import ArrayLike
from plural_jax.landscape import as_float


@pytree_dataclass
class ClassProbability:
    """See `class_probability`."""

    probabilities: Partial
    gamma: Array
    classes: tuple[int, ...] = static_field()

    @jax.jit
    def __call__(self, x: Any) -> Array:
        p = self.probabilities(x)
        if p.ndim != 2 or p.shape[1] <= max(self.classes):
            raise ValueError(
                f"classes must be among those that probabilities returns, got {self.classes} for shape {p.shape}."
            )
        return self.gamma.astype(p.dtype) * p[:, np.asarray(self.classes)]


def class_probability(
    probabilities: Callable[[Any], Array], classes: Sequence[int], gamma: ArrayLike = 5.0
) -> ClassProbability:
    """Rewards in proportion to the probability that a classifier gives to each preference's class (C.5).

    `r_i(x) = gamma_i P_{c_i}(x)`

    Args:
        probabilities: `samples -> [n, classes]`, each from 0 to 1. A method of a pytree, such as `classifier.probabilities`, or a
            `Partial` keeps its arrays as arguments of compiled functions; any other function is part of the structure.
        classes: c, the wanted class of each of m preferences, static.
        gamma: a number or [m], not negative; it may be traced.

    Returns:
        A reward `samples -> [n, m]`, in the type of the probabilities.

    Raises:
        ValueError: no classes, or some that are no whole numbers or negative; gamma negative, not finite or of the wrong shape.
            When called: a class that the classifier has not.

    Example:
        >>> import jax
        >>> reward = class_probability(jax.nn.softmax, [0, 2], gamma=[5.0, 1.0])
        >>> [f"{r:.2f}" for r in reward(jnp.log(jnp.array([[0.7, 0.1, 0.2]])))[0]]
        ['3.50', '0.20']

    Source: C.5 of the paper, whose classifier is a VGG11; gamma = 5 is a default of this project.
    """
    try:
        wanted = tuple(operator.index(c) for c in classes)
    except TypeError:
        raise ValueError(f"classes must be whole numbers, one for each preference, got {classes!r}.") from None
    if not wanted or min(wanted) < 0:
        raise ValueError(f"classes must be at least one number, none negative, got {classes!r}.")
    if not callable(probabilities):
        raise ValueError(f"probabilities must be a function of samples, got {probabilities!r}.")
    value = _validate.real_array(gamma, "gamma")
    _validate.finite(gamma, "gamma")
    if np.shape(gamma) not in ((), (len(wanted),)):
        raise ValueError(
            f"gamma must be a number or one for each of {len(wanted)} classes, got shape {np.shape(gamma)}."
        )
    if value is not None and (value < 0).any():
        raise ValueError(f"gamma must not be negative, got {_validate.shown(value)}.")
    return ClassProbability(_as_partial(probabilities), jnp.broadcast_to(as_float(gamma), (len(wanted),)), wanted)


def _as_partial(function: Any) -> Partial:
    """A function as a pytree; the object of a bound method becomes an argument."""
    if isinstance(function, Partial):
        return function
    if hasattr(function, "__func__") and hasattr(function, "__self__"):
        return Partial(function.__func__, function.__self__)
    if not jax.tree_util.all_leaves([function]):  # a callable that is itself a pytree
        return Partial(type(function).__call__, function)
    return Partial(function)
