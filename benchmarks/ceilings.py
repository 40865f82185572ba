"""What the machine can do at best: copies, fused multiply-adds and matrix products, on one core and on all.

    python -m benchmarks.ceilings [--quick] [--repeats N] [--out FILE]

Every other number is judged by these. They are the best of all turns, not the median, because a ceiling is what nothing
exceeds. Copies count bytes read plus bytes written; a fused multiply-add is two operations; float32.

* copy: from one array to another that together take half of a core's L2, and arrays larger than every cache; by NumPy.
* in place: one array of the same size is read and written again, with one multiply-add on the way, as in a round; by XLA.
* multiply-adds: chains of 16 in registers on arrays that fit into L1, by a loop in numba and by the same chain in XLA.
* matrix product: two square matrices, by XLA and by NumPy's BLAS, on kernels that the table names.

One core is measured in a process of its own that may use no other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.table import Table

from benchmarks import report, timing

#: Multiply-adds in a chain: enough that loading and storing do not count, few enough that chains overlap.
_CHAIN = 16


def matrix_products(size: int) -> dict[str, Callable[[], Any]]:
    """The product of two matrices in float32, 2 size^3 operations."""
    a = np.random.default_rng(0).random((size, size), dtype=np.float32)
    return {
        "matrix product, XLA": partial(jax.jit(jnp.matmul), jnp.asarray(a), jnp.asarray(a)),
        "matrix product, NumPy": partial(np.matmul, a, a),
    }


def copy(num_bytes: int, repeats: int, threads: int) -> Callable[[], None]:
    """`repeats` copies of arrays of `num_bytes`, by as many threads at a time, each with arrays of its own."""
    source = [np.ones(num_bytes // 4, np.float32) for _ in range(threads)]
    target = [np.zeros(num_bytes // 4, np.float32) for _ in range(threads)]

    def one(k: int) -> None:
        for _ in range(repeats):
            np.copyto(target[k], source[k])

    def run() -> None:
        others = [threading.Thread(target=one, args=(k,)) for k in range(1, threads)]
        for thread in others:
            thread.start()
        one(0)
        for thread in others:
            thread.join()

    return run


def multiply_adds_xla(cells: int, rounds: int, length: int = _CHAIN) -> Callable[[], Array]:
    """Chains of this length on every device, each with its own cells."""
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("cores",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("cores")

    def one(x: Array, a: Array, b: Array) -> Array:
        def chain(_: int, x: Array) -> Array:
            for _ in range(length):
                x = x * a + b
            return x

        return jax.lax.fori_loop(0, rounds, chain, x)

    specs = {"in_specs": (spec, PartitionSpec(), PartitionSpec()), "out_specs": spec, "check_vma": False}
    # What it returns takes the place of what it was given: new memory costs more than passing over it several times.
    mapped = jax.jit(jax.shard_map(one, mesh=mesh, **specs), donate_argnums=0)
    x = jax.device_put(jnp.ones(devices * cells, jnp.float32), NamedSharding(mesh, spec))

    def run() -> Array:
        nonlocal x
        x = mapped(x, jnp.float32(0.5), jnp.float32(0.5))
        return x

    return run


def multiply_adds_numba(cells: int, rounds: int, threads: int) -> Callable[[], None] | None:
    """The same in numba; None without it."""
    numba = timing.optional("numba")
    if numba is None:
        return None

    @numba.njit(parallel=True, fastmath={"contract"})
    def chains(x: np.ndarray, a: np.float32, b: np.float32, rounds: int) -> None:
        for core in numba.prange(x.shape[0]):
            own = x[core]
            for _ in range(rounds):
                for i in range(own.shape[0]):
                    v = own[i]
                    # Written out: as a loop it is not always unrolled.
                    v = (v * a + b) * a + b
                    v = (v * a + b) * a + b
                    v = (v * a + b) * a + b
                    v = (v * a + b) * a + b
                    v = (v * a + b) * a + b
                    v = (v * a + b) * a + b
                    v = (v * a + b) * a + b
                    v = (v * a + b) * a + b
                    own[i] = v

    return partial(chains, np.ones((threads, cells), np.float32), np.float32(0.5), np.float32(0.5), rounds)


def cache_bytes(level: int) -> int | None:
    """Size of a cache of the first core, where Linux tells."""
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        kind = (folder / "type").read_text().strip()
        if kind != "Instruction" and int((folder / "level").read_text()) == level:
            text = (folder / "size").read_text().strip()
            return int(text[:-1]) * {"K": 2**10, "M": 2**20}[text[-1]]
    return None


def rates(quick: bool, repeats: int | None) -> dict[str, float]:
    """Ceilings of the cores that this process may use, in GB/s and GFLOP/s."""
    threads = timing.cores()
    l2, l3 = cache_bytes(2) or 2**20, cache_bytes(3) or 2**25
    small, large = l2 // 4, max(2**26, 2 * l3 // threads)
    size = 1024 if quick else 2048
    # Long enough for two threads that woke on one core to be put on two: that can take a few milliseconds.
    cells, rounds = 2048, 5_000 if quick else 50_000
    flops = 2.0 * _CHAIN * cells * rounds * threads
    often, passes = max(1, (2**28 if quick else 2**31) // small), 4 if quick else 20

    def moved(num_bytes: int, times: int) -> float:
        return 2.0 * num_bytes * times * threads

    contenders: dict[str, tuple[Callable[[], Any], float]] = {
        "copy, L2": (copy(small, often, threads), moved(small, often)),
        "copy, memory": (copy(large, 1, threads), moved(large, 1)),
        "in place, L2": (multiply_adds_xla(2 * small // 4, often, 1), moved(2 * small, often)),
        "in place, memory": (multiply_adds_xla(large // 4, passes, 1), moved(large, passes)),
        "multiply-adds, XLA": (multiply_adds_xla(cells, rounds), flops),
        **{name: (function, 2.0 * size**3) for name, function in matrix_products(size).items()},
    }
    loop = multiply_adds_numba(cells, rounds, threads)
    if loop is not None:
        contenders["multiply-adds, numba"] = loop, flops
    seconds = timing.turns({name: f for name, (f, _) in contenders.items()}, repeats or (3 if quick else 15))
    return {name: work / min(seconds[name]) / 1e9 for name, (_, work) in contenders.items()}


def measure(quick: bool, repeats: int | None) -> dict[str, Any]:
    """On all cores and on one, each in a process of its own; quick: on all alone, which is what others are judged by."""
    all_cores = in_process(quick, repeats)
    alone = None
    if not quick:
        with one_core() as possible:
            alone = in_process(quick, repeats) if possible else None
    return {
        "cores": timing.cores(),
        "blas": timing.blas(),
        "L2 bytes": cache_bytes(2),
        "L3 bytes": cache_bytes(3),
        "one core": alone,
        "all cores": all_cores,
    }


def in_process(quick: bool, repeats: int | None) -> dict[str, float]:
    """`rates` in a new process, whose thread pools are as large as the cores it may use."""
    program = "import sys; from benchmarks import ceilings; ceilings.print_rates(*map(int, sys.argv[1:]))"
    command = [sys.executable, "-c", program, str(int(quick)), str(repeats or 0)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def print_rates(quick: int, repeats: int) -> None:
    """What `in_process` reads."""
    report.quiet_threads()
    jax.config.update("jax_num_cpu_devices", timing.cores())
    print(json.dumps(rates(bool(quick), repeats or None)))


@contextmanager
def one_core() -> Iterator[bool]:
    """Processes started inside may use one core alone; False where the system has no such wish."""
    if not hasattr(os, "sched_setaffinity"):
        yield False
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield True
    finally:
        os.sched_setaffinity(0, before)


def table(content: dict[str, Any]) -> Table:
    """Rates on one core and on all."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("ceiling", "unit", "one core", f"{content['cores']} cores"):
        shown.add_column(name, justify="left" if name in ("ceiling", "unit") else "right", no_wrap=True)
    alone = content["one core"] or {}
    for name, rate in content["all cores"].items():
        first = f"{alone[name]:.0f}" if name in alone else ""
        shown.add_row(name, "GFLOP/s" if name.startswith("m") else "GB/s", first, f"{rate:.0f}")
    return shown


def best(rates: dict[str, float], kind: str) -> float:
    """The fastest of a kind, such as "matrix product": what the machine can do, whoever does it."""
    return max(rate for name, rate in rates.items() if name.startswith(kind))


if __name__ == "__main__":
    report.main("ceilings", __doc__, measure, table)
