"""Large-K retraining of a Gaussian by quadratic rewards: an exact mixture of Gaussians, without a grid.

A round multiplies the density by every `exp(r_i / tau)` and mixes the products. Multiplying commutes, so all histories
that used preference i equally often, j_i times, share one Gaussian, and only the weights of the count vectors j evolve:

    w_{t+1}(j + e_i) += phi_i w_t(j) E_j[exp(r_i / tau)] / Z_i(t),    Z_i(t) = sum_j w_t(j) E_j[exp(r_i / tau)].

Shapes: m preferences, d dimensions, T = `num_steps` rounds at most, c = (T + m - 1 choose m - 1) components: one for
each way to give at most T rounds to the first m - 1 preferences. The last count is what remains of the rounds so far.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._pytree import pytree_dataclass, static_field
from plural_jax._typing import ArrayLike
from plural_jax.density.core import dot
from plural_jax.process import Process
from plural_jax.rewards import quadratic

#: Above this many components the tables alone would take hundreds of megabytes.
_MAX_COMPONENTS = 10_000_000


class GaussianState(NamedTuple):
    """The mixture p_t = sum_j weights[j] N(means[j], variances[j] I), with the counts of `component_counts`.

    A weight is `present * exp(log_mass)`. Powers of a phi_i that is zero are in `present`, all others in `log_mass`,
    which thus stays finite, and derivatives with respect to phi_i exist.

    Attributes:
        step: rounds so far, int32 [].
        log_mass: log-weight of each component apart from `present`, [c].
        present: 1, or 0 for a component without weight, [c].
        means: centre of each component, [c, d], in units of x.
        variances: variance of each component in every direction, [c], in squared units of x.
    """

    step: Array
    log_mass: Array
    present: Array
    means: Array
    variances: Array

    @property
    def weights(self) -> Array:
        """Probability of each component, [c]; they sum to one."""
        return self.present * _held_exp(self.log_mass)

    @property
    def log_weights(self) -> Array:
        """Log-probability of each component, [c]; `-inf` where there is none."""
        return jnp.where(_is_zero(self.present), -jnp.inf, self.log_mass)


class GaussianInfo(NamedTuple):
    """The mixture after a round, in numbers; the first four as in `DensityInfo`, but over all of R^d.

    Attributes:
        reward_mean: E_p[r_i], [m], in units of reward.
        reward_variance: Var_p[r_i], [m].
        log_z: log Z_i = log E_p[exp(r_i / temperature)], [m].
        objective: F(p) = sum_i phi_i log Z_i, [], which no round decreases.
        mean: E_p[x], [d].
        covariance: Cov_p[x], [d, d].
    """

    reward_mean: Array
    reward_variance: Array
    log_z: Array
    objective: Array
    mean: Array
    covariance: Array


@pytree_dataclass
class _Problem:
    """The numbers of the process: mu [m, d], gamma [m], phi [m], initial mean [d], std [] and tau []; T is static."""

    centers: Array
    gamma: Array
    phi: Array
    mean: Array
    std: Array
    temperature: Array
    num_steps: int = static_field()


def gaussian(
    centers: ArrayLike,
    gamma: ArrayLike,
    phi: ArrayLike,
    *,
    mean: ArrayLike = 0.0,
    std: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    num_steps: int,
) -> Process:
    """Exact large-K dynamics from N(mean, std^2 I) under the quadratic rewards r_i(x) = -gamma_i ||x - mu_i||^2.

    `p_{t+1}(x) = p_t(x) sum_i phi_i exp(r_i(x)/tau) / E_{p_t}[exp(r_i/tau)]` (Eq. 5, rewards of Eq. C.2), so p_t is
    a mixture over counts j of Gaussians with precision `1/std^2 + (2/tau) sum_i gamma_i j_i` and mean
    `(mean/std^2 + (2/tau) sum_i gamma_i j_i mu_i) / precision`.

    Args:
        centers: mu, [m, d]; or [m] in one dimension. Its floating type is that of every result.
        gamma: sharpness, a number or [m]; not negative (reward per squared unit of x).
        phi: probability of each preference, [m], non-negative, summing to one.
        mean: initial mean, a number or [d].
        std: initial standard deviation in every direction, one positive number (units of x).
        temperature: tau of the choice rule, positive, in units of reward.
        num_steps: how many rounds the state has room for (static); later rounds are NaN everywhere. Memory and time per
            round grow with the number of components, (num_steps + m - 1 choose m - 1).

    Returns:
        A process with `GaussianState` and `GaussianInfo`; `init()` takes no argument.

    Raises:
        ValueError: wrong shapes, NaN or infinity, a negative gamma, a phi that is not a probability vector, a std or
            temperature that is not positive, more than ten million components. From `step` and `run`: more rounds than
            `num_steps`, wherever this is known before anything runs (a state that is not traced; a run that is too long
            by itself); otherwise those rounds are NaN.

    Example:
        >>> import plural_jax as pj
        >>> process = gaussian([[-2.0, 0.0], [2.0, 0.0]], gamma=0.5, phi=[0.25, 0.75], num_steps=50)
        >>> final, trace = pj.run(process, process.init(), num_steps=50)
        >>> print(f"{trace.mean[-1, 0]:.2f}")
        0.98

    Source: Lemma 2 and Eq. 5 of the paper; the count recursion is conjugacy of Gaussians under Gaussian factors.
    """
    reward = quadratic(centers, gamma)
    m, d = reward.centers.shape
    dtype = reward.centers.dtype
    _validate.simplex(phi, "phi", m)
    _validate.finite(mean, "mean")
    if np.shape(mean) not in ((), (d,)):
        raise ValueError(f"mean must be a number or one for each of the {d} dimensions, got shape {np.shape(mean)}.")
    for name, value in (("std", std), ("temperature", temperature)):
        _validate.positive(value, name)
        if np.ndim(value) != 0:
            raise ValueError(f"{name} must be a single number, got shape {np.shape(value)}.")
    num_steps = _validate.positive_integer(num_steps, "num_steps")
    size = math.comb(num_steps + m - 1, m - 1)
    if size > _MAX_COMPONENTS:
        raise ValueError(
            f"num_steps={num_steps} rounds of {m} preferences need {size} Gaussians, more than {_MAX_COMPONENTS}."
        )
    problem = _Problem(
        centers=reward.centers,
        gamma=jnp.asarray(reward.gamma),
        phi=jnp.asarray(phi, dtype),
        mean=jnp.broadcast_to(jnp.asarray(mean, dtype), (d,)),
        std=jnp.asarray(std, dtype),
        temperature=jnp.asarray(temperature, dtype),
        num_steps=num_steps,
    )
    return Process(Partial(_init, problem), Partial(_step, problem), Partial(_rounds, problem))


def component_counts(num_preferences: int, num_steps: int) -> np.ndarray:
    """Counts j_1..j_{m-1} of each component in the order of `GaussianState`, int [c, m - 1]; j_m = step - their sum.

    Example:
        >>> component_counts(num_preferences=3, num_steps=2).tolist()
        [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0]]
    """
    return _tables(num_preferences, num_steps)[0].copy()


def mixture_log_density(state: GaussianState, x: ArrayLike) -> Array:
    """Log-density of the mixture at points (per unit volume of R^d, natural logarithm).

    `log p_t(x) = log sum_j w_t(j) N(x; mean_j, variance_j I)`

    Args:
        state: what the process returned.
        x: points, [..., d]; converted to the floating type of the state.

    Returns:
        [...].

    Raises:
        ValueError: points of another dimension.

    Example:
        >>> process = gaussian([-1.0, 1.0], gamma=0.5, phi=[0.5, 0.5], num_steps=10)
        >>> print(f"{mixture_log_density(process.init(), jnp.array([0.0])):.4f}")
        -0.9189
    """
    d = state.means.shape[1]
    if np.ndim(x) == 0 or np.shape(x)[-1] != d:
        raise ValueError(f"x must have shape [..., {d}] for a mixture in {d} dimension(s), got shape {np.shape(x)}.")
    points = jnp.asarray(x, state.means.dtype)
    return _log_density(state, points.reshape(-1, d)).reshape(points.shape[:-1])


def sample(key: Array, state: GaussianState, num_samples: int) -> Array:
    """Draw independent points from the mixture, [num_samples, d].

    Args:
        key: a PRNG key.
        state: what the process returned.
        num_samples: how many (static).

    Example:
        >>> process = gaussian([[-1.0, 0.0], [1.0, 0.0]], gamma=0.5, phi=[0.5, 0.5], num_steps=10)
        >>> sample(jax.random.key(1), process.init(), 5).shape
        (5, 2)
    """
    num_samples = _validate.positive_integer(num_samples, "num_samples")
    which_key, noise_key = jax.random.split(key)
    # By the cumulative weights: Gumbel noise would need num_samples x c numbers.
    which = jax.random.choice(which_key, state.means.shape[0], (num_samples,), p=state.weights)
    noise = jax.random.normal(noise_key, (num_samples, state.means.shape[1]), state.means.dtype)
    return state.means[which] + jnp.sqrt(state.variances[which])[:, None] * noise


@jax.jit  # one compilation instead of one for each operation
def _init(problem: _Problem) -> GaussianState:
    size = _tables(problem.centers.shape[0], problem.num_steps)[0].shape[0]
    return _state(problem, jnp.zeros((), jnp.int32), jnp.zeros((size,), problem.centers.dtype))


def _step(problem: _Problem, key: Array | None, state: GaussianState) -> tuple[GaussianState, GaussianInfo]:
    del key  # the exact dynamics draw nothing
    step = _validate.concrete(state.step)
    if step is not None and (step >= problem.num_steps).any():
        raise ValueError(f"this process has room for num_steps={problem.num_steps} rounds; the state has done {step}.")
    new = _advance(problem, state)
    return new, _summarize(problem, new)


def _rounds(
    problem: _Problem, key: Array | None, state: GaussianState, num_steps: int, every: int
) -> tuple[GaussianState, GaussianInfo]:
    """`num_steps` steps with the infos of every `every`-th; knows before it compiles when they are too many."""
    del key
    if num_steps > problem.num_steps:
        raise ValueError(f"this process has room for num_steps={problem.num_steps} rounds, not for {num_steps}.")

    def one_save(state: GaussianState, _: None) -> tuple[GaussianState, GaussianInfo]:
        state, _ = jax.lax.scan(lambda s, _: (_advance(problem, s), None), state, length=every)
        return state, _summarize(problem, state)

    return jax.lax.scan(one_save, state, length=num_steps // every)


def _advance(problem: _Problem, state: GaussianState) -> GaussianState:
    _, before, rounds_before = _tables(problem.centers.shape[0], problem.num_steps)
    log_e, _ = _expectations(problem, state)
    log_z = _log_sum(state.present, state.log_mass[:, None] + log_e)
    log_phi = jnp.log(jnp.where(_is_zero(problem.phi), 1.0, problem.phi))
    # What each component hands on through each preference, [c, m], and then what each component receives.
    sent = state.log_mass[:, None] + log_e - log_z + log_phi
    received = sent[before, np.arange(before.shape[1])]
    # A component still out of reach has no sender. Any finite number will do there: its `present` is zero.
    has_sender = rounds_before <= state.step
    has_sender = has_sender | ~has_sender.any(axis=1, keepdims=True)
    log_mass = jax.nn.logsumexp(jnp.where(has_sender, received, -jnp.inf), axis=1)
    return _state(problem, state.step + 1, log_mass)


def _state(problem: _Problem, step: Array, log_mass: Array) -> GaussianState:
    """The mixture after `step` rounds, normalized; all NaN where there was no room for so many."""
    lead, _, _ = _tables(problem.centers.shape[0], problem.num_steps)
    last = step - lead.sum(axis=1, dtype=np.int32)
    counts = jnp.concatenate([jnp.asarray(lead), jnp.maximum(last, 0)[:, None]], axis=1)
    # phi_i^j_i of an unused preference, with its first and second derivative; powers above two have neither.
    phi = problem.phi
    power = jnp.where(counts == 0, 1.0, jnp.where(counts == 1, phi, jnp.where(counts == 2, phi * phi, 0.0)))
    present = jnp.where(last >= 0, jnp.prod(jnp.where(_is_zero(phi), power, 1.0), axis=1), 0.0)
    pull = (2 * problem.gamma / problem.temperature) * counts.astype(log_mass.dtype)
    variances = 1 / (1 / problem.std**2 + pull.sum(axis=1))
    # Relative to the initial mean, which may be large beside the distances.
    means = problem.mean + variances[:, None] * dot(pull, problem.centers - problem.mean)
    # The weights of p_t W_t sum to one but for rounding, and for a phi that was perturbed in a derivative.
    log_mass = log_mass - _log_sum(present, log_mass)
    full = step > problem.num_steps
    floats = [jnp.where(full, jnp.nan, value) for value in (log_mass, present, means, variances)]
    return GaussianState(step, *floats)


def _expectations(problem: _Problem, state: GaussianState) -> tuple[Array, Array]:
    """Log E_j[exp(r_i / tau)] and ||mean_j - mu_i||^2 for each component, [c, m] each."""
    difference = state.means[:, None, :] - problem.centers
    squared = jnp.sum(difference * difference, axis=-1)
    rate = problem.gamma / problem.temperature
    widening = 2 * rate * state.variances[:, None]
    d = problem.centers.shape[1]
    return -(d / 2) * jnp.log1p(widening) - rate * squared / (1 + widening), squared


def _summarize(problem: _Problem, state: GaussianState) -> GaussianInfo:
    d = problem.centers.shape[1]
    log_e, squared = _expectations(problem, state)
    weights, variances = state.weights, state.variances[:, None]
    # ||x - mu||^2 under N(mean_j, v I): mean d v + s and variance 2 d v^2 + 4 v s, s = ||mean_j - mu||^2.
    each = d * variances + squared
    distance = dot(weights, each)
    spread = (each - distance) ** 2 + 2 * d * variances**2 + 4 * variances * squared
    log_z = _log_sum(state.present, state.log_mass[:, None] + log_e)
    mean = dot(weights, state.means)
    centered = state.means - mean
    between = dot((weights[:, None] * centered).T, centered)
    return GaussianInfo(
        reward_mean=-problem.gamma * distance,
        reward_variance=problem.gamma**2 * dot(weights, spread),
        log_z=log_z,
        objective=jnp.sum(problem.phi * log_z),
        mean=mean,
        covariance=between + dot(weights, state.variances) * jnp.eye(d, dtype=mean.dtype),
    )


@jax.jit
def _log_density(state: GaussianState, points: Array) -> Array:
    c, d = state.means.shape

    def at(x: Array) -> Array:
        squared = jnp.sum((x - state.means) ** 2, axis=1)
        log_normal = -0.5 * squared / state.variances - 0.5 * d * jnp.log(2 * np.pi * state.variances)
        return _log_sum(state.present, state.log_mass + log_normal)

    # In pieces: all points times all components need not fit into memory.
    return jax.lax.map(at, points, batch_size=max(1, min(points.shape[0], 2**20 // (c * d))))


def _log_sum(present: Array, log_terms: Array) -> Array:
    """Log sum_j present_j exp(log_terms_j), over the first axis of log_terms [c, ...].

    Components without weight have no say in the shift, so their terms may lie far above it.
    """
    present = present.reshape(-1, *[1] * (log_terms.ndim - 1))
    shift = jax.lax.stop_gradient(jnp.max(jnp.where(_is_zero(present), -jnp.inf, log_terms), axis=0))
    return shift + jnp.log(jnp.sum(present * _held_exp(log_terms - shift), axis=0))


def _held_exp(x: Array) -> Array:
    """A finite exponential: zero times it is zero, and it is the derivative with respect to that zero."""
    return jnp.exp(jnp.minimum(x, 0.5 * float(np.log(float(jnp.finfo(x.dtype).max)))))


def _is_zero(x: Array) -> Array:
    """Zero, or so close to it that 1 / x would overflow."""
    return x <= jnp.finfo(x.dtype).tiny


@lru_cache(maxsize=8)
def _tables(m: int, num_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The simplex of counts in lexicographic order, and its neighbours; plain NumPy, so nothing here is ever traced.

    Returns:
        The first m - 1 counts of each component, [c, m - 1]; for each preference the component with one use less,
        [c, m] (itself for the last preference, whose count is not in the index); the rounds that the first m - 1
        preferences have had there, [c, m], or a number out of reach where there is no such component. All int32.
    """
    counts, left = np.zeros((1, 0), np.int32), np.full(1, num_steps, np.int32)
    for _ in range(m - 1):
        children = left + 1
        parent = np.repeat(np.arange(len(counts)), children)
        value = (np.arange(len(parent)) - np.repeat(np.cumsum(children) - children, children)).astype(np.int32)
        counts, left = np.column_stack([counts[parent], value]), left[parent] - value
    # below[r, q]: how many ways to give at most r rounds to q preferences, (r + q choose q).
    below = np.ones((num_steps + 1, m), np.int64)
    for q in range(1, m):
        below[:, q] = np.cumsum(below[:, q - 1])

    def rank(counts: np.ndarray) -> np.ndarray:
        """How many count vectors come earlier: those that first differ at i, and are smaller there."""
        left = num_steps - np.cumsum(counts, axis=1)
        earlier = [below[left[:, i] + counts[:, i], m - 1 - i] - below[left[:, i], m - 1 - i] for i in range(m - 1)]
        return np.sum(earlier, axis=0)

    total = counts.sum(axis=1, dtype=np.int32)
    before = np.tile(np.arange(len(counts), dtype=np.int32)[:, None], m)
    rounds_before = np.tile(total[:, None], m)
    for i in range(m - 1):
        exists = counts[:, i] > 0
        before[exists, i] = rank(counts[exists] - np.eye(m - 1, dtype=np.int32)[i])
        rounds_before[:, i] = np.where(exists, total - 1, np.iinfo(np.int32).max)
    return counts, before, rounds_before
