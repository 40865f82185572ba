"""One batch of a sweep: which configurations it holds, and the one compiled program that computes every batch.

Some axes change little of a process (phi: m numbers), others all of it (a distance changes every reward). Configurations that
differ only along light axes share the large arrays, so they advance together under `vmap`, where their rounds are matrix
products; heavy axes are walked by `lax.map` on a CPU, which keeps the densities in cache, and by `vmap` on an accelerator.
Which axis is light is read off the traced program (`dependent_sizes`), not asked of the user.

    batch = rows x width: one row for each heavy combination (rows are sharded over devices), `width` light combinations in it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

#: Cells that one core works on at a time (float32: 128 KiB a vector), so that several small rows share the loop's overhead.
_CELLS_AT_A_TIME = 2**15


class Plan(NamedTuple):
    """How the configurations are cut into batches and batches into rows."""

    axes: dict[str, np.ndarray]
    light: tuple[str, ...]
    heavy: tuple[str, ...]
    block: tuple[int, ...]  # configurations along each axis in a batch, in the order of `axes`

    @property
    def counts(self) -> tuple[int, ...]:
        """Batches along each axis."""
        return tuple(-(-len(v) // b) for v, b in zip(self.axes.values(), self.block, strict=True))

    def batches(self, index: int = 0, count: int = 1) -> Iterator[tuple[int, ...]]:
        """The batches of one part: every `count`-th, from the one with number `index`."""
        return itertools.islice(itertools.product(*map(range, self.counts)), index, None, count)

    def region(self, batch: tuple[int, ...]) -> tuple[slice, ...]:
        """Where a batch lies in the full product."""
        lengths = [len(v) for v in self.axes.values()]
        return tuple(slice(i * b, min((i + 1) * b, n)) for i, b, n in zip(batch, self.block, lengths, strict=True))

    def size(self, batch: tuple[int, ...]) -> int:
        """Configurations in a batch."""
        return math.prod(s.stop - s.start for s in self.region(batch))

    def with_batch_size(self, batch_size: int) -> Plan:
        """The same axes cut into blocks of at most `batch_size` configurations.

        Blocks fill up along light axes first, so that rows stay wide, then along the last heavy axes.
        """
        room = batch_size
        block = {}
        for name in (*self.light, *reversed(self.heavy)):
            length = len(self.axes[name])
            pieces = -(-length // max(1, min(room, length)))
            block[name] = -(-length // pieces)  # equal pieces waste the least padding
            room //= block[name]
        return self._replace(block=tuple(block[name] for name in self.axes))


def plan(axes: dict[str, np.ndarray], sizes: dict[str, int], cells: int) -> Plan:
    """A sweep in one batch, its axes split into light and heavy; `sizes` and `cells` are from `dependent_sizes`."""
    light = tuple(name for name in axes if sizes[name] < cells)
    heavy = tuple(name for name in axes if name not in light)
    return Plan(axes, light, heavy, tuple(len(v) for v in axes.values()))


def dependent_sizes(
    build: Callable[[dict[str, Array]], tuple[Any, Any]], point: dict[str, Any]
) -> tuple[dict[str, int], int]:
    """For each axis the largest array of the process that depends on it, and the size of the state.

    Follows the data flow of the traced `build`, which returns a process and its state; an operation's outputs depend on all
    that its inputs depend on.
    """

    def parts(point: dict[str, Array]) -> tuple[Any, Any]:
        process, state = build(point)
        return jax.tree.leaves(process), jax.tree.leaves(state)

    closed, (process, state) = jax.make_jaxpr(parts, return_shape=True)(point)
    names = sorted(point)  # the order in which JAX flattens a dict
    depends = _dependencies(closed.jaxpr, [frozenset([name]) for name in names])
    sizes = dict.fromkeys(names, 0)
    for leaf, axes in zip(process, depends, strict=False):  # the leaves of the process come first
        for name in axes:
            sizes[name] = max(sizes[name], math.prod(leaf.shape))
    return sizes, max(math.prod(leaf.shape) for leaf in state)


def _dependencies(jaxpr: Any, inputs: list[frozenset[str]]) -> list[frozenset[str]]:
    """Which axes each output of a program depends on, given those of its inputs."""
    nothing: frozenset[str] = frozenset()
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(v: Any) -> frozenset[str]:
        return nothing if hasattr(v, "val") else known.get(v, nothing)  # a literal has a value

    for eqn in jaxpr.eqns:
        given = [of(v) for v in eqn.invars]
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
        outputs = [nothing.union(*given)] * len(eqn.outvars)
        known.update(zip(eqn.outvars, outputs if inner is None else _dependencies(inner.jaxpr, given), strict=True))
    return [of(v) for v in jaxpr.outvars]


class Program:
    """Any batch of a plan, compiled ahead of time: its shapes are fixed, so that no batch can compile anything anew.

    Args:
        one: the pure function (point, index, key) -> what one configuration saves.
        plan: the batches.
        cells: size of a state.
        key: PRNG key or None.

    Attributes:
        seconds: what tracing and compiling took.
        bytes_needed: memory on each device while one batch is computed and the results of the one before are fetched.
    """

    def __init__(self, one: Callable[..., Any], plan: Plan, cells: int, key: Array | None) -> None:
        self.plan = plan
        block = dict(zip(plan.axes, plan.block, strict=True))
        # Those of this process: batches are independent, so no program spans hosts.
        devices = jax.local_devices()
        self._num_rows = math.prod(block[name] for name in plan.heavy)
        self._width = math.prod(block[name] for name in plan.light)
        # With fewer rows than devices, rows are cut into pieces along their width.
        self._pieces = min(self._width, -(-len(devices) // self._num_rows)) if self._num_rows < len(devices) else 1
        piece = -(-self._width // self._pieces)
        self._padded_rows = -(-self._num_rows * self._pieces // len(devices)) * len(devices)
        per_device = self._padded_rows // len(devices)
        on_cpu = devices[0].platform == "cpu"
        together = max(1, min(per_device, _CELLS_AT_A_TIME // max(1, cells * piece))) if on_cpu else per_device

        def row(heavy: dict[str, Array], light: dict[str, Array], index: Array, key: Array | None) -> Any:
            return jax.vmap(lambda p, i: one({**heavy, **p}, i, key))(light, index)

        def rows(heavy: dict[str, Array], light: dict[str, Array], index: Array, key: Array | None) -> Any:
            return jax.lax.map(
                lambda args: row(args[0], args[1], args[2], key), (heavy, light, index), batch_size=together
            )

        if len(devices) > 1:
            mesh = jax.make_mesh((len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices)
            spec, same = PartitionSpec("rows"), PartitionSpec()
            # check_vma: scans inside start from constants, which the check would have every process declare as varying.
            sharded = jax.shard_map(rows, mesh=mesh, in_specs=(spec, spec, spec, same), out_specs=spec, check_vma=False)
            cut, whole = NamedSharding(mesh, spec), NamedSharding(mesh, same)
            jitted = jax.jit(sharded, in_shardings=(cut, cut, cut, whole), out_shardings=cut)
            self._key = None if key is None else jax.device_put(key, whole)
        else:
            jitted, self._key = jax.jit(rows), key
        start = time.perf_counter()
        shape = (self._padded_rows, piece)
        heavy = {name: jax.ShapeDtypeStruct(shape[:1], plan.axes[name].dtype) for name in plan.heavy}
        light = {name: jax.ShapeDtypeStruct(shape, plan.axes[name].dtype) for name in plan.light}
        index = jax.ShapeDtypeStruct(shape, np.dtype(np.int32))
        self._compiled = jitted.lower(heavy, light, index, self._key).compile()
        self.seconds = time.perf_counter() - start
        memory = self._compiled.memory_analysis()
        self.bytes_needed = 0  # unknown, where the backend does not say
        if memory is not None:
            own = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
            self.bytes_needed = own + 2 * memory.output_size_in_bytes

    def launch(self, batch: tuple[int, ...]) -> list[Array]:
        """Start computing a batch; returns at once."""
        plan, names = self.plan, tuple(self.plan.axes)
        # Edge batches are filled up by repeating their last value; `collect` cuts the copies off again.
        positions = {
            name: np.minimum(np.arange(s.start, s.start + size), s.stop - 1)
            for name, size, s in zip(names, plan.block, plan.region(batch), strict=True)
        }
        order = (*plan.heavy, *plan.light)
        grids = np.meshgrid(*(positions[name] for name in order), indexing="ij")
        flat = {name: self._arrange(p) for name, p in zip(order, grids, strict=True)}
        lengths = [len(v) for v in plan.axes.values()]
        index = np.ravel_multi_index(tuple(flat[name] for name in names), lengths).astype(np.int32)
        heavy = {name: plan.axes[name][flat[name][:, 0]] for name in plan.heavy}
        light = {name: plan.axes[name][flat[name]] for name in plan.light}
        return jax.tree.leaves(self._compiled(heavy, light, index, self._key))

    def collect(self, batch: tuple[int, ...], results: list[Array]) -> list[np.ndarray]:
        """Wait for what `launch` returned; the batch's values, axes in the plan's order."""
        plan, names = self.plan, tuple(self.plan.axes)
        order = (*plan.heavy, *plan.light)
        block = dict(zip(names, plan.block, strict=True))
        shape = tuple(block[name] for name in order)
        back = tuple(order.index(name) for name in names)
        keep = tuple(slice(0, s.stop - s.start) for s in plan.region(batch))
        values = []
        for result in results:
            array = np.asarray(result)
            rest = array.shape[2:]
            array = array[: self._num_rows * self._pieces]  # without the rows that fill up the devices
            array = array.reshape(self._num_rows, -1, *rest)[:, : self._width].reshape(*shape, *rest)
            array = array.transpose(*back, *range(len(shape), array.ndim))
            values.append(array[keep])
        return values

    def _arrange(self, positions: np.ndarray) -> np.ndarray:
        """Positions along one axis as [padded_rows, piece]; what is added repeats the last entry."""
        table = positions.reshape(self._num_rows, self._width)
        piece = -(-self._width // self._pieces)
        table = np.pad(table, ((0, 0), (0, self._pieces * piece - self._width)), mode="edge")
        table = table.reshape(self._num_rows * self._pieces, piece)
        return np.pad(table, ((0, self._padded_rows - len(table)), (0, 0)), mode="edge")
