"""The Gaussian closed form against the same count recursion written by hand.

    python -m benchmarks.gaussian [--quick] [--repeats N] [--out FILE]

Quadratic rewards and a Gaussian start: p_t is a mixture over how often each preference was used, `(T + m - 1 choose m - 1)`
components that share T rounds. By hand it is a recursion over a dense table of counts with linear weights: NumPy, one phi after
another, and JAX, a scan under vmap. The library keeps the weights' logarithms, derivatives at phi_i = 0 and a simplex of
counts instead of a cube. m = 3, float64, dimensions 1, 2, 4 and 8. Unit: component-steps, one component through one round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import plural_jax as pj
from benchmarks import report, timing
from benchmarks.timing import Comparison

GAMMA = 0.5
LIBRARY = "library, vmap"


class Workload(NamedTuple):
    """Three centers in d dimensions, and phis [C, 3]."""

    centers: np.ndarray
    phis: np.ndarray
    num_steps: int

    @classmethod
    def of(cls, dimension: int, num_phis: int, num_steps: int) -> Workload:
        """Random centers and weights."""
        rng = np.random.default_rng(dimension)
        return cls(rng.normal(size=(3, dimension)), rng.dirichlet(np.ones(3), size=num_phis), num_steps)

    @property
    def component_steps(self) -> int:
        """The work in it."""
        return len(self.phis) * self.num_steps * math.comb(self.num_steps + 2, 2)


def library(work: Workload) -> Callable[[], Array]:
    """Final means, [C, d]."""

    def one(phi: Array) -> Array:
        process = pj.density.gaussian(work.centers, GAMMA, phi, num_steps=work.num_steps)
        return pj.run(process, process.init(), work.num_steps, save="final")[1].mean[0]

    return partial(jax.jit(jax.vmap(one)), jnp.asarray(work.phis))


def components(work: Workload, t: Any, xp: Any) -> tuple[Any, Any]:
    """After t rounds: E_j[exp(r_i)], [3, T + 1, T + 1], zero where the counts exceed t, and means [T + 1, T + 1, d]."""
    first, second = np.meshgrid(*[np.arange(work.num_steps + 1)] * 2, indexing="ij")
    third = t - first - second
    counts = xp.stack([xp.asarray(first), xp.asarray(second), xp.maximum(third, 0)], axis=-1) * 2 * GAMMA
    variance = 1 / (1 + counts.sum(-1))
    means = variance[..., None] * (counts @ xp.asarray(work.centers))
    widening = 1 + 2 * GAMMA * variance
    # A loop over the three centers, and the square written out, so that no array has both axes.
    squared = xp.stack([((means - center) ** 2).sum(-1) for center in xp.asarray(work.centers)])
    e = widening ** (-work.centers.shape[1] / 2) * xp.exp(-GAMMA * squared / widening)
    return xp.where(third >= 0, e, 0.0), means


def numpy_loop(work: Workload) -> Callable[[], np.ndarray]:
    """One phi after another, as one would write it down."""

    def one(phi: np.ndarray) -> np.ndarray:
        weights = np.zeros((work.num_steps + 1,) * 2)
        weights[0, 0] = 1.0
        for t in range(work.num_steps):
            sent = components(work, t, np)[0] * weights
            sent *= (phi / sent.sum((1, 2)))[:, None, None]
            weights = sent[2].copy()
            weights[1:] += sent[0, :-1]
            weights[:, 1:] += sent[1, :, :-1]
        means = components(work, work.num_steps, np)[1]
        return np.einsum("ij,ijd->d", weights, means)

    return lambda: np.stack([one(phi) for phi in work.phis])


def scan_loop(work: Workload) -> Callable[[], Array]:
    """The same as a scan over rounds under vmap over phi: the components are computed once for all of them."""

    def one(phi: Array) -> Array:
        def step(weights: Array, t: Array) -> tuple[Array, None]:
            sent = components(work, t, jnp)[0] * weights
            sent = sent * (phi / sent.sum((1, 2)))[:, None, None]
            weights = sent[2].at[1:].add(sent[0, :-1]).at[:, 1:].add(sent[1, :, :-1])
            return weights, None

        start = jnp.zeros((work.num_steps + 1,) * 2, phi.dtype).at[0, 0].set(1.0)
        weights, _ = jax.lax.scan(step, start, jnp.arange(work.num_steps))
        return jnp.einsum("ij,ijd->d", weights, components(work, work.num_steps, jnp)[1])

    return partial(jax.jit(jax.vmap(one)), jnp.asarray(work.phis))


def contenders(work: Workload) -> dict[str, Callable[[], Any]]:
    """Each returns final means, [C, d]."""
    return {LIBRARY: library(work), "NumPy loop": numpy_loop(work), "JAX, vmap of scan": scan_loop(work)}


def check(found: dict[str, Callable[[], Any]]) -> None:
    """Everyone ends with the same means."""
    ours = np.asarray(found[LIBRARY]())
    for name, function in found.items():
        np.testing.assert_allclose(np.asarray(function()), ours, atol=1e-9, err_msg=f"{name} and the library disagree.")


def compare(work: Workload, repeats: int) -> Comparison:
    """Everyone in one dimension."""
    found = contenders(work)
    check(found)
    d = work.centers.shape[1]
    return Comparison(
        name=f"Gaussian closed form, d = {d}",
        workload=f"{len(work.phis)} phis, {work.num_steps} rounds, m = 3, float64, final means",
        reference=LIBRARY,
        seconds=timing.turns(found, repeats),
        unit="component-steps",
        work=work.component_steps,
    )


def measure(quick: bool, repeats: int | None) -> list[Comparison]:
    """Dimensions 1, 2, 4, 8; quick: 2 alone."""
    if quick:
        return [compare(Workload.of(2, 8, 50), repeats or 2)]
    return [compare(Workload.of(d, 32, 60), repeats or 9) for d in (1, 2, 4, 8)]


if __name__ == "__main__":
    report.main("gaussian", __doc__, measure, jax_enable_x64=True)
