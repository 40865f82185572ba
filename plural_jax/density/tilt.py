"""The large-K limit: tilt by every reward, mix with weights phi, renormalize (Lemma 2, Eq. 5)."""

from __future__ import annotations

from jax import Array
from jax.tree_util import Partial

from plural_jax._typing import ArrayLike
from plural_jax.density.core import Problem, density_process, log_normalizers, mix_log, problem
from plural_jax.density.tilt_blocks import rounds
from plural_jax.landscape import Landscape
from plural_jax.process import Process


def large_pool(landscape: Landscape, phi: ArrayLike, *, temperature: ArrayLike = 1.0, eps: ArrayLike = 0.1) -> Process:
    """Exact retraining dynamics with an infinitely large candidate pool.

    `p_{t+1}(x) = p_t(x) W_t(x)`, `W_t(x) = sum_i phi_i exp(r_i(x)/tau) / E_{p_t}[exp(r_i/tau)]` (Eq. 5)

    Args:
        landscape: rewards [m, n] and base measure.
        phi: probability of each preference, [m], non-negative, summing to one.
        temperature: tau of the choice rule, positive, in units of reward.
        eps: width of the near-optimal basins S_i, in units of reward. It changes only what is reported.

    Returns:
        A process with `DensityState` and `DensityInfo` in the landscape's floating type. `init(log_p)` takes log-masses
        [n], such as `landscape.gaussian(...)`; `init()` starts from the uniform density.

    Raises:
        ValueError: a phi that is negative, has the wrong length or does not sum to one; a temperature that is not
            positive; a negative eps. From `init`: no mass at all, or none in some preference's basin.

    Example:
        >>> import plural_jax as pj
        >>> grid = pj.Grid.uniform(-5.0, 5.0, 100)
        >>> land = pj.Landscape.on(grid, pj.rewards.bump([-3.0, 3.0], height=5.0, width=1.0))
        >>> process = pj.density.large_pool(land, phi=[0.25, 0.75])
        >>> final, trace = pj.run(process, process.init(), num_steps=50)
        >>> print(f"{trace.basin_mass[-1, 0]:.3f}")
        0.246

    Source: Lemma 2 and Eq. 5 of the paper; Cover (1984) for the same iteration as a multiplicative algorithm.
    """
    return density_process(problem(landscape, phi, temperature, eps), Partial(large_pool_log_multiplier), rounds)


def large_pool_log_multiplier(problem: Problem, log_p: Array) -> Array:
    """Log W(x) of Eq. 5, [n], for log-masses [n]: the kernel, with every number an argument."""
    log_h = problem.log_tilt - log_normalizers(problem, log_p)[:, None]
    return mix_log(problem.phi, log_h)
