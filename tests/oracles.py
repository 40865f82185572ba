"""The mathematics a second time, in plain NumPy and without a thought for speed: what the library is checked against.

Only `step_by_step` uses the library's own steps: it is what their fast forms are checked against.
"""

import contextlib
import itertools

import jax
import numpy as np
from scipy import stats


def log_sum_exp(a, axis=None):
    top = np.max(a, axis=axis, keepdims=True)
    return np.squeeze(top + np.log(np.sum(np.exp(a - top), axis=axis, keepdims=True)), axis=axis)


def large_pool_log_w(log_p, rewards, phi, temperature=1.0):
    """Log W of Eq. 5, [n]."""
    r = np.asarray(rewards, np.float64) / temperature
    log_z = log_sum_exp(log_p + r, axis=1)
    terms = np.where(
        np.asarray(phi)[:, None] > 0, np.log(np.maximum(phi, 1e-300))[:, None] + r - log_z[:, None], -np.inf
    )
    return log_sum_exp(terms, axis=0)


def pairwise_h(p, rewards, temperature=1.0):
    """H_2 by its definition, 2 sum_y p(y) A(x) / (A(x) + A(y)), [m, n]."""
    r = np.asarray(rewards, np.float64) / temperature
    return 2 * np.einsum("y,ixy->ix", p, 1 / (1 + np.exp(r[:, None, :] - r[:, :, None])))


def brute_h(p, rewards, pool_size):
    """H_K by summing over all tuples of the other K - 1 candidates, [m, n]; for few atoms and small K."""
    a = np.exp(np.asarray(rewards, np.float64))
    m, n = a.shape
    h = np.zeros((m, n))
    for others in itertools.product(range(n), repeat=pool_size - 1):
        weight = np.prod([p[y] for y in others])
        h += weight * pool_size * a / (a + sum(a[:, [y]] for y in others))
    return h


def monte_carlo_h(rng, p, rewards, pool_size, draws, chance):
    """H_K estimated from random pools, and how far off each estimate can be but for a `chance`; each [m, n].

    The empirical Bernstein bound of Maurer and Pontil (2009, Theorem 4), for values in [0, K]. A number of standard errors would
    not do: an atom that only wins where no better one is in the pool has a few rare large values, often fewer than expected.
    """
    a = np.exp(np.asarray(rewards, np.float64))
    m, n = a.shape
    others = rng.choice(n, size=(draws, pool_size - 1), p=p)
    mean, bound = np.zeros((m, n)), np.zeros((m, n))
    log_term = np.log(4 / chance)
    for i in range(m):
        rest = a[i][others].sum(1)
        values = pool_size * a[i][None] / (a[i][None] + rest[:, None])
        mean[i] = values.mean(0)
        variance = values.var(0, ddof=1)
        bound[i] = np.sqrt(2 * variance * log_term / draws) + 7 * pool_size * log_term / (3 * (draws - 1))
    return mean, bound


def binomial_chance(counts, trials, p):
    """The chance of counts at least as far out as these, two-sided; exact where a normal approximation is not (rare events)."""
    return np.minimum(1, 2 * np.minimum(stats.binom.cdf(counts, trials, p), stats.binom.sf(counts - 1, trials, p)))


def summary(log_p, log_w, rewards, phi, eps, temperature=1.0):
    """The fields of DensityInfo."""
    p, r = np.exp(log_p), np.asarray(rewards, np.float64)
    basins = r >= r.max(1, keepdims=True) - eps
    outside = ~basins.any(0)
    mean = r @ p
    log_z = log_sum_exp(log_p + r / temperature, axis=1)
    return {
        "reward_mean": mean,
        "reward_variance": ((r - mean[:, None]) ** 2) @ p,
        "log_z": log_z,
        "entropy": -np.sum(p * np.where(p > 0, log_p, 0)),
        "basin_mass": basins @ p,
        "outside_mass": p[outside].sum(),
        "log_sup_w_outside": log_w[outside & (p > 0)].max() if (outside & (p > 0)).any() else -np.inf,
        "objective": np.dot(phi, log_z),
        "log_max_w": log_w[p > 0].max(),
    }


def random_problem(rng, m=2, n=21, scale=2.0, dtype=np.float64):
    """Rewards [m, n], phi [m] and log-masses [n], exact copies in the smaller type, so that an oracle sees the same problem."""
    rewards = rng.normal(size=(m, n)) * scale
    phi, log_p = rng.dirichlet(np.ones(m)), np.log(rng.dirichlet(np.ones(n)))
    return tuple(x.astype(dtype) for x in (rewards, phi, log_p))


def step_by_step(process, log_p, num_steps, every=1):
    """What `rounds` of a process should give, from its `step`, which knows no blocks."""
    state, infos = jax.lax.scan(lambda state, _: process.step(None, state), process.init(log_p), length=num_steps)
    return state, jax.tree.map(lambda x: x[every - 1 :: every], infos)


def a_hopper():
    """A GPU to lower for that is not there: since 0.11 JAX asks which one it compiles for."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))
