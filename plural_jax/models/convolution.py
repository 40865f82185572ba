"""3 x 3 convolutions whose derivatives run at the speed of matrix products on a CPU.

    y[n, h, w, o] = sum_{a, b, c} x[n, h + a - 1, w + b - 1, c] k[a, b, c, o],    zeros outside the image

XLA's CPU backend computes this sum as a matrix product of image patches, and so the gradient by `x`, which is the same sum with
the kernel turned around and its channels exchanged. The gradient by `k`, however, it treats as a convolution whose window is the
whole image, one multiply-add after another. It is nine matrix products,

    dk[a, b] = sum_{n, h, w} x[n, h + a - 1, w + b - 1]^T dy[n, h, w],

and they are what is computed here on CPUs. Elsewhere XLA's own rule is used, which goes to the vendor's library.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution of images with a 3 x 3 kernel; as many pixels as before, divided by the stride.

    Args:
        x: [n, height, width, channels].
        kernel: [3, 3, channels, outputs], in the type of x.
        stride: 1, or 2 for every other pixel; heights and widths are then even.

    Returns:
        [n, height / stride, width / stride, outputs].

    Example:
        >>> import jax.numpy as jnp
        >>> image = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(1.0)
        >>> print(convolve(image, jnp.ones((3, 3, 1, 1)))[0, :, :, 0])
        [[1. 1. 1. 0.]
         [1. 1. 1. 0.]
         [1. 1. 1. 0.]
         [0. 0. 0. 0.]]
    """
    if stride == 1:
        return _same(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)


@jax.custom_vjp
def _same(x: Array, kernel: Array) -> Array:
    return _by_xla(x, kernel)


def _by_xla(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _by_xla(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    return jax.lax.platform_dependent(*saved, dy, cpu=_by_products, default=_by_rule)


def _by_rule(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    return jax.vjp(_by_xla, x, kernel)[1](dy)


def _by_products(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = dy.reshape(-1, dy.shape[-1])

    def corner(a: int, b: int) -> Array:
        shifted = padded[:, a : a + height, b : b + width].reshape(-1, x.shape[-1])
        return jax.lax.dot_general(shifted, rows, (((0,), (0,)), ((), ())))

    dkernel = jnp.stack([jnp.stack([corner(a, b) for b in range(3)]) for a in range(3)])
    return _by_xla(dy, turned), dkernel


_same.defvjp(_forward, _backward)
