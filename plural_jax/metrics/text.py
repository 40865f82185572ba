"""Diversity of generated texts: of their lengths, and of the words in them.

The paper draws the entropy of generated lengths by round (Figure 5) and gives no formula. What is computed here is said in each
docstring [default].
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike


def length_shares(lengths: ArrayLike, max_length: int, width: int = 1) -> Array:
    """The distribution of lengths over bins of as many words each.

    `p_b = #{i : floor(L_i / width) = b} / n`, `b = 0 ... floor(max_length / width)`

    Args:
        lengths: L, the number of words of each text, integers [n].
        max_length: the longest that may occur, such as the number of tokens of a row. Static.
        width: words to a bin. Static.

    Returns:
        [max_length // width + 1], in the default floating type.

    Raises:
        ValueError: no texts; lengths that are not whole numbers, negative or larger than max_length. Where they are traced, they
            count for the first or last bin instead.

    Example:
        >>> print(length_shares([1, 1, 2, 3], max_length=3))
        [0.   0.5  0.25 0.25]
        >>> print(length_shares([1, 1, 2, 3], max_length=3, width=2))
        [0.5 0.5]
    """
    max_length = _validate.positive_integer(max_length, "max_length")
    width = _validate.positive_integer(width, "width")
    shape = np.shape(lengths)
    if len(shape) != 1 or 0 in shape:
        raise ValueError(f"lengths must hold the number of words of at least one text, [n], got shape {shape}.")
    counts = jnp.asarray(lengths)
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        raise ValueError(f"lengths must be whole numbers, got {counts.dtype}.")
    found = _validate.concrete(lengths)
    if found is not None and (found.min() < 0 or found.max() > max_length):
        raise ValueError(f"lengths must lie between 0 and max_length={max_length}, got {_validate.shown(lengths)}.")
    return _shares(counts, max_length, width)


def length_entropy(lengths: ArrayLike, max_length: int, width: int = 1) -> Array:
    """Shannon entropy of the distribution of lengths, in nats: higher where lengths differ more (C.6).

    `H = -sum_b p_b ln p_b`, with `p` of `length_shares` and `0 ln 0 = 0`; 0 where all lengths are in one bin

    From n texts it is at most ln n, and on average lower than that of the law which they are drawn from: compare equal numbers
    of texts.

    Args:
        lengths: L, the number of words of each text, integers [n].
        max_length: the longest that may occur. Static.
        width: words to a bin. Static.

    Returns:
        A number of the default floating type.

    Raises:
        ValueError: as `length_shares`.

    Example:
        >>> print(f"{length_entropy([10, 10, 15, 15], max_length=40):.4f}")  # ln 2
        0.6931

    Source: Figure 5; the formula is ours [default].
    """
    return _entropy(length_shares(lengths, max_length, width))


def distinct_n(tokens: ArrayLike, end_of_text: int, n: int) -> float:
    """How many of the texts' n-grams are different ones: lower where the same phrases come again and again.

    `D_n = #{different n-grams} / #{n-grams}`, over all texts together, each up to its end

    Args:
        tokens: integers [texts, length], each row filled up with end-of-text from its end on.
        end_of_text: number of the token that ends a text.
        n: tokens to an n-gram.

    Returns:
        From 0 to 1; NaN where no text has n tokens. Computed on the host.

    Raises:
        ValueError: tokens that are no integers, or no table; an n that is not a whole number of at least 1.

    Example:
        >>> distinct_n([[5, 6, 5, 6, 0, 0]], end_of_text=0, n=2)  # 5 6, 6 5, 5 6
        0.6666666666666666

    Source: J. Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models (2016).
    """
    n = _validate.positive_integer(n, "n")
    if _validate.is_traced(tokens):
        raise ValueError("tokens must hold numbers: distinct n-grams are counted on the host, outside jit.")
    rows = np.asarray(tokens)
    if rows.ndim != 2 or rows.dtype.kind not in "iu":
        raise ValueError(f"tokens must be integers [texts, length], got {rows.dtype} {list(rows.shape)}.")
    if rows.shape[1] < n:
        return float("nan")
    phrases = np.lib.stride_tricks.sliding_window_view(rows, n, axis=1)
    # Up to the first end: what stands behind it is none of the text, whatever it is.
    own = ~np.logical_or.accumulate(rows == end_of_text, axis=1)[:, n - 1 :]
    found = phrases[own]
    return len(np.unique(found, axis=0)) / len(found) if len(found) else float("nan")


@partial(jax.jit, static_argnums=(1, 2))
def _shares(lengths: Array, max_length: int, width: int) -> Array:
    bins = jnp.clip(lengths.astype(jnp.int32), 0, max_length) // width
    members = bins[:, None] == jnp.arange(max_length // width + 1, dtype=jnp.int32)
    return jnp.mean(members, axis=0, dtype=jnp.result_type(float))


@jax.jit
def _entropy(shares: Array) -> Array:
    return jnp.sum(jax.scipy.special.entr(shares))
