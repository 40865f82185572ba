"""The cost of an exact finite-K round beside its two matrix products, and beside Monte Carlo at the same accuracy.

    python -m benchmarks.finite_pool [--quick] [--repeats N] [--out FILE]

With J quadrature nodes and n cells a round is, for each reward, `L = E p` and `H = E^T g` with a J x n table E (see
`plural_jax.density.quadrature`). The peer runs these two products and nothing else. Monte Carlo draws the other K - 1 candidates
instead; it is compared at the same time, by its error. Two bumps on a 1-D grid, m = 2, K = 10, float32.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import plural_jax as pj
from benchmarks import timing
from plural_jax.density.quadrature import log_bradley_terry

POOL_SIZE = 10.0


def landscape(num_cells: int) -> pj.Landscape:
    """Two bumps on a line."""
    return pj.Landscape.on(pj.Grid.uniform(-5.0, 5.0, num_cells), pj.rewards.bump([-2.0, 2.0], 5.0, 1.0))


def library(num_cells: int, num_phis: int, num_steps: int) -> Callable[[], Any]:
    """Rounds of the library for several phi, nothing saved on the way."""
    land = landscape(num_cells)

    def one(phi: Array) -> Any:
        process = pj.density.finite_pool(land, jnp.stack([phi, 1 - phi]), pool_size=POOL_SIZE)
        return pj.run(process, process.init(), num_steps, save="final")[1]

    return partial(jax.jit(jax.vmap(one)), jnp.linspace(0.1, 0.9, num_phis))


def products(num_cells: int, num_phis: int, num_steps: int) -> tuple[Callable[[], Any], float]:
    """The two matrix products of a round and nothing else; and their operations in one round."""
    process = pj.density.finite_pool(landscape(num_cells), [0.5, 0.5], pool_size=POOL_SIZE)
    table = process.step.args[1].args[0].table
    m = table.shape[0]
    table = table.reshape(m, -1, num_cells)

    @jax.jit
    def rounds(table: Array, p: Array) -> Array:
        def body(p: Array, _: None) -> tuple[Array, None]:
            # A vector goes on the right: XLA would transpose the table anew in every round for `p @ table.T`.
            first = [table[i] @ p if p.ndim == 1 else p @ table[i].T for i in range(m)]
            # The factor keeps the numbers in range and the compiler from hoisting anything.
            return sum(first[i] @ table[i] for i in range(m)) * 1e-6, None

        return jax.lax.scan(body, p, length=num_steps)[0]

    # One configuration is a vector: XLA is much slower on a matrix of one row.
    shape = (num_cells,) if num_phis == 1 else (num_phis, num_cells)
    p = jnp.full(shape, 1 / num_cells, table.dtype)
    return partial(rounds, table, p), 4.0 * table.size * num_phis


def monte_carlo(num_cells: int, draws: int) -> Callable[[Array], Array]:
    """H_K of the first reward from `draws` random pools."""
    land = landscape(num_cells)
    a = jnp.exp(land.rewards[0])
    log_p = land.uniform()

    @jax.jit
    def estimate(key: Array) -> Array:
        def one(key: Array) -> Array:
            others = jax.random.categorical(key, log_p, shape=(int(POOL_SIZE) - 1,))
            return POOL_SIZE * a / (a + jnp.sum(a[others]))

        return jnp.mean(jax.lax.map(one, jax.random.split(key, draws), batch_size=64), axis=0)

    return estimate


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repeats, under a minute")
    parser.add_argument("--repeats", type=int, help="turns of each contender (default 15, quick 5)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/finite_pool.json"), help="the JSON")
    args = parser.parse_args()
    repeats, num_steps = args.repeats or (5 if args.quick else 15), 50
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    where = timing.machine()

    rows = []
    for num_cells, num_phis in ((1024, 1), (4096, 1)) if args.quick else ((100, 1), (1024, 1), (4096, 1), (4096, 32)):
        bare, operations = products(num_cells, num_phis, num_steps)
        times = timing.interleaved({"products": bare, "library": library(num_cells, num_phis, num_steps)}, repeats)
        rows.append(
            {
                "cells": num_cells,
                "phis": num_phis,
                "microseconds_per_round": times["library"].median / num_steps * 1e6,
                "round / products": times["library"].median / times["products"].median,
                "products GFLOP/s": operations * num_steps / times["products"].median / 1e9,
                "round GFLOP/s": operations * num_steps / times["library"].median / 1e9,
            }
        )

    # One evaluation of H for one reward: the quadrature, and Monte Carlo with the error that it has after `draws` pools.
    land, draws = landscape(1024), 1000
    process = pj.density.finite_pool(land, [0.5, 0.5], pool_size=POOL_SIZE)
    nodes, log_p = process.step.args[1].args[0], land.uniform()
    exact = jax.jit(log_bradley_terry)
    estimate = monte_carlo(1024, draws)
    key = jax.random.key(0)
    times = timing.interleaved({"quadrature": partial(exact, nodes, log_p), "pools": partial(estimate, key)}, repeats)
    h = np.exp(np.asarray(exact(nodes, log_p)[0], np.float64))
    error = float(np.abs(np.asarray(estimate(key)) / h - 1).max())
    comparison = {
        "draws": draws,
        "time of Monte Carlo / quadrature": times["pools"].median / times["quadrature"].median,
        "largest relative error of Monte Carlo": error,
    }

    print(f"{jax.device_count()} devices, {where['cpu']}, load {where['load_before']:.1f} before; K = {POOL_SIZE:g}\n")
    print(f"{'cells':>6s}{'phis':>6s}{'us/round':>12s}{'round / products':>18s}{'products, round in GFLOP/s':>28s}")
    for row in rows:
        print(
            f"{row['cells']:6d}{row['phis']:6d}{row['microseconds_per_round']:12.1f}{row['round / products']:18.2f}"
            f"{row['products GFLOP/s']:16.1f}{row['round GFLOP/s']:12.1f}"
        )
    print(
        f"\nMonte Carlo with {draws} pools: {comparison['time of Monte Carlo / quadrature']:.1f} times the quadrature's time, "
        f"largest relative error {error:.3f}; the quadrature's is below 1e-5."
    )
    timing.write_json(args.out, {"machine": where, "repeats": repeats, "rounds": rows, "monte_carlo": comparison})


if __name__ == "__main__":
    main()
