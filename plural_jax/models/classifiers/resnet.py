"""The residual networks for CIFAR-10 with 6 n + 2 layers (20, 32, 44, 56, 110).

    3 x 3 convolution -> n blocks at 32 x 32 -> n blocks at 16 x 16, twice the channels -> n blocks at 8 x 8 -> mean -> linear

A block adds two convolutions to its input. Where the size halves, the input takes every other pixel and zeros for the channels
that it has not (option A of He et al.), so no shortcut has parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from plural_jax import _validate
from plural_jax.models.classifiers.layers import Arrays, BatchNorm, Convolution, Drop, Linear, Named


@dataclass(frozen=True)
class ResNet:
    """A residual network for small images.

    Attributes:
        depth: layers with weights, 6 n + 2.
        num_classes: of the last layer.
        width: channels of the first blocks.

    Raises:
        ValueError: a depth that is not 8, 14, 20, ...; a number that is not whole and positive.

    Example:
        >>> ResNet(depth=56).blocks
        9

    Source: He et al. 2016, "Deep residual learning for image recognition", section 4.2.
    """

    depth: int = 20
    num_classes: int = 10
    width: int = 16

    def __post_init__(self) -> None:
        for name in ("depth", "num_classes", "width"):
            _validate.positive_integer(getattr(self, name), name)
        if self.depth < 8 or self.depth % 6 != 2:
            raise ValueError(f"depth must be 6 n + 2 with n at least 1, such as 20 or 56, got {self.depth}.")

    @property
    def blocks(self) -> int:
        """Residual blocks at each of the three sizes, n."""
        return (self.depth - 2) // 6

    @property
    def name(self) -> str:
        """Short name, such as "resnet20"."""
        return f"resnet{self.depth}"

    @property
    def channels(self) -> list[tuple[int, int, int]]:
        """Inputs, outputs and stride of every block."""
        outputs = [self.width * 2**stage for stage in range(3) for _ in range(self.blocks)]
        return [(a, b, 1 if a == b else 2) for a, b in zip([self.width, *outputs], outputs, strict=False)]

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The module with random parameters."""
        return _ResNet(self, rngs)

    def check_size(self, height: int, width: int) -> None:
        """Refuse images that cannot be halved twice."""
        if height % 4 or width % 4:
            raise ValueError(
                f"images must have a multiple of 4 pixels each way for a {self.name}, got {height} x {width}."
            )


class Block(nnx.Module):
    """Convolution and normalization."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.convolution = Convolution(inputs, outputs, rngs)
        self.norm = BatchNorm(outputs)

    def __call__(self, x: Array, training: bool, stride: int = 1) -> Array:
        return self.norm(self.convolution(x, stride), training)


class _Residual(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        self.first = Block(inputs, outputs, rngs)
        self.second = Block(outputs, outputs, rngs)
        self.stride, self.missing = stride, outputs - inputs

    def __call__(self, x: Array, training: bool) -> Array:
        y = self.second(jax.nn.relu(self.first(x, training, self.stride)), training)
        if self.missing:
            before = self.missing // 2
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, self.missing - before)))
        return jax.nn.relu(x + y)


class _ResNet(nnx.Module):
    def __init__(self, config: ResNet, rngs: nnx.Rngs) -> None:
        self.start = Block(3, config.width, rngs)
        self.blocks = nnx.List([_Residual(*sizes, rngs) for sizes in config.channels])
        self.end = Linear(4 * config.width, config.num_classes, rngs)

    def __call__(self, x: Array, training: bool, drop: Drop | None = None) -> tuple[Array, Array]:
        x = jax.nn.relu(self.start(x, training))
        for block in self.blocks:
            x = block(x, training)
        features = jnp.mean(x, axis=(1, 2))
        return self.end(features), features


def is_resnet(arrays: dict[str, np.ndarray]) -> bool:
    """Whether a state dict has the names of these networks."""
    return {"conv1.weight", "layer1.0.conv1.weight", "linear.weight"} <= set(arrays)


def from_state_dict(arrays: dict[str, np.ndarray]) -> tuple[ResNet, Arrays, Arrays]:
    """The network that a state dict is of, its parameters and its statistics.

    Args:
        arrays: with the names `conv1`, `bn1`, `layer{1,2,3}.{block}.{conv,bn}{1,2}` and `linear`.

    Raises:
        ValueError: an array is missing, left over or of the wrong shape; shortcuts with parameters.
    """
    projection = [name for name in arrays if ".shortcut." in name or ".downsample." in name]
    if projection:
        raise ValueError(f"shortcuts must have no parameters (option A), but the state dict holds {projection[0]!r}.")
    blocks = len({name.split(".")[1] for name in arrays if name.startswith("layer1.")})
    num_classes, width = arrays["linear.weight"].shape[0], arrays["conv1.weight"].shape[0]
    network = ResNet(6 * blocks + 2, num_classes, width)
    named = Named(arrays, network.name)
    start = named.block("conv1", "bn1", 3, width)
    found = []
    for i, (inputs, outputs, _) in enumerate(network.channels):
        name = f"layer{i // blocks + 1}.{i % blocks}"
        first = named.block(f"{name}.conv1", f"{name}.bn1", inputs, outputs)
        second = named.block(f"{name}.conv2", f"{name}.bn2", outputs, outputs)
        found.append([{"first": a, "second": b} for a, b in zip(first, second, strict=True)])
    params, statistics = (
        {"start": start[part], "blocks": {i: pair[part] for i, pair in enumerate(found)}} for part in (0, 1)
    )
    params["end"] = named.linear("linear", 4 * width, num_classes)
    named.finish()
    return network, params, statistics
