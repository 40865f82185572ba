"""Attention between the pixels of an image, with derivatives that are fast on a CPU too.

    o[q] = sum_k P[q, k] v[k],    P = softmax over k of q . k / sqrt(d)

With g the derivative by o, the derivatives by the three inputs are

    dS = P (g v^T - g . o),    dq = dS k / sqrt(d),    dk = dS^T q / sqrt(d),    dv = P^T g,

where `g . o`, one number for each q, is what softmax's rule sums over all pairs: `sum_k P[q, k] (g v^T)[q, k]`.

XLA's CPU backend multiplies by the transposed matrix of all pairs at a third of its speed. Computed as `(q^T dS)^T`, the product
has it as it is; the transposition of the small result must not come right after, or XLA moves it back inside. Both together take
a little more than half of the time of JAX's own rule.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def attend(q: Array, k: Array, v: Array) -> Array:
    """What each pixel gathers from all pixels.

    Args:
        q, k, v: queries, keys and values, [n, heads, pixels, d]. P is computed in float32 or float64, then has v's type.

    Returns:
        [n, heads, pixels, d].

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[[[0.0], [30.0]]]])
        >>> print(attend(x, x, x)[0, 0, :, 0])
        [15. 30.]

    Source: Vaswani et al. 2017; the sum in the derivative: Dao et al. 2022.
    """
    return _forward(q, k, v)[0]


_Saved = tuple[Array, Array, Array, Array, Array]


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, _Saved]:
    shares = jax.nn.softmax(_pairs(q * q.shape[-1] ** -0.5, k)).astype(v.dtype)
    gathered = jnp.einsum("nhqk,nhkd->nhqd", shares, v)
    return gathered, (q, k, v, shares, gathered)


def _backward(saved: _Saved, g: Array) -> tuple[Array, Array, Array]:
    q, k, v, shares, gathered = saved
    scale = q.shape[-1] ** -0.5
    own = jnp.einsum("nhqd,nhqd->nhq", g, gathered, preferred_element_type=_wide(g))
    scores = (shares.astype(own.dtype) * (_pairs(g, v) - own[..., None])).astype(q.dtype)
    to_pixels = (((2,), (2,)), ((0, 1), (0, 1)))
    turned = jnp.stack([jax.lax.dot_general(q * scale, scores, to_pixels), jax.lax.dot_general(g, shares, to_pixels)])
    to_keys, to_values = jnp.swapaxes(turned, 3, 4)
    return jnp.einsum("nhqk,nhkd->nhqd", scores, k) * scale, to_keys, to_values


def _pairs(a: Array, b: Array) -> Array:
    return jnp.einsum("nhqd,nhkd->nhqk", a, b, preferred_element_type=_wide(a))


def _wide(x: Array) -> jnp.dtype:
    return x.dtype if x.dtype.itemsize > 4 else jnp.dtype(jnp.float32)


attend.defvjp(_forward, _backward)
