"""Exact density dynamics on atoms."""
from plural_jax.density.large_pool import large_pool
