"""Conditional flow matching with optimal transport couplings (OT-CFM): which noise goes to which sample, and the loss.

    x_t = (1 - t) x_0 + t x_1 + sigma e,    u = x_1 - x_0,    loss = E |v(t, x_t) - u|^2 / d

Noise x_0 and samples x_1 of a minibatch are paired so that the sum of their squared distances is smallest; paths then hardly
cross, the regression has less variance and few steps integrate it. The pairing is exact (a linear assignment), not entropic.

Shapes: B noise vectors and samples of the same shape, d numbers each.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from plural_jax import _pallas
from plural_jax.models import assignment


def couple(noise: Array, samples: Array) -> Array:
    """Which noise vector is paired with each sample: the exact optimal transport plan of a minibatch.

    `argmin over permutations s of sum_j |x_0[s_j] - x_1[j]|^2`

    Args:
        noise: x_0, [B, ...].
        samples: x_1, [B, ...].

    Returns:
        s, int32 [B]: pair `noise[s]` with `samples`.

    Example:
        >>> import jax.numpy as jnp
        >>> print(couple(jnp.array([[0.0], [5.0]]), jnp.array([[4.0], [1.0]])))
        [1 0]

    Source: Tong et al. 2023, minibatch optimal transport.
    """
    cost = _cost(noise, samples)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types, which a user of strict promotion need not know
        of_sample, of_noise = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(noise.shape[0], jnp.int32).at[of_sample].set(of_noise.astype(jnp.int32))


def couple_many(noise: Array, samples: Array) -> Array:
    """`couple` for several minibatches, [S, B, ...] -> int32 [S, B].

    The assignment is a loop of tiny steps: on a CPU one batch after another, on an NVIDIA GPU each batch by a warp of its own
    (see `assignment`), elsewhere all batches in each step.
    """

    def one_by_one(noise: Array, samples: Array) -> Array:
        return jax.lax.map(lambda pair: couple(*pair), (noise, samples))

    ways = {"cpu": one_by_one, "default": jax.vmap(couple)}
    if _pallas.available() and noise.shape[1] <= assignment.MOST:
        ways["cuda"] = lambda noise, samples: assignment.assign(jax.vmap(_cost)(noise, samples))
    return jax.lax.platform_dependent(noise, samples, **ways)


def _cost(noise: Array, samples: Array) -> Array:
    """What it costs to give each sample (rows) each noise vector (columns); [B, B]."""
    rows = samples.reshape(samples.shape[0], -1)
    columns = noise.reshape(noise.shape[0], -1)
    # Squared norms are the same for every permutation, so only the products count.
    return -jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)


def path(noise: Array, samples: Array, time: Array) -> tuple[Array, Array]:
    """Points between noise and samples, and the velocity from one to the other, which is what v is fit to.

    Args:
        noise, samples: paired, [B, ...].
        time: [B], from 0 at the noise to 1 at the samples.

    Returns:
        x_t and u = x_1 - x_0, [B, ...] each.

    Example:
        >>> import jax.numpy as jnp
        >>> x, u = path(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.array([0.25]))
        >>> print(x, u)
        [[0.25 0.25]] [[1. 1.]]
    """
    t = time.reshape(-1, *[1] * (samples.ndim - 1)).astype(samples.dtype)
    return (1 - t) * noise + t * samples, samples - noise


def matching_loss(
    velocity: Callable[[Array, Array], Array], noise: Array, samples: Array, time: Array, weights: Array | None = None
) -> Array:
    """Mean squared deviation of a velocity field from the paths between paired noise and samples.

    `E |v(t, x_t) - (x_1 - x_0)|^2 / d`

    Args:
        velocity: `(time [B], x [B, ...]) -> [B, ...]`.
        noise, samples: paired, [B, ...].
        time: [B].
        weights: of the samples, [B]; default: all equal.

    Returns:
        The loss, [].

    Example:
        >>> import jax.numpy as jnp
        >>> noise, samples = jnp.zeros((1, 2)), jnp.ones((1, 2))
        >>> float(matching_loss(lambda t, x: jnp.zeros_like(x), noise, samples, jnp.array([0.5])))
        1.0

    Source: Lipman et al. 2022; Tong et al. 2023.
    """
    x, u = path(noise, samples, time)
    square = jnp.mean((velocity(time, x) - u) ** 2, axis=tuple(range(1, u.ndim)))
    return jnp.mean(square) if weights is None else jnp.sum(weights * square) / jnp.sum(weights)
