"""The cost of an exact finite-K round beside its two matrix products, and beside Monte Carlo at the same accuracy.

    python -m benchmarks.finite_pool [--quick] [--repeats N] [--out FILE]

With J quadrature nodes, n cells and C configurations that share a table E of exponentials, [m J, n], a round is `L = p E^T`,
powers of L, and `H = g E`: 4 m J n C operations in two products (see `plural_jax.density.quadrature`). Peers do the two products
and nothing else, and NumPy also whole rounds. The ceiling is the fastest product of two square matrices that XLA or NumPy
reach on this machine, in the same turns. Monte Carlo draws the other K - 1 candidates instead; it is compared by its error.
Two or five bumps on a 1-D grid, K = 10, J = 16, float32. What is done to each cell beside the products costs the same with
any number of preferences, so that the more there are the closer a round is to its products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import plural_jax as pj
from benchmarks import report, timing
from benchmarks.ceilings import matrix_products
from benchmarks.timing import Comparison, Timing
from plural_jax.density.quadrature import short_rule

POOL_SIZE = 10.0
#: Rewards between 0 and 5; the library takes as many nodes, see `plural_jax.density.quadrature`.
HEIGHT, NUM_NODES = 5.0, 16
LIBRARY, ONE_DEVICE = "library, a share on each device", "library, one device"
BY_HAND = "NumPy, whole rounds"
REFERENCE = "XLA, the two products"


class Workload(NamedTuple):
    """Configurations that differ in phi alone."""

    num_phis: int
    num_cells: int
    num_steps: int
    num_preferences: int = 2

    @property
    def words(self) -> str:
        """For the table."""
        what = "configuration" if self.num_phis == 1 else "configurations"
        return (
            f"{self.num_phis} {what}, {self.num_cells:,} cells, {self.num_steps} rounds, K = {POOL_SIZE:g}, "
            f"m = {self.num_preferences}, J = {NUM_NODES}, float32"
        )

    @property
    def operations(self) -> float:
        """Multiplications and additions of the two products in all rounds."""
        return 4.0 * self.num_preferences * NUM_NODES * self.num_cells * self.num_phis * self.num_steps

    @property
    def phis(self) -> np.ndarray:
        """Weights of all preferences, [C, m]: the first's from 0.1 to 0.9, the others' equal."""
        first = np.linspace(0.1, 0.9, self.num_phis)[:, None]
        others = np.repeat((1 - first) / (self.num_preferences - 1), self.num_preferences - 1, axis=1)
        return np.concatenate([first, others], axis=1).astype(np.float32)

    def landscape(self) -> pj.Landscape:
        """Bumps on a line."""
        centers = np.linspace(-2.0, 2.0, self.num_preferences, dtype=np.float32)[:, None]
        return pj.Landscape.on(
            pj.Grid.uniform(-5.0, 5.0, self.num_cells),
            pj.rewards.bump(centers, HEIGHT, 1.0),
        )

    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """The library's: s and the weights of `K int ds`, [J]."""
        found = short_rule(HEIGHT)
        assert found is not None and len(found[0]) == NUM_NODES
        log_t, log_w = found
        return np.exp(log_t) / POOL_SIZE, np.exp(log_w)

    def table(self) -> np.ndarray:
        """exp(-s A), [m, J, n]."""
        r = np.asarray(self.landscape().rewards, np.float64)
        a = np.exp(r - r.max(axis=1, keepdims=True))
        return np.exp(-self.nodes()[0][:, None] * a[:, None]).astype(np.float32)


def library(work: Workload, on_all: bool) -> Callable[[], Any]:
    """Rounds of several phi, nothing saved on the way: as one call, or as `pj.sweep` has it, each device with its share."""
    land = work.landscape()

    def one(phi: Array) -> Any:
        process = pj.density.finite_pool(land, phi, pool_size=POOL_SIZE)
        return pj.run(process, process.init(), work.num_steps, save="final")[1]

    rows, phis = jax.vmap(one), jnp.asarray(work.phis)
    if on_all:
        mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
        spec = PartitionSpec("rows")
        rows = jax.shard_map(rows, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        phis = jax.device_put(phis, NamedSharding(mesh, spec))
    return partial(jax.jit(rows), phis)


def products(work: Workload, quick: bool = False) -> dict[str, Callable[[], Any]]:
    """The two matrix products of a round and nothing else, by XLA, NumPy and PyTorch; each returns what it ends with, [C, n].

    Quick: without PyTorch, which takes longest, and seconds to import.
    """
    table = work.table().reshape(-1, work.num_cells)
    table /= np.linalg.norm(table, 2)  # neither overflows nor underflows, however many rounds
    transposed = np.ascontiguousarray(table.T)
    start = np.full((work.num_phis, work.num_cells), 1 / work.num_cells, np.float32)

    @jax.jit
    def in_xla(table: Array, transposed: Array, p: Array) -> Array:
        # With a transposed copy: from `p @ table.T` XLA would make one in every round.
        return jax.lax.scan(lambda p, _: ((p @ transposed) @ table, None), p, length=work.num_steps)[0]

    def in_numpy() -> np.ndarray:
        p = start
        for _ in range(work.num_steps):
            p = (p @ transposed) @ table
        return p

    found: dict[str, Callable[[], Any]] = {
        REFERENCE: partial(in_xla, *(jnp.asarray(x) for x in (table, transposed, start))),
        "NumPy, the two products": in_numpy,
    }
    torch = None if quick else timing.optional("torch")
    if torch is not None:
        on_torch = [torch.from_numpy(x) for x in (table, transposed)]

        @torch.inference_mode()
        def in_torch() -> np.ndarray:
            p = torch.from_numpy(start)
            for _ in range(work.num_steps):
                p = (p @ on_torch[1]) @ on_torch[0]
            return p.numpy()

        found["PyTorch, the two products"] = in_torch
    return found


def numpy_rounds(work: Workload) -> Callable[[], np.ndarray]:
    """Whole rounds with NumPy; returns the mean rewards, [C, m]."""
    rewards = np.asarray(work.landscape().rewards)
    a = np.exp(rewards - rewards.max(axis=1, keepdims=True))
    table = work.table()
    flat = table.reshape(-1, work.num_cells)
    transposed = np.ascontiguousarray(flat.T)
    # The factor A of H belongs to the table of the second product.
    second = (a[:, None] * table).reshape(-1, work.num_cells)
    phi = np.repeat(work.phis, NUM_NODES, axis=1)
    weights = phi * np.tile(work.nodes()[1].astype(np.float32), work.num_preferences)
    power = np.float32(POOL_SIZE - 1)

    def rounds() -> np.ndarray:
        p = np.full((work.num_phis, work.num_cells), 1 / work.num_cells, np.float32)
        for _ in range(work.num_steps):
            p = p * ((weights * (p @ transposed) ** power) @ second)
            p /= p.sum(axis=1, keepdims=True)
        return p @ rewards.T

    return rounds


def contenders(work: Workload, quick: bool = False) -> dict[str, Callable[[], Any]]:
    """The products alone, whole rounds by hand, and the library in two ways; quick: in the faster one where there are two."""
    ours = {ONE_DEVICE: library(work, on_all=False)}
    if work.num_phis % jax.device_count() == 0 and jax.device_count() > 1:
        ours = ({} if quick else ours) | {LIBRARY: library(work, on_all=True)}
    return {**products(work, quick), BY_HAND: numpy_rounds(work), **ours}


def check(found: dict[str, Callable[[], Any]]) -> None:
    """Whole rounds end with the same mean rewards, and the products of all with the same numbers."""
    mean = found[BY_HAND]()
    for name in (ONE_DEVICE, LIBRARY):
        if name in found:
            ours = np.asarray(found[name]().reward_mean)[:, -1]
            np.testing.assert_allclose(ours, mean, atol=2e-3, err_msg="NumPy and the library disagree.")
    first, *rest = (np.asarray(function()) for name, function in found.items() if name.endswith("products"))
    for other in rest:
        np.testing.assert_allclose(other, first, rtol=1e-3)


def rounds(work: Workload, found: dict[str, Callable[[], Any]], size: int, repeats: int) -> Comparison:
    """The library beside the peers, and all of them beside the product of two matrices of `size`."""
    check(found)
    ceilings = matrix_products(size)
    seconds = timing.turns({**ceilings, **found}, repeats)
    # The faster of the two in every turn, so that whatever else the machine does slows down both sides of the ratio.
    rate = 2.0 * size**3 / np.min([seconds.pop(name) for name in ceilings], axis=0)
    fastest = min((name for name in (ONE_DEVICE, LIBRARY) if name in found), key=lambda n: np.median(seconds[n]))
    speed = {name: work.operations / np.asarray(s) for name, s in seconds.items()}
    name = f"finite K, {work.num_phis} at a time" if work.num_phis > 1 else f"finite K, one alone, {work.num_cells}"
    return Comparison(
        name=name if work.num_preferences == 2 else f"{name}, m = {work.num_preferences}",
        workload=work.words,
        reference=REFERENCE,
        seconds=seconds,
        unit="cell-steps",
        work=float(work.num_phis * work.num_cells * work.num_steps),
        ceiling="matrix product",
        fractions={name: float(np.median(values / rate)) for name, values in speed.items()},
        extra={
            "matrix product GFLOP/s": float(np.median(rate)) / 1e9,
            "GFLOP/s": {name: float(np.median(values)) / 1e9 for name, values in speed.items()},
            "roofline": {
                "rule": "finite_pool",
                "arguments": {"m": work.num_preferences, "nodes": NUM_NODES, "configurations": work.num_phis},
                "contender": fastest,
            },
            "microseconds per round": Timing.of(seconds[fastest]).median / work.num_steps * 1e6,
        },
    )


def pools(draws: int, repeats: int) -> Comparison:
    """One evaluation of H for one reward: the quadrature, and Monte Carlo with the error that it has after `draws` pools."""
    land = pj.Landscape.on(pj.Grid.uniform(-5.0, 5.0, 1024), pj.rewards.bump(np.array([[-2.0]], np.float32), 5.0, 1.0))
    process = pj.density.finite_pool(land, [1.0], pool_size=POOL_SIZE)
    a, log_p = jnp.exp(land.rewards[0]), land.uniform()

    @jax.jit
    def quadrature(process: Any, log_p: Array) -> Array:
        return process.init(log_p).log_w

    @jax.jit
    def estimate(key: Array) -> Array:
        def one(key: Array) -> Array:
            others = jax.random.categorical(key, log_p, shape=(int(POOL_SIZE) - 1,))
            return POOL_SIZE * a / (a + jnp.sum(a[others]))

        return jnp.mean(jax.lax.map(one, jax.random.split(key, draws), batch_size=64), axis=0)

    key = jax.random.key(0)
    exact = np.exp(np.asarray(quadrature(process, log_p), np.float64))
    error = float(np.abs(np.asarray(estimate(key)) / exact - 1).max())
    seconds = timing.turns(
        {"quadrature": partial(quadrature, process, log_p), f"Monte Carlo, {draws:,} pools": partial(estimate, key)},
        repeats,
    )
    return Comparison(
        name="finite K, one expectation",
        workload="H of one reward on 1,024 cells, K = 10, float32",
        reference="quadrature",
        seconds=seconds,
        notes=[f"the largest relative error of Monte Carlo is {error:.3f}, that of the quadrature below 1e-5"],
        extra={"largest relative error of Monte Carlo": error},
    )


def measure(quick: bool, repeats: int | None) -> list[Comparison]:
    """One configuration, 32 and 256 at a time, with more preferences; quick: 256 alone, fewer rounds, no Monte Carlo."""
    works = [Workload(256, 4096, 12 if quick else 100)]
    if not quick:
        works = [
            *(Workload(1, n, 50) for n in (100, 1024, 4096)),
            Workload(32, 4096, 100),
            *works,
            Workload(256, 4096, 100, 5),
        ]
    everyone = [contenders(work, quick) for work in works]
    timing.compile_together(found[name] for found in everyone for name in (ONE_DEVICE, LIBRARY) if name in found)
    repeats = repeats or (2 if quick else 9)
    compared = [rounds(work, found, 1024, repeats) for work, found in zip(works, everyone, strict=True)]
    return compared if quick else [*compared, pools(1000, repeats)]


if __name__ == "__main__":
    report.main("finite_pool", __doc__, measure, jax_num_cpu_devices=timing.cores())
