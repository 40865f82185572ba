"""Exact density dynamics on atoms: large and finite pools, and the Gaussian closed form."""

from plural_jax.density.core import DensityInfo, DensityState
from plural_jax.density.finite_pool import finite_pool
from plural_jax.density.gaussian import GaussianInfo, GaussianState, gaussian, mixture_log_density
from plural_jax.density.large_pool import large_pool

__all__ = [
    "DensityInfo",
    "DensityState",
    "GaussianInfo",
    "GaussianState",
    "finite_pool",
    "gaussian",
    "large_pool",
    "mixture_log_density",
]
