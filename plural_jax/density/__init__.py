"""Exact density dynamics on atoms: large and finite pools, baselines, finite curated sets, and the Gaussian closed form."""

from plural_jax.density.closed_form import GaussianInfo, GaussianState, gaussian, mixture_log_density
from plural_jax.density.core import DensityInfo, DensityState
from plural_jax.density.finite import finite_pool
from plural_jax.density.limit import Limit, solve_limit
from plural_jax.density.limit_process import LimitInfo, LimitState, to_limit
from plural_jax.density.policies import averaged_reward, greedy, no_curation, reward_per_round, single_reward
from plural_jax.density.tilt import large_pool
from plural_jax.density.training_sets import AccumulatedState, accumulate, finite_set, mix_real

__all__ = [
    "AccumulatedState",
    "DensityInfo",
    "DensityState",
    "GaussianInfo",
    "GaussianState",
    "Limit",
    "LimitInfo",
    "LimitState",
    "accumulate",
    "averaged_reward",
    "finite_pool",
    "finite_set",
    "gaussian",
    "greedy",
    "large_pool",
    "mix_real",
    "mixture_log_density",
    "no_curation",
    "reward_per_round",
    "single_reward",
    "solve_limit",
    "to_limit",
]
