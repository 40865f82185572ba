"""Rounds on a GPU: first whether they are right, then how fast, all in one run of a few minutes.

    python -m benchmarks.gpu [--repeats N] [--out FILE] [--rehearse]

Right: the rounds that stay on the chip (`plural_jax.density.on_chip`) beside plain XLA and beside float64 log space in NumPy, for
1 to 5 preferences, a far start and rewards of 1e4; finite pools, vmap and a sweep beside the same in NumPy; assignments beside
optax's. Where that fails, nothing is timed.

Fast: large pools with the final numbers, those of every 10th and of every round, for 256 configurations and for many; finite
pools beside their two matrix products; assignments of flows beside optax's; a whole `pj.sweep`. Each is judged by what the GPU
did in the same run: copies, chains of multiply-adds in registers, matrix products. A cell-step at m = 2 is 5 instructions or 10
operations, as in `benchmarks.roofline`.

`--rehearse` runs all of it on a CPU, with tiny sizes and the kernel interpreted, to test the script. Its times mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

import plural_jax as pj
from benchmarks import finite_pool, report, sweep, tilt, timing
from benchmarks.roofline import tilt as tilt_cost
from benchmarks.timing import Comparison
from plural_jax import _pallas
from plural_jax.density import on_chip, on_chip_vectors
from plural_jax.density.core import parts
from plural_jax.density.tilt_blocks import xla_rounds
from plural_jax.models import assignment

ON_CHIP, XLA = "on the chip", "plain XLA"
#: What the kernel is meant to reach on an H200: times the best XLA version, and of the rate of multiply-adds.
WANTED = {"times the best XLA version": 5.0, "of the FP32 rate": 0.25}
_CHAIN = 16


class Sizes(NamedTuple):
    """What is measured, on a GPU or in a rehearsal.

    Attributes:
        phis: per distance, of the first and of the second batch of large-K configurations.
        distances, cells, rounds: of both.
        calls: one after another in each turn, of the first and of the second batch, since a call is short.
        pools, pool_cells, pool_rounds: configurations of finite pools.
        sweep: phis, distances, cells and rounds of a `pj.sweep`.
        assigned: matrices and their size, of the couplings of flows.
        copied: numbers in a copy.
        matrix: rows of a matrix.
        programs, loops: of the chains of multiply-adds.
    """

    phis: tuple[int, ...] = (32, 1024)
    distances: int = 8
    cells: int = 4096
    rounds: int = 100
    calls: tuple[int, ...] = (20, 2)
    pools: int = 256
    pool_cells: int = 4096
    pool_rounds: int = 25
    sweep: tuple[int, int, int, int] = (64, 32, 4096, 200)
    assigned: tuple[int, int] = (16, 128)
    copied: int = 2**28
    matrix: int = 8192
    programs: int = 2**13
    loops: int = 2**10


REHEARSAL = Sizes((2, 3), 2, 64, 20, (2, 1), 3, 64, 3, (2, 2, 64, 20), (2, 9), 2**12, 64, 2, 2)


# --- right? -----------------------------------------------------------------------------------------------------------


def landscapes(rewards: Any) -> Any:
    """G landscapes of rewards [G, m, n], as the ways of taking many rounds have them."""

    def one(rewards: Array) -> Any:
        phi = jnp.full(rewards.shape[0], 1 / rewards.shape[0], rewards.dtype)
        problem, multiplier = parts(pj.density.large_pool(pj.Landscape(rewards=rewards), phi))
        return problem._replace(phi=None, log_uniform=None), multiplier

    return jax.vmap(one)(jnp.asarray(rewards))


def problems() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rewards [G, m, n], phi [G, m, C] and starts [G, n, C] to try, none of them with a convenient number of cells."""
    rng = np.random.default_rng(0)

    def random(m: int, n: int, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rewards, phi = scale * rng.normal(size=(2, m, n)), rng.dirichlet(np.ones(m), size=(2, 3)).swapaxes(1, 2)
        return rewards, phi, np.log(rng.dirichlet(np.ones(n), size=(2, 3))).swapaxes(1, 2)

    x = np.linspace(-5.0, 20.0, 700)
    far = -0.25 * (x - np.array([[0.0], [15.0]])) ** 2
    return {
        **{f"m = {m}, {n} cells": random(m, n) for m, n in ((1, 100), (2, 1500), (3, 333), (5, 900))},
        "rewards of 1e4": random(2, 150, 1e4),
        "a far start": (far[None], np.array([[[0.4], [0.6]]]), (-0.5 * x**2)[None, :, None]),
    }


def in_float64(rewards: np.ndarray, phi: np.ndarray, log_p: np.ndarray, num_steps: int) -> np.ndarray:
    """Log-masses of one configuration after some rounds in log space."""
    r, log_p, used = (np.asarray(x, np.float64) for x in (rewards, log_p, phi))

    def log_sum(a: np.ndarray) -> np.ndarray:
        top = a.max(axis=-1, keepdims=True)
        return top + np.log(np.exp(a - top).sum(axis=-1, keepdims=True))

    with np.errstate(divide="ignore"):
        log_phi = np.log(used)[:, None]
    for _ in range(num_steps):
        log_p = log_p + log_sum((log_phi + r - log_sum(log_p + r)).T)[:, 0]
        log_p = log_p - log_sum(log_p)
    return log_p


def difference(a: Any, b: Any) -> float:
    """The largest, relative where numbers are large and absolute where they are small."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    same = a == b  # also where both are -inf
    return float(np.max(np.where(same, 0.0, np.abs(a - b) / (1 + np.abs(b))), where=~same, initial=0.0))


def check_large_pools(interpret: bool) -> dict[str, float]:
    """Largest differences of the rounds on the chip from the other two."""
    cases = [
        (name, problem, dtype)
        for name, problem in problems().items()
        for dtype in ((np.float32, np.float64) if name.startswith("m = 3") else (np.float32,))
    ]
    with ThreadPoolExecutor() as pool:  # compiling is most of it
        found = list(pool.map(lambda case: check_large_pool(*case, interpret), cases))
    return {name: x for case in found for name, x in case.items()}


def check_large_pool(name: str, problem: tuple[np.ndarray, ...], dtype: Any, interpret: bool) -> dict[str, float]:
    """The same for one problem."""
    with jax.enable_x64(dtype == np.float64):
        rewards, phi, log_p = (jnp.asarray(x.astype(dtype)) for x in problem)
        arguments = landscapes(rewards), phi, log_p
        ours = jax.jit(partial(on_chip.run, 40, 10, interpret=interpret))(*arguments)
        plain = jax.jit(partial(xla_rounds, 40, 10))(*arguments)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True)
    exact = [in_float64(rewards[g], phi[g, :, c], log_p[g, :, c], 40) for g, c in np.ndindex(len(phi), phi.shape[2])]
    got = np.asarray(ours[0]).swapaxes(1, 2).reshape(len(exact), -1)
    label = f"{name}, {np.dtype(dtype).name}"
    return {
        f"{label}, beside XLA": max(difference(a, b) for a, b in pairs),
        f"{label}, beside float64": difference(got, exact),
    }


def check_the_rest(sizes: Sizes) -> dict[str, float]:
    """Finite pools in a batch, and a sweep, beside NumPy."""
    pools = finite_pool.Workload(3, sizes.pool_cells, sizes.pool_rounds)
    mean = np.asarray(finite_pool.library(pools, on_all=False)().reward_mean)[:, -1]
    work = sweep.Workload.of(2, 2, 64, 20, pool_sizes=(10.0, np.inf))
    return {
        "finite pools in a batch": difference(mean, finite_pool.numpy_rounds(pools)()),
        "pj.sweep": difference(sweep.library(work)(), sweep.loop(work, work.phis, work.distances)()),
    }


def costs(num: int, size: int) -> Array:
    """Matrices to assign, [num, size, size]: products of noise with noise."""
    noise, samples = jax.random.normal(jax.random.key(3), (2, num, size, 300), jnp.float32)
    return -jnp.einsum("sid,sjd->sij", samples, noise, precision="highest")


def by_optax(cost: Array) -> Array:
    """The column of every row, all matrices in each step."""

    def one(cost: Array) -> Array:
        rows, columns = optax.assignment.hungarian_algorithm(cost)
        return jnp.zeros(len(cost), jnp.int32).at[rows].set(columns)

    return jax.vmap(one)(cost)


def check_assignments(sizes: Sizes, interpret: bool) -> dict[str, float]:
    """Prices of the assignments of a few matrices beside optax's, and whether each is a permutation."""
    found = {}
    for size in (sizes.assigned[1], 33):
        cost = costs(3, size)
        ours = jax.jit(partial(assignment.assign, interpret=interpret))(cost)
        theirs = jax.jit(by_optax)(cost)
        price = [np.take_along_axis(np.asarray(cost), np.asarray(x)[:, :, None], 2).sum((1, 2)) for x in (ours, theirs)]
        once = np.array_equal(np.sort(ours, axis=1), np.broadcast_to(np.arange(size), (3, size)))
        found[f"assignments of {size}, float32, beside optax"] = difference(*price) if once else np.inf
    return found


def limit(name: str) -> float:
    """What a difference may be: many roundings for large pools, and for finite ones the error of their quadrature as well."""
    if "float32," in name or "float64," in name:
        return 3e-4 if "float32," in name else 1e-10
    return 2e-3


# --- ceilings ---------------------------------------------------------------------------------------------------------


def multiply_adds(programs: int, loops: int, interpret: bool) -> tuple[Callable[[], Any], float]:
    """Chains in registers, eight for each of 128 threads, and how many operations they are."""
    cells = 8 * 128
    fma = on_chip_vectors.plain if interpret else on_chip_vectors.fused

    def chains(x: Any, out: Any) -> None:
        a = x[:] * 0.5

        def some(_: Array, y: Array) -> Array:
            for _ in range(_CHAIN):
                y = fma(y, a, a)
            return y

        out[:] = jax.lax.fori_loop(jnp.int32(0), jnp.int32(loops), some, x[:])

    call = pl.pallas_call(
        chains,
        grid=(programs,),
        in_specs=[pl.BlockSpec((cells,), lambda k: (k,))],
        out_specs=pl.BlockSpec((cells,), lambda k: (k,)),
        out_shape=jax.ShapeDtypeStruct((programs * cells,), jnp.float32),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
    )
    return partial(jax.jit(call), jnp.ones(programs * cells, jnp.float32)), 2.0 * programs * cells * _CHAIN * loops


class Plan(NamedTuple):
    """What is to be timed.

    Attributes:
        contenders: name -> function without arguments.
        result: of their seconds and of the rates of `ceilings`, what is reported.
    """

    contenders: dict[str, Callable[[], Any]]
    result: Callable[[dict[str, list[float]], dict[str, float]], Comparison]


def of_rate(operations: float, seconds: dict[str, list[float]], rate: float) -> dict[str, float]:
    """Which part of a rate in GFLOP/s each contender reaches."""
    return {name: operations / float(np.median(s)) / 1e9 / rate for name, s in seconds.items()}


def compile_all(functions: list[Callable[[], Any]]) -> None:
    """Call each once; compiling takes most of that, and many cores can share it."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda function: jax.block_until_ready(function()), functions))


FP32, PRODUCT = "multiply-adds in FP32, GFLOP/s", "matrix product in FP32, GFLOP/s"


def ceilings(sizes: Sizes, interpret: bool) -> dict[str, tuple[Callable[[], Any], float]]:
    """What the GPU can do at most, each with its bytes or operations."""
    x = jnp.ones(sizes.copied, jnp.float32)
    a = jax.random.normal(jax.random.key(0), (sizes.matrix, sizes.matrix), jnp.float32)
    product = 2.0 * sizes.matrix**3
    return {
        "copy, GB/s": (partial(jax.jit(lambda x: x + 1), x), 8.0 * sizes.copied),
        FP32: multiply_adds(sizes.programs, sizes.loops, interpret),
        PRODUCT: (partial(jax.jit(partial(jnp.matmul, precision="highest")), a, a), product),
        "matrix product by default (TF32), GFLOP/s": (partial(jax.jit(jnp.matmul), a, a), product),
    }


# --- fast? ------------------------------------------------------------------------------------------------------------


def in_a_row(function: Callable[[], Any], calls: int) -> Callable[[], Any]:
    """So many calls, and what the last one returned: the next one is on its way while the GPU works."""

    def run() -> Any:
        for _ in range(calls - 1):
            function()
        return function()

    return run


def large_pools(sizes: Sizes, batch: int, interpret: bool) -> list[Plan]:
    """Three ways of saving, each on the chip and by plain XLA; and, for the final numbers, a scan under vmap.

    Each leaves the final densities as it makes them: the kernel a row for each configuration, which is how a sweep has them,
    plain XLA a column.
    """
    work = tilt.Workload.of(sizes.phis[batch], sizes.distances, sizes.cells, sizes.rounds)
    calls = sizes.calls[batch]
    land = jax.jit(landscapes)(work.rewards())
    phi = jnp.broadcast_to(jnp.stack([work.phis, 1 - work.phis]), (sizes.distances, 2, len(work.phis)))
    log_p = jnp.full((sizes.distances, sizes.cells, 1), -np.log(sizes.cells), jnp.float32)
    operations = work.cell_steps * tilt_cost(2, len(work.phis)).operations

    def on_the_chip(every: int, *arguments: Any) -> Any:
        final, infos = on_chip.run(sizes.rounds, every, *arguments, interpret=interpret)
        return jnp.swapaxes(final, 1, 2), infos

    def plan(every: int, label: str) -> Plan:
        contenders: dict[str, Callable[[], Any]] = {
            XLA: partial(jax.jit(partial(xla_rounds, sizes.rounds, every)), land, phi, log_p),
            ON_CHIP: partial(jax.jit(partial(on_the_chip, every)), land, phi, log_p),
        }
        if every == sizes.rounds:
            contenders[tilt.SCAN] = tilt.scan_loop(work)

        def result(seconds: dict[str, list[float]], rates: dict[str, float]) -> Comparison:
            seconds = timing.scaled(seconds, dict.fromkeys(contenders, 1 / calls))
            return Comparison(
                name=f"large pools, {len(work.phis) * sizes.distances:,} configurations, {label}",
                workload=work.words,
                reference=XLA,
                seconds=seconds,
                unit="cell-steps",
                work=work.cell_steps,
                ceiling="multiply-adds in FP32",
                fractions=of_rate(operations, seconds, rates[FP32]),
            )

        return Plan({name: in_a_row(f, calls) for name, f in contenders.items()}, result)

    return [plan(sizes.rounds, "final"), plan(10, "every 10th round"), plan(1, "every round")]


def finite_pools(sizes: Sizes) -> Plan:
    """Rounds in a batch beside their two matrix products in the precision that they have, and in TF32."""
    work = finite_pool.Workload(sizes.pools, sizes.pool_cells, sizes.pool_rounds)
    table = work.table().reshape(-1, work.num_cells)
    table = jnp.asarray(table / np.linalg.norm(table, axis=1).sum())  # does not overflow, however many rounds
    start = jnp.full((work.num_phis, work.num_cells), 1 / work.num_cells, jnp.float32)

    def products(precision: str | None) -> Callable[[], Array]:
        def one(p: Array, _: None) -> tuple[Array, None]:
            return jnp.matmul(jnp.matmul(p, table.T, precision=precision), table, precision=precision), None

        return partial(jax.jit(lambda p: jax.lax.scan(one, p, length=work.num_steps)[0]), start)

    reference = "the two products in FP32"
    contenders = {
        reference: products("highest"),
        "the two products by default (TF32)": products(None),
        "library": finite_pool.library(work, on_all=False),
    }

    def result(seconds: dict[str, list[float]], rates: dict[str, float]) -> Comparison:
        return Comparison(
            name=f"finite pools, {work.num_phis} at a time",
            workload=work.words,
            reference=reference,
            seconds=seconds,
            unit="cell-steps",
            work=float(work.num_phis * work.num_cells * work.num_steps),
            ceiling="matrix product in FP32",
            fractions=of_rate(work.operations, seconds, rates[PRODUCT]),
        )

    return Plan(contenders, result)


def assignments(sizes: Sizes, interpret: bool) -> Plan:
    """The couplings of a group of training steps: each matrix on the chip, beside optax's with all matrices in each step."""
    num, size = sizes.assigned
    cost = costs(num, size)
    reference = "optax, vmap"
    contenders = {
        reference: partial(jax.jit(by_optax), cost),
        ON_CHIP: partial(jax.jit(partial(assignment.assign, interpret=interpret)), cost),
    }

    def result(seconds: dict[str, list[float]], rates: dict[str, float]) -> Comparison:
        del rates  # its steps wait for one another
        return Comparison(
            name="assignments",
            workload=f"{num} matrices of {size} x {size}",
            reference=reference,
            seconds=seconds,
            unit="matrices",
            work=float(num),
        )

    return Plan(contenders, result)


def whole_sweep(sizes: Sizes) -> Comparison:
    """A sweep as a user calls it, compilation and labels included; twice."""
    num_phis, distances, cells, rounds = sizes.sweep
    work = sweep.Workload.of(num_phis, distances, cells, rounds, every=rounds)
    return Comparison(
        name="pj.sweep",
        workload=work.words,
        reference=sweep.LIBRARY,
        seconds=timing.turns({sweep.LIBRARY: sweep.library(work)}, 2, warm=False),
        unit="cell-steps",
        work=work.cell_steps,
    )


def verdict(found: list[Comparison]) -> dict[str, dict[str, float]]:
    """For each batch of large pools with final numbers, what was wanted and what came out."""
    finals = [x for x in found if x.name.startswith("large pools") and x.name.endswith("final")]
    return {
        x.name: {
            "times the best XLA version": min(t.median for name, t in x.rows.items() if name != ON_CHIP)
            / x.rows[ON_CHIP].median,
            "of the FP32 rate": x.fractions[ON_CHIP],
        }
        for x in finals
    }


def main() -> int:
    """Check, measure, print, write; 1 where something is wrong, 2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, help="turns of each contender")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "gpu.json", help="where the JSON goes")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes and an interpreted kernel, on a CPU")
    args = parser.parse_args()
    if not args.rehearse and not _pallas.available():
        print(f"This needs an NVIDIA GPU that JAX can use, and JAX sees {jax.devices()}.", file=sys.stderr)
        return 2
    began = time.perf_counter()
    interpret, sizes = args.rehearse, REHEARSAL if args.rehearse else Sizes()
    repeats = args.repeats or (1 if interpret else 7)
    out = report.console()
    device = jax.devices()[0].device_kind
    checks = {**check_large_pools(interpret), **check_assignments(sizes, interpret), **check_the_rest(sizes)}
    wrong = {name: x for name, x in checks.items() if not x <= limit(name)}
    for name, x in checks.items():
        out.print(f"{name}: differs by {x:.1e}{'  WRONG' if name in wrong else ''}")
    if wrong:
        return 1
    swept = whole_sweep(sizes)  # compiles its own, and so does not disturb the others
    tops = ceilings(sizes, interpret)
    plans = [plan for batch in range(len(sizes.phis)) for plan in large_pools(sizes, batch, interpret)]
    plans += [finite_pools(sizes), assignments(sizes, interpret)]
    functions = {name: function for name, (function, _) in tops.items()}
    compile_all([*functions.values(), *(f for plan in plans for f in plan.contenders.values())])
    seconds = timing.turns(functions, repeats)
    rates = {name: work / min(seconds[name]) / 1e9 for name, (_, work) in tops.items()}
    found = [plan.result(timing.turns(plan.contenders, repeats), rates) for plan in plans]
    found.append(swept)
    report.print_comparisons(out, found)
    out.print({"ceilings": rates, "wanted": WANTED, "found": verdict(found)})
    content = {
        "device": device,
        "rehearsal": interpret,
        "machine": timing.machine(),
        "checks": checks,
        "ceilings": rates,
        "wanted": WANTED,
        "found": verdict(found),
        "comparisons": [x.to_json() for x in found],
        "seconds": time.perf_counter() - began,
    }
    timing.write_json(args.out, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
