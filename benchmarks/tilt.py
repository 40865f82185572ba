"""How fast are exact large-K rounds? The library against the same rounds written by hand, in one run.

    python -m benchmarks.tilt [--quick] [--repeats N] [--out FILE]

Workload: phi x distance configurations of two bumps on a uniform 1-D grid, m = 2, float32, from the uniform density.
Unit: cell-steps, one cell of one configuration through one round.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, PartitionSpec

import plural_jax as pj
from benchmarks import timing


class Workload(NamedTuple):
    """Every phi with every distance; rows of the arrays that `rows` returns are in that order, phi the faster."""

    phis: np.ndarray
    distances: np.ndarray
    num_cells: int
    num_steps: int

    @classmethod
    def of(cls, num_phis: int, num_distances: int, num_cells: int, num_steps: int) -> Workload:
        """A grid of configurations."""
        phis = np.linspace(0.1, 0.9, num_phis, dtype=np.float32)
        return cls(phis, np.linspace(1.0, 6.0, num_distances, dtype=np.float32), num_cells, num_steps)

    @property
    def cell_steps(self) -> int:
        """The work in it."""
        return len(self.phis) * len(self.distances) * self.num_cells * self.num_steps

    def make(self, phi: Array, distance: Array) -> pj.Process:
        """One configuration."""
        grid = pj.Grid.uniform(-5.0, 5.0, self.num_cells)
        centers = jnp.stack([-distance / 2, distance / 2])
        land = pj.Landscape.on(grid, pj.rewards.bump(centers, height=5.0, width=1.0))
        return pj.density.large_pool(land, jnp.stack([phi, 1 - phi]))

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Phi [B] and tilts exp(r - r*) [B, 2, n], for those who compute by hand."""
        rewards = jax.vmap(lambda d: self.make(jnp.float32(0.5), d).step.args[0].rewards)(self.distances)
        tilts = np.exp(np.asarray(rewards - rewards.max(axis=2, keepdims=True)))
        return np.tile(self.phis, len(self.distances)), np.repeat(tilts, len(self.phis), axis=0)


def library(work: Workload, every: int) -> Callable[[], Any]:
    """What `pj.sweep` compiles: distances over the devices and one after another, phis together."""

    def one(phi: Array, distance: Array) -> Any:
        process = work.make(phi, distance)
        return pj.run(process, process.init(), work.num_steps, every=every)[1]

    def rows(distances: Array) -> Any:
        return jax.lax.map(lambda d: jax.vmap(one, (0, None))(jnp.asarray(work.phis), d), distances)

    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("rows")
    compiled = jax.jit(jax.shard_map(rows, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    return partial(compiled, jnp.asarray(work.distances))


def numpy_loop(work: Workload) -> Callable[[], np.ndarray]:
    """All configurations in one array operation after another."""
    phi, tilt = work.rows()
    weights = np.stack([phi, 1 - phi], axis=1)

    def rounds() -> np.ndarray:
        p = np.full((len(phi), work.num_cells), 1 / work.num_cells, np.float32)
        for _ in range(work.num_steps):
            u = weights / np.einsum("bmn,bn->bm", tilt, p)
            p = p * (u[:, :1] * tilt[:, 0] + u[:, 1:] * tilt[:, 1])
        return np.einsum("bmn,bn->bm", tilt, p)

    return rounds


def scan_loop(work: Workload) -> Callable[[], Array]:
    """What a JAX user writes first: a scan over rounds, under vmap."""
    phi, tilt = (jnp.asarray(x) for x in work.rows())

    def one(phi: Array, tilt: Array) -> Array:
        weights = jnp.stack([phi, 1 - phi])

        def step(p: Array, _: None) -> tuple[Array, None]:
            return p * ((weights / (tilt @ p)) @ tilt), None

        p = jnp.full((work.num_cells,), 1 / work.num_cells, tilt.dtype)
        return tilt @ jax.lax.scan(step, p, length=work.num_steps)[0]

    return partial(jax.jit(jax.vmap(one)), phi, tilt)


def numba_loop(work: Workload) -> Callable[[], np.ndarray] | None:
    """One fused pass over the cells for each round, configurations in parallel; None without numba."""
    try:
        import numba
    except ImportError:
        return None
    phi, tilt = work.rows()
    num_cells, num_steps = work.num_cells, work.num_steps

    @numba.njit(parallel=True, fastmath=True)
    def rounds(phi: np.ndarray, tilt: np.ndarray, p: np.ndarray, z: np.ndarray) -> None:
        for b in numba.prange(len(phi)):
            z0 = z1 = np.float32(0)
            for x in range(num_cells):
                z0 += p[b, x] * tilt[b, 0, x]
                z1 += p[b, x] * tilt[b, 1, x]
            for _ in range(num_steps):
                u0, u1 = phi[b] / z0, (np.float32(1) - phi[b]) / z1
                z0 = z1 = np.float32(0)
                for x in range(num_cells):
                    new = p[b, x] * (u0 * tilt[b, 0, x] + u1 * tilt[b, 1, x])
                    p[b, x] = new
                    z0 += new * tilt[b, 0, x]
                    z1 += new * tilt[b, 1, x]
            z[b, 0], z[b, 1] = z0, z1

    def run() -> np.ndarray:
        z = np.empty((len(phi), 2), np.float32)
        rounds(phi, tilt, np.full((len(phi), num_cells), 1 / num_cells, np.float32), z)
        return z

    return run


def check_agreement(work: Workload, by_hand: dict[str, Callable[[], Any]]) -> None:
    """Everyone computes the same normalizers, or no ratio means anything."""
    log_z = np.asarray(library(work, work.num_steps)().log_z)[:, :, -1].reshape(-1, 2) - 5.0  # r* is the height
    for name, function in by_hand.items():
        np.testing.assert_allclose(np.log(function()), log_z, atol=2e-4, err_msg=f"{name} and the library disagree.")


def linearity(work: Workload, repeats: int) -> dict[str, float]:
    """Fitted exponents of the time in the number of cells and of rounds."""
    fitted = {}
    for field in ("num_cells", "num_steps"):
        sizes = [getattr(work, field) * factor for factor in (1, 2, 4, 8)]
        variants = {str(size): work._replace(**{field: size}) for size in sizes}
        times = timing.interleaved({name: library(w, w.num_steps) for name, w in variants.items()}, repeats)
        fitted[field] = timing.exponent(sizes, [times[str(size)].median for size in sizes])
    return fitted


def seconds_of_a_sweep(work: Workload, save: str) -> float:
    """One call of `pj.sweep`, compilation and labelling included."""
    start = time.perf_counter()
    pj.sweep(work.make, phi=work.phis, distance=work.distances, num_steps=work.num_steps, save=save)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller workload and fewer repeats, about a minute")
    parser.add_argument("--repeats", type=int, help="turns of each contender (default 15, quick 5)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tilt.json"), help="where the JSON goes")
    args = parser.parse_args()
    repeats = args.repeats or (5 if args.quick else 15)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    # Threads of numba that go on spinning after their loop would slow down whoever is measured next.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    where = timing.machine()
    devices = jax.device_count()
    num_distances = -(-(4 if args.quick else 8) // devices) * devices
    work = Workload.of(32, num_distances, 4096, 50 if args.quick else 100)

    by_hand: dict[str, Callable[[], Any]] = {"NumPy": numpy_loop(work), "JAX vmap of scan": scan_loop(work)}
    fused = numba_loop(work)
    if fused is None:
        print("numba is not installed, so the hand-fused loop is left out: pip install 'plural_jax[benchmark]'.\n")
    else:
        by_hand["numba, hand-fused"] = fused
    check_agreement(work, by_hand)
    ours = {
        "library, final": library(work, work.num_steps),
        "library, every 10": library(work, 10),
        "library, summary": library(work, 1),
    }
    times = timing.interleaved({**by_hand, **ours}, repeats)
    exponents = linearity(work, repeats)
    sweeps = {save: seconds_of_a_sweep(work, save) for save in ("final", "summary")}

    reference = "numba, hand-fused" if fused is not None else "JAX vmap of scan"
    print(f"{len(work.phis)} x {len(work.distances)} configurations, {work.num_cells} cells, {work.num_steps} rounds")
    print(f"{devices} devices, {where['cpu']}, load {where['load_before']:.1f} before\n")
    print(f"{'':22s}{'G cell-steps/s':>15s}{'quartiles':>17s}   speed relative to {reference}")
    for name, t in times.items():
        rate = [work.cell_steps / seconds / 1e9 for seconds in (t.median, t.high, t.low)]
        ratio = times[reference].median / t.median
        print(f"{name:22s}{rate[0]:15.2f}{rate[1]:9.2f}-{rate[2]:.2f}{ratio:12.2f}")
    print(f"\nsummary of every round / final: {times['library, summary'].median / times['library, final'].median:.2f}")
    print("time ~ cells^{num_cells:.2f}, rounds^{num_steps:.2f}".format(**exponents))
    print("pj.sweep with compilation: final {final:.1f} s, summary {summary:.1f} s".format(**sweeps))
    timing.write_json(
        args.out,
        {
            "machine": where,
            "workload": {
                "phis": len(work.phis),
                "distances": len(work.distances),
                "cells": work.num_cells,
                "steps": work.num_steps,
                "cell_steps": work.cell_steps,
            },
            "repeats": repeats,
            "seconds": {name: t._asdict() for name, t in times.items()},
            "exponents": exponents,
            "sweep_seconds_with_compilation": sweeps,
        },
    )


if __name__ == "__main__":
    main()
