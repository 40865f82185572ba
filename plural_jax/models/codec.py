"""Fixed linear maps between images and the smaller images that a flow works on.

    images ~ D z,    z = E x,    E D = I

On a CPU a flow is trained on the coarse structure of images only: z has the lowest frequencies of their cosine transform, as
an image of fewer pixels. Because E D = I, what a model generated comes back unchanged when it is refit to it: retraining does
not blur.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate


class Codec(NamedTuple):
    """A pair of functions between samples and what a flow models of them.

    Attributes:
        encode: `samples [n, ...] -> z [n, ...]`.
        decode: `z -> samples`, with `encode(decode(z)) = z`.
    """

    encode: Callable[[Any], Array]
    decode: Callable[[Array], Any]


def band_limited(size: int, small: int) -> Codec:
    """The lowest `small` x `small` frequencies of square images, as images of `small` x `small` pixels.

    `D = C_size[:, :small] C_small^T sqrt(size / small)` along each axis, C the orthonormal cosine transform; `E = D^+`

    A constant image keeps its value, and D is an isometry up to the factor `size / small`, so distances keep their order.

    Args:
        size: height and width of the images, in pixels.
        small: of the images that a flow models; at most `size`.

    Returns:
        A `Codec` of float32 images [n, size, size, channels] and [n, small, small, channels].

    Raises:
        ValueError: a size that is not whole and positive; `small` larger than `size`.

    Example:
        >>> import jax.numpy as jnp
        >>> codec = band_limited(32, 16)
        >>> z = codec.encode(jnp.full((1, 32, 32, 3), 0.5))
        >>> z.shape, round(float(z.min()), 5), round(float(z.max()), 5)
        ((1, 16, 16, 3), 0.5, 0.5)
    """
    size, small = _validate.positive_integer(size, "size"), _validate.positive_integer(small, "small")
    if small > size:
        raise ValueError(f"small must be at most size, got small={small} and size={size}.")
    grow = _cosines(size)[:, :small] @ _cosines(small).T * np.sqrt(size / small)
    shrink = grow.T * (small / size)
    return Codec(
        encode=Partial(_both_axes, np.asarray(shrink, np.float32)),
        decode=Partial(_both_axes, np.asarray(grow, np.float32)),
    )


def _cosines(n: int) -> np.ndarray:
    """The orthonormal cosine transform: column k is the k-th frequency on n pixels."""
    at = (np.arange(n)[:, None] + 0.5) * np.arange(n)[None, :] * np.pi / n
    waves = np.cos(at) * np.sqrt(2 / n)
    waves[:, 0] /= np.sqrt(2)
    return waves


def _both_axes(matrix: Array, images: Array) -> Array:
    return jnp.einsum("ah,bw,nhwc->nabc", matrix, matrix, images, precision="highest")
