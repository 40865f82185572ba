"""How fast is the exact limit? The library against CVXPY with Clarabel and against plain tilting, in one run.

    python -m benchmarks.limit [--quick] [--repeats N] [--out FILE]

Workload: m preferences of random centers and random weights on a uniform 1-D grid of n cells, quadratic and bump rewards,
float64, from the uniform density. Every contender starts from the table of rewards; each answer's certificate
`F* - F(p) <= log max W` is computed in NumPy from the density that it returns. Tilting is the library's own fast rounds, in
blocks, until the certificate is small enough. CVXPY is optional (`pip install 'plural_jax[test]'`).
"""

from __future__ import annotations

import time
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

#: Rounds of tilting between two looks at the certificate.
BLOCK = 10_000
LIBRARY = "library"


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
    if timing.optional("cvxpy") is None:
        return {}
    return {"CVXPY, primal": partial(cvxpy_primal, work), "CVXPY, dual": partial(cvxpy_dual, work)}


def check(work: Workload) -> dict[str, float | None]:
    """The gap of everyone's answer: all bound the same optimum, so small gaps mean that all agree."""
    limit = library(work)()
    gaps = {LIBRARY: work.gap(np.exp(np.asarray(limit.log_p)))}
    gaps |= {name: work.gap(solve()) for name, solve in general_solvers(work).items()}
    assert gaps[LIBRARY] is not None and gaps[LIBRARY] < 1e-9, gaps
    assert all(gap is None or gap < 1e-3 for gap in gaps.values()), gaps
    return gaps


def tilting(work: Workload) -> tuple[pj.Process, Any]:
    """The process and its start."""
    process = pj.density.large_pool(pj.Landscape(rewards=work.rewards), work.phi)
    return process, process.init()


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


def against_others(kind: str, repeats: int, most_rounds: int) -> Comparison:
    """N = 10,000, m = 5: everyone in turns, then one run of tilting from start to end."""
    work = Workload.of(kind, 5, 10_000)
    ours, others = library(work), general_solvers(work)
    _solve.clear_cache()  # so that each kind has a first call of its own
    start = time.perf_counter()
    limit = jax.block_until_ready(ours())
    first_call = time.perf_counter() - start
    gaps = check(work)
    # A solver that gives up is no measure of anything.
    failed = [name for name in others if gaps[name] is None]
    seconds = timing.turns({LIBRARY: ours, **{n: f for n, f in others.items() if n not in failed}}, repeats)
    tilt = tilt_until(work, 1e-6, most_rounds)
    seconds[f"tilting to a gap of {tilt['gap']:.0e}, {tilt['rounds']:,} rounds"] = [tilt["seconds"]]
    notes = ["gaps: " + ", ".join(f"{name} {gap:.0e}" for name, gap in gaps.items() if gap is not None)]
    notes += [f"{name} did not solve it" for name in failed]
    return Comparison(
        name=f"limit, {kind}",
        workload="10,000 cells, m = 5, float64, every contender with its own set-up",
        reference=LIBRARY,
        seconds=seconds,
        unit="solutions",
        notes=[*notes, f"the library's first call compiles and takes {first_call:.1f} s"],
        extra={"passes": int(limit.num_steps), "first call": first_call, "gaps": gaps, "tilting": tilt},
    )


def alone(kind: str, m: int, n: int, repeats: int) -> dict[str, Any]:
    """The library by itself at one size."""
    work = Workload.of(kind, m, n)
    solve = library(work)
    limit = solve()
    t = timing.interleaved({LIBRARY: solve}, repeats)[LIBRARY]
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


def by_size(repeats: int) -> Comparison:
    """The library at sizes that no peer reaches, relative to 10,000 cells and m = 5."""
    sizes = [(m, 10_000) for m in (2, 5, 20, 50)] + [(5, 1_000_000), (50, 1_000_000)]
    kinds = ("quadratic", "bump")
    rows = [alone(kind, m, n, repeats if n < 1e6 else 3) for m, n in sizes for kind in kinds]
    names = [f"{row['kind']}, {row['n']:,} cells, m = {row['m']}" for row in rows]
    largest = max(row["gap"] for row in rows)
    return Comparison(
        name="limit, by size",
        workload="the library alone, float64",
        reference="quadratic, 10,000 cells, m = 5",
        seconds={name: [*row["seconds"].values()] for name, row in zip(names, rows, strict=True)},
        unit="solutions",
        notes=[
            f"the largest gap is {largest:.0e}",
            f"{sum(row['converged'] for row in rows)} of {len(rows)} converged",
        ],
        extra={"rows": rows},
    )


def batch(num_phis: int, m: int, n: int, repeats: int) -> Comparison:
    """Many phis of one landscape under `vmap`, against one after another."""
    work = Workload.of("quadratic", m, n)
    phis = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(m), size=num_phis))
    rewards = jnp.asarray(work.rewards)
    together = partial(jax.jit(jax.vmap(_solve, (None, 0))), rewards, phis)

    def in_turn() -> list[Any]:
        return [jax.block_until_ready(_solve(rewards, phi)) for phi in phis]

    converged = int(together().converged.sum())
    return Comparison(
        name="limit, in a batch",
        workload=f"{num_phis} phis, {n:,} cells, m = {m}, quadratic, float64",
        reference="library, vmap",
        seconds=timing.turns({"library, vmap": together, "library, one after another": in_turn}, repeats),
        unit="solutions",
        work=num_phis,
        notes=[f"{converged} of {num_phis} converged"],
    )


def measure(quick: bool, repeats: int | None) -> list[Comparison]:
    """Two landscapes against others, then the library alone; quick: the first alone, and short tilting."""
    if quick:
        return [against_others("quadratic", repeats or 2, 20_000)]
    repeats = repeats or 7
    compared = [against_others(kind, repeats, 30_000_000) for kind in ("quadratic", "bump")]
    return [*compared, by_size(repeats), batch(256, 3, 2_000, repeats)]


if __name__ == "__main__":
    report.main("limit", __doc__, measure, jax_enable_x64=True)
