"""Seeds of E1 in one batched call, against a loop over NumPy and scikit-learn that does the same rounds.

    python -m benchmarks.retraining [--quick] [--repeats N] [--out FILE]

256 seeds x 40 rounds: 1,000 candidates from a mixture, 500 draws by discrete choice under two preferences, a refit by EM (one
component in five rounds, two after). The peer runs one round after another with NumPy's generator and scikit-learn's
`GaussianMixture`, on as many seeds as fit the time, and is scaled; its linear algebra has one thread, with which it is the
fastest here (its own default makes threads wait for each other). The library's time is taken once compiled, and as a whole
`pj.sweep` with tracing, compilation and all summaries. Unit: rounds of one seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import plural_jax as pj
from benchmarks import report, timing
from benchmarks.timing import Comparison
from plural_jax.experiments import mixtures

CENTERS = np.array([[-2.0, 0.0], [2.0, 0.0]])
ROUNDS, CANDIDATES, CURATED, ALONE, GAMMA = 40, 1000, 500, 5, 0.5
LIBRARY, SWEEP, PEER = "library, compiled", "pj.sweep, with compilation", "NumPy and scikit-learn, one thread"


def peer(seed: int, phi: float = 0.5) -> np.ndarray:
    """One seed with NumPy and scikit-learn: reward variances of every round, [40, 2]."""
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(seed)
    model = GaussianMixture(1).fit(rng.normal(size=(1000, 2)))
    variances = []
    x = _candidates(rng, model)
    for t in range(ROUNDS):
        reward = -GAMMA * ((x[:, None] - CENTERS) ** 2).sum(-1).T
        odds = np.exp(reward - reward.max(axis=1, keepdims=True))
        ends = (odds / odds.sum(axis=1, keepdims=True)).cumsum(axis=1)
        active = (rng.random(CURATED) >= phi).astype(int)
        at = rng.random(CURATED)
        picked = np.empty(CURATED, int)
        for i in (0, 1):
            mine = active == i
            picked[mine] = np.minimum(np.searchsorted(ends[i], at[mine], side="right"), CANDIDATES - 1)
        model = GaussianMixture(1 if t < ALONE else 2, random_state=seed).fit(x[picked])
        x = _candidates(rng, model)
        variances.append((-GAMMA * ((x[:, None] - CENTERS) ** 2).sum(-1)).var(axis=0))
    return np.array(variances)


def peers(few: int) -> np.ndarray:
    """`few` seeds one after another: variances after the last round, [few, 2]."""
    import threadpoolctl

    with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EM that stops at its limit
        return np.stack([peer(seed)[-1] for seed in range(few)])


def _candidates(rng: np.random.Generator, model: Any) -> np.ndarray:
    counts = rng.multinomial(CANDIDATES, model.weights_)
    parts = [
        rng.normal(size=(c, 2)) @ np.linalg.cholesky(s).T + m
        for c, m, s in zip(counts, model.means_, model.covariances_, strict=True)
    ]
    return np.concatenate(parts)


def library(config: mixtures.Config) -> Callable[[], jax.Array]:
    """One function of seeds that stays compiled, seeds spread over the devices: variances of every round, [seeds, 40, 2]."""
    reward = pj.rewards.quadratic(CENTERS, config.gamma)

    def one(seed: jax.Array) -> jax.Array:
        process = pj.retraining.loop(
            pj.models.gaussian_mixture(2, 2, one_component_rounds=config.one_component_rounds),
            reward,
            [0.5, 0.5],
            num_candidates=config.num_candidates,
            num_curated=config.num_curated,
        )
        first, rest = jax.random.split(jax.random.fold_in(jax.random.key(1), seed))
        return pj.run(process, process.init(first), config.num_steps, key=rest)[1].reward_variance

    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("seeds")
    mapped = jax.jit(
        jax.shard_map(
            lambda seeds: jax.lax.map(one, seeds, batch_size=16),
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
            check_vma=False,
        )
    )
    seeds = np.arange(config.num_seeds, dtype=np.uint32)
    return lambda: mapped(seeds)


def measure(quick: bool, repeats: int | None) -> list[Comparison]:
    """256 seeds, 8 of them by the peer; quick: 64 and 2, and no sweep."""
    seeds, few, repeats = (64, 2, repeats or 2) if quick else (256, 8, repeats or 3)
    config = mixtures.Config(num_seeds=seeds, num_steps=ROUNDS)
    ours = library(config)
    factors: dict[str, float] = {}
    found: dict[str, Callable[[], Any]] = {LIBRARY: ours}
    notes = [f"median variances at the end: library {_shown(np.asarray(ours())[:, -1])}"]
    if timing.optional("sklearn") is not None:
        found[PEER], factors[PEER] = lambda: peers(few), seeds / few
        notes.append(f"scikit-learn {_shown(peers(few))}")
    seconds = timing.turns(found, repeats)
    if not quick:
        seconds |= timing.turns({SWEEP: lambda: mixtures.run("e1", config)}, repeats, warm=False)
    return [
        Comparison(
            name="retraining",
            workload=f"{seeds} seeds of E1, {ROUNDS} rounds of {CANDIDATES:,} candidates, {CURATED} draws and EM, float32",
            reference=LIBRARY,
            seconds=timing.scaled(seconds, factors),
            unit="rounds",
            work=float(seeds * ROUNDS),
            scaled=factors,
            notes=notes,
        )
    ]


def _shown(variances: np.ndarray) -> str:
    return " and ".join(f"{v:.1f}" for v in np.median(variances, axis=0))


if __name__ == "__main__":
    report.main("retraining", __doc__, measure, jax_num_cpu_devices=timing.cores())
