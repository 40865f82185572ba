"""What the classifiers are built of, and their arrays as two plain nested dictionaries: parameters and batch statistics.

A network is a frozen configuration with a method `build`, which makes a Flax NNX module. The module is split once; everything
outside of this file sees `initialize` and `apply`, pure functions over the dictionaries. A network computes in the type of its
input: parameters are float32 and are converted at the point of use.

Shapes: n images, height x width pixels, channels last. Kernels: [3, 3, inputs, outputs] and [inputs, outputs].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from plural_jax.models.convolution import convolve

Arrays = Any
Drop = Callable[[Array, int], Array]

#: Added to variances before their root, and the share of a batch's statistics in the running ones: PyTorch's numbers.
_EPSILON, _SHARE = 1e-5, 0.1


class Network(Protocol):
    """The configuration of a network: frozen, hashable, and part of the structure wherever it is in a pytree."""

    @property
    def num_classes(self) -> int: ...

    @property
    def name(self) -> str: ...

    def __hash__(self) -> int: ...

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """A module that is called with `(x, training, drop)` and returns logits [n, classes] and features [n, d].

        `drop` takes what a hidden linear layer computed and that layer's number; None: nothing is dropped.
        """
        ...

    def check_size(self, height: int, width: int) -> None:
        """Refuse images that the network cannot take."""
        ...


class Convolution(nnx.Module):
    """A 3 x 3 convolution without bias, which a normalization follows."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        start = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.kernel = nnx.Param(start(rngs.params(), (3, 3, inputs, outputs), jnp.float32))

    def __call__(self, x: Array, stride: int = 1) -> Array:
        return convolve(x, self.kernel[...].astype(x.dtype), stride)


class Linear(nnx.Module):
    """A matrix and a bias."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        start = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.kernel = nnx.Param(start(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))

    def __call__(self, x: Array) -> Array:
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch normalization; statistics in float32 whatever the network computes in.

    In training a batch is normalized by its own mean and variance, over all devices that share it, and the running ones move
    towards them (the variance without the bias of small batches, as in PyTorch).
    """

    def __init__(self, channels: int) -> None:
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))

    def __call__(self, x: Array, training: bool) -> Array:
        wide = x.astype(jnp.float32)
        if training:
            mean = jnp.mean(wide, axis=(0, 1, 2))
            var = jnp.mean(jnp.square(wide - mean), axis=(0, 1, 2))
            count = x.size // x.shape[-1]
            self.mean[...] = (1 - _SHARE) * self.mean[...] + _SHARE * mean
            self.var[...] = (1 - _SHARE) * self.var[...] + _SHARE * (count / max(count - 1, 1)) * var
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * jax.lax.rsqrt(var + _EPSILON)
        return (wide * scale + (self.bias[...] - mean * scale)).astype(x.dtype)


def initialize(network: Network, key: Array) -> tuple[Arrays, Arrays]:
    """Random parameters, and the statistics of nothing seen."""
    _, *states = nnx.split(network.build(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(states[0]), nnx.to_pure_dict(states[1])


def apply(
    network: Network, params: Arrays, statistics: Arrays, x: Array, training: bool = False, drop: Drop | None = None
) -> tuple[Array, Array, Arrays]:
    """Logits [n, classes] and features [n, d] of normalized images, and the batch statistics afterwards."""
    module = merge(network, params, statistics)
    logits, features = module(x, training, drop)
    return logits, features, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)) if training else statistics


def merge(network: Network, params: Arrays, statistics: Arrays) -> Any:
    """The module with these arrays."""
    structure, *states = _split(network)
    # Copies: the cached states must not keep what is put into them.
    states = [jax.tree.map(lambda x: x, state) for state in states]
    for state, arrays in zip(states, (params, statistics), strict=True):
        nnx.replace_by_pure_dict(state, arrays)
    return nnx.merge(structure, *states)


@functools.lru_cache(maxsize=64)
def _split(network: Network) -> tuple[Any, ...]:
    module = nnx.eval_shape(lambda: network.build(nnx.Rngs(0)))
    return tuple(nnx.split(module, nnx.Param, nnx.BatchStat))


def shapes(network: Network) -> tuple[Arrays, Arrays]:
    """Parameters and statistics of a network as `jax.ShapeDtypeStruct`s."""
    _, params, statistics = _split(network)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)


class Named:
    """A state dict from which arrays are taken one by one, so that nothing can be missing or left over unnoticed.

    Args:
        arrays: by PyTorch's names.
        what: the network that they are for, for error messages.
    """

    def __init__(self, arrays: dict[str, np.ndarray], what: str) -> None:
        self._left = {k: v for k, v in arrays.items() if not k.endswith("num_batches_tracked")}
        self._what = what

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Remove an array and return it in float32.

        Raises:
            ValueError: there is none of that name and shape.
        """
        if name not in self._left:
            raise ValueError(f"the state dict has no {name!r}, which a {self._what} needs.")
        array = self._left.pop(name)
        if array.shape != shape:
            raise ValueError(
                f"{name!r} of the state dict must have shape {shape} for a {self._what}, got {array.shape}."
            )
        return array.astype(np.float32)

    def block(self, convolution: str, norm: str, inputs: int, outputs: int) -> tuple[Arrays, Arrays]:
        """A convolution and the normalization after it: the arrays of `Convolution` and `BatchNorm`, under those names.

        The bias of a convolution only moves the mean that the normalization subtracts.
        """
        kernel = self.take(f"{convolution}.weight", (outputs, inputs, 3, 3)).transpose(2, 3, 1, 0)
        scale, bias, mean, var = (
            self.take(f"{norm}.{name}", (outputs,)) for name in ("weight", "bias", "running_mean", "running_var")
        )
        if f"{convolution}.bias" in self._left:
            mean = mean - self.take(f"{convolution}.bias", (outputs,))
        params = {"convolution": {"kernel": kernel}, "norm": {"scale": scale, "bias": bias}}
        return params, {"norm": {"mean": mean, "var": var}}

    def linear(self, name: str, inputs: int, outputs: int, pixels: int = 1) -> Arrays:
        """A matrix and a bias; one that takes every feature at `pixels` equal pixels becomes one that takes it once."""
        kernel = self.take(f"{name}.weight", (outputs, inputs * pixels)).reshape(outputs, inputs, pixels).sum(axis=2)
        return {"kernel": np.ascontiguousarray(kernel.T), "bias": self.take(f"{name}.bias", (outputs,))}

    def finish(self) -> None:
        """Refuse a state dict that holds more than was taken."""
        if self._left:
            names = ", ".join(repr(name) for name in list(self._left)[:3])
            raise ValueError(f"the state dict holds {names}, which a {self._what} does not have.")
