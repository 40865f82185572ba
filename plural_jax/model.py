"""What a retraining loop needs of a model: to start, to sample, and to be fit to samples.

    params  = model.init(key)
    samples = model.sample(key, params, num)
    params  = model.fit(key, params, samples, weights)

The functions of a model are `jax.tree_util.Partial` objects over the model's numbers, as those of a `Process` are, so a model
is itself a pytree: it can be an argument of a jitted function, be mapped over, and changing a number compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from plural_jax import _validate

Params = Any
Samples = Any


class Model(NamedTuple):
    """A generative model.

    Attributes:
        init: `(key) -> params`, any pytree of arrays.
        sample: `(key, params, num) -> samples`, a pytree whose leaves have a leading axis of length `num`, which is static.
        fit: `(key, params, samples, weights) -> params`; weights [num] are non-negative, and None stands for all equal. Whether
            the fit goes on from `params` or starts anew is the model's own matter.
        log_prob: `(params, samples) -> [num]`, natural logarithms of the density, for models that know theirs.
    """

    init: Callable[[Array], Params]
    sample: Callable[[Array, Params, int], Samples]
    fit: Callable[..., Params]
    log_prob: Callable[[Params, Samples], Array] | None = None


#: What the loop gives each function of a model.
_TAKES = {
    "init": ("key",),
    "sample": ("key", "params", "num"),
    "fit": ("key", "params", "samples", "weights"),
    "log_prob": ("params", "samples"),
}


def check_model(model: Any) -> Model:
    """Refuse what is no model, and functions that do not take what a model's must."""
    if not isinstance(model, Model):
        raise ValueError(
            f"model must be a Model, such as pj.models.gaussian_mixture(), got {_validate.kind(model)}; the order is "
            "loop(model, reward, phi)."
        )
    for name, wanted in _TAKES.items():
        function = getattr(model, name)
        if function is None and name == "log_prob":
            continue
        if not callable(function):
            raise ValueError(f"model.{name} must be a function ({', '.join(wanted)}), got {_validate.kind(function)}.")
        why = _validate.misfit(function, *wanted)
        if why is not None:
            raise ValueError(
                f"model.{name} must be a function ({', '.join(wanted)}), got one of {_validate.parameters(function)}: {why}."
            )
    return model


def sample_shapes(model: Model, num: int) -> Samples:
    """Shapes and types of `num` samples, without drawing any.

    Raises:
        ValueError: functions that JAX cannot trace; samples whose leading axis is not `num`.
    """
    try:
        samples = jax.eval_shape(lambda key: model.sample(key, model.init(key), num), jax.random.key(0))
    except _validate.NEEDS_NUMBERS as error:
        raise ValueError(_untraceable("model.init and model.sample")) from error
    for leaf in jax.tree.leaves(samples):
        if leaf.shape[:1] != (num,):
            raise ValueError(
                f"model.sample must return samples with a leading axis of num = {num}, got shape {leaf.shape}."
            )
    return samples


def refit(model: Model, key: Array, params: Params, samples: Samples, weights: Array | None) -> Params:
    """What `model.fit` returns.

    Raises:
        ValueError: a function that JAX cannot trace; parameters of another structure than those given.
    """
    try:
        fitted = model.fit(key, params, samples, weights)
    except _validate.NEEDS_NUMBERS as error:
        raise ValueError(_untraceable("model.fit")) from error
    found: Any = jax.tree.structure(fitted)
    wanted: Any = jax.tree.structure(params)
    if found != wanted:
        raise ValueError(f"model.fit must return parameters like those of model.init, {wanted}, got {found}.")
    return fitted


def _untraceable(names: str) -> str:
    return (
        f"{names} must be written with jax.numpy, without numpy, float() or an `if` on values, because rounds are compiled; "
        "jnp.where and jax.lax.cond choose, jax.pure_callback calls other Python."
    )
