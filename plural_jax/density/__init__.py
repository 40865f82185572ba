"""Exact density dynamics on atoms: large and finite pools, and the Gaussian closed form."""

from plural_jax.density.closed_form import GaussianInfo, GaussianState, gaussian, mixture_log_density
from plural_jax.density.core import DensityInfo, DensityState
from plural_jax.density.quadrature import finite_pool
from plural_jax.density.tilt import large_pool

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
