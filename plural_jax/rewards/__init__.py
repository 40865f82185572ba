"""Reward functions: `x [..., d] -> r [..., m]`, one column for each preference.

Any callable of that form is a reward. The ones here are pytrees of their parameters, so they pass through `jit` and
`vmap`, and a change of a centre or a height never recompiles.
"""

from plural_jax.rewards.functions import Bump, Plateau, Quadratic, Table, bump, plateau, quadratic, table

__all__ = ["Bump", "Plateau", "Quadratic", "Table", "bump", "plateau", "quadratic", "table"]
