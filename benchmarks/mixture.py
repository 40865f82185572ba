"""EM of Gaussian mixtures against scikit-learn, on the same data and from the same start.

    python -m benchmarks.mixture [--quick] [--repeats N] [--out FILE]

From a given start and with tolerance 0, so that everyone takes the same number of EM steps: one small data set (a round of
retraining), one large one, and a batch of 256 small ones, which the library fits in one call under `vmap`. scikit-learn runs with
one thread and with as many as it takes by itself, and fits a batch one after another; of a batch it fits a part, and its time is
multiplied. Then whole fits with each one's own k-means start and tolerance. float32 on both sides. Unit: point-steps, one point
through one EM step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, PartitionSpec

import plural_jax as pj
from benchmarks import report, timing
from benchmarks.timing import Comparison

LIBRARY = "library"


class Workload(NamedTuple):
    """Data sets [B, n, d] of `k` separated clusters, and a start for each: weights [k], means [B, k, d], covariances."""

    data: np.ndarray
    means: np.ndarray
    num_steps: int

    @classmethod
    def of(cls, batch: int, n: int, d: int, k: int, num_steps: int) -> Workload:
        """Clusters at random centers; the start is near them, with unit covariances."""
        rng = np.random.default_rng(n)
        centers = 3.0 * rng.normal(size=(batch, k, d))
        data = np.take_along_axis(centers, rng.integers(k, size=(batch, n, 1)), axis=1) + rng.normal(size=(batch, n, d))
        start = centers + rng.normal(size=centers.shape)
        return cls(data.astype(np.float32), start.astype(np.float32), num_steps)

    @property
    def num_components(self) -> int:
        """Components k."""
        return self.means.shape[1]

    @property
    def words(self) -> str:
        """For the table."""
        batch, n, d = self.data.shape
        sets = "one data set" if batch == 1 else f"{batch} data sets"
        return f"{sets} of {n:,} points, d = {d}, {self.num_components} components, float32"


def library(work: Workload) -> Callable[[], Array]:
    """Final means, [B, k, d]; a batch is spread over the devices."""
    _, k, d = work.means.shape

    def one(x: Array, means: Array) -> Array:
        start = (jnp.full(k, 1 / k, x.dtype), means, jnp.broadcast_to(jnp.eye(d, dtype=x.dtype), (k, d, d)))
        return pj.models.em(x, None, start, tol=0.0, max_iter=work.num_steps).params.means

    return partial(_spread(one, len(work.data)), jnp.asarray(work.data), jnp.asarray(work.means))


def library_fit(work: Workload) -> Callable[[], Array]:
    """Whole fits with the model's k-means start; log-likelihoods, [B]."""
    _, k, d = work.means.shape

    def one(x: Array, seed: Array) -> Array:
        model = pj.models.gaussian_mixture(k, d)
        params = model.fit(jax.random.key(seed), model.init(jax.random.key(seed)), x, None)
        return model.log_prob(params, x).mean()

    return partial(_spread(one, len(work.data)), jnp.asarray(work.data), jnp.arange(len(work.data), dtype=jnp.uint32))


def _spread(one: Callable[..., Array], batch: int) -> Callable[..., Array]:
    """One of many, under vmap and on all devices if they divide the batch."""
    mapped = jax.vmap(one)
    if batch % jax.device_count() == 0:
        mesh = jax.make_mesh((jax.device_count(),), ("sets",), axis_types=(AxisType.Auto,))
        spec = PartitionSpec("sets")
        mapped = jax.shard_map(mapped, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped)


def sklearn_em(work: Workload, fits: int, threads: int | None) -> Callable[[], np.ndarray]:
    """The same steps from the same start on the first `fits` data sets, with this many threads or its own choice."""
    from sklearn.mixture import GaussianMixture

    _, k, d = work.means.shape

    def run() -> np.ndarray:
        found = []
        with _threads(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged is what tol=0 asks for
            for x, means in zip(work.data[:fits], work.means[:fits], strict=True):
                model = GaussianMixture(
                    k,
                    tol=0.0,
                    max_iter=work.num_steps,
                    weights_init=np.full(k, 1 / k, x.dtype),
                    means_init=means,
                    precisions_init=np.broadcast_to(np.eye(d, dtype=x.dtype), (k, d, d)),
                )
                found.append(model.fit(x).means_)
        return np.stack(found)

    return run


def sklearn_fit(work: Workload, fits: int, threads: int | None) -> Callable[[], np.ndarray]:
    """Whole fits as its users write them; log-likelihoods."""
    from sklearn.mixture import GaussianMixture

    def run() -> np.ndarray:
        with _threads(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models = [GaussianMixture(work.num_components, random_state=0).fit(x) for x in work.data[:fits]]
            return np.array([model.score(x) for model, x in zip(models, work.data[:fits], strict=True)])

    return run


def _threads(threads: int | None) -> AbstractContextManager[Any]:
    """All thread pools of NumPy, SciPy and scikit-learn at this size; threadpoolctl comes with scikit-learn."""
    if threads is None:
        return nullcontext()
    import threadpoolctl

    return threadpoolctl.threadpool_limits(threads)


def contenders(work: Workload, fits: int) -> dict[str, Callable[[], Any]]:
    """Each returns final means of the data sets that it fits."""
    found: dict[str, Callable[[], Any]] = {LIBRARY: library(work)}
    if timing.optional("sklearn") is not None:
        found["scikit-learn, one thread"] = sklearn_em(work, fits, 1)
        found["scikit-learn, its own threads"] = sklearn_em(work, fits, None)
    return found


def check(found: dict[str, Callable[[], Any]]) -> None:
    """The same steps from the same start end at the same means."""
    ours = np.asarray(found[LIBRARY]())
    for name, function in found.items():
        theirs = np.asarray(function())
        np.testing.assert_allclose(theirs, ours[: len(theirs)], atol=5e-3, err_msg=f"{name} and the library disagree.")


def compare(name: str, work: Workload, fits: int, repeats: int) -> Comparison:
    """EM steps; scikit-learn fits the first `fits` of the batch."""
    found = contenders(work, fits)
    check(found)
    batch, n, _ = work.data.shape
    factors = {name: batch / fits for name in found if name != LIBRARY and fits < batch}
    return Comparison(
        name=f"EM, {name}",
        workload=f"{work.words}, {work.num_steps} EM steps from a given start",
        reference=LIBRARY,
        seconds=timing.scaled(timing.turns(found, repeats), factors),
        unit="point-steps",
        work=float(batch * n * work.num_steps),
        scaled=factors,
    )


def compare_fits(work: Workload, fits: int, repeats: int) -> Comparison:
    """Whole fits; they need not take the same number of steps."""
    found: dict[str, Callable[[], Any]] = {LIBRARY: library_fit(work)}
    if timing.optional("sklearn") is not None:
        found["scikit-learn, one thread"] = sklearn_fit(work, fits, 1)
    score = {name: float(np.mean(np.asarray(function())[:fits])) for name, function in found.items()}
    batch = len(work.data)
    factors = {name: batch / fits for name in found if name != LIBRARY and fits < batch}
    return Comparison(
        name="EM, whole fits",
        workload=f"{work.words}, k-means and EM until the tolerance",
        reference=LIBRARY,
        seconds=timing.scaled(timing.turns(found, repeats), factors),
        unit="fits",
        work=batch,
        scaled=factors,
        notes=["mean log-likelihoods: " + ", ".join(f"{name} {value:.3f}" for name, value in score.items())],
    )


def measure(quick: bool, repeats: int | None) -> list[Comparison]:
    """One small, one large, a batch, and whole fits; quick: the batch alone, and less of it by scikit-learn."""
    batch = Workload.of(256, 500, 2, 2, 50)
    if quick:
        return [compare("a batch", batch, 8, repeats or 2)]
    return [
        compare("one small", Workload.of(1, 500, 2, 2, 50), 1, repeats or 15),
        compare("one large", Workload.of(1, 50_000, 8, 8, 10), 1, repeats or 5),
        compare("a batch", batch, 32, repeats or 9),
        compare_fits(batch, 32, repeats or 9),
    ]


if __name__ == "__main__":
    report.main("mixture", __doc__, measure, jax_num_cpu_devices=timing.cores())
