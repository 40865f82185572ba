"""Curation from samples: discrete choice among candidates (C.1), and the policies that say whose preference is active.

One curated draw: a preference i becomes active, and picks candidate k out of its pool with probability
`exp(r_i(x_k)/tau) / sum_j exp(r_i(x_j)/tau)`. Everything here works on a table of rewards and returns indices, so that the
samples themselves may be any pytree: `take(samples, curated.candidate)`.

    choose   one draw from one pool
    curate   many draws under a policy, from pools of K or from all candidates, with or without replacement

The policies are those of `curation_policies`; `mix_real` adds real data to what was curated.

Shapes: m preferences, n candidates, N curated draws.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.curation_policies import (
    Policy,
    averaged_reward,
    check_policy,
    greedy,
    mixture,
    no_curation,
    reward_per_round,
    single_reward,
)
from plural_jax.landscape import as_float

__all__ = [
    "Curated",
    "Policy",
    "averaged_reward",
    "choose",
    "curate",
    "greedy",
    "mix_real",
    "mixture",
    "no_curation",
    "reward_per_round",
    "single_reward",
    "take",
]


class Curated(NamedTuple):
    """What was picked.

    Attributes:
        candidate: which candidate each draw picked, int32 [N].
        preference: which preference was active in it, int32 [N]; -1 where no single one was (`averaged_reward`, `no_curation`).
    """

    candidate: Array
    preference: Array


def choose(key: Array, rewards: ArrayLike, *, temperature: ArrayLike = 1.0) -> Array:
    """One discrete choice from one pool.

    `P(k) = exp(r(x_k)/tau) / sum_j exp(r(x_j)/tau)` (Eq. 1, C.1)

    Args:
        key: PRNG key.
        rewards: the active preference's reward of each candidate, [K]; finite.
        temperature: tau, not negative, in units of reward. At 0 the best is taken, ties at random. May be traced.

    Returns:
        The index of the candidate, int32 [].

    Raises:
        ValueError: rewards that are not flat, empty, NaN or infinite; a negative temperature.

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> int(pj.curation.choose(jax.random.key(0), [0.0, 50.0, 1.0]))
        1
    """
    if np.ndim(rewards) != 1 or 0 in np.shape(rewards):
        raise ValueError(f"rewards must hold one number for each candidate of the pool, got shape {np.shape(rewards)}.")
    _validate.finite(rewards, "rewards")
    table = as_float(rewards)
    return _pick(key, table[None], _rate(temperature, jnp.ones(()), table.dtype))[0]


def curate(
    key: Array,
    rewards: ArrayLike,
    policy: Policy | ArrayLike,
    num_curated: int,
    *,
    pool_size: int | None = None,
    replace: bool = True,
    temperature: ArrayLike = 1.0,
    available: ArrayLike | None = None,
) -> Curated:
    """Many curated draws.

    `i ~ phi`, `P(k) = exp(r_i(x_k)/tau) / sum_{j in pool} exp(r_i(x_j)/tau)` for each of N draws (C.1, C.3)

    Args:
        key: PRNG key.
        rewards: r_i of every candidate, [m, n]; finite.
        policy: a policy of this module; weights phi [m] stand for `mixture(phi)`.
        num_curated: N.
        pool_size: K, the candidates that each draw looks at, drawn from the n without replacement. As long as N K <= n no two
            draws share a candidate, so each has a fresh pool and the law of a draw is exactly that of Lemma 1; beyond that
            pools overlap as little as possible. None: every draw looks at all n candidates.
        replace: whether a candidate may be picked by several draws. Without replacement the draws are taken one after another,
            each from what is left.
        temperature: tau, not negative, in units of reward; at 0 the best of the pool is taken, ties at random. May be traced.
        available: which candidates there are, bool [n]; the others are never looked at, whatever their finite rewards. At least
            `pool_size` of them, and without replacement `num_curated`; may be traced. Default: all.

    Returns:
        `Curated`. Pure: works under `jit` (with `num_curated`, `pool_size` and `replace` static) and `vmap`.

    Raises:
        ValueError: rewards that are not a table, NaN or infinite; weights or a preference that do not fit them; a pool that is
            smaller than 1 or larger than n; more draws without replacement than candidates; a negative temperature.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import plural_jax as pj
        >>> x = jnp.linspace(-2.0, 2.0, 1000)
        >>> rewards = -4.0 * (x - jnp.array([[-1.0], [1.0]])) ** 2
        >>> picked = pj.curation.curate(jax.random.key(0), rewards, [0.2, 0.8], 500)
        >>> bool(jnp.mean(x[picked.candidate] > 0) > 0.7)
        True

    Source: C.1 and C.3 of the paper; Plackett (1975) for draws without replacement.
    """
    if np.ndim(rewards) != 2 or 0 in np.shape(rewards):
        raise ValueError(f"rewards must be a table of m preferences x n candidates, got shape {np.shape(rewards)}.")
    _validate.finite(rewards, "rewards")
    m, n = np.shape(rewards)
    num_curated = _validate.positive_integer(num_curated, "num_curated")
    pool_size = check_pool(pool_size, n, num_curated, replace)
    policy = check_policy(policy, m)
    known = None if available is None else _checked(available, n, 1 if pool_size is None else pool_size)
    table = as_float(rewards)
    own, order, choices = jax.random.split(key, 3)
    rate = _rate(temperature, policy.sharpness, table.dtype)
    row, preference = policy.assign(own, num_curated, m)
    utilities = policy.utilities(table)
    if known is not None:
        utilities = jnp.where(known, utilities, -jnp.inf)
    if not replace and (pool_size is None or num_curated * pool_size > n or known is not None):
        left = jnp.ones((n,), bool) if known is None else known
        index = _one_after_another(choices, utilities, row, rate, pool_size or n, left)
    elif pool_size is None or pool_size == n:
        index = _from_all(choices, utilities, row, rate)
    else:
        # Slices of one random order; after its end they begin again, so that pools share candidates as late as possible.
        orders = jax.random.permutation(order, jnp.arange(n, dtype=jnp.int32))
        count: Any = n
        if known is not None:  # what there is comes first, in random order as before
            orders = orders[jnp.argsort(~known[orders], stable=True)]
            count = jnp.sum(known, dtype=jnp.int32)
        at = jnp.arange(num_curated, dtype=jnp.int32)[:, None] * pool_size + jnp.arange(pool_size, dtype=jnp.int32)
        pools = orders[at % count]
        index = jnp.take_along_axis(pools, _pick(choices, utilities[row[:, None], pools], rate)[:, None], axis=1)[:, 0]
    return Curated(index.astype(jnp.int32), preference)


def take(samples: Any, index: ArrayLike) -> Any:
    """The samples at these positions: `leaf[index]` for each leaf of a pytree.

    Example:
        >>> import jax.numpy as jnp
        >>> import plural_jax as pj
        >>> pj.curation.take({"x": jnp.arange(3.0)}, [2, 0])["x"].tolist()
        [2.0, 0.0]
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.asarray(index)], samples)


def mix_real(key: Array, samples: Any, real: Any, weight: ArrayLike) -> Any:
    """Replace each curated sample, with probability lambda, by a real one drawn with replacement.

    `x ~ (1 - lambda) T(p) + lambda p_real`, the law of `pj.density.mix_real`

    Args:
        key: PRNG key.
        samples: a pytree whose leaves have leading axis N.
        real: real data of the same structure, leading axis of any length.
        weight: lambda, in [0, 1]. May be traced.

    Raises:
        ValueError: a weight outside [0, 1]; real data of another structure.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import plural_jax as pj
        >>> print(pj.curation.mix_real(jax.random.key(0), jnp.zeros(1000), jnp.ones(5), 0.3).mean().round(1))
        0.3

    Source: E9 of the paper; Bertrand et al. (2024).
    """
    value = _validate.real_array(weight, "weight")
    if np.ndim(weight) != 0 or (value is not None and not 0 <= value <= 1):
        raise ValueError(f"weight must be one number between 0 and 1, got {_validate.shown(weight)}.")
    check_structure(real, samples)
    num, num_real = (jax.tree.leaves(tree)[0].shape[0] for tree in (samples, real))
    coin, draw = jax.random.split(key)
    replaced = jax.random.uniform(coin, (num,)) < jnp.asarray(weight, jnp.result_type(float))
    chosen = take(real, jax.random.randint(draw, (num,), 0, num_real))

    def mixed(x: Array, y: Array) -> Array:
        return jnp.where(replaced.reshape(-1, *(1,) * (x.ndim - 1)), y.astype(x.dtype), x)

    return jax.tree.map(mixed, samples, chosen)


def check_structure(real: Any, samples: Any, name: str = "real") -> None:
    """Refuse given data that are not built like the samples."""
    found: Any = jax.tree.structure(real)
    wanted: Any = jax.tree.structure(samples)
    if found != wanted:
        raise ValueError(f"{name} must have the structure of the samples, {wanted}, got {found}.")


def check_pool(pool_size: int | None, num_candidates: int, num_curated: int, replace: bool) -> int | None:
    """Refuse pools and numbers of draws that the candidates do not suffice for."""
    if pool_size is not None:
        if isinstance(pool_size, float) and np.isinf(pool_size):
            raise ValueError(
                "pool_size must be a whole number or None, got inf; None lets every draw look at all candidates."
            )
        pool_size = _validate.positive_integer(pool_size, "pool_size")
        if pool_size > num_candidates:
            raise ValueError(
                f"pool_size must be at most the number of candidates, got {pool_size} of {num_candidates}."
            )
    if not replace and num_curated > num_candidates:
        raise ValueError(
            f"num_curated must be at most the number of candidates where replace=False, got {num_curated} draws from "
            f"{num_candidates}."
        )
    return pool_size


def _checked(available: ArrayLike, num: int, fewest: int) -> Array:
    """Which candidates there are, if they suffice for a pool."""
    mask = jnp.asarray(available)
    if mask.shape != (num,) or mask.dtype != bool:
        raise ValueError(f"available must be bool of shape [{num}], got {mask.dtype} of shape {list(mask.shape)}.")
    known = _validate.concrete(available)
    if known is not None and np.sum(known) < fewest:
        raise ValueError(f"available must leave at least {fewest} candidates, got {np.sum(known)}.")
    return mask


def _rate(temperature: ArrayLike, sharpness: Array, dtype: Any) -> Array:
    """1 / tau; infinity takes the best."""
    _validate.finite(temperature, "temperature")
    value = _validate.concrete(temperature)
    if np.ndim(temperature) != 0 or (value is not None and value < 0):
        raise ValueError(f"temperature must be one number that is not negative, got {_validate.shown(temperature)}.")
    return sharpness.astype(dtype) / jnp.asarray(temperature, dtype)


def _odds(utilities: Array, rate: Array) -> Array:
    """Weights exp((r - max r) / tau) along the last axis; 1 for the best and 0 for the others where the rate is infinite."""
    behind = utilities - jnp.max(utilities, axis=-1, keepdims=True)
    odds = jnp.where(behind == 0, 1.0, jnp.exp(behind * rate))
    # Not left to the exponential: with a rate of zero, what is not there would weigh exp(-inf * 0).
    return jnp.where(jnp.isneginf(utilities), 0.0, odds).astype(utilities.dtype)


def _inside(key: Array, shape: tuple[int, ...], total: Array) -> Array:
    """Uniform in [0, total): a product may round up to the end itself, where no candidate lies."""
    return jnp.minimum(jax.random.uniform(key, shape, total.dtype) * total, jnp.nextafter(total, jnp.zeros_like(total)))


def _pick(key: Array, pools: Array, rate: Array) -> Array:
    """A choice in each pool, [N, K] -> int32 [N]: one random number each, instead of one for each candidate."""
    ends = jnp.cumsum(_odds(pools, rate), axis=1)
    return jnp.sum(_inside(key, ends.shape[:1], ends[:, -1])[:, None] >= ends, axis=1, dtype=jnp.int32)


def _from_all(key: Array, utilities: Array, row: Array, rate: Array) -> Array:
    """Choices of N draws among all candidates: a binary search in the cumulative weights of each draw's own row."""
    ends = jnp.cumsum(_odds(utilities, rate), axis=1)
    n = ends.shape[1]
    at = _inside(key, row.shape, ends[row, -1])
    index = jnp.zeros(row.shape, jnp.int32)
    flat, first = ends.reshape(-1), row * n
    step = 1 << max(0, (n - 1).bit_length() - 1)
    while step:  # the first candidate whose end lies beyond `at`
        further = index + step
        beyond = at >= flat[first + jnp.minimum(further, n) - 1]
        index = jnp.where(beyond & (further < n), further, index)
        step //= 2
    return index


def _one_after_another(
    key: Array, utilities: Array, row: Array, rate: Array, pool_size: int, available: Array
) -> Array:
    """Choices without replacement, each among all that is left or among `pool_size` of it at random."""
    n = utilities.shape[1]

    def draw(left: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        row, key = given
        looking, choosing = jax.random.split(key)
        seen = left
        if pool_size < n:
            chance = jnp.where(left, jax.random.uniform(looking, (n,), utilities.dtype), -1.0)
            seen = left & (chance >= jax.lax.top_k(chance, pool_size)[0][-1])
        k = _pick(choosing, jnp.where(seen, utilities[row], -jnp.inf)[None], rate)[0]
        return left.at[k].set(False), k

    keys = jax.random.split(key, row.shape[0])
    return jax.lax.scan(draw, available, (row, keys))[1]
