"""Policies of curation: whose preference is active in a draw, and by what it chooses.

`mixture` is the paper's; `reward_per_round`, `averaged_reward`, `single_reward`, `no_curation` and `greedy` are the baselines of
E9, with the meaning that the exact processes of these names have in `pj.density`. They are public as `pj.curation.mixture`, ...

Shapes: m preferences, n candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.landscape import as_float


class Policy(NamedTuple):
    """Who chooses, and by what. A pytree: changing its numbers compiles nothing.

    Attributes:
        utilities: a `Partial`, `rewards [m, n] -> [u, n]`: what may be chosen by, as many rows as the policy needs.
        assign: a `Partial`, `(key, num, m) -> (row, preference)`, int32 [num] each: the row of `utilities` that each draw
            chooses by, and its active preference or -1.
        sharpness: factor on 1 / temperature, []; infinity takes the best candidate.
    """

    utilities: Any
    assign: Any
    sharpness: Array


def mixture(phi: ArrayLike) -> Policy:
    """The paper's policy: each draw has its own active preference, `i ~ phi`.

    Args:
        phi: probability of each preference, [m], non-negative, summing to one.

    Returns:
        A policy for `curate` and `pj.retraining.loop`.

    Raises:
        ValueError: a phi that is negative, not flat, or does not sum to one.

    Example:
        >>> import plural_jax as pj
        >>> policy = pj.curation.mixture([0.3, 0.7])

    Source: C.3 of the paper.
    """
    return Policy(Partial(_as_they_are), Partial(_per_draw, _weights(phi)), jnp.ones(()))


def reward_per_round(phi: ArrayLike) -> Policy:
    """One preference, drawn anew from phi each time, curates the whole round; see `pj.density.reward_per_round`.

    Args:
        phi: probability of each preference in a round, [m].

    Raises:
        ValueError: as `mixture`.

    Example:
        >>> import plural_jax as pj
        >>> policy = pj.curation.reward_per_round([0.3, 0.7])

    Source: E9 of the paper.
    """
    return Policy(Partial(_as_they_are), Partial(_per_round, _weights(phi)), jnp.ones(()))


def averaged_reward(phi: ArrayLike) -> Policy:
    """Every draw chooses by `sum_i phi_i r_i`; see `pj.density.averaged_reward`.

    Args:
        phi: weight of each preference, [m].

    Raises:
        ValueError: as `mixture`.

    Example:
        >>> import plural_jax as pj
        >>> policy = pj.curation.averaged_reward([0.5, 0.5])

    Source: E9 of the paper.
    """
    return Policy(Partial(_average, _weights(phi)), Partial(_nobody), jnp.ones(()))


def single_reward(preference: ArrayLike) -> Policy:
    """One preference is active in every draw; see `pj.density.single_reward`.

    Args:
        preference: its number, from 0 on. May be traced.

    Raises:
        ValueError: not a whole number of at least 0. From `curate`: there is no such preference.

    Example:
        >>> import plural_jax as pj
        >>> policy = pj.curation.single_reward(0)

    Source: the single-reward retraining that the paper compares with (E1, E9).
    """
    value = _validate.real_array(preference, "preference")
    if value is not None and (value.ndim or not (value >= 0 and value == np.floor(value))):
        raise ValueError(f"preference must be a whole number of at least 0, got {_validate.shown(preference)}.")
    return Policy(Partial(_as_they_are), Partial(_always, jnp.asarray(preference).astype(jnp.int32)), jnp.ones(()))


def no_curation() -> Policy:
    """Candidates are taken as they come, each with the same probability; see `pj.density.no_curation`.

    Example:
        >>> import plural_jax as pj
        >>> policy = pj.curation.no_curation()

    Source: E9 of the paper.
    """
    return Policy(Partial(_indifferent), Partial(_nobody), jnp.ones(()))


def greedy(phi: ArrayLike) -> Policy:
    """The active preference, `i ~ phi` for each draw, takes the best candidate of its pool: temperature zero.

    Among candidates of equal reward each is equally likely; see `pj.density.greedy`.

    Args:
        phi: probability of each preference, [m].

    Raises:
        ValueError: as `mixture`.

    Example:
        >>> import plural_jax as pj
        >>> policy = pj.curation.greedy([0.5, 0.5])

    Source: E9 of the paper.
    """
    return mixture(phi)._replace(sharpness=jnp.asarray(jnp.inf))


def check_policy(policy: Policy | ArrayLike, m: int) -> Policy:
    """A policy for m preferences, from a policy or from weights."""
    if not isinstance(policy, Policy):
        if callable(policy) or isinstance(policy, str) or hasattr(policy, "_fields"):
            raise ValueError(
                f"policy must come from pj.curation, such as pj.curation.greedy(phi), got {_validate.kind(policy)}."
            )
        _validate.simplex(policy, "phi", m)
        return mixture(policy)
    for part in (policy.utilities, policy.assign):
        for number in part.args:
            if np.ndim(number) == 1:
                _validate.simplex(number, "phi", m)
            elif (value := _validate.concrete(number)) is not None and value >= m:
                raise ValueError(f"preference must be one of the {m} preferences, 0 to {m - 1}, got {value}.")
    return policy


def _weights(phi: ArrayLike) -> Array:
    if np.ndim(phi) != 1:
        raise ValueError(f"phi must hold one weight for each preference, got shape {np.shape(phi)}.")
    _validate.simplex(phi, "phi", np.shape(phi)[0])
    return as_float(phi)


def _as_they_are(rewards: Array) -> Array:
    return rewards


def _average(phi: Array, rewards: Array) -> Array:
    # Relative to the best, which changes no choice but keeps the digits of rewards with large offsets.
    shifted = rewards - jnp.max(rewards, axis=1, keepdims=True)
    return jnp.sum(phi.astype(rewards.dtype)[:, None] * shifted, axis=0)[None]


def _indifferent(rewards: Array) -> Array:
    return jnp.zeros_like(rewards[:1])


def _per_draw(phi: Array, key: Array, num: int, m: int) -> tuple[Array, Array]:
    ends = jnp.cumsum(phi)
    last = ends[-1]
    at = jnp.minimum(jax.random.uniform(key, (num,), phi.dtype) * last, jnp.nextafter(last, jnp.zeros_like(last)))
    active = jnp.sum(at[:, None] >= ends, axis=1, dtype=jnp.int32)
    return active, active


def _per_round(phi: Array, key: Array, num: int, m: int) -> tuple[Array, Array]:
    active = jnp.broadcast_to(_per_draw(phi, key, 1, m)[0], (num,))
    return active, active


def _always(preference: Array, key: Array, num: int, m: int) -> tuple[Array, Array]:
    active = jnp.broadcast_to(preference, (num,))
    return active, active


def _nobody(key: Array, num: int, m: int) -> tuple[Array, Array]:
    return jnp.zeros((num,), jnp.int32), jnp.full((num,), -1, jnp.int32)
