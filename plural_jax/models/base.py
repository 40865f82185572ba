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

from jax import Array

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
