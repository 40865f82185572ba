"""Retraining from samples: sample, curate, refit, as a `Process` with the step API of the exact densities.

    candidates ~ model,    curated ~ choice rule (C.1) under a policy,    model <- fit(curated)

One round of `loop` is a round of the paper's protocol (C.3) for any `Model`. The state holds the candidates that the next round
chooses from, with their rewards, as the state of an exact density holds its multiplier: so what `info` says about the new model
costs no samples of its own. With `grow` the next round chooses from a pool that new samples join instead (C.6).

Shapes: m preferences, n candidates, N curated samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.curation import Policy, check_pool, check_structure
from plural_jax.curation_policies import check_policy
from plural_jax.model import Model, check_model, sample_shapes
from plural_jax.process import Process
from plural_jax.retraining_rounds import (
    Accumulated,
    Init,
    Pool,
    RetrainingInfo,
    RetrainingState,
    Settings,
    Sizes,
    Step,
)
from plural_jax.rewards.host import HostReward, as_reward

__all__ = ["Accumulated", "Pool", "RetrainingInfo", "RetrainingState", "loop", "placement"]


def loop(
    model: Model,
    reward: Callable[[Any], Any],
    phi: ArrayLike,
    *,
    policy: Policy | None = None,
    num_candidates: int | None = None,
    num_curated: int = 500,
    pool_size: int | None = None,
    replace: bool = True,
    temperature: ArrayLike = 1.0,
    real: Any = None,
    real_weight: ArrayLike | None = None,
    accumulate: int | None = None,
    initial_sets: int = 1,
    grow: int | None = None,
    seeds: Any = None,
    basin: Callable[[Any], Array] | None = None,
    measure: Callable[[Any, Any], Any] | None = None,
    reward_on: str = "auto",
) -> Process:
    """Retraining of a model on its own curated samples.

    `x_1..x_n ~ q_t`, `i ~ phi`, `P(k) = exp(r_i(x_k)/tau) / sum_j exp(r_i(x_j)/tau)` N times, `q_{t+1} = fit(curated)` (C.1, C.3)

    As n, N and the model's capacity grow, q_t follows the exact density p_t of `pj.density.finite_pool`.

    Args:
        model: a `Model`, such as `pj.models.gaussian_mixture()`.
        reward: `samples -> [n, m]`, anything of `pj.rewards` or your own. A function that JAX can trace stays on the device; any
            other Python callable is called on the host with NumPy arrays, once for each round (see `placement`).
        phi: weight of each preference, [m], non-negative, summing to one.
        policy: who is active in each draw, from `pj.curation`; default: `mixture(phi)`, the paper's.
        num_candidates: n. Default: N K where a pool size is given, so that every draw has a fresh pool, and otherwise 1000.
        num_curated: N, curated draws in a round.
        pool_size: K, the candidates that each draw looks at; None: all n.
        replace: whether a candidate may be picked twice in a round.
        temperature: tau, not negative, in units of reward.
        real: real data to mix in, a pytree of the samples' structure with leading axis of any length.
        real_weight: probability that a curated sample is replaced by a real one (E9); needed with `real`.
        accumulate: train on the initial data and all curated sets so far; the number of rounds that there shall be room for.
        initial_sets: with `accumulate`, the size of the initial data in curated sets.
        grow: let the pool grow instead of making it anew from the model in every round (C.6); the number of rounds that there
            shall be room for. Of a round's n new samples those join that the same rule picks at least once in N draws among them.
        seeds: with `grow`, what the pool starts with: samples of the model's structure, such as real data. Default: the model's
            first n.
        basin: `samples -> [n]`, the number of the preference in whose basin a sample lies, -1 in none. Default: the preference
            that likes it most, for quadratic rewards the nearest center (C.7).
        measure: `(params, candidates) -> pytree`, further numbers for the info.
        reward_on: "auto", "device" or "host": where the reward is computed.

    Returns:
        A stochastic process with `RetrainingState` and `RetrainingInfo`: `init(key)` or, from a pretrained model,
        `init(key, params)`; `run` needs a key. Numbers (phi, temperature, the model's and the reward's) may be traced.

    Raises:
        ValueError: what `curate` refuses; real data without a weight or of another structure; seeds without `grow`, of another
            structure, or fewer than a pool; a reward of the wrong shape. From `pj.run` and `pj.sweep`: rewards that were NaN or
            infinite, a model that was; more rounds than `accumulate` or `grow`.

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> reward = pj.rewards.quadratic(centers=[[-2.0, 0.0], [2.0, 0.0]], gamma=0.5)
        >>> process = pj.retraining.loop(pj.models.gaussian_mixture(), reward, phi=[0.3, 0.7])
        >>> state = process.init(jax.random.key(0))
        >>> final, trace = pj.run(process, state, num_steps=20, key=jax.random.key(1))
        >>> bool(abs(trace.allocation[-1, 0] - 0.3) < 0.15)
        True

    Source: C.3 of the paper.
    """
    check_model(model)
    if np.ndim(phi) != 1:
        raise ValueError(
            f"phi must hold one weight for each preference, got shape {np.shape(phi)}; for two, [0.3, 0.7] is an example."
        )
    m = np.shape(phi)[0]
    policy = check_policy(phi if policy is None else policy, m)
    num_curated = _validate.positive_integer(num_curated, "num_curated")
    if num_candidates is None:
        num_candidates = 1000 if pool_size is None else num_curated * _validate.positive_integer(pool_size, "pool_size")
    num_candidates = _validate.positive_integer(num_candidates, "num_candidates")
    pool_size = check_pool(pool_size, num_candidates, num_curated, replace)
    _validate.finite(temperature, "temperature")
    value = _validate.concrete(temperature)
    if np.ndim(temperature) != 0 or (value is not None and value < 0):
        raise ValueError(f"temperature must be one number that is not negative, got {_validate.shown(temperature)}.")
    dtype = jnp.result_type(float)
    # Plain functions will do: they become part of the structure.
    log_prob = None if model.log_prob is None else _partial(model.log_prob)
    model = Model(_partial(model.init), _partial(model.sample), _partial(model.fit), log_prob)
    real_weight = _checked_weight(real, real_weight)
    rounds = 0 if accumulate is None else _validate.positive_integer(accumulate, "accumulate")
    initial = num_curated * _validate.positive_integer(initial_sets, "initial_sets") if rounds else 0
    growing = 0 if grow is None else _validate.positive_integer(grow, "grow")
    if seeds is not None and not growing:
        raise ValueError("seeds need a pool that grows: give grow=, the number of rounds that there shall be room for.")

    samples = sample_shapes(model, num_candidates)
    known = as_reward(reward, samples, m, reward_on)
    if real is not None:
        check_structure(real, samples)
    num_seeds = num_candidates
    if seeds is not None:
        check_structure(seeds, samples, "seeds")
        num_seeds = jax.tree.leaves(seeds)[0].shape[0]
        fewest = num_curated if not replace else pool_size or 1
        if num_seeds < fewest:
            raise ValueError(f"seeds must be at least {fewest} samples, got {num_seeds}.")
    settings = Settings(
        model=model,
        reward=known,
        policy=policy,
        temperature=jnp.asarray(temperature, dtype),
        basin=None if basin is None else _partial(basin),
        measure=None if measure is None else _partial(measure),
        real=None if real is None else jax.tree.map(jnp.asarray, real),
        real_weight=jnp.asarray(real_weight, dtype),
        seeds=None if seeds is None else jax.tree.map(jnp.asarray, seeds),
    )
    room, pool_room = initial + rounds * num_curated, num_seeds + growing * num_candidates if growing else 0
    sizes = Sizes(m, num_candidates, num_curated, pool_size, replace, initial, room, num_seeds, pool_room)
    return Process(init=Partial(Init(sizes), settings), step=Partial(Step(sizes), settings))


def placement(process: Process) -> str:
    """Where a retraining process computes its rewards: "device" or "host".

    Example:
        >>> import numpy as np
        >>> import plural_jax as pj
        >>> process = pj.retraining.loop(pj.models.gaussian_mixture(), lambda x: -np.asarray(x) ** 2, phi=[0.5, 0.5])
        >>> pj.retraining.placement(process)
        'host'
    """
    settings = next((a for a in getattr(process.step, "args", ()) if isinstance(a, Settings)), None)
    if settings is None:
        raise ValueError(f"process must be made by pj.retraining.loop, got one whose step is {process.step}.")
    return "host" if isinstance(getattr(settings.reward, "func", None), HostReward) else "device"


def _partial(function: Any) -> Partial:
    return function if isinstance(function, Partial) else Partial(function)


def _checked_weight(real: Any, weight: ArrayLike | None) -> ArrayLike:
    if weight is None:
        if real is not None:
            raise ValueError(
                "real needs real_weight, the share of curated samples that real ones replace, such as 0.1."
            )
        return 0.0
    _validate.finite(weight, "real_weight")
    value = _validate.concrete(weight)
    if np.ndim(weight) != 0 or (value is not None and not 0 <= value <= 1):
        raise ValueError(f"real_weight must be one number between 0 and 1, got {_validate.shown(weight)}.")
    if real is None and value is not None and value > 0:
        raise ValueError(f"real_weight={value.item():g} needs real data: give real=, samples like the model's own.")
    return weight
