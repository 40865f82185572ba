"""Reward functions: `x [..., d] -> r [..., m]`, one column for each preference.

Any callable of that form is a reward. The ones here are pytrees of their parameters, so they pass through `jit` and
`vmap`, and a change of a centre or a height never recompiles.
"""

from plural_jax.rewards.classes import ClassProbability, class_probability
from plural_jax.rewards.functions import (
    Bump,
    Items,
    Plateau,
    Quadratic,
    Table,
    bump,
    items,
    plateau,
    quadratic,
    table,
)
from plural_jax.rewards.host import HostReward
from plural_jax.rewards.text_length import LengthReward, WordCounter, length_reward, nearest_target, word_counter

__all__ = [
    "Bump",
    "ClassProbability",
    "HostReward",
    "Items",
    "LengthReward",
    "Plateau",
    "Quadratic",
    "Table",
    "WordCounter",
    "bump",
    "class_probability",
    "items",
    "length_reward",
    "nearest_target",
    "plateau",
    "quadratic",
    "table",
    "word_counter",
]
