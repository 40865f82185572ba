"""A velocity field for vectors: a dense network, for flows in few dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array

from plural_jax import _validate
from plural_jax.models.network import Network, functional


def dense_field(dimension: int, width: int = 64, depth: int = 3) -> Network:
    """A dense network of time and position as a velocity field, for `pj.models.flow`.

    Args:
        dimension: d, numbers of one x.
        width: of the hidden layers.
        depth: hidden layers.

    Returns:
        A `Network` whose x is float32 [n, d].

    Raises:
        ValueError: a size that is not whole and positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = dense_field(2, width=16)
        >>> params = network.init(jax.random.key(0))
        >>> network.apply(params, jnp.zeros(3), jnp.zeros((3, 2)), None).shape
        (3, 2)
    """
    for name, value in (("dimension", dimension), ("width", width), ("depth", depth)):
        _validate.positive_integer(value, name)
    return functional(_Dense, _Sizes(dimension, width, depth), (dimension,))


@dataclass(frozen=True)
class _Sizes:
    dimension: int
    width: int
    depth: int


class _Dense(nnx.Module):
    def __init__(self, sizes: _Sizes, rngs: nnx.Rngs) -> None:
        inputs = [sizes.dimension + 1] + [sizes.width] * sizes.depth
        outputs = [sizes.width] * sizes.depth + [sizes.dimension]
        kinds = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        self.layers = nnx.List([nnx.Linear(a, b, **kinds) for a, b in zip(inputs, outputs, strict=True)])

    def __call__(self, time: Array, x: Array, key: Array | None) -> Array:
        y = jnp.concatenate([x.astype(jnp.float32), time.astype(jnp.float32)[:, None]], axis=1)
        for layer in list(self.layers)[:-1]:
            y = nnx.silu(layer(y))
        return self.layers[-1](y).astype(x.dtype)
