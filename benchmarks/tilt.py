"""How fast are exact large-K rounds? The library against the same rounds written by hand, in one run.

    python -m benchmarks.tilt [--quick] [--repeats N] [--out FILE]

Workload: phi x distance configurations of two bumps on a uniform 1-D grid, m = 2, float32, from the uniform density.
Unit: cell-steps, one cell of one configuration through one round. Every peer keeps linear masses, which underflow; the
library keeps the range of log space.
"""

from __future__ import annotations

import platform
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
from benchmarks.timing import Comparison

NUMBA = "numba, hand-fused, parallel"
SCAN = "JAX, vmap of scan"
FINAL, EVERY_10, EVERY = "library, final", "library, every 10th round", "library, every round"

#: Of the control register of x86's floating-point units: what programs start with, no exception stops them; and the two bits
#: by which subnormal results, and subnormal arguments, are zeros.
_AS_STARTED, _FLUSH = 0x1F80, 0x8040


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

    @property
    def words(self) -> str:
        """For the table."""
        return (
            f"{len(self.phis)} phi x {len(self.distances)} distances, {self.num_cells:,} cells, {self.num_steps} rounds, "
            "m = 2, float32"
        )

    def make(self, phi: Array, distance: Array) -> pj.Process:
        """One configuration."""
        grid = pj.Grid.uniform(-5.0, 5.0, self.num_cells)
        centers = jnp.stack([-distance / 2, distance / 2])
        land = pj.Landscape.on(grid, pj.rewards.bump(centers, height=5.0, width=1.0))
        return pj.density.large_pool(land, jnp.stack([phi, 1 - phi]))

    def rewards(self) -> np.ndarray:
        """Of every distance, [G, 2, n]."""
        grid = pj.Grid.uniform(-5.0, 5.0, self.num_cells)

        def of(distance: Array) -> Array:
            centers = jnp.stack([-distance / 2, distance / 2])
            return pj.Landscape.on(grid, pj.rewards.bump(centers, height=5.0, width=1.0)).rewards

        return np.asarray(jax.vmap(of)(self.distances))

    def shared(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights [C, 2] and tilts exp(r - r*) [G, 2, n] that the C configurations of a distance share."""
        r = self.rewards()
        return np.stack([self.phis, 1 - self.phis], axis=1), np.exp(r - r.max(axis=2, keepdims=True))

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Phi [B] and tilts [B, 2, n], for those who give every configuration its own."""
        _, tilts = self.shared()
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
    # Placed once: moving the argument to its devices takes as long as two rounds.
    return partial(compiled, jax.device_put(work.distances, NamedSharding(mesh, spec)))


def numpy_loop(work: Workload) -> Callable[[], np.ndarray]:
    """All configurations in one array operation after another, each with its own tilts."""
    phi, tilt = work.rows()
    weights = np.stack([phi, 1 - phi], axis=1)

    def rounds() -> np.ndarray:
        p = np.full((len(phi), work.num_cells), 1 / work.num_cells, np.float32)
        for _ in range(work.num_steps):
            u = weights / np.einsum("bmn,bn->bm", tilt, p)
            p = p * (u[:, :1] * tilt[:, 0] + u[:, 1:] * tilt[:, 1])
        return np.einsum("bmn,bn->bm", tilt, p)

    return rounds


def numpy_products(work: Workload) -> Callable[[], np.ndarray]:
    """The same as matrix products with tilts that configurations share: what BLAS is good at."""
    weights, tilt = work.shared()
    transposed = np.ascontiguousarray(tilt.transpose(0, 2, 1))

    def rounds() -> np.ndarray:
        p = np.full((len(tilt), len(weights), work.num_cells), 1 / work.num_cells, np.float32)
        for _ in range(work.num_steps):
            p *= (weights / (p @ transposed)) @ tilt
        return (p @ transposed).reshape(-1, 2)

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
    """One fused pass over the cells for each round, configurations in parallel; None without numba.

    Masses become subnormal on their way to zero, which costs some processors five times the time of a round. XLA takes
    subnormal numbers for zeros, and here this loop does, too.
    """
    numba = timing.optional("numba")
    if numba is None:
        return None
    flush_subnormals, as_before = numba_control(_AS_STARTED | _FLUSH), numba_control(_AS_STARTED)
    phi, tilt = work.rows()
    num_cells, num_steps = work.num_cells, work.num_steps

    @numba.njit(parallel=True, fastmath=True)
    def rounds(phi: np.ndarray, tilt: np.ndarray, p: np.ndarray, z: np.ndarray) -> None:
        for b in numba.prange(len(phi)):
            flush_subnormals()
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
        as_before()

    def run() -> np.ndarray:
        z = np.empty((len(phi), 2), np.float32)
        rounds(phi, tilt, np.full((len(phi), num_cells), 1 / num_cells, np.float32), z)
        return z

    return run


def numba_control(bits: int) -> Callable[[], None]:
    """Compiled by numba: sets the register that tells this thread what to do with subnormals; elsewhere than on x86 nothing."""
    import numba

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return numba.njit(lambda: None)
    from llvmlite import ir
    from numba.core import cgutils

    @numba.extending.intrinsic
    def control(_: Any) -> Any:
        def generate(context: Any, builder: Any, *_: Any) -> Any:
            pointer = ir.IntType(8).as_pointer()
            load = ir.FunctionType(ir.VoidType(), [pointer])
            function = cgutils.get_or_insert_function(builder.module, load, "llvm.x86.sse.ldmxcsr")
            state = cgutils.alloca_once_value(builder, ir.Constant(ir.IntType(32), bits))
            builder.call(function, [builder.bitcast(state, pointer)])
            return context.get_dummy_value()

        return numba.types.void(), generate

    return control


def torch_loops(work: Workload) -> dict[str, Callable[[], np.ndarray]]:
    """PyTorch, shared tilts: matrix products one after another, and one round compiled; none without PyTorch.

    The compiled round gets sums instead of products, which its compiler fuses and vectorizes. It needs a C++ compiler.
    """
    torch = timing.optional("torch")
    if torch is None:
        return {}
    weights, tilt = (torch.from_numpy(x) for x in work.shared())
    transposed = tilt.transpose(1, 2).contiguous()

    def products(p: Any) -> Any:
        return p * torch.bmm(weights / torch.bmm(p, transposed), tilt)

    def sums(p: Any) -> Any:
        u = weights / (p[:, :, None] * tilt[:, None]).sum(-1)
        return p * (u[..., None] * tilt[:, None]).sum(2)

    def rounds(step: Callable[[Any], Any]) -> Callable[[], np.ndarray]:
        @torch.inference_mode()
        def run() -> np.ndarray:
            p = torch.full((len(tilt), len(weights), work.num_cells), 1 / work.num_cells)
            for _ in range(work.num_steps):
                p = step(p)
            return torch.bmm(p, transposed).reshape(-1, 2).numpy()

        return run

    found = {"PyTorch, eager": rounds(products)}
    fused = rounds(torch.compile(sums))
    try:
        fused()
    except Exception as error:
        print(f"torch.compile does not work here, so it is left out: {type(error).__name__}.")
    else:
        found["PyTorch, compiled"] = fused
    return found


def by_hand(work: Workload, quick: bool = False) -> dict[str, Callable[[], Any]]:
    """Everyone who is installed; each returns its final normalizers, [B, 2]; quick: without those that take most of the time."""
    found: dict[str, Callable[[], Any]] = {"NumPy, matrix products": numpy_products(work), SCAN: scan_loop(work)}
    if not quick:
        found = {"NumPy, arrays": numpy_loop(work), **found, **torch_loops(work)}
    fused = numba_loop(work)
    return found if fused is None else {**found, NUMBA: fused}


def check(work: Workload, others: dict[str, Callable[[], Any]], ours: Callable[[], Any]) -> None:
    """Everyone computes the same normalizers as the library's final ones, or no ratio means anything."""
    best = work.rewards().max(axis=2)[:, None]
    log_z = (np.asarray(ours().log_z)[:, :, -1] - best).reshape(-1, 2)
    for name, function in others.items():
        np.testing.assert_allclose(np.log(function()), log_z, atol=2e-4, err_msg=f"{name} and the library disagree.")


def measure(quick: bool, repeats: int | None) -> list[Comparison]:
    """256 configurations x 100 rounds, and 2,048 of them with the fastest contenders; quick: 512 x 50, and fewer peers."""
    devices = jax.device_count()
    num_distances = -(-(16 if quick else 8) // devices) * devices
    work = Workload.of(32, num_distances, 4096, 50 if quick else 100)
    others = by_hand(work, quick)
    saved = {FINAL: work.num_steps} if quick else {FINAL: work.num_steps, EVERY_10: 10, EVERY: 1}
    ours = {name: library(work, every) for name, every in saved.items()}
    contenders = {**others, **ours}
    timing.compile_together(contenders.values())
    check(work, others, ours[FINAL])
    seconds = timing.turns(contenders, repeats or (3 if quick else 15))
    notes: list[str] = []
    extra: dict[str, Any] = {}
    if EVERY in seconds:
        summary = timing.Timing.of(np.asarray(seconds[EVERY]) / np.asarray(seconds[FINAL]))
        notes.append(f"a summary of every round takes {summary.median:.2f} times as long as the final one alone")
        extra["every round / final"] = summary._asdict()
    found = [
        Comparison(
            name="tilt",
            workload=work.words,
            reference=NUMBA if NUMBA in others else SCAN,
            seconds=seconds,
            unit="cell-steps",
            work=work.cell_steps,
            notes=notes,
            extra={
                **extra,
                "roofline": {
                    "rule": "tilt",
                    "arguments": {"m": 2, "configurations": len(work.phis), "together": 2},
                    "contender": FINAL,
                },
            },
        )
    ]
    if not quick and NUMBA in others:
        found.append(long_calls(devices, repeats or 15))
    return found


def long_calls(devices: int, repeats: int) -> Comparison:
    """2,048 configurations: eight times as long as threads take at most to spread over the cores (see the README)."""
    work = Workload.of(32, -(-64 // devices) * devices, 4096, 100)
    fused = numba_loop(work)
    assert fused is not None
    others = {"NumPy, matrix products": numpy_products(work), NUMBA: fused}
    ours = {name: library(work, every) for name, every in ((FINAL, work.num_steps), (EVERY_10, 10))}
    check(work, others, ours[FINAL])
    return Comparison(
        name="tilt, long calls",
        workload=work.words,
        reference=NUMBA,
        seconds=timing.turns({**others, **ours}, repeats),
        unit="cell-steps",
        work=work.cell_steps,
    )


if __name__ == "__main__":
    report.main("tilt", __doc__, measure, jax_num_cpu_devices=timing.cores())
