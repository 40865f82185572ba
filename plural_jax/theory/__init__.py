"""The paper's results as functions of a landscape."""

from plural_jax.theory.auditing import audit
from plural_jax.theory.bargaining import log_nash_product, nash_weight, nash_weight_search
from plural_jax.theory.bounds import (
    basin_mass_floor,
    basin_weight_bounds,
    leakage,
    outside_mass_bound,
    separation_gaps,
)
from plural_jax.theory.later import LaterRounds, later_rounds
from plural_jax.theory.laws import (
    Decomposition,
    basin_means,
    between_basin_variance,
    conditional_drift,
    decompose,
    fair_share_floor,
    mixture_means,
    plateau_spread,
    plateau_weight,
    variance_gap_floor,
)
from plural_jax.theory.partition import (
    basin_partition,
    merged_weight_bounds,
    partition_constant,
    partition_leakage,
    partition_weight_bounds,
)
from plural_jax.theory.pools import PoolDeviation, pool_deviation
from plural_jax.theory.report import Audit, Cell, Statement
from plural_jax.theory.survival import (
    LossTime,
    curated_share,
    extinction_probability,
    required_set_size,
    time_to_loss,
)
from plural_jax.theory.transition import transition_distance

__all__ = [
    "Audit",
    "Cell",
    "Decomposition",
    "LaterRounds",
    "LossTime",
    "PoolDeviation",
    "Statement",
    "audit",
    "basin_mass_floor",
    "basin_means",
    "basin_partition",
    "basin_weight_bounds",
    "between_basin_variance",
    "conditional_drift",
    "curated_share",
    "decompose",
    "extinction_probability",
    "fair_share_floor",
    "later_rounds",
    "leakage",
    "log_nash_product",
    "merged_weight_bounds",
    "mixture_means",
    "nash_weight",
    "nash_weight_search",
    "outside_mass_bound",
    "partition_constant",
    "partition_leakage",
    "partition_weight_bounds",
    "plateau_spread",
    "plateau_weight",
    "pool_deviation",
    "required_set_size",
    "separation_gaps",
    "time_to_loss",
    "transition_distance",
    "variance_gap_floor",
]
