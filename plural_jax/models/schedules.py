"""Learning rates by step, shared by everything that is trained here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from plural_jax._typing import ArrayLike


def rising_and_falling(highest: ArrayLike, warm_up: ArrayLike, decay: ArrayLike) -> Callable[[ArrayLike], Array]:
    """A learning rate that rises linearly over `warm_up` steps and falls to zero along a cosine until `decay`; 0 is for never.

    Unlike optax's own schedules it takes traced numbers, so that a change of one compiles nothing.

    Example:
        >>> rate = rising_and_falling(1.0, warm_up=2, decay=4)
        >>> [f"{float(rate(s)):.2f}" for s in range(5)]
        ['0.50', '0.85', '0.50', '0.15', '0.00']
    """
    highest, warm_up, decay = (jnp.asarray(x, jnp.float32) for x in (highest, warm_up, decay))

    def rate(step: ArrayLike) -> Array:
        s = jnp.asarray(step).astype(jnp.float32)
        rising = jnp.minimum(1.0, (s + 1) / jnp.maximum(warm_up, 1.0))
        along = jnp.minimum(1.0, s / jnp.maximum(decay, 1.0))
        falling = jnp.where(decay > 0, 0.5 * (1 + jnp.cos(jnp.pi * along)), 1.0)
        return highest * rising * falling

    return rate


def clipped_adam(settings: Any, *further: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adam on clipped gradients under that rate, from the settings' `clip`, `learning_rate`, `warm_up` and `decay`.

    `further` comes between Adam and the rate, such as a decay of the weights.
    """
    rate = rising_and_falling(settings.learning_rate, settings.warm_up, settings.decay)
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.scale_by_adam(),
        *further,
        optax.scale_by_learning_rate(rate),
    )
