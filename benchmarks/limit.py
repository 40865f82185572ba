"""How fast is the exact limit? The library against CVXPY with Clarabel and against plain tilting, in one run.

    python -m benchmarks.limit [--quick] [--repeats N] [--out FILE]

Workload: m preferences of random centers and random weights on a uniform 1-D grid of n cells, quadratic and bump rewards,
float64, from the uniform density. Every contender starts from the table of rewards; each answer's certificate
`F* - F(p) <= log max W` is computed in NumPy from the density that it returns. Tilting is the library's own fast rounds, in
blocks, until the certificate is small enough. CVXPY is optional (`pip install 'plural_jax[test]'`).
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

import plural_jax as pj
from benchmarks import timing

#: Rounds of tilting between two looks at the certificate.
BLOCK = 10_000


class Workload(NamedTuple):
    """One landscape in numbers: rewards [m, n] and weights [m]."""

    rewards: np.ndarray
    phi: np.ndarray

    @classmethod
    def of(cls, kind: str, m: int, n: int, seed: int = 0) -> Workload:
        """Centers uniform in [-4, 4] on a grid over [-5, 5], weights uniform on the simplex."""
        rng = np.random.default_rng(seed)
        centers = rng.uniform(-4.0, 4.0, (m, 1))
        reward = {
            "quadratic": pj.rewards.quadratic(centers, gamma=0.5),
            "bump": pj.rewards.bump(centers, height=5.0, width=1.0),
        }[kind]
        land = pj.Landscape.on(pj.Grid.uniform(-5.0, 5.0, n), reward)
        return cls(np.asarray(land.rewards), rng.dirichlet(np.ones(m)))

    def gap(self, p: np.ndarray | None) -> float | None:
        """The certificate of a density, log max W, in NumPy; None where there is no density."""
        if p is None:
            return None
        p = np.maximum(p, 0.0)
        tilt = np.exp(self.rewards - self.rewards.max(axis=1, keepdims=True))
        return float(np.log(np.max((self.phi / (tilt @ p)) @ tilt) * p.sum()))


@jax.jit
def _solve(rewards: Array, phi: Array) -> pj.density.Limit:
    return pj.density.solve_limit(pj.Landscape(rewards=rewards), phi)


def library(work: Workload) -> Callable[[], pj.density.Limit]:
    """Compiled before the clock starts, as whoever solves more than once has it."""
    return partial(_solve, jnp.asarray(work.rewards), jnp.asarray(work.phi))


def cvxpy_primal(work: Workload) -> np.ndarray | None:
    """The density that maximizes F, as one states it: n unknowns; with set-up."""
    import cvxpy as cp

    tilt = np.exp(work.rewards - work.rewards.max(axis=1, keepdims=True))
    p = cp.Variable(tilt.shape[1], nonneg=True)
    problem = cp.Problem(cp.Maximize(work.phi @ cp.log(tilt @ p)), [cp.sum(p) == 1])
    return p.value if _succeeds(problem) else None


def cvxpy_dual(work: Workload) -> np.ndarray | None:
    """The same as its dual with m unknowns, whose multipliers are the density; with set-up."""
    import cvxpy as cp

    tilt = np.exp(work.rewards - work.rewards.max(axis=1, keepdims=True))
    u = cp.Variable(tilt.shape[0])
    problem = cp.Problem(cp.Maximize(work.phi @ cp.log(u)), [tilt.T @ u <= 1])
    if not _succeeds(problem):
        return None
    p = np.maximum(problem.constraints[0].dual_value, 0.0)
    return p / p.sum()


def _succeeds(problem: Any) -> bool:
    """Solve with Clarabel; it gives up on some problems, and then says so."""
    import cvxpy as cp

    try:
        problem.solve(solver=cp.CLARABEL)
    except cp.error.SolverError:
        return False
    return problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)


def general_solvers(work: Workload) -> dict[str, Callable[[], np.ndarray | None]]:
    """CVXPY's two formulations; none without CVXPY."""
    try:
        import cvxpy  # noqa: F401
    except ImportError:
        return {}
    return {"CVXPY, primal": partial(cvxpy_primal, work), "CVXPY, dual": partial(cvxpy_dual, work)}


def tilting(work: Workload) -> tuple[pj.Process, Any]:
    """The process and its start."""
    process = pj.density.large_pool(pj.Landscape(rewards=work.rewards), work.phi)
    return process, process.init()


def one_block(work: Workload) -> Callable[[], Any]:
    """`BLOCK` rounds from the start."""
    process, state = tilting(work)
    return lambda: pj.run(process, state, BLOCK, save="final")


def tilt_until(work: Workload, gap: float, most: int) -> dict[str, Any]:
    """Tilt in blocks until the certificate is at most `gap`, and what a 1e-10 would take by the law measured on the way.

    The law is the certificate's fitted power of the number of rounds over the last decade of rounds.
    """
    process, state = tilting(work)
    jax.block_until_ready(pj.run(process, state, BLOCK, save="final"))  # compile
    gaps: list[float] = []
    start = time.perf_counter()
    while not gaps or (gaps[-1] > gap and len(gaps) * BLOCK < most):
        state, info = pj.run(process, state, BLOCK, save="final")
        gaps.append(float(info.log_max_w[0]))
    seconds = time.perf_counter() - start
    rounds = BLOCK * np.arange(1, len(gaps) + 1)
    last = rounds >= rounds[-1] / 10
    found: dict[str, Any] = {
        "rounds": int(rounds[-1]),
        "seconds": seconds,
        "gap": gaps[-1],
        "gap_in_numpy": work.gap(np.exp(np.asarray(state.log_p))),
        "reached": gaps[-1] <= gap,
    }
    if last.sum() >= 3:
        power, level = np.polyfit(np.log(rounds[last]), np.log(np.asarray(gaps)[last]), 1)
        found["power_of_rounds"] = float(power)
        found["extrapolated_rounds_to_1e-10"] = float(np.exp((np.log(1e-10) - level) / power))
        found["extrapolated_seconds_to_1e-10"] = found["extrapolated_rounds_to_1e-10"] * seconds / found["rounds"]
    return found


def against_others(kind: str, repeats: int, most_rounds: int) -> dict[str, Any]:
    """N = 10,000, m = 5: everyone in turns, then one run of tilting from start to end."""
    work = Workload.of(kind, 5, 10_000)
    ours, others = library(work), general_solvers(work)
    _solve.clear_cache()  # so that each kind has a first call of its own
    start = time.perf_counter()
    limit = jax.block_until_ready(ours())
    first_call = time.perf_counter() - start
    gaps = {"library": work.gap(np.exp(np.asarray(limit.log_p)))}
    gaps |= {name: work.gap(solve()) for name, solve in others.items()}
    block = f"tilting, {BLOCK} rounds"
    times = timing.interleaved({"library": ours, **others, block: one_block(work)}, repeats)
    return {
        "n": 10_000,
        "m": 5,
        "passes": int(limit.num_steps),
        "first_call_seconds": first_call,
        "seconds": {name: t._asdict() for name, t in times.items()},
        "gaps": gaps,
        "tilting_to_1e-6": tilt_until(work, 1e-6, most_rounds),
        # A solver that gives up is no measure of anything.
        "times_library": {
            name: times[name].median / times["library"].median for name in others if gaps[name] is not None
        },
    }


def alone(kind: str, m: int, n: int, repeats: int) -> dict[str, Any]:
    """The library by itself at one size."""
    work = Workload.of(kind, m, n)
    solve = library(work)
    limit = solve()
    t = timing.interleaved({"library": solve}, repeats)["library"]
    return {
        "kind": kind,
        "n": n,
        "m": m,
        "seconds": t._asdict(),
        "passes": int(limit.num_steps),
        "atoms": int((limit.weights > 0).sum()),
        "gap": work.gap(np.exp(np.asarray(limit.log_p))),
        "converged": bool(limit.converged),
    }


def batch(num_phis: int, m: int, n: int, repeats: int) -> dict[str, Any]:
    """Many phis of one landscape under `vmap`."""
    work = Workload.of("quadratic", m, n)
    phis = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(m), size=num_phis))
    solve = partial(jax.jit(jax.vmap(_solve, (None, 0))), jnp.asarray(work.rewards), phis)
    limit = solve()
    t = timing.interleaved({"library": solve}, repeats)["library"]
    return {
        "n": n,
        "m": m,
        "phis": num_phis,
        "seconds": t._asdict(),
        "seconds_per_solve": t.median / num_phis,
        "most_passes": int(limit.num_steps.max()),
        "largest_gap": float(limit.gap.max()),
        "converged": int(limit.converged.sum()),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="few repeats, short tilting, no million cells; two minutes"
    )
    parser.add_argument("--repeats", type=int, help="turns of each contender (default 7, quick 3)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/limit.json"), help="where the JSON goes")
    args = parser.parse_args()
    repeats = args.repeats or (3 if args.quick else 7)
    jax.config.update("jax_enable_x64", True)
    cores = len(os.sched_getaffinity(0))
    where = timing.machine() | {"cores_used": cores}
    kinds = ("quadratic", "bump")
    compared = {kind: against_others(kind, repeats, 100_000 if args.quick else 30_000_000) for kind in kinds}
    sizes = [(m, 10_000) for m in (2, 5, 20, 50)] + ([] if args.quick else [(5, 1_000_000), (50, 1_000_000)])
    by_size = [alone(kind, m, n, repeats if n < 1e6 else 3) for m, n in sizes for kind in kinds]
    batched = batch(256, 3, 2_000, repeats)

    print(f"{where['cpu']}, {cores} of {where['cpu_count']} cores, load {where['load_before']:.1f} before")
    for kind, found in compared.items():
        print(f"\n{kind}, n = {found['n']}, m = {found['m']}, {found['passes']} passes; first call ", end="")
        print(f"{found['first_call_seconds']:.1f} s\n{'':24s}{'ms':>10s}{'x library':>11s}{'gap':>10s}")
        base = found["seconds"]["library"]["median"]
        for name, seconds in found["seconds"].items():
            gap = (
                "" if name not in found["gaps"] else "  failed" if (g := found["gaps"][name]) is None else f"{g:10.1e}"
            )
            print(f"{name:24s}{1e3 * seconds['median']:10.2f}{seconds['median'] / base:11.1f}{gap}")
        tilt = found["tilting_to_1e-6"]
        print(f"{'tilting':24s}{1e3 * tilt['seconds']:10.0f}{tilt['seconds'] / base:11.0f}{tilt['gap']:10.1e}", end="")
        print(f"   {tilt['rounds']} rounds{'' if tilt['reached'] else ', not there yet'}")
        if "power_of_rounds" in tilt:
            print(f"{'  to 1e-10, extrapolated':24s}{1e3 * tilt['extrapolated_seconds_to_1e-10']:10.0f}", end="")
            print(f"   {tilt['extrapolated_rounds_to_1e-10']:.1e} rounds, gap ~ rounds^{tilt['power_of_rounds']:.2f}")
    print(f"\n{'library alone':14s}{'n':>9s}{'m':>4s}{'ms':>10s}{'passes':>8s}{'atoms':>7s}{'gap':>10s}")
    for row in by_size:
        print(f"{row['kind']:14s}{row['n']:9d}{row['m']:4d}{1e3 * row['seconds']['median']:10.2f}", end="")
        print(f"{row['passes']:8d}{row['atoms']:7d}{row['gap']:10.1e}{'' if row['converged'] else '  not converged'}")
    print(f"\n256 phis x n = 2,000, m = 3: {1e3 * batched['seconds_per_solve']:.3f} ms per solve")
    timing.write_json(
        args.out,
        {
            "machine": where,
            "repeats": repeats,
            "compared": compared,
            "by_size": by_size,
            "batch": batched,
        },
    )


if __name__ == "__main__":
    main()
