"""A U-Net velocity field for images, from half a million parameters to the size that CIFAR-10 flows are trained at.

    v(t, x):    x -> convolution -> levels down, each at half the size -> middle -> levels up, with what came down beside -> v

Every level has residual blocks; time enters each of them as a scale and a shift of its second normalization (FiLM); at the given
sizes a block is followed by self-attention. With `patch` p the network works on pixels of p x p x channels, which has the cost of
a (size / p) x (size / p) image: the small presets are made for CPUs and do that.

Shapes: n images of size x size pixels, channels last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from plural_jax.models.attention import attend
from plural_jax.models.convolution import convolve, convolve_doubled, convolve_pointwise
from plural_jax.models.network import Network, drop, functional


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net.

    Attributes:
        size: height and width of the images, in pixels.
        image_channels: 3 for colour.
        channels: width of the first level.
        multipliers: width of each level in units of `channels`; every level after the first has half the size.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention: sizes (after `patch`) at which blocks are followed by self-attention.
        heads: of the attention.
        dropout: probability of dropping a feature in training.
        patch: pixels per side that are taken together, 1 for none.
        dtype: in which it computes, "float32" or "bfloat16"; parameters are float32.
    """

    size: int = 32
    image_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    heads: int = 4
    dropout: float = 0.1
    patch: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("size", "image_channels", "channels", "blocks", "heads", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must hold a positive number for each level, got {self.multipliers}.")
        smallest = self.patch * 2 ** (len(self.multipliers) - 1)
        if self.size % smallest:
            raise ValueError(
                f"size must be a multiple of {smallest} for {len(self.multipliers)} levels and patch={self.patch}, "
                f"got {self.size}."
            )
        if self.channels % self.heads:
            raise ValueError(f"heads must divide channels, got heads={self.heads} and channels={self.channels}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout:g}.")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}.")


#: Presets by name. "paper" has the layout that OT-CFM papers use for CIFAR-10; the others are for less time, and "3M" for images
#: of 24 x 24 pixels (see `band_limited`).
UNETS: dict[str, UNetConfig] = {
    "tiny": UNetConfig(channels=24, multipliers=(1,), blocks=1, attention=(), heads=1, dropout=0.0, patch=2),
    "0.5M": UNetConfig(channels=28, multipliers=(1, 2), blocks=1, attention=(8,), heads=2, dropout=0.0, patch=4),
    "3M": UNetConfig(size=24, channels=64, multipliers=(1, 2), blocks=1, attention=(8,), heads=2, dropout=0.0, patch=3),
    "9M": UNetConfig(channels=72, multipliers=(1, 2, 2), blocks=2, attention=(16, 8), heads=4, dropout=0.1),
    "19M": UNetConfig(multipliers=(1, 2, 2), blocks=1),
    "paper": UNetConfig(),
}


def unet(config: UNetConfig | str = "paper") -> Network:
    """A U-Net as pure functions, for `pj.models.flow`.

    Args:
        config: a `UNetConfig`, or the name of a preset: "tiny", "0.5M", "3M", "9M", "19M" or "paper" (about 38 M).

    Returns:
        A `Network` whose x is float32 [n, size, size, image_channels]. Its last convolution starts at zero.

    Raises:
        ValueError: there is no such preset.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = unet("tiny")
        >>> params = network.init(jax.random.key(0))
        >>> network.apply(params, jnp.zeros(2), jnp.zeros((2, 32, 32, 3)), None).shape
        (2, 32, 32, 3)

    Source: C.5 of the paper; Ronneberger et al. 2015; Dhariwal and Nichol 2021.
    """
    if isinstance(config, str):
        if config not in UNETS:
            raise ValueError(f"config must be a UNetConfig or one of {', '.join(UNETS)}, got {config!r}.")
        config = UNETS[config]
    return functional(_UNet, config, (config.size, config.size, config.image_channels))


class _Convolution(nnx.Module):
    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, dtype: str, zero: bool = False) -> None:
        start = nnx.initializers.zeros if zero else nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.kernel = nnx.Param(start(rngs.params(), (3, 3, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Array, stride: int = 1, doubled: bool = False) -> Array:
        kernel = self.kernel[...].astype(self.dtype)
        y = convolve_doubled(x, kernel) if doubled else convolve(x, kernel, stride)
        return y + self.bias[...].astype(self.dtype)


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs, dtype: str, zero: bool = False) -> nnx.Linear:
    start = nnx.initializers.zeros if zero else nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return nnx.Linear(
        inputs, outputs, rngs=rngs, kernel_init=start, dtype=jnp.dtype(dtype), param_dtype=jnp.float32, dot_general=_dot
    )


def _dot(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """What `nnx.Linear` asks for: the last axis of x by the first of its kernel."""
    return convolve_pointwise(x, kernel)


class _Normalization(nnx.Module):
    """Group normalization, scaled and shifted as the time asks; statistics in float32 whatever the network computes in.

    The parameters and the numbers are those of `nnx.GroupNorm`. But channels are summed before groups, and all of it is one
    factor and one offset for each image and channel: XLA's CPU backend vectorizes neither sums over the channels of a group nor
    what reads their mean. With the SiLU after it that takes a third of the time.
    """

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
        self.norm = nnx.GroupNorm(channels, num_groups=groups, rngs=rngs, dtype=jnp.float32, param_dtype=jnp.float32)

    def __call__(self, x: Array, of_time: Array | None = None) -> Array:
        n, height, width, channels = x.shape
        size = channels // self.norm.num_groups
        y = x.astype(jnp.float32).reshape(n, height * width, channels)
        sums = jnp.stack([y.sum(axis=1), jnp.square(y).sum(axis=1)])
        mean, square = sums.reshape(2, n, -1, size).sum(axis=3) / (height * width * size)
        # Rounding may leave a variance below zero.
        inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + self.norm.epsilon)
        # From groups to channels by a product, since XLA would compute what is less than that anew for every pixel.
        members = jnp.repeat(jnp.eye(self.norm.num_groups, dtype=jnp.float32), size, axis=1)
        factor, below = jnp.matmul(jnp.stack([inverse, mean * inverse]), members, precision="highest")
        assert self.norm.scale is not None and self.norm.bias is not None
        factor, offset = factor * self.norm.scale[...], self.norm.bias[...] - below * self.norm.scale[...]
        if of_time is not None:
            scale, shift = jnp.split(of_time.astype(jnp.float32), 2, axis=-1)
            factor, offset = factor * (1 + scale), offset * (1 + scale) + shift
        return (y * factor[:, None] + offset[:, None]).reshape(x.shape).astype(x.dtype)


class _Residual(nnx.Module):
    def __init__(self, inputs: int, outputs: int, of_time: int, config: UNetConfig, rngs: nnx.Rngs) -> None:
        dtype = config.dtype
        self.before = _Normalization(inputs, rngs)
        self.first = _Convolution(inputs, outputs, rngs, dtype)
        self.time = _linear(of_time, 2 * outputs, rngs, dtype)
        self.between = _Normalization(outputs, rngs)
        self.second = _Convolution(outputs, outputs, rngs, dtype, zero=True)
        self.skip = _linear(inputs, outputs, rngs, dtype) if inputs != outputs else None
        self.dropout = config.dropout

    def __call__(self, x: Array, time: Array, key: Array | None) -> Array:
        y = self.first(nnx.silu(self.before(x)))
        y = nnx.silu(self.between(y, self.time(time)))
        return (x if self.skip is None else self.skip(x)) + self.second(drop(y, key, self.dropout))


class _Attention(nnx.Module):
    def __init__(self, channels: int, config: UNetConfig, rngs: nnx.Rngs) -> None:
        self.norm = _Normalization(channels, rngs)
        self.inside = _linear(channels, 3 * channels, rngs, config.dtype)
        self.outside = _linear(channels, channels, rngs, config.dtype, zero=True)
        self.heads = config.heads

    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        pixels, size = height * width, channels // self.heads
        parts = self.inside(self.norm(x)).reshape(n, pixels, 3, self.heads, size)
        # Heads before pixels, and no library's call, which takes them behind: twice as fast on a CPU.
        q, k, v = jnp.transpose(parts, (2, 0, 3, 1, 4))
        return x + self.outside(jnp.swapaxes(attend(q, k, v), 1, 2).reshape(x.shape))


class _Block(nnx.Module):
    """A residual block, and attention after it where the size asks for that."""

    def __init__(self, inputs: int, outputs: int, of_time: int, size: int, config: UNetConfig, rngs: nnx.Rngs) -> None:
        self.residual = _Residual(inputs, outputs, of_time, config, rngs)
        self.attention = _Attention(outputs, config, rngs) if size in config.attention else None

    def __call__(self, x: Array, time: Array, key: Array | None) -> Array:
        x = self.residual(x, time, key)
        return x if self.attention is None else self.attention(x)


class _UNet(nnx.Module):
    def __init__(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        width, of_time, dtype = config.channels, 4 * config.channels, config.dtype
        pixel = config.image_channels * config.patch**2
        size = config.size // config.patch
        self.time_in = _linear(width, of_time, rngs, dtype)
        self.time_out = _linear(of_time, of_time, rngs, dtype)
        self.start = _Convolution(pixel, width, rngs, dtype)
        down, halvings, passed, now = [], [], [width], width
        for level, multiplier in enumerate(config.multipliers):
            if level:
                halvings.append(_Convolution(now, now, rngs, dtype))
                size //= 2
                passed.append(now)
            for _ in range(config.blocks):
                down.append(_Block(now, multiplier * width, of_time, size, config, rngs))
                now = multiplier * width
                passed.append(now)
        self.middle_first = _Residual(now, now, of_time, config, rngs)
        self.middle_attention = _Attention(now, config, rngs)
        self.middle_second = _Residual(now, now, of_time, config, rngs)
        up, doublings = [], []
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for _ in range(config.blocks + 1):
                up.append(_Block(now + passed.pop(), multiplier * width, of_time, size, config, rngs))
                now = multiplier * width
            if level:
                doublings.append(_Convolution(now, now, rngs, dtype))
                size *= 2
        self.down, self.halvings = nnx.List(down), nnx.List(halvings)
        self.up, self.doublings = nnx.List(up), nnx.List(doublings)
        self.last = _Normalization(now, rngs)
        self.end = _Convolution(now, pixel, rngs, dtype, zero=True)
        self.config = config

    def __call__(self, time: Array, x: Array, key: Array | None) -> Array:
        config = self.config
        number = iter(range(1000))

        def fresh() -> Array | None:
            return None if key is None else jax.random.fold_in(key, next(number))

        dtype = jnp.dtype(config.dtype)
        t = self.time_out(nnx.silu(self.time_in(_waves(time, config.channels).astype(dtype))))
        t = nnx.silu(t)
        y = self.start(_to_patches(x.astype(dtype), config.patch))
        passed, down, halvings = [y], iter(self.down), iter(self.halvings)
        for level in range(len(config.multipliers)):
            if level:
                y = next(halvings)(y, 2)
                passed.append(y)
            for _ in range(config.blocks):
                y = next(down)(y, t, fresh())
                passed.append(y)
        y = self.middle_second(self.middle_attention(self.middle_first(y, t, fresh())), t, fresh())
        up, doublings = iter(self.up), iter(self.doublings)
        for level in reversed(range(len(config.multipliers))):
            for _ in range(config.blocks + 1):
                y = next(up)(jnp.concatenate([y, passed.pop()], axis=-1), t, fresh())
            if level:
                y = next(doublings)(y, doubled=True)
        y = self.end(nnx.silu(self.last(y)))
        return _from_patches(y, config.patch, config.image_channels).astype(x.dtype)


def _waves(time: Array, channels: int) -> Array:
    """Sines and cosines of time at frequencies from 1 to 1000 per unit, [n, channels]."""
    rates = jnp.exp(jnp.linspace(0.0, jnp.log(1000.0), channels // 2, dtype=jnp.float32))
    angles = time.astype(jnp.float32)[:, None] * rates
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    return jnp.pad(waves, ((0, 0), (0, channels - waves.shape[1])))


def _to_patches(x: Array, patch: int) -> Array:
    n, height, width, channels = x.shape
    x = x.reshape(n, height // patch, patch, width // patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height // patch, width // patch, patch * patch * channels)


def _from_patches(x: Array, patch: int, channels: int) -> Array:
    n, height, width, _ = x.shape
    x = x.reshape(n, height, width, patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height * patch, width * patch, channels)
