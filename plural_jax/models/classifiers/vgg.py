"""VGG networks with batch normalization for 32 x 32 images; by default configuration A, "VGG11".

stages of (3 x 3 convolution, normalization, ReLU), each followed by 2 x 2 max-pooling -> mean -> linear layers
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from plural_jax import _validate
from plural_jax.models.classifiers.layers import Arrays, Drop, Linear, Named
from plural_jax.models.classifiers.resnet import Block

_ELEVEN = ((64,), (128,), (256, 256), (512, 512), (512, 512))


@dataclass(frozen=True)
class VGG:
    """A VGG network with batch normalization.

    Attributes:
        stages: output channels of the convolutions of each stage; after every stage the size is halved.
        hidden: widths of linear layers before the last one, each followed by a ReLU; the well-known layouts have none,
            (512, 512) or (4096, 4096).
        num_classes: of the last layer.
        width: factor of all channels in `stages`, for networks that train in seconds.

    Raises:
        ValueError: a number that is not whole and positive; no stage, or one without a convolution; a width of nothing.

    Example:
        >>> VGG().name, VGG(width=0.125).channels[0]
        ('vgg11', (8,))

    Source: Simonyan and Zisserman 2015, configuration A; the paper's reward classifier (C.5).
    """

    stages: tuple[tuple[int, ...], ...] = _ELEVEN
    hidden: tuple[int, ...] = ()
    num_classes: int = 10
    width: float = 1.0

    def __post_init__(self) -> None:
        if not self.stages or not all(self.stages):
            raise ValueError(f"stages must hold at least one convolution each, got {self.stages}.")
        for number in (n for stage in self.stages for n in stage):
            _validate.positive_integer(number, "stages")
        for number in self.hidden:
            _validate.positive_integer(number, "hidden")
        _validate.positive_integer(self.num_classes, "num_classes")
        _validate.positive(self.width, "width")

    @property
    def channels(self) -> tuple[tuple[int, ...], ...]:
        """Output channels of the convolutions of each stage, with the factor `width`."""
        return tuple(tuple(max(1, round(n * self.width)) for n in stage) for stage in self.stages)

    @property
    def name(self) -> str:
        """Short name: "vgg" and the layers with weights, counted with three linear ones as their authors did."""
        return f"vgg{sum(map(len, self.stages)) + 3}" + ("" if self.width == 1 else f" x {self.width:g}")

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The module with random parameters."""
        return _VGG(self, rngs)

    def check_size(self, height: int, width: int) -> None:
        """Refuse images that cannot be halved once for each stage."""
        unit = 2 ** len(self.stages)
        if height % unit or width % unit:
            raise ValueError(
                f"images must have a multiple of {unit} pixels each way for a {self.name}, got {height} x {width}."
            )


class _VGG(nnx.Module):
    def __init__(self, config: VGG, rngs: nnx.Rngs) -> None:
        outputs = [n for stage in config.channels for n in stage]
        inputs = [3, *outputs]
        self.blocks = nnx.List([Block(a, b, rngs) for a, b in zip(inputs, outputs, strict=False)])
        widths = [outputs[-1], *config.hidden, config.num_classes]
        self.head = nnx.List([Linear(a, b, rngs) for a, b in itertools.pairwise(widths)])
        self.ends = tuple(np.cumsum([len(stage) for stage in config.stages]).tolist())

    def stage(self, x: Array, i: int, training: bool) -> Array:
        """The i-th convolution with what follows it."""
        x = jax.nn.relu(self.blocks[i](x, training))
        if i + 1 in self.ends:
            x = _larger(x[:, ::2], x[:, 1::2])
            x = _larger(x[:, :, ::2], x[:, :, 1::2])
        return x

    def __call__(self, x: Array, training: bool, drop: Drop | None = None) -> tuple[Array, Array]:
        for i in range(len(self.blocks)):
            x = self.stage(x, i, training)
        features = jnp.mean(x, axis=(1, 2))
        y = features
        for i, layer in enumerate(self.head):
            if i:
                y = jax.nn.relu(y)
                y = y if drop is None else drop(y, i)
            y = layer(y)
        return y, features


def _larger(a: Array, b: Array) -> Array:
    """The larger of each pair, whose whole derivative goes to one of the two.

    That of `jnp.max` goes where a number equals the maximum. XLA may compute that number a second time and round it differently:
    then none does, and the derivative is wrong.
    """
    return jnp.where(a > b, a, b)


def is_vgg(arrays: dict[str, np.ndarray]) -> bool:
    """Whether a state dict has the names of these networks."""
    return "features.0.weight" in arrays and any(name.startswith("classifier.") for name in arrays)


def from_state_dict(arrays: dict[str, np.ndarray]) -> tuple[VGG, Arrays, Arrays]:
    """The network that a state dict is of, its parameters and its statistics.

    Understood are all networks of the VGG family with batch normalization that halve the image after every stage and after the
    last one: convolutions `features.N` with their normalization at N + 1, and either one linear layer `classifier` or several
    `classifier.M`. The first linear layer may take more than one pixel of the last feature map (7 x 7 in the layout for
    ImageNet): of a 32 x 32 image these are copies of a single one, so their weights are added.

    Raises:
        ValueError: no batch normalization; an array is missing, left over or of the wrong shape.
    """
    positions = sorted(
        int(match[1])
        for name, array in arrays.items()
        if (match := re.fullmatch(r"features\.(\d+)\.weight", name)) and array.ndim == 4
    )
    if not positions or f"features.{positions[0] + 1}.running_mean" not in arrays:
        raise ValueError(
            "the state dict must be of a VGG with batch normalization, but has no 'features.1.running_mean'."
        )
    stages: list[list[int]] = [[]]
    for i, position in enumerate(positions):
        # Convolution, normalization and ReLU have three places; a fourth is a pooling layer.
        if i and position - positions[i - 1] > 3:
            stages.append([])
        stages[-1].append(arrays[f"features.{position}.weight"].shape[0])
    heads = ["classifier"] if "classifier.weight" in arrays else []
    heads += sorted({n.rsplit(".", 1)[0] for n in arrays if re.fullmatch(r"classifier\.\d+\.weight", n)}, key=_number)
    if not heads:
        raise ValueError("the state dict has no 'classifier.weight' or 'classifier.0.weight', which a VGG needs.")
    outputs = [arrays[f"{name}.weight"].shape[0] for name in heads]
    network = VGG(tuple(map(tuple, stages)), tuple(outputs[:-1]), outputs[-1])

    named = Named(arrays, network.name)
    channels = [n for stage in stages for n in stage]
    blocks = [
        named.block(f"features.{at}", f"features.{at + 1}", a, b)
        for at, a, b in zip(positions, [3, *channels], channels, strict=False)
    ]
    params, statistics = ({"blocks": {i: pair[part] for i, pair in enumerate(blocks)}} for part in (0, 1))
    side = math.isqrt(max(1, arrays[f"{heads[0]}.weight"].shape[1] // channels[-1]))
    inputs, pixels = [channels[-1], *outputs], [side**2] + [1] * len(heads)
    params["head"] = {i: named.linear(name, inputs[i], outputs[i], pixels[i]) for i, name in enumerate(heads)}
    named.finish()
    return network, params, statistics


def _number(name: str) -> int:
    return int(name.rsplit(".", 1)[1])
