"""Rewards that JAX cannot trace: a torch model, a web service, any Python that wants NumPy arrays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate, faults

_log = logging.getLogger(__name__)


class HostReward:
    """A reward `samples -> [n, m]` that is called on the host, with NumPy arrays, from inside compiled code.

    Args:
        function: gets a pytree of NumPy arrays with leading axis n, returns n x m numbers of any array type. Under `vmap` it is
            called once for all samples of the batch together.
        num_preferences: m.

    Example:
        >>> import numpy as np
        >>> reward = HostReward(lambda x: np.abs(x), num_preferences=2)
        >>> reward(jnp.array([[-1.0, 2.0]])).tolist()
        [[1.0, 2.0]]
    """

    def __init__(self, function: Callable[[Any], Any], num_preferences: int) -> None:
        self.function = function
        self.num_preferences = num_preferences

    def __hash__(self) -> int:
        return hash((self.function, self.num_preferences))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, HostReward)
            and other.function == self.function
            and other.num_preferences == self.num_preferences
        )

    def __call__(self, samples: Any) -> Array:
        num = jax.tree.leaves(samples)[0].shape[0]
        dtype = jnp.result_type(float)
        ndims = [leaf.ndim for leaf in jax.tree.leaves(samples)]
        structure = jax.tree.structure(samples)

        def call(given: Any) -> np.ndarray:
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(given)]
            batch = leaves[0].shape[: leaves[0].ndim - ndims[0]]
            flat = [x.reshape(-1, *x.shape[x.ndim - ndim + 1 :]) for x, ndim in zip(leaves, ndims, strict=True)]
            try:
                result = self.function(jax.tree.unflatten(structure, flat))
                values = np.asarray(result)
                wanted = (flat[0].shape[0], self.num_preferences)
                if values.shape != wanted:
                    raise ValueError(
                        f"reward must return one number for each of {wanted[0]} samples and {wanted[1]} preferences, shape "
                        f"{wanted}, got shape {values.shape}{_validate.reward_advice(result, wanted[0])}"
                    )
            except Exception as error:
                faults.remember(error)
                raise
            return values.astype(dtype).reshape(*batch, num, self.num_preferences)

        shape = jax.ShapeDtypeStruct((num, self.num_preferences), dtype)
        return jax.pure_callback(call, shape, samples, vmap_method="broadcast_all")


def as_reward(reward: Callable[[Any], Any], samples: Any, num_preferences: int, where: str = "auto") -> Any:
    """A reward as a pytree that compiled code can call: as it is where JAX can trace it, else on the host.

    Args:
        reward: `samples -> [n, m]`.
        samples: shapes and types of the samples, a pytree of `jax.ShapeDtypeStruct`.
        num_preferences: m.
        where: "auto", or "device" or "host" to choose.

    Raises:
        ValueError: not callable; another `where`; a result of another shape.
    """
    if not callable(reward):
        raise ValueError(f"reward must be a function of samples, got {_validate.kind(reward)}.")
    if where not in ("auto", "device", "host"):
        raise ValueError(f"reward_on must be 'auto', 'device' or 'host', got {where!r}.")
    on_host = Partial(HostReward(reward, num_preferences))
    if where == "host":
        return on_host
    try:
        result = jax.eval_shape(reward, samples)
    except Exception as error:
        if where == "device" or not _wants_numbers(error):
            raise
        _log.info("the reward cannot be traced by JAX, so it is called on the host")
        return on_host
    wanted, shape = (jax.tree.leaves(samples)[0].shape[0], num_preferences), np.shape(result)
    if shape != wanted:
        raise ValueError(
            f"reward must return one number for each sample and preference, shape {wanted} for {wanted[0]} samples and "
            f"{num_preferences} weights phi, got shape {shape}{_validate.reward_advice(result, wanted[0])}"
        )
    return Partial(reward) if jax.tree_util.all_leaves([reward]) else reward


def _wants_numbers(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that a traced array has no numbers; torch and others wrap it."""
    while error is not None:
        if isinstance(error, _validate.NEEDS_NUMBERS) or "Tracer" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
