"""Batched sweeps: one compiled function over every combination of the axes, on all local devices, labelled and resumable.

How a batch is laid out. Some axes change little of a process (phi: m numbers), others all of it (a distance changes every
reward). Configurations that differ only along light axes share the large arrays, so they advance together under `vmap`, where
their rounds are matrix products; heavy axes are walked by `lax.map` on a CPU, which keeps the densities in cache, and by `vmap`
on an accelerator. Which axis is light is read off the traced program (`_dependent_sizes`), not asked of the user.

    batch = rows x width: one row for each heavy combination (rows are sharded over devices), `width` light combinations in it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from jax.sharding import AxisType, PartitionSpec

from plural_jax import _validate, faults, labels
from plural_jax._pytree import to_host
from plural_jax._typing import ArrayLike
from plural_jax.process import Meter, Process, Save, advance, as_pytree, check_save
from plural_jax.progress import meter
from plural_jax.store import SweepStore

#: Cells that one core works on at a time (float32: 128 KiB a vector), so that several small rows share the loop's overhead.
_CELLS_AT_A_TIME = 2**15
#: Batches that a sweep is cut into when it reports or stores and no batch size is given.
_DEFAULT_BATCHES = 16


class _Plan(NamedTuple):
    """How the configurations are cut into batches and batches into rows."""

    axes: dict[str, np.ndarray]
    light: tuple[str, ...]
    heavy: tuple[str, ...]
    block: tuple[int, ...]  # configurations along each axis in a batch, in the order of `axes`

    def batches(self) -> list[tuple[int, ...]]:
        counts = [-(-len(v) // b) for v, b in zip(self.axes.values(), self.block, strict=True)]
        return list(itertools.product(*(range(c) for c in counts)))

    def region(self, batch: tuple[int, ...]) -> tuple[slice, ...]:
        lengths = [len(v) for v in self.axes.values()]
        return tuple(slice(i * b, min((i + 1) * b, n)) for i, b, n in zip(batch, self.block, lengths, strict=True))


def sweep(
    make: Callable[..., Process | tuple[Process, ArrayLike]],
    *,
    num_steps: int,
    save: Save = "summary",
    every: int = 1,
    batch_size: int | None = None,
    store: str | Path | None = None,
    key: Array | None = None,
    progress: bool | Meter = False,
    attrs: dict[str, Any] | None = None,
    **axes: ArrayLike,
) -> xr.Dataset:
    """Run a process for every combination of the axes' values.

    Args:
        make: called with one traced scalar for each axis, returns a process, or a process and the argument of its `init`
            (for density processes the starting log-masses).
        num_steps, save, every: as for `run`.
        batch_size: configurations computed at a time, at most; it bounds memory. Default: all at once, or a sixteenth of the
            sweep where there is a store or a progress bar.
        store: folder of a Zarr group. Batches are written as they finish; the same call after an interruption computes only
            what is missing and returns the same dataset. The result is then read lazily from disk.
        key: PRNG key for stochastic processes; configuration i uses `fold_in(key, i)` with i its number in the full product.
        progress: True for a bar on standard error, or a `Meter`.
        attrs: further attributes for the dataset, such as the name and configuration of a study.
        **axes: flat sequences of real numbers, in the order of the result's dimensions. Integers become floats. `inf` is a
            value like any other, for `pool_size`.

    Returns:
        A dataset with dimensions (*axes, "step", ...): "preference" for what exists once per preference, "cell" for
        densities. Its attributes hold the settings and the versions of everything that computed it.

    Raises:
        ValueError: an axis that is empty, not flat or NaN; a configuration that `make` refuses (tried with the first, least
            and greatest value of each axis before anything is compiled); a store that holds another sweep.

    Example:
        >>> import jax.numpy as jnp
        >>> import plural_jax as pj
        >>> grid = pj.Grid.uniform(-5.0, 5.0, 50)
        >>> def make(phi, distance):
        ...     centers = jnp.stack([-distance / 2, distance / 2])
        ...     land = pj.Landscape.on(grid, pj.rewards.quadratic(centers, gamma=0.5))
        ...     return pj.density.large_pool(land, phi=jnp.stack([phi, 1 - phi]))
        >>> ds = pj.sweep(make, phi=[0.3, 0.5], distance=[1.0, 2.0, 3.0], num_steps=10)
        >>> dict(ds.basin_mass.sizes)
        {'phi': 2, 'distance': 3, 'step': 10, 'preference': 2}
    """
    num_steps = _validate.positive_integer(num_steps, "num_steps")
    policy, every = check_save(save, every, num_steps)
    given = _check_axes(axes)
    # Coordinates keep the caller's digits, so that `ds.sel(phi=0.3)` finds 0.3 in a float32 sweep too.
    values = {name: v.astype(jnp.result_type(float)) for name, v in given.items()}
    if batch_size is not None:
        batch_size = _validate.positive_integer(batch_size, "batch_size")
    _try_corners(make, values)

    one = _one_configuration(make, num_steps, policy, every)
    point = {name: jax.ShapeDtypeStruct((), v.dtype) for name, v in values.items()}
    index = jax.ShapeDtypeStruct((), jnp.int32)
    jaxpr, trace = jax.make_jaxpr(one, return_shape=True)(point, index, key)
    shown = meter(progress)
    total = math.prod(len(v) for v in values.values())
    if batch_size is None:
        batch_size = total if store is None and progress is False else -(-total // _DEFAULT_BATCHES)
    plan, cells = _plan(make, values, point, batch_size)

    attrs = {
        **(attrs or {}),
        "num_steps": num_steps,
        "every": every,
        "save": save if isinstance(save, str) else getattr(save, "__name__", "function"),
        "key": "none" if key is None else jax.random.key_data(key).tolist(),
        "block": list(plan.block),
        "versions": labels.versions(),
    }
    described = labels.variables(trace, values)
    coords = labels.coordinates(given, num_steps, every)
    attrs["fingerprint"] = _fingerprint(jaxpr, coords, attrs)
    kept = SweepStore(store, described, plan.block, coords, attrs) if store is not None else None
    arrays = [np.empty(v.shape, v.dtype) for v in described] if kept is None else []

    compute = _compile_batch(one, plan, cells, key)
    shown.start(total, "configurations")
    try:
        for batch in plan.batches():
            region = plan.region(batch)
            size = math.prod(s.stop - s.start for s in region)
            if kept is not None and kept.finished[batch]:
                shown.advance(size)
                continue
            results = compute(region)
            for variable, result in zip(described, results, strict=True):
                faults.check_variable(variable.name, result)
            if kept is not None:
                kept.write(batch, region, results)
            else:
                for array, result in zip(arrays, results, strict=True):
                    array[region] = result
            shown.advance(size)
    finally:
        shown.stop()
    if kept is not None:
        return kept.open()
    named = {v.name: (v.dims, a) for v, a in zip(described, arrays, strict=True)}
    return labels.dataset(named, coords, attrs)


def _check_axes(axes: dict[str, ArrayLike]) -> dict[str, np.ndarray]:
    """The axes as flat host arrays, float64 so that no digit of the caller's is lost."""
    if not axes:
        raise ValueError("sweep needs at least one axis, such as phi=[0.1, 0.5, 0.9].")
    checked = {}
    for name, given in axes.items():
        if name in ("step", "preference", "cell", "mode", "dimension"):
            raise ValueError(f"{name!r} cannot be the name of an axis: it is a dimension of the result.")
        array = _validate.real_array(given, name)
        if array is None:
            raise ValueError(f"{name} is traced; sweep runs on the host and needs values.")
        if array.ndim != 1 or array.size == 0:
            raise ValueError(f"{name} must be a flat sequence of at least one number, got shape {array.shape}.")
        if np.isnan(array.astype(np.float64)).any():
            raise ValueError(f"{name} must not hold NaN, got {_validate.shown(array)}.")
        checked[name] = array.astype(np.float64)
    return checked


def _build(made: Process | tuple[Process, ArrayLike]) -> tuple[Process, Any]:
    """What `make` returned, as a process and its first state."""
    if not isinstance(made, Process) and isinstance(made, tuple) and len(made) == 2:
        return as_pytree(made[0]), made[0].init(made[1])
    if not isinstance(made, Process):
        raise ValueError(f"make must return a Process, or a Process and a start, got {type(made).__name__}.")
    return as_pytree(made), made.init()


def _try_corners(make: Callable[..., Any], values: dict[str, np.ndarray]) -> None:
    """Build the first configuration, and those at each axis's least and greatest value, eagerly.

    Inside the compiled sweep every argument is a tracer and passes validation unread; this is where bad input is found.
    """
    first = {name: v[0] for name, v in values.items()}
    corners = {tuple(first.values()): first}
    for name, v in values.items():
        for extreme in (v.min(), v.max()):
            corner = {**first, name: extreme}
            corners[tuple(corner.values())] = corner
    for corner in corners.values():
        try:
            _build(make(**{name: jnp.asarray(v) for name, v in corner.items()}))
        except ValueError as error:
            where = ", ".join(f"{name}={v:g}" for name, v in corner.items())
            raise ValueError(f"{error} (in the configuration {where})") from error


def _one_configuration(make: Callable[..., Any], num_steps: int, save: Save, every: int) -> Callable[..., Any]:
    """The pure function (point, index, key) -> what one configuration saves."""

    def one(point: dict[str, Array], index: Array, key: Array | None) -> Any:
        process, state = _build(make(**point))
        own = None if key is None else jax.random.fold_in(key, index)
        return advance(process, state, own, 0, num_steps, save, every)[1]

    return one


def _plan(
    make: Callable[..., Any], values: dict[str, np.ndarray], point: dict[str, Any], batch_size: int
) -> tuple[_Plan, int]:
    """Split the axes into light and heavy and cut the product into blocks of at most `batch_size` configurations."""
    sizes, cells = _dependent_sizes(make, point)
    light = tuple(name for name in values if sizes[name] < cells)
    heavy = tuple(name for name in values if name not in light)
    # Blocks fill up along light axes first, so that rows stay wide, then along the last heavy axes.
    room = batch_size
    block = {}
    for name in (*light, *reversed(heavy)):
        length = len(values[name])
        pieces = -(-length // max(1, min(room, length)))
        block[name] = -(-length // pieces)  # equal pieces waste the least padding
        room //= block[name]
    return _Plan(values, light, heavy, tuple(block[name] for name in values)), cells


def _dependent_sizes(make: Callable[..., Any], point: dict[str, Any]) -> tuple[dict[str, int], int]:
    """For each axis the largest array of the process that depends on it, and the size of the state.

    Follows the data flow of the traced `make`; an operation's outputs depend on all that its inputs depend on.
    """

    def parts(point: dict[str, Array]) -> tuple[Any, Any]:
        process, state = _build(make(**point))
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


def _compile_batch(
    one: Callable[..., Any], plan: _Plan, cells: int, key: Array | None
) -> Callable[[tuple[slice, ...]], list[np.ndarray]]:
    """A function from a batch's region to the values of its variables, compiled once for all batches."""
    names = tuple(plan.axes)
    block = dict(zip(names, plan.block, strict=True))
    devices = jax.local_devices()
    num_rows = math.prod(block[name] for name in plan.heavy)
    width = math.prod(block[name] for name in plan.light)
    # With fewer rows than devices, rows are cut into pieces along their width.
    pieces = min(width, -(-len(devices) // num_rows)) if num_rows < len(devices) else 1
    piece = -(-width // pieces)
    padded_rows = -(-num_rows * pieces // len(devices)) * len(devices)
    on_cpu = devices[0].platform == "cpu"
    per_device = padded_rows // len(devices)
    together = max(1, min(per_device, _CELLS_AT_A_TIME // max(1, cells * piece))) if on_cpu else per_device

    def row(heavy: dict[str, Array], light: dict[str, Array], index: Array, key: Array | None) -> Any:
        return jax.vmap(lambda p, i: one({**heavy, **p}, i, key))(light, index)

    def rows(heavy: dict[str, Array], light: dict[str, Array], index: Array, key: Array | None) -> Any:
        return jax.lax.map(lambda args: row(args[0], args[1], args[2], key), (heavy, light, index), batch_size=together)

    batch: Callable[..., Any] = rows
    if len(devices) > 1:
        mesh = jax.make_mesh((len(devices),), ("rows",), axis_types=(AxisType.Auto,), devices=devices)
        spec = PartitionSpec("rows")
        # check_vma: scans inside start from constants, which the check would have every process declare as varying.
        batch = jax.shard_map(
            rows, mesh=mesh, in_specs=(spec, spec, spec, PartitionSpec()), out_specs=spec, check_vma=False
        )
    compiled = jax.jit(batch)
    lengths = [len(v) for v in plan.axes.values()]

    def compute(region: tuple[slice, ...]) -> list[np.ndarray]:
        # Edge batches are filled up by repeating their last value; the copies are cut off again below.
        positions = {
            name: np.minimum(np.arange(s.start, s.start + block[name]), s.stop - 1)
            for name, s in zip(names, region, strict=True)
        }
        order = (*plan.heavy, *plan.light)
        mesh_positions = np.meshgrid(*(positions[name] for name in order), indexing="ij")
        flat = {
            name: _arrange(p, num_rows, width, pieces, padded_rows)
            for name, p in zip(order, mesh_positions, strict=True)
        }
        index = np.ravel_multi_index(tuple(flat[name] for name in names), lengths).astype(np.int32)
        heavy = {name: plan.axes[name][flat[name][:, 0]] for name in plan.heavy}
        light = {name: plan.axes[name][flat[name]] for name in plan.light}
        results = jax.tree.leaves(compiled(heavy, light, index, key))
        shape = tuple(block[name] for name in order)
        back = tuple(order.index(name) for name in names)
        keep = tuple(slice(0, s.stop - s.start) for s in region)
        values = []
        for result in results:
            array = np.asarray(result)
            rest = array.shape[2:]
            array = array.reshape(-1, pieces * piece, *rest) if pieces > 1 else array
            array = array[:num_rows, :width].reshape(*shape, *rest)
            array = array.transpose(*back, *range(len(shape), array.ndim))
            values.append(array[keep])
        return values

    return compute


def _arrange(positions: np.ndarray, num_rows: int, width: int, pieces: int, padded_rows: int) -> np.ndarray:
    """Positions along one axis as [padded_rows, piece]; what is added repeats the last entry."""
    table = positions.reshape(num_rows, width)
    piece = -(-width // pieces)
    table = np.pad(table, ((0, 0), (0, pieces * piece - width)), mode="edge").reshape(num_rows * pieces, piece)
    return np.pad(table, ((0, padded_rows - num_rows * pieces), (0, 0)), mode="edge")


def _fingerprint(jaxpr: Any, coords: dict[str, np.ndarray], attrs: dict[str, Any]) -> str:
    """A hash of the program of one configuration, its constants, the axes and the settings."""
    digest = hashlib.sha256()
    # Printed programs may hold addresses of Python objects, which differ between runs.
    digest.update(re.sub(r"0x[0-9a-f]+", "", str(jaxpr)).encode())
    for constant in jaxpr.consts:
        digest.update(to_host(constant).tobytes())
    for name, values in coords.items():
        digest.update(name.encode() + values.tobytes())
    digest.update(repr(sorted((k, str(v)) for k, v in attrs.items())).encode())
    return digest.hexdigest()[:16]
