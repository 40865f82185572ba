"""What every exact density process shares: state, info, and the round "multiply by W, renormalize".

One round of retraining maps the density p_t to `p_{t+1}(x) = p_t(x) W_t(x)` (Eq. 5; Lemma 1 at finite K). Processes differ
only in the multiplier W, so a process is a problem (`Problem`) and a function that returns `log W` for a density.

Shapes: m preferences, n atoms. Log-masses are natural logarithms; `-inf` marks an atom without mass.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.landscape import Landscape, check_log_mass, check_weights, normalize
from plural_jax.process import Process, names_its_fields


class DensityState(NamedTuple):
    """What the next round needs.

    Attributes:
        log_p: log-mass of every atom, [n].
        log_w: log of the multiplier W(x) that the next round applies to this density, [n].
    """

    log_p: Array
    log_w: Array


@names_its_fields
class DensityInfo(NamedTuple):
    """The density after a round, in numbers. Reward and entropy sums run over the atoms with the density as weight.

    Attributes:
        reward_mean: E_p[r_i], [m], in units of reward.
        reward_variance: Var_p[r_i], [m].
        log_z: log Z_i = log E_p[exp(r_i / temperature)], [m].
        entropy: Shannon entropy of the atom masses in nats, []. On a grid it grows with the number of cells.
        basin_mass: p(S_i), [m]; a_t and b_t of the paper for m = 2. Overlapping basins count an atom in each.
        outside_mass: m_t = p(X without the basins), [].
        log_sup_w_outside: log sup of W outside the basins, over atoms with mass, []; `-inf` where there are none.
            Outside domination (Assumption 1 iii) asks that it stay below zero in every round.
        objective: F(p) = sum_i phi_i log Z_i, [], the function that every large-K round increases.
        log_max_w: log max W over atoms with mass, []. For the large-K process it is a certificate: no density on these
            atoms exceeds `objective` by more.
    """

    reward_mean: Array
    reward_variance: Array
    log_z: Array
    entropy: Array
    basin_mass: Array
    outside_mass: Array
    log_sup_w_outside: Array
    objective: Array
    log_max_w: Array


#: Names of the dimensions of each info array, for labelled results.
INFO_DIMS = {
    "reward_mean": ("preference",),
    "reward_variance": ("preference",),
    "log_z": ("preference",),
    "basin_mass": ("preference",),
    "log_p": ("cell",),
    "mode_mass": ("mode",),
    "mode_point": ("mode", "dimension"),
    "own_mass": ("preference",),
    "own_mode": ("preference",),
    "allocation": ("preference",),
    "drawn": ("preference",),
    "leakage": ("preference",),
    "component_weight": ("component",),
    "component_mean": ("component", "dimension"),
    "component_covariance": ("component", "dimension", "other_dimension"),
}


class Problem(NamedTuple):
    """The numbers of a density process, converted once.

    Attributes:
        rewards: r, [m, n].
        best: r_i* = max over the domain, [m, 1]. Rewards enter as r - best, so that offsets of 1e4 cost no digits.
        phi: sampling weights, [m].
        temperature: tau, [].
        basins: membership of S_i, float [m, n].
        outside: 1 outside every basin, float [n].
        log_uniform: the start that `init()` uses, [n].
    """

    rewards: Array
    best: Array
    phi: Array
    temperature: Array
    basins: Array
    outside: Array
    log_uniform: Array

    @property
    def log_tilt(self) -> Array:
        """(r_i(x) - r_i*) / tau, at most zero on the domain, [m, n]."""
        return (self.rewards - self.best) / self.temperature


def problem(landscape: Landscape, phi: ArrayLike, temperature: ArrayLike, eps: ArrayLike) -> Problem:
    """Check and convert the arguments that all density processes share."""
    check_weights(landscape, phi)
    _validate.positive(temperature, "temperature")
    _validate.finite(eps, "eps")
    eps_value = _validate.concrete(eps)
    if eps_value is not None and (eps_value < 0).any():
        raise ValueError(f"eps must not be negative, got {eps_value}.")
    for name, value in (("temperature", temperature), ("eps", eps)):
        if np.ndim(value) != 0:
            raise ValueError(f"{name} must be a single number, got shape {np.shape(value)}.")
    dtype = landscape.dtype
    return _problem(landscape.without_reward(), *(jnp.asarray(x, dtype) for x in (phi, temperature, eps)))


@jax.jit  # one compilation for all of it, where single operations would each have their own
def _problem(landscape: Landscape, phi: Array, temperature: Array, eps: Array) -> Problem:
    rewards, log_measure = landscape.rewards, landscape.log_measure
    assert log_measure is not None
    basins = landscape.basins(eps)
    return Problem(
        rewards=rewards,
        best=jnp.max(jnp.where(log_measure > -jnp.inf, rewards, -jnp.inf), axis=1, keepdims=True),
        phi=phi,
        temperature=temperature,
        basins=basins.astype(rewards.dtype),
        outside=(~basins.any(axis=0)).astype(rewards.dtype),
        log_uniform=landscape.uniform(),
    )


def check_pool_size(pool_size: ArrayLike) -> np.ndarray | None:
    """Refuse pools of fewer than two; their size as a number, None where it is traced."""
    if pool_size is None:
        raise ValueError(
            "pool_size must be a number of at least 2, got None; infinitely many candidates are float('inf')."
        )
    if np.ndim(pool_size) != 0:
        raise ValueError(f"pool_size must be a single number, got shape {np.shape(pool_size)}.")
    size = _validate.real_array(pool_size, "pool_size")
    if size is not None and not size >= 2:
        raise ValueError(f"pool_size must be at least 2 (infinity is allowed), got {size}.")
    return size


def density_process(problem: Problem, multiplier: Any, rounds: Any = None) -> Process:
    """Build a process from a multiplier.

    Args:
        problem: what `problem` returned.
        multiplier: a `Partial`, `(problem, log_p) -> log_w [n]`.
        rounds: an optional faster way to take many rounds, a `Partial` `(problem, multiplier, key, state, num_steps,
            every) -> (state, infos)`.
    """
    return Process(
        init=Partial(_init, problem, multiplier),
        step=Partial(_step, problem, multiplier),
        rounds=None if rounds is None else Partial(rounds, problem, multiplier),
    )


def parts(process: Any) -> tuple[Problem, Any]:
    """The problem and the multiplier of a density process, which its step carries along.

    A process that changes what another one does in a round holds the other's step as the first argument of its own, to any
    depth; a step may be given in place of a process.

    Raises:
        ValueError: not an exact density process.
    """
    step = getattr(process, "step", process)
    while isinstance(step, Partial) and step.args:
        first = step.args[0]
        if isinstance(first, Problem):
            return first, step.args[1]
        step = first
    raise ValueError(
        "process must be an exact density process, such as pj.density.large_pool(...), got "
        f"{_what_it_is(process)}, which has no density on atoms."
    )


def _what_it_is(process: Any) -> str:
    step = getattr(process, "step", None)
    if step is None:
        return f"a {type(process).__name__}"
    function = getattr(step, "func", step)
    return f"a process whose step is {getattr(function, '__qualname__', type(function).__name__)}"


def _init(problem: Problem, multiplier: Any, log_p: ArrayLike | None = None) -> DensityState:
    """The first state, from log-masses [n] (normalized here) or, without an argument, the uniform density."""
    if log_p is None:
        log_p = problem.log_uniform
    else:
        check_log_mass(log_p, problem.rewards.shape[1], "log_p")
    basins = _validate.concrete(problem.basins)
    mass = _validate.concrete(log_p)
    if basins is not None and mass is not None:
        has_mass = (basins.astype(bool) & ~np.isneginf(mass)).any(axis=1)
        if not has_mass.all():
            i = int(np.argmin(has_mass))
            raise ValueError(
                f"log_p gives no initial mass to the basin of preference {i} (its {int(basins[i].sum())} best atoms), so "
                "no round can ever reach it."
            )
    return _first_state(problem, multiplier, jnp.asarray(log_p, problem.rewards.dtype))


@jax.jit
def _first_state(problem: Problem, multiplier: Any, log_p: Array) -> DensityState:
    log_p = normalize(log_p)
    return DensityState(log_p, multiplier(problem, log_p))


def check_state(state: Any) -> None:
    """Refuse what `init` did not return, such as bare log-masses."""
    if not hasattr(state, "log_w"):
        raise ValueError(
            f"state must be what process.init() returned, got {_validate.kind(state)}; process.init(log_p) starts from "
            "log-masses."
        )


def _step(
    problem: Problem, multiplier: Any, key: Array | None, state: DensityState
) -> tuple[DensityState, DensityInfo]:
    del key  # the exact dynamics draw nothing
    check_state(state)
    # W integrates to one by construction; normalizing keeps rounding from drifting over many rounds.
    log_p = normalize(state.log_p + state.log_w)
    new = DensityState(log_p, multiplier(problem, log_p))
    return new, summarize(problem, new)


def log_normalizers(problem: Problem, log_p: Array) -> Array:
    """Log E_p[exp((r_i - r_i*) / tau)], [m]: the normalizers of Eq. 5 with the best reward taken out."""
    return jax.nn.logsumexp(log_p + problem.log_tilt, axis=1)


def mix_log(phi: Array, log_h: Array) -> Array:
    """Log sum_i phi_i exp(log_h_i(x)) with weights that may be zero; log_h [m, n] -> [n].

    The shift looks only at preferences that are in use, so that one with phi_i = 0 cannot push the others out of range;
    its own term is capped, so that 0 times it is 0 and not NaN.
    """
    used = phi[:, None] > 0
    shift = jax.lax.stop_gradient(over_rows(jnp.maximum, jnp.where(used, log_h, -jnp.inf)))
    gap = jnp.minimum(log_h - shift, 60.0)
    return shift + jnp.log(over_rows(jnp.add, phi[:, None] * jnp.exp(gap)))


def over_rows(operation: Any, x: Array) -> Array:
    """Rows of x [m, n] put together by a ufunc of `jnp`, [n].

    A few are written out: on a CPU, XLA computes a reduction over so short an axis, with all that it takes along, so slowly
    (0.2 ms for two rows of 4,096) that it was three quarters of a finite-K step.
    """
    return reduce(operation, x) if x.shape[0] <= 8 else operation.reduce(x, axis=0)


def summarize(problem: Problem, state: DensityState) -> DensityInfo:
    """The numbers of `DensityInfo` for a state."""
    log_p, log_w = state
    p = jnp.exp(log_p)
    has_mass = log_p > -jnp.inf
    # Moments about r_i*: a reward of 1e4 +- 1 keeps its variance in float32.
    shifted = problem.rewards - problem.best
    mean = dot(shifted, p)
    deviation = shifted - mean[:, None]
    log_z = log_normalizers(problem, log_p) + problem.best[:, 0] / problem.temperature
    outside = has_mass & (problem.outside > 0)
    return DensityInfo(
        reward_mean=problem.best[:, 0] + mean,
        reward_variance=dot(deviation * deviation, p),
        log_z=log_z,
        entropy=-jnp.sum(p * jnp.where(has_mass, log_p, jnp.zeros((), p.dtype))),
        basin_mass=dot(problem.basins, p),
        outside_mass=dot(problem.outside, p),
        log_sup_w_outside=jnp.max(jnp.where(outside, log_w, -jnp.inf)),
        objective=jnp.sum(problem.phi * log_z),
        log_max_w=jnp.max(jnp.where(has_mass, log_w, -jnp.inf)),
    )


def dot(a: Array, b: Array) -> Array:
    """A product in full precision: accelerators would otherwise round float32 to fewer bits."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
