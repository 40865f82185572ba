"""The paper's results as functions of a landscape."""

from plural_jax.theory.bounds import basin_weight_bounds, leakage

__all__ = ["basin_weight_bounds", "leakage"]
