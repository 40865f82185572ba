"""One whole `pj.sweep`, with tracing, compilation, checks and labels, against the loop that one would write first.

    python -m benchmarks.sweep [--quick] [--repeats N] [--out FILE]

The loop is `for distance: for phi: for round:` in NumPy, float64, with the numbers of every round that the sweep saves, or only
the last ones. It runs for a part of the configurations and its time is multiplied. Everything that JAX has compiled is forgotten
before each turn of the library.
Two bumps on a 1-D grid, m = 2, the library in float32. Unit: cell-steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import plural_jax as pj
from benchmarks import report, timing
from benchmarks.timing import Comparison

LIBRARY = "pj.sweep, with compilation"
LOOP = "NumPy loop"


class Workload(NamedTuple):
    """Every phi, distance and pool size; `every` is the rounds between two saves."""

    phis: np.ndarray
    distances: np.ndarray
    pool_sizes: tuple[float, ...]
    num_cells: int
    num_steps: int
    every: int

    @classmethod
    def of(
        cls,
        num_phis: int,
        num_distances: int,
        num_cells: int,
        num_steps: int,
        *,
        pool_sizes: tuple[float, ...] = (np.inf,),
        every: int = 1,
    ) -> Workload:
        """A grid of configurations."""
        phis, distances = np.linspace(0.1, 0.9, num_phis), np.linspace(1.0, 6.0, num_distances)
        return cls(phis, distances, pool_sizes, num_cells, num_steps, every)

    @property
    def cell_steps(self) -> float:
        """The work in it."""
        return float(len(self.phis) * len(self.distances) * len(self.pool_sizes) * self.num_cells * self.num_steps)

    @property
    def words(self) -> str:
        """For the table."""
        pools = ", ".join(f"{k:g}" for k in self.pool_sizes)
        saved = "every round saved" if self.every == 1 else "the last round saved"
        return (
            f"{len(self.phis)} phi x {len(self.distances)} distances, K = {pools}, {self.num_cells:,} cells, "
            f"{self.num_steps} rounds, {saved}"
        )


def library(work: Workload) -> Callable[[], np.ndarray]:
    """Basin masses at the end, [phi, distance, K, 2]."""
    grid = pj.Grid.uniform(-5.0, 5.0, work.num_cells)

    def make(phi: Array, distance: Array, pool_size: Array) -> pj.Process:
        land = pj.Landscape.on(grid, pj.rewards.bump(jnp.stack([-distance / 2, distance / 2]), 5.0, 1.0))
        weights = jnp.stack([phi, 1 - phi])
        if work.pool_sizes == (np.inf,):
            return pj.density.large_pool(land, weights)
        return pj.density.finite_pool(land, weights, pool_size=pool_size)

    def run() -> np.ndarray:
        jax.clear_caches()
        axes = {"phi": work.phis, "distance": work.distances, "pool_size": work.pool_sizes}
        ds = pj.sweep(make, **axes, num_steps=work.num_steps, every=work.every)
        return ds.basin_mass.values[:, :, :, -1]

    return run


def loop(work: Workload, phis: np.ndarray, distances: np.ndarray) -> Callable[[], np.ndarray]:
    """NumPy, one configuration after another."""
    x = np.linspace(-5.0, 5.0, work.num_cells)

    def run() -> np.ndarray:
        masses = np.empty((len(phis), len(distances), len(work.pool_sizes), 2))
        for j, distance in enumerate(distances):
            rewards = bumps(x, distance)
            for k, pool_size in enumerate(work.pool_sizes):
                multiplier = large(rewards) if np.isinf(pool_size) else finite(rewards, pool_size)
                for i, phi in enumerate(phis):
                    masses[i, j, k] = one(work, rewards, np.array([phi, 1 - phi]), multiplier)
        return masses

    return run


def bumps(x: np.ndarray, distance: float) -> np.ndarray:
    """`pj.rewards.bump` in NumPy, [2, n]."""
    return np.asarray(pj.rewards.bump([-distance / 2, distance / 2], 5.0, 1.0)(x[:, None])).T.astype(float)


def large(rewards: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """W for infinitely many candidates."""
    tilt = np.exp(rewards - rewards.max(axis=1, keepdims=True))
    return lambda p, phi: (phi / (tilt @ p)) @ tilt


def finite(rewards: np.ndarray, pool_size: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """W for K candidates, by the trapezoid rule in log s."""
    a = np.exp(rewards - rewards.max(axis=1, keepdims=True))
    s = np.exp(np.arange(-9.5 - np.log(pool_size), 3.1 - np.log(a.min()), 0.5))
    weights = 0.5 * pool_size * s
    weights[0] /= 1 - np.exp(-0.5)  # the nodes left of the first
    table = np.exp(-s[:, None] * a[:, None])

    def multiplier(p: np.ndarray, phi: np.ndarray) -> np.ndarray:
        h = [a[i] * ((weights * (table[i] @ p) ** (pool_size - 1)) @ table[i]) for i in range(len(a))]
        return phi @ np.array(h)

    return multiplier


def one(work: Workload, rewards: np.ndarray, phi: np.ndarray, multiplier: Callable[..., np.ndarray]) -> np.ndarray:
    """All rounds of a configuration; what a save holds is computed in every `every`-th."""
    basins = rewards >= rewards.max(axis=1, keepdims=True) - 0.1
    outside = ~basins.any(axis=0)
    p = np.full(work.num_cells, 1 / work.num_cells)
    saved = []
    for t in range(1, work.num_steps + 1):
        p = p * multiplier(p, phi)
        p /= p.sum()
        if t % work.every == 0:
            w = multiplier(p, phi)
            mean = rewards @ p
            saved.append(
                {
                    "mean": mean,
                    "variance": (rewards - mean[:, None]) ** 2 @ p,
                    "log_z": np.log(np.exp(rewards) @ p),
                    "entropy": -np.sum(p * np.log(np.where(p > 0, p, 1.0))),
                    "basins": basins @ p,
                    "outside": p[outside].sum(),
                    "largest": (w.max(), w[outside].max()),
                }
            )
    return saved[-1]["basins"]


def contenders(work: Workload, stride: int) -> tuple[dict[str, Callable[[], np.ndarray]], float]:
    """The sweep, and the loop over every `stride`-th phi and distance; and by what the loop's time is multiplied."""
    phis, distances = work.phis[::stride], work.distances[::stride]
    found = {LIBRARY: library(work), LOOP: loop(work, phis, distances)}
    return found, len(work.phis) * len(work.distances) / (len(phis) * len(distances))


def check(results: dict[str, np.ndarray], stride: int) -> None:
    """The same basin masses."""
    ours = results[LIBRARY][::stride, ::stride]
    np.testing.assert_allclose(results[LOOP], ours, atol=2e-3, err_msg="The loop and the library disagree.")


def compare(name: str, work: Workload, stride: int, repeats: int) -> Comparison:
    """Turns; what they return is compared afterwards, since a sweep for that alone would take as long."""
    found, factor = contenders(work, stride)
    results: dict[str, np.ndarray] = {}

    def keeping(name: str) -> Callable[[], None]:
        def run() -> None:
            results[name] = found[name]()

        return run

    seconds = timing.turns({name: keeping(name) for name in found}, repeats, warm=False)
    check(results, stride)
    return Comparison(
        name=f"sweep, {name}",
        workload=work.words,
        reference=LIBRARY,
        seconds=timing.scaled(seconds, {LOOP: factor}),
        unit="cell-steps",
        work=work.cell_steps,
        scaled={LOOP: factor},
    )


def measure(quick: bool, repeats: int | None) -> list[Comparison]:
    """Every round saved, only the last, and three pool sizes; quick: the first, smaller."""
    if quick:
        return [compare("every round", Workload.of(32, 8, 2048, 100), 4, repeats or 1)]
    repeats = repeats or 3
    return [
        compare("every round", Workload.of(64, 32, 4096, 200), 8, repeats),
        compare("last round", Workload.of(64, 32, 4096, 200, every=200), 8, repeats),
        compare("pool sizes", Workload.of(64, 16, 1024, 200, pool_sizes=(2.0, 10.0, 100.0, np.inf)), 8, repeats),
    ]


if __name__ == "__main__":
    report.main("sweep", __doc__, measure, jax_num_cpu_devices=timing.cores())
