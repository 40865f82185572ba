"""Inception-v3 as the Fréchet Inception distance uses it: structure and forward pass, in Flax NNX.

The network is Google's TensorFlow graph of 2015-12-05, which differs from the Inception-v3 of other libraries in three places:
averages over 3 x 3 windows leave out what lies beyond the border; the last block takes the maximum of a window where the others
take its average; and the classifier has 1,008 outputs. Attributes carry the names of the weight file's entries
(`Mixed_5b.branch1x1.conv`), so that nothing needs translation but the order of axes.

Images: [n, height, width, channels].
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

#: Height and width of the images that the network sees.
IMAGE_SIZE = 299
#: Length of the features after the last average.
NUM_FEATURES = 2048

#: Distances are differences of large numbers: on a GPU the default would round every factor to 10 bits.
_PRECISION = jax.lax.Precision.HIGHEST


class _Layer(NamedTuple):
    """Convolution, batch normalization, rectifier."""

    name: str
    num_outputs: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class _Fork(NamedTuple):
    """Layers that all see the same input; their outputs are joined."""

    layers: tuple[_Layer, ...]


class _Pool(NamedTuple):
    """Average or maximum over 3 x 3 windows."""

    kind: str
    stride: int = 1


_Chain = tuple[_Layer | _Fork | _Pool, ...]


def _reduce(name: str, num_outputs: int) -> _Layer:
    """A 3 x 3 layer that halves height and width."""
    return _Layer(name, num_outputs, (3, 3), stride=2, padding="VALID")


def _block_a(pooled: int) -> tuple[_Chain, ...]:
    return (
        (_Layer("branch1x1", 64),),
        (_Layer("branch5x5_1", 48), _Layer("branch5x5_2", 64, (5, 5))),
        (
            _Layer("branch3x3dbl_1", 64),
            _Layer("branch3x3dbl_2", 96, (3, 3)),
            _Layer("branch3x3dbl_3", 96, (3, 3)),
        ),
        (_Pool("average"), _Layer("branch_pool", pooled)),
    )


def _block_b() -> tuple[_Chain, ...]:
    return (
        (_reduce("branch3x3", 384),),
        (_Layer("branch3x3dbl_1", 64), _Layer("branch3x3dbl_2", 96, (3, 3)), _reduce("branch3x3dbl_3", 96)),
        (_Pool("maximum", stride=2),),
    )


def _block_c(inner: int) -> tuple[_Chain, ...]:
    return (
        (_Layer("branch1x1", 192),),
        (_Layer("branch7x7_1", inner), _Layer("branch7x7_2", inner, (1, 7)), _Layer("branch7x7_3", 192, (7, 1))),
        (
            _Layer("branch7x7dbl_1", inner),
            _Layer("branch7x7dbl_2", inner, (7, 1)),
            _Layer("branch7x7dbl_3", inner, (1, 7)),
            _Layer("branch7x7dbl_4", inner, (7, 1)),
            _Layer("branch7x7dbl_5", 192, (1, 7)),
        ),
        (_Pool("average"), _Layer("branch_pool", 192)),
    )


def _block_d() -> tuple[_Chain, ...]:
    return (
        (_Layer("branch3x3_1", 192), _reduce("branch3x3_2", 320)),
        (
            _Layer("branch7x7x3_1", 192),
            _Layer("branch7x7x3_2", 192, (1, 7)),
            _Layer("branch7x7x3_3", 192, (7, 1)),
            _reduce("branch7x7x3_4", 192),
        ),
        (_Pool("maximum", stride=2),),
    )


def _block_e(pool: str) -> tuple[_Chain, ...]:
    return (
        (_Layer("branch1x1", 320),),
        (
            _Layer("branch3x3_1", 384),
            _Fork((_Layer("branch3x3_2a", 384, (1, 3)), _Layer("branch3x3_2b", 384, (3, 1)))),
        ),
        (
            _Layer("branch3x3dbl_1", 448),
            _Layer("branch3x3dbl_2", 384, (3, 3)),
            _Fork((_Layer("branch3x3dbl_3a", 384, (1, 3)), _Layer("branch3x3dbl_3b", 384, (3, 1)))),
        ),
        (_Pool(pool), _Layer("branch_pool", 192)),
    )


_STEM: _Chain = (
    _Layer("Conv2d_1a_3x3", 32, (3, 3), stride=2, padding="VALID"),
    _Layer("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
    _Layer("Conv2d_2b_3x3", 64, (3, 3)),
    _Pool("maximum", stride=2),
    _Layer("Conv2d_3b_1x1", 80),
    _Layer("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
    _Pool("maximum", stride=2),
)

_BLOCKS: tuple[tuple[str, tuple[_Chain, ...]], ...] = (
    ("Mixed_5b", _block_a(32)),
    ("Mixed_5c", _block_a(64)),
    ("Mixed_5d", _block_a(64)),
    ("Mixed_6a", _block_b()),
    ("Mixed_6b", _block_c(128)),
    ("Mixed_6c", _block_c(160)),
    ("Mixed_6d", _block_c(160)),
    ("Mixed_6e", _block_c(192)),
    ("Mixed_7a", _block_d()),
    ("Mixed_7b", _block_e("average")),
    ("Mixed_7c", _block_e("maximum")),
)


class _Unit(nnx.Module):
    """One layer; batch normalization with the stored mean and variance."""

    def __init__(self, num_inputs: int, layer: _Layer, rngs: nnx.Rngs) -> None:
        kinds: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        self.conv = nnx.Conv(
            num_inputs,
            layer.num_outputs,
            layer.window,
            layer.stride,
            padding=layer.padding,
            use_bias=False,
            precision=_PRECISION,
            # Never run, because the weights come from a file; but traced for the shapes, and this is the fastest.
            kernel_init=nnx.initializers.zeros_init(),
            **kinds,
        )
        self.bn = nnx.BatchNorm(layer.num_outputs, use_running_average=True, epsilon=1e-3, **kinds)

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(self.bn(self.conv(x)))


class _Block(nnx.Module):
    """Chains of layers beside each other, whose outputs are joined."""

    def __init__(self, num_inputs: int, chains: tuple[_Chain, ...], rngs: nnx.Rngs) -> None:
        self.chains = chains
        self.num_outputs = sum(_make_chain(self, num_inputs, chain, rngs) for chain in chains)

    def __call__(self, x: Array) -> Array:
        return jnp.concatenate([_run_chain(self, chain, x) for chain in self.chains], axis=-1)


class Inception(nnx.Module):
    """From images [n, 299, 299, 3] in [-1, 1] to features [n, 2048]."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        channels = _make_chain(self, 3, _STEM, rngs)
        for name, chains in _BLOCKS:
            block = _Block(channels, chains, rngs)
            setattr(self, name, block)
            channels = block.num_outputs

    def __call__(self, x: Array) -> Array:
        x = _run_chain(self, _STEM, x)
        for name, _ in _BLOCKS:
            x = getattr(self, name)(x)
        return jnp.mean(x, axis=(1, 2))


def _make_chain(owner: nnx.Module, channels: int, chain: _Chain, rngs: nnx.Rngs) -> int:
    """Give `owner` the layers of a chain, by name; returns the chain's channels."""
    for part in chain:
        if isinstance(part, _Pool):
            continue
        layers = part.layers if isinstance(part, _Fork) else (part,)
        for layer in layers:
            setattr(owner, layer.name, _Unit(channels, layer, rngs))
        channels = sum(layer.num_outputs for layer in layers)
    return channels


def _run_chain(owner: nnx.Module, chain: _Chain, x: Array) -> Array:
    for part in chain:
        if isinstance(part, _Pool):
            x = _pool(x, part)
        elif isinstance(part, _Fork):
            x = jnp.concatenate([getattr(owner, layer.name)(x) for layer in part.layers], axis=-1)
        else:
            x = getattr(owner, part.name)(x)
    return x


def _pool(x: Array, pool: _Pool) -> Array:
    if pool.kind == "maximum":
        return nnx.max_pool(x, (3, 3), (pool.stride, pool.stride), "SAME" if pool.stride == 1 else "VALID")
    # Divided by how many pixels of the window lie inside the image. Flax counts them in the default type, which may be another.
    count = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return nnx.pool(x, 0.0, jax.lax.add, (3, 3), None, "SAME") / nnx.pool(count, 0.0, jax.lax.add, (3, 3), None, "SAME")


@functools.cache
def structure() -> tuple[Any, Any]:
    """The module without its numbers: its definition, and a state of shapes."""
    return nnx.split(nnx.eval_shape(lambda: Inception(nnx.Rngs(0))))


def apply(params: Any, x: Array) -> Array:
    """Features [n, 2048] of images [n, height, width, 3] in [-1, 1], float32, resized to the network's 299 x 299.

    Args:
        params: nested dictionary of arrays with the names of the weight file.
        x: images of any size.
    """
    definition, shapes = structure()
    state = jax.tree.map(lambda leaf: leaf, shapes)
    nnx.replace_by_pure_dict(state, params)
    # Pixels are squares: their centres, not their corners, are where the values lie, and nothing is smoothed before.
    size = (x.shape[0], IMAGE_SIZE, IMAGE_SIZE, x.shape[3])
    x = jax.image.resize(x.astype(jnp.float32), size, "bilinear", antialias=False, precision=_PRECISION)
    return nnx.merge(definition, state)(x)
