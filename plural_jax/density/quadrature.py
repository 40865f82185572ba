"""Exact dynamics for a finite candidate pool, by quadrature instead of Monte Carlo (Def. 1, Lemma 1).

With `A = exp(r(x)/tau)` and the Laplace transform `L(s) = E_p[exp(-s A)]` the Bradley-Terry weight is one integral,

    H_K(x) = E[K A / (A + A_2 + ... + A_K)] = K int_0^inf A exp(-s A) L(s)^(K-1) ds,

because `1/S = int exp(-s S) ds` and the other candidates are independent. With nodes `s_j = t_j / K`, weights `w_j / K` and the
table `E[j, x] = exp(-s_j A(x))` one round is two matrix products for each reward, `L = E p` and `H = A * (E^T g)`,
`g_j = w_j L_j^(K-1)`. The nodes depend on nothing but the range of the rewards. Two rules:

- In float32, where the range is known and below about 28 temperatures: the shortest sum of exponentials that is 1/S in all of
  the interval of S / K (`exponential_sums`), 16 nodes for a range of 5. A pool size that is not whole has no such interval, since
  a power of L is then not the transform of a sum; the interval is made longer by `_MARGIN`, which leaves an error below 1e-6.
- Else the trapezoid rule in `y = log s`. The integrand is analytic in the strip `|Im y| < pi/2`, so with a step h the error falls
  like `exp(-pi^2 / h)`: h = 0.5 gives about 1e-8, h = 0.28 about 1e-15.

What keeps the digits:

- Rewards are shifted so that the best A is 1, and everything that grows is kept as a logarithm: a reward range of 1e4 needs many
  nodes but never overflows. Nodes are summed in chunks, each with its own shift.
- For large K the important nodes have L near 1, and `L^(K-1)` would amplify the rounding of L. Where `s <= 1` the table holds
  `1 - exp(-s A)` instead and `log L = log1p(-(1 - L))`.
- To the left of the trapezoid rule's first node the integrand is proportional to s, so the geometric series of the missing nodes
  is added to the first one's weight; this saves half of the left tail.

The range is read on the host when the process is built, or the caller says what it is at most. Nodes that are not in the table,
since rewards are traced and range further, or since the table would be too large, are evaluated on the fly by a loop whose length
is data: usually zero rounds, never a wrong number.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.density.core import Problem, dot, mix_log, over_rows
from plural_jax.density.exponential_sums import shortest_sum
from plural_jax.density.tilt import large_pool_log_multiplier
from plural_jax.landscape import Landscape

#: Nodes that share one shift, at most. At the widest step they span 32 e-folds, well inside float32's range.
_CHUNK = 64
#: Largest table of node values, in entries for each preference; nodes beyond it are recomputed in every round.
_MAX_TABLE = 2**24
#: Range of -log A that the table covers where the rewards are traced and cannot be read.
_TRACED_LENGTH = 60.0
#: By how much, in e-folds, the interval of a short sum is longer than what S / K can be for whole K.
_MARGIN = 1.0
#: Stands for log 0 where an infinity would make derivatives NaN.
_LOG_ZERO = -1e30


class Nodes(NamedTuple):
    """Quadrature nodes of a process: c chunks of j, in the table, and what lies beyond it.

    Attributes:
        pool_size: K, [].
        log_a: log A = (r - r*) / tau, at most 0, [m, n].
        log_t: logarithms of K s, for the nodes in the table, [c j].
        log_w: logarithms of their weights in `K int ds = int dt`, [c j].
        table: exp(-s A), or 1 - exp(-s A) where s <= 1, [m, c, j, n].
        far_start: index of the trapezoid rule's first chunk that is not in the table, int [].
        num_far: number of these chunks, int [], or None where the table is known to be complete.
    """

    pool_size: Array
    log_a: Array
    log_t: Array
    log_w: Array
    table: Array
    far_start: Array
    num_far: Array | None

    @property
    def log_s(self) -> Array:
        """Logarithms of the nodes, [c j]; for an infinite pool those of two candidates, which nothing uses."""
        return self.log_t - jnp.log(jnp.where(jnp.isinf(self.pool_size), 2.0, self.pool_size))


def quadrature_nodes(
    landscape: Landscape,
    problem: Problem,
    temperature: ArrayLike,
    pool_size: ArrayLike,
    reward_range: float | None = None,
) -> Nodes:
    """The nodes for a problem on a landscape and a pool size that may be traced; see `finite_pool`."""
    k = jnp.asarray(pool_size, problem.rewards.dtype)
    assert landscape.log_measure is not None
    inside = landscape.log_measure > -jnp.inf
    # Atoms outside the domain never have mass; they must not widen the range.
    log_a = jnp.where(inside, problem.log_tilt, jnp.zeros((), problem.rewards.dtype))
    known = _known_length(landscape, temperature)
    length = known
    if known is None and reward_range is not None and not _validate.is_traced(temperature):
        length = reward_range / float(np.asarray(temperature))
    short = short_rule(length) if length is not None and log_a.dtype == jnp.float32 else None
    if length is not None and short is not None and short[0].size * log_a.shape[1] <= _MAX_TABLE:
        log_t, log_w = (jnp.asarray(x, log_a.dtype) for x in short)
        chunks, far_start, num_far = 1, 0, None
        if known is None:
            # Wider than the caller said, apart from rounding: the whole trapezoid rule in the place of this sum.
            wider = jnp.min(log_a) < -1.0001 * length - 0.001
            num_far = jnp.where(wider, _chunks_needed(log_a, log_t.size), 0)
            log_w = jnp.where(wider, _LOG_ZERO, log_w)
    else:
        wanted, size = _chunks(_TRACED_LENGTH if length is None else length, log_a.dtype)
        chunks = far_start = max(1, min(wanted, _MAX_TABLE // (size * log_a.shape[1])))
        complete = known is not None and chunks == wanted
        num_far = None if complete else jnp.maximum(_chunks_needed(log_a, size) - chunks, 0)
        log_t, log_w = (jnp.asarray(x) for x in _trapezoid(np.arange(chunks * size), log_a.dtype))
    table = _table(log_a, k, log_t, chunks)
    return Nodes(k, log_a, log_t, log_w, table, jnp.asarray(far_start, jnp.int32), num_far)


def short_rule(length: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Log t and log w of the fewest nodes in float32 for rewards that range over so many temperatures, [j]; None if too many."""
    found = shortest_sum(length + _MARGIN)
    return None if found is None else (found[0] - _MARGIN, found[1] - _MARGIN)


def finite_pool_log_multiplier(nodes: Nodes, problem: Problem, log_p: Array) -> Array:
    """Log sum_i phi_i H_K^i(x; p), [n]: the kernel, with every number an argument."""
    return mix_log(problem.phi, log_bradley_terry(nodes, log_p))


def any_pool_log_multiplier(nodes: Nodes, problem: Problem, log_p: Array) -> Array:
    """The same for a pool size that may turn out to be infinite."""
    large = large_pool_log_multiplier(problem, log_p)
    return jnp.where(jnp.isinf(nodes.pool_size), large, finite_pool_log_multiplier(nodes, problem, log_p))


def log_bradley_terry(nodes: Nodes, log_p: Array) -> Array:
    """Log H_K^i(x; p) for every preference and atom, [m, n] (Def. 1)."""
    p = jnp.exp(log_p)
    # An infinite pool takes the other branch of the caller; here it only has to stay finite.
    k = jnp.where(jnp.isinf(nodes.pool_size), 2.0, nodes.pool_size)
    m, chunks, size, n = nodes.table.shape
    log_s = nodes.log_s

    def one_preference(table: Array, log_a: Array) -> Array:
        log_g = log_node_weights(dot(table.reshape(-1, n), p), log_s, nodes.log_w, k)
        log_sums = jax.vmap(_chunk_log_sum)(table, log_g.reshape(chunks, size), log_s.reshape(chunks, size))
        if nodes.num_far is not None:
            far = _far_log_sum(log_a, p, k, size, nodes.far_start, nodes.num_far)
            log_sums = jnp.concatenate([log_sums, far[None]])
        return log_a + over_rows(jnp.logaddexp, log_sums)

    return jnp.stack([one_preference(nodes.table[i], nodes.log_a[i]) for i in range(m)])


def _rule(dtype: Any) -> tuple[float, float, float, float]:
    """Of the trapezoid: step h, what log w of the first node gains, e-folds left of log t = 0 and right of t = 1 / A."""
    h, tail, top = (0.5, 9.5, 3.1) if jnp.finfo(dtype).bits == 32 else (0.28, 18.5, 3.9)
    return h, float(np.log(1.0 / -np.expm1(-h))), tail, top


def _known_length(landscape: Landscape, temperature: ArrayLike) -> float | None:
    """Largest -log A if all it depends on can be read now, else None.

    In NumPy: under `jit` every JAX operation gives a tracer, even on rewards that are known.
    """
    if _validate.is_traced((landscape.rewards, landscape.log_measure, temperature)):
        return None
    rewards, inside = np.asarray(landscape.rewards, np.float64), ~np.isneginf(np.asarray(landscape.log_measure))
    return float(np.ptp(rewards[:, inside], axis=1).max() / float(np.asarray(temperature)))


def _chunks(length: float, dtype: Any) -> tuple[int, int]:
    """Number and size of the chunks from the left tail of the best atom to where the worst atom's integrand has died out."""
    h, _, tail, top = _rule(dtype)
    nodes = int(np.ceil((length + tail + top) / h))
    chunks = -(-nodes // _CHUNK)
    return chunks, -(-nodes // chunks)


def _chunks_needed(log_a: Array, size: int) -> Array:
    """Their number where the length is known only when the program runs, int []."""
    h, _, tail, top = _rule(log_a.dtype)
    return jax.lax.stop_gradient(jnp.ceil((tail + top - jnp.min(log_a)) / (h * size))).astype(jnp.int32)


def _trapezoid(index: Any, dtype: Any) -> tuple[Any, Any]:
    """Log t and log w of the nodes with these numbers, in NumPy or JAX: in y = log t each stands for h t.

    The first lies where t A is negligible for the best atom, and stands for all that would lie left of it, too.
    """
    h, first, tail, _ = _rule(dtype)
    log_t = index.astype(dtype) * h - tail
    return log_t, log_t + float(np.log(h)) + (index == 0).astype(dtype) * first


def _node_values(log_a: Array, y: Array) -> Array:
    """exp(-s A), or 1 - exp(-s A) where s <= 1; log_a [n], y [j] -> [j, n]."""
    # e^60 is already far beyond where exp(-e^u) is zero; the bound keeps derivatives free of inf * 0.
    s_a = jnp.exp(jnp.minimum(y[:, None] + log_a, 60.0))
    return jnp.where(y[:, None] <= 0, -jnp.expm1(-s_a), jnp.exp(-s_a))


@partial(jax.jit, static_argnums=3)
def _table(log_a: Array, k: Array, log_t: Array, chunks: int) -> Array:
    log_s = log_t - jnp.log(jnp.where(jnp.isinf(k), 2.0, k))
    values = jax.vmap(lambda a: _node_values(a, log_s))(log_a)
    return values.reshape(log_a.shape[0], chunks, -1, log_a.shape[1])


def log_node_weights(product: Array, log_s: Array, log_w: Array, k: Array) -> Array:
    """Log g_j = log w_j + (K - 1) log L(s_j), from the table's product with p; [j]."""
    small = log_s <= 0
    one = jnp.ones((), k.dtype)
    positive = product > 0
    # 1 - L can round to 1 or above only where s is large; the other form is used there.
    complement = jnp.where(small, jnp.minimum(product, 0.9), one * 0.5)
    direct = jnp.where(small | ~positive, one, product)
    log_l = jnp.where(small, jnp.log1p(-complement), jnp.where(positive, jnp.log(direct), _LOG_ZERO))
    return log_w + (k - 1) * log_l


def _chunk_log_sum(values: Array, log_g: Array, y: Array) -> Array:
    """Log sum_j g_j exp(-s_j A(x)) over the nodes of one chunk; values [j, n], log_g and y [j] -> [n]."""
    shift = jax.lax.stop_gradient(jnp.maximum(jnp.max(log_g), _LOG_ZERO))
    g = jnp.exp(log_g - shift)
    small = y <= 0
    # Where the table holds 1 - exp(-s A), the exponential is one minus the entry.
    total = jnp.sum(jnp.where(small, g, 0.0)) + dot(jnp.where(small, -g, g), values)
    positive = total > 0
    return jnp.where(positive, shift + jnp.log(jnp.where(positive, total, 1.0)), _LOG_ZERO)


def _far_chunk(log_a: Array, p: Array, k: Array, chunk: Array, size: int) -> Array:
    """The log-sum of one chunk of the trapezoid rule; [n]."""
    index = chunk * size + jnp.arange(size, dtype=jnp.int32)
    log_t, log_w = _trapezoid(index, k.dtype)
    log_s = log_t - jnp.log(k)
    values = _node_values(log_a, log_s)
    log_g = log_node_weights(dot(values, p), log_s, log_w, k)
    return _chunk_log_sum(values, log_g, log_s)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _far_log_sum(log_a: Array, p: Array, k: Array, size: int, start: Array, count: Array) -> Array:
    """Log of the sum over `count` chunks of `size` nodes that are not in the table, from the one numbered `start`, [n].

    The number of rounds is data, which JAX cannot differentiate in reverse; the loop below goes backwards by itself.
    """

    def body(i: Array, total: Array) -> Array:
        return jnp.logaddexp(total, _far_chunk(log_a, p, k, start + i, size))

    return jax.lax.fori_loop(jnp.int32(0), count, body, jnp.full_like(log_a, _LOG_ZERO))


def _far_forward(log_a: Array, p: Array, k: Array, size: int, start: Array, count: Array) -> tuple[Array, Any]:
    total = _far_log_sum(log_a, p, k, size, start, count)
    return total, (log_a, p, k, start, count, total)


def _far_backward(size: int, residuals: Any, cotangent: Array) -> tuple[Any, ...]:
    log_a, p, k, start, count, total = residuals

    def body(i: Array, grads: Any) -> Any:
        part, pullback = jax.vjp(lambda a, q, s: _far_chunk(a, q, s, start + i, size), log_a, p, k)
        return jax.tree.map(jnp.add, grads, pullback(cotangent * jnp.exp(part - total)))

    zeros = jax.tree.map(jnp.zeros_like, (log_a, p, k))
    none = np.zeros((), jax.dtypes.float0)
    return (*jax.lax.fori_loop(jnp.int32(0), count, body, zeros), none, none)


_far_log_sum.defvjp(_far_forward, _far_backward)
