"""What `on_chip` does with vectors of cells inside a Pallas kernel: sums over all cells, and multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import jax
import jax.numpy as jnp
from jax import Array

#: A number for each cell, in vectors.
Vectors = tuple[Array, ...]
#: a b + c, or a b where there is no c; b may be a scalar.
Fma = Callable[[Array, Array, Array | None], Array]


def over_cells(reduction: Callable[..., Array], vectors: Sequence[Array]) -> list[Array]:
    """A scalar for each vector, by `jnp.sum` or `jnp.max`. Two vectors share the barriers of the warps."""
    numbers: list[Array] = []
    for k in range(0, len(vectors) - 1, 2):
        both = reduction(jnp.stack(vectors[k : k + 2], axis=-1), axis=0)
        place = jax.lax.broadcasted_iota(jnp.int32, (2,), 0)
        # Every thread holds both; this is how it is told to take one.
        numbers += [jnp.sum(jnp.where(place == i, both, 0.0)) for i in range(2)]
    return numbers + [reduction(x) for x in vectors[len(numbers) :]]


def log_sum(vectors: Sequence[Array]) -> Array:
    """Log of the sum of exponentials over all cells."""
    [top] = over_cells(jnp.max, [reduce(jnp.maximum, vectors)])
    [total] = over_cells(jnp.sum, [reduce(jnp.add, [jnp.exp(x - top) for x in vectors])])
    return top + jnp.log(total)


def unzip(pairs: Iterable[tuple[Array, Array]]) -> tuple[Vectors, Vectors]:
    """Two vectors of vectors from pairs of vectors."""
    first, second = zip(*pairs, strict=True)
    return first, second


def plain(a: Array, b: Array, c: Array | None) -> Array:
    """As XLA has it, for interpretation."""
    return a * b if c is None else a * b + c


def fused(a: Array, b: Array, c: Array | None) -> Array:
    """One instruction, in words that leave XLA no choice: left alone, it rounds the product."""
    from jax.experimental.pallas import triton

    if c is None or a.ndim == 0:
        return plain(a, b, c)
    bits, letter = (64, "d") if a.dtype == jnp.float64 else (32, "f")
    [result] = triton.elementwise_inline_asm(
        f"fma.rn.f{bits} $0, $1, $2, $3;",
        args=[a, jnp.broadcast_to(b, a.shape), c],
        constraints=f"={letter},{letter},{letter},{letter}",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(a.shape, a.dtype)],
    )
    return result
