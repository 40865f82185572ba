"""Batched sweeps: one compiled program over every combination of the axes, on all devices of all hosts, labelled and resumable.

A batch is the unit of everything: of memory (`batch_size`), of work (each is computed by one process on its own devices, without
a word to any other) and of the store (each is one chunk of every variable, complete or absent).
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate, faults, hosts, labels, memory
from plural_jax._pytree import to_host
from plural_jax._typing import ArrayLike
from plural_jax.process import Meter, Process, Save, advance, as_pytree, check_save
from plural_jax.progress import meter
from plural_jax.store import Arrays, SweepStore
from plural_jax.sweep_batches import Plan, Program, dependent_sizes, plan

if TYPE_CHECKING:
    import xarray as xr

#: Batches that a sweep is cut into, at least, when it reports or stores and `batch_size` is "auto".
_BATCHES = 16
#: The same for each process, so that no process has much more to do than another.
_BATCHES_EACH = 4
#: What is not an axis.
_OPTIONS = ("num_steps", "save", "every", "batch_size", "store", "part", "key", "progress", "attrs")
#: Seconds after which what another host wrote is visible in a shared folder, with the caches of a network file system.
_VISIBLE_AFTER = 90.0


def sweep(
    make: Callable[..., Process | tuple[Process, ArrayLike]],
    *,
    num_steps: int,
    save: Save = "summary",
    every: int = 1,
    batch_size: int | Literal["auto"] = "auto",
    store: str | Path | None = None,
    part: tuple[int, int] | None = None,
    key: Array | None = None,
    progress: bool | Meter = False,
    attrs: dict[str, Any] | None = None,
    **axes: ArrayLike,
) -> xr.Dataset:
    """Run a process for every combination of the axes' values.

    Batches are spread over all local devices. With a `store` that all can reach, any number of processes compute one sweep,
    batch b in the process with number b modulo their count: those of a job that called `plural_jax.hosts.join()` (or
    `jax.distributed.initialize()`), or those of a job array, each with its `part`.

    Args:
        make: called with one traced scalar for each axis, returns a process, or a process and the argument of its `init`
            (for density processes the starting log-masses).
        num_steps, save, every: as for `run`.
        batch_size: configurations computed at a time, at most. "auto" is as many as take half of the memory that is free on the
            devices, measured on the compiled program, save at most 64 MiB and, where there is a store or a progress bar, are
            a sixteenth of the sweep (a quarter of a process's part). A sweep that is continued keeps the batches of its store.
        store: folder of a Zarr group. Batches are written as they finish; the same call after an interruption computes only
            what is missing, at most the two batches in flight a second time, and returns the same dataset. The result is read
            lazily from disk.
        part: (index, count), with 0 <= index < count: compute only that part of the batches and wait for nobody. What no one
            has computed yet is NaN in the result (zero in variables of whole numbers); the same call without `part` completes
            the sweep.
        key: PRNG key for stochastic processes; configuration i uses `fold_in(key, i)` with i its number in the full product.
        progress: True for a bar on standard error (of process 0), or a `Meter`. A meter with a method `describe(text)` is told
            when the program is compiled, and how long that took.
        attrs: further attributes for the dataset, such as the name and configuration of a study.
        **axes: flat sequences of real numbers, in the order of the result's dimensions. Integers become floats. `inf` is a
            value like any other, for `pool_size`.

    Returns:
        A dataset with dimensions (*axes, "step", ...): "preference" for what exists once per preference, "cell" for
        densities. Its attributes hold the settings and the versions of everything that computed it. Under `jax.distributed`
        every process waits for the others and returns the complete dataset. Other batches, devices and processes change the
        last digits only (less than 1e-5 of a number in the tests, in float32).

    Raises:
        ValueError: an axis that is empty, not flat or NaN; a configuration that `make` refuses (tried with the first, least
            and greatest value of each axis before anything is compiled); a store that holds another sweep; several processes
            without a store.
        hosts.MissingPartError: another process died before its part was complete (`plural_jax.hosts` says when JAX ends this
            one instead). The store keeps what there is, and the same call computes the rest.

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
    given = _check_axes(make, axes)
    # Coordinates keep the caller's digits, so that `ds.sel(phi=0.3)` finds 0.3 in a float32 sweep too.
    values = {name: v.astype(jnp.result_type(float)) for name, v in given.items()}
    if isinstance(batch_size, str) and batch_size != "auto":
        raise ValueError(f"batch_size must be 'auto' or a whole number of at least 1, got {batch_size!r}.")
    wanted = None if isinstance(batch_size, str) else _validate.positive_integer(batch_size, "batch_size")
    if key is not None:
        _validate.key(key)
    index, count = hosts.own_part(part)
    if store is None and (part is not None or count > 1):
        raise ValueError(
            f"a sweep by {count} processes needs store, a folder that all of them can reach, got store=None."
        )
    _try_corners(make, values)

    one = _one_configuration(make, num_steps, policy, every)
    point = {name: jax.ShapeDtypeStruct((), v.dtype) for name, v in values.items()}
    jaxpr, trace = jax.make_jaxpr(one, return_shape=True)(point, jax.ShapeDtypeStruct((), jnp.int32), key)
    sizes, cells = dependent_sizes(lambda point: _build(make(**point)), point)
    whole = plan(values, sizes, cells)
    settings = {
        **(attrs or {}),
        "num_steps": num_steps,
        "every": every,
        "save": save if isinstance(save, str) else getattr(save, "__name__", "function"),
        "key": "none" if key is None else jax.random.key_data(key).tolist(),
        "versions": labels.versions(),
    }
    described = labels.variables(trace, values)
    coords = labels.coordinates(given, num_steps, every)
    # The batches are not part of it: how many fit in memory changes from one start to the next, and no number depends on it.
    settings["fingerprint"] = _fingerprint(jaxpr, coords, settings)

    fixed = None if wanted is None else whole.with_batch_size(wanted)
    shown = meter(jax.process_index() == 0 if progress is True else progress)

    def compiled(batches: Plan) -> Program:
        if hasattr(shown, "describe"):
            shown.describe("compiling")
        return Program(one, batches, cells, key)

    try:
        program = None
        kept: SweepStore | Arrays | None = None
        if store is not None:
            kept = SweepStore.find(store, settings, None if fixed is None else fixed.block)
        if kept is None:
            cut = 1 if store is None and progress is False else max(_BATCHES, _BATCHES_EACH * count)
            program = compiled(fixed) if fixed is not None else _largest(compiled, whole, trace, cells, cut)
            block = program.plan.block
            if store is None:
                kept = Arrays(described, block, coords, settings)
            else:
                kept = SweepStore.create(store, described, block, coords, settings, exact=fixed is not None)
        own = whole._replace(block=kept.block)
        finished = kept.finished()
        complete = all(finished[batch] for batch in own.batches(index, count))
        # Another process may have made the store a moment ago, with other batches.
        if not complete and (program is None or program.plan.block != own.block):
            program = compiled(own)
        total = sum(map(own.size, own.batches(index, count)))
        if program is None:
            shown.start(total, "configurations")
            shown.advance(total)
        else:
            shown.start(total, f"configurations (compiled in {program.seconds:.1f} s)")
            with faults.plain():
                _compute(program, own.batches(index, count), [v.name for v in described], kept, shown)
    finally:
        shown.stop()
    if part is None and count > 1:
        _meet_the_others(kept, store, count)
    return kept.open()


def _largest(compiled: Callable[[Plan], Program], whole: Plan, trace: Any, cells: int, cut: int) -> Program:
    """The program of the largest batches that fit in memory, at least `cut` of them."""
    total = math.prod(len(v) for v in whole.axes.values())
    # On a CPU rows come one after another, so that most states are never there at the same time.
    state = 0 if jax.local_devices()[0].platform == "cpu" else cells * jnp.dtype(jnp.result_type(float)).itemsize
    return memory.largest_fitting(
        lambda size: compiled(whole.with_batch_size(size)),
        most=-(-total // cut),
        result_bytes=sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(trace)),
        state_bytes=state,
        budget=memory.device_budget(),
    )


def _compute(
    program: Program,
    batches: Iterable[tuple[int, ...]],
    names: list[str],
    kept: SweepStore | Arrays,
    shown: Meter,
) -> None:
    """Compute batches and keep them; while the host keeps one, the devices work on the next."""

    def keep(batch: tuple[int, ...], results: list[Array]) -> None:
        values = dict(zip(names, program.collect(batch, results), strict=True))
        for name, value in values.items():
            faults.check_variable(name, value)
        kept.write(batch, program.plan.region(batch), values)
        shown.advance(program.plan.size(batch))

    running: tuple[tuple[int, ...], list[Array]] | None = None
    for batch in batches:
        if kept.is_finished(batch):  # before an interruption, or by another process a moment ago
            shown.advance(program.plan.size(batch))
            continue
        launched = batch, program.launch(batch)
        if running is not None:
            keep(*running)
        running = launched
    if running is not None:
        keep(*running)


def _meet_the_others(kept: SweepStore | Arrays, store: Any, count: int) -> None:
    """Wait until every process has written its part."""
    here = hosts.meet()
    patience = time.monotonic() + (_VISIBLE_AFTER if here == count else 0.0)
    while not kept.finished().all():
        if time.monotonic() >= patience:
            missing = int(np.count_nonzero(~kept.finished()))
            raise hosts.MissingPartError(
                f"{missing} of {kept.finished().size} batches are missing in store={str(store)!r}: {count - here} of {count} "
                "processes died, or do not share the folder. The same call computes the rest."
            )
        time.sleep(1.0)


def _check_axes(make: Callable[..., Any], axes: dict[str, ArrayLike]) -> dict[str, np.ndarray]:
    """The axes as flat host arrays, float64 so that no digit of the caller's is lost."""
    if not axes:
        raise ValueError("sweep needs at least one axis, such as phi=[0.1, 0.5, 0.9].")
    if not callable(make):
        raise ValueError(
            f"make must be a function that takes one number for each axis and returns a Process, got {_validate.kind(make)}."
        )
    why = _validate.misfit(make, **axes)
    if why is not None:
        raise ValueError(
            f"make must take the axes by name, ({', '.join(axes)}), but takes {_validate.parameters(make)}: {why}. Whatever "
            f"is no option of sweep ({', '.join(_OPTIONS)}) is an axis."
        )
    checked = {}
    for name, given in axes.items():
        if name in ("step", "preference", "cell", "mode", "dimension"):
            raise ValueError(f"{name!r} cannot be the name of an axis: it is a dimension of the result.")
        array = _validate.real_array(given, name)
        if array is None:
            raise ValueError(f"{name} is traced; sweep runs on the host and needs values.")
        if array.ndim != 1 or array.size == 0:
            hint = (
                "; an axis is one number for each configuration, of which make may build a vector"
                if array.ndim > 1
                else ""
            )
            raise ValueError(f"{name} must be a flat sequence of at least one number, got shape {array.shape}{hint}.")
        if np.isnan(array.astype(np.float64)).any():
            raise ValueError(f"{name} must not hold NaN, got {_validate.shown(array)}.")
        checked[name] = array.astype(np.float64)
    return checked


def _build(made: Process | tuple[Process, ArrayLike]) -> tuple[Process, Any]:
    """What `make` returned, as a process and its first state."""
    if not isinstance(made, Process) and isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Process):
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
            raise ValueError(f"{error} (in the configuration {_named(corner)})") from error
        except TypeError as error:
            raise ValueError(
                f"make failed in the configuration {_named(corner)}: {error} Axes arrive as floating-point arrays without "
                "dimensions; what sets a shape, such as a number of preferences or cells, needs a sweep for each value."
            ) from error


def _named(corner: dict[str, Any]) -> str:
    return ", ".join(f"{name}={v:g}" for name, v in corner.items())


def _one_configuration(make: Callable[..., Any], num_steps: int, save: Save, every: int) -> Callable[..., Any]:
    """The pure function (point, index, key) -> what one configuration saves."""

    def one(point: dict[str, Array], index: Array, key: Array | None) -> Any:
        try:
            process, state = _build(make(**point))
        except _validate.NEEDS_NUMBERS as error:
            raise ValueError(
                f"make must work with traced numbers, as under jit, but asked for the value of an axis ({', '.join(point)}): "
                "use jax.numpy in it (jnp.stack([phi, 1 - phi]) for np.array or a list, jnp.where for `if`, no float() or "
                "int()); what sets a shape or chooses a process needs a sweep for each value."
            ) from error
        own = None if key is None else jax.random.fold_in(key, index)
        return advance(process, state, own, 0, num_steps, save, every)[1]

    return one


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
