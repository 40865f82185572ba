"""Seeds of E1 in one batched call, against a loop over NumPy and scikit-learn that does the same rounds.

    python -m benchmarks.retraining [--quick] [--out FILE]

256 seeds x 40 rounds: 1,000 candidates from a mixture, 500 draws by discrete choice under two preferences, a refit by EM (one
component in five rounds, two after). The peer runs one round after another with NumPy's generator and scikit-learn's
`GaussianMixture`, on as many seeds as fit the time, and is scaled; its linear algebra has one thread, with which it is the
fastest here (its own default makes threads wait for each other). The library's time is taken after one call that compiles, and
with that call.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 2)

import numpy as np  # noqa: E402
import threadpoolctl  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.mixture import GaussianMixture  # noqa: E402

import plural_jax as pj  # noqa: E402
from benchmarks.timing import machine, write_json  # noqa: E402
from plural_jax.experiments import mixtures  # noqa: E402

CENTERS = np.array([[-2.0, 0.0], [2.0, 0.0]])
ROUNDS, CANDIDATES, CURATED, ALONE, GAMMA = 40, 1000, 500, 5, 0.5


def peer(seed: int, phi: float = 0.5) -> np.ndarray:
    """One seed with NumPy and scikit-learn: reward variances of every round, [40, 2]."""
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


def _candidates(rng: np.random.Generator, model: GaussianMixture) -> np.ndarray:
    counts = rng.multinomial(CANDIDATES, model.weights_)
    parts = [
        rng.normal(size=(c, 2)) @ np.linalg.cholesky(s).T + m
        for c, m, s in zip(counts, model.means_, model.covariances_, strict=True)
    ]
    return np.concatenate(parts)


def main() -> None:
    """Time both and write a JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and turns")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/retraining.json"))
    args = parser.parse_args()
    seeds, few, turns = (64, 2, 1) if args.quick else (256, 8, 3)
    about = machine()
    config = mixtures.Config(num_seeds=seeds)
    result: dict = {"machine": about, "seeds": seeds, "rounds": ROUNDS, "turns": []}
    for turn in range(turns):
        start = time.perf_counter()
        ds = mixtures.run("e1", config)
        with_compile = time.perf_counter() - start
        run = _compiled(config)
        jax.block_until_ready(run())
        start = time.perf_counter()
        jax.block_until_ready(run())
        library = time.perf_counter() - start
        with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            start = time.perf_counter()
            theirs = np.stack([peer(seed) for seed in range(turn * few, (turn + 1) * few)])
            sklearn = (time.perf_counter() - start) * seeds / few
        ours = ds.reward_variance.isel(phi=0, distance=0, step=-1).values
        result["turns"].append(
            {
                "library, seconds": library,
                "pj.sweep with tracing and compilation, seconds": with_compile,
                "NumPy and scikit-learn, seconds": sklearn,
                "times faster": sklearn / library,
                "times faster with compilation": sklearn / with_compile,
                "median variance, library": np.median(ours, axis=0).tolist(),
                "median variance, scikit-learn": np.median(theirs[:, -1], axis=0).tolist(),
            }
        )
        print({k: v if isinstance(v, list) else round(v, 2) for k, v in result["turns"][-1].items()})
    for name in ("times faster", "times faster with compilation"):
        result[name] = float(np.median([t[name] for t in result["turns"]]))
        print(f"{name}: {result[name]:.0f} (median of {turns} turns)")
    write_json(args.out, result)


def _compiled(config: mixtures.Config):
    """The same computation as one function of seeds that stays compiled, seeds spread over the devices."""
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


if __name__ == "__main__":
    main()
