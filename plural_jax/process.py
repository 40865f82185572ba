"""The step API: a `Process` is a pair of pure functions, and `run` is the one loop over rounds.

Everything that evolves here, from an exact density to a language model, is a `Process(init, step)`:

    state       = process.init(...)
    state, info = process.step(key, state)

`State` is what the next round needs, `Info` is what a person may want to look at; both are pytrees of arrays. The
functions of a process are `jax.tree_util.Partial` objects over the process's numbers, so a process is itself a pytree:
it can be an argument of a jitted function, be mapped over, and changing `phi` compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate, checkpoints, faults

T = TypeVar("T")
State = Any
Info = Any
Save = Literal["summary", "final", "density"] | Callable[[Any, Any], Any]


class Process(NamedTuple):
    """A retraining process.

    Attributes:
        init: `(...) -> state`.
        step: `(key, state) -> (state, info)`, one round; `info` describes the new state. A deterministic process ignores
            the key, which may then be None.
        rounds: `(key, state, num_steps, every) -> (state, infos)`, optional: the same as `num_steps` calls of `step`, with
            the infos of every `every`-th round stacked, where a process knows a faster way than one call after another.
            Only for deterministic processes. `num_steps` and `every` are static and `every` divides `num_steps`.
    """

    init: Callable[..., State]
    step: Callable[[Array | None, State], tuple[State, Info]]
    rounds: Callable[[Array | None, State, int, int], tuple[State, Info]] | None = None


def names_its_fields(kept: type[T]) -> type[T]:
    """Make a NamedTuple of what was kept say what it has, and how to keep more, when it is asked for something else."""

    def missing(self: Any, name: str) -> Any:
        if name.startswith("_"):  # asked of everything, by Python and by notebooks
            raise AttributeError(name)
        raise AttributeError(
            f"{kept.__name__} has no {name!r}, only {', '.join(kept._fields)}; save= of pj.run says what is kept: "  # type: ignore[attr-defined]
            "'summary', 'density' (log_p), or a function such as lambda state, info: (state.log_p, info)."
        )

    kept.__getattr__ = missing  # type: ignore[attr-defined]
    return kept


@names_its_fields
class Density(NamedTuple):
    """What `save="density"` keeps of each saved round."""

    log_p: Array


class Meter(Protocol):
    """What `run` and `sweep` tell about their progress; any object with these methods will do."""

    def start(self, total: int, description: str) -> None: ...
    def advance(self, amount: int) -> None: ...
    def stop(self) -> None: ...


class NoMeter:
    """A progress meter that shows nothing, the default."""

    def start(self, total: int, description: str) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def stop(self) -> None:
        pass


def run(
    process: Process,
    state: State,
    num_steps: int,
    *,
    key: Array | None = None,
    save: Save = "summary",
    every: int = 1,
    progress: bool | Meter | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
) -> tuple[State, Any]:
    """Run a process for `num_steps` rounds and keep what `save` asks for.

    Args:
        process: any `Process`.
        state: what `process.init` returned.
        num_steps: rounds to run.
        key: a PRNG key for stochastic processes; round t uses `fold_in(key, t)`, so that a run cut in pieces draws the
            same numbers.
        save: "summary" keeps the info of every `every`-th round; "final" that of the last round only, and computes none on
            the way; "density" the log-masses; a function `(state, info) -> pytree` whatever it returns.
        every: keep every `every`-th round; it must divide `num_steps`. Not used by "final".
        progress: True for a bar on standard error, or a `Meter` that is told about finished rounds (the run is then cut into
            about twenty pieces).
        checkpoint: a folder in which the run is saved after every piece. The same call after an interruption goes on from
            there and returns, on the same kind of device, the state and trace of an unbroken run, bit for bit; once the run
            is complete, it computes nothing. Arrays come back on the default device.
        checkpoint_every: rounds in a piece, a multiple of `every`; default: about a twentieth of the run.

    Returns:
        The final state, and a pytree whose leaves have a leading axis over the saved rounds.

    Raises:
        ValueError: `num_steps`, `every` or `checkpoint_every` not whole and positive, `every` no divisor, an unknown `save`;
            a `checkpoint` that holds another run or something else, or is given inside `jit`, `vmap` or `grad`. Outside of
            these also a state whose `fault` says that the run went wrong.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[0.0, 1.0, 5.0], [5.0, 1.0, 0.0]])
        >>> process = pj.density.large_pool(land, phi=[0.3, 0.7])
        >>> final, trace = pj.run(process, process.init(), num_steps=50)
        >>> trace.entropy.shape
        (50,)
    """
    if not isinstance(process, Process):
        raise ValueError(
            "process must be a Process, such as pj.density.large_pool(...) or pj.retraining.loop(...), got "
            f"{_validate.kind(process)}."
        )
    if isinstance(state, (FunctionType, MethodType, Partial)):
        raise ValueError("state must be what process.init() returned, got the function: call it.")
    num_steps = _validate.positive_integer(num_steps, "num_steps")
    policy, stride = check_save(save, every, num_steps)
    if key is not None:
        _validate.key(key)
    progress = _meter(progress)
    final = save == "final"
    piece = _piece_length(num_steps, 1 if final else stride, checkpoint, checkpoint_every)
    pytree = as_pytree(process)
    if progress is None and checkpoint is None:
        with faults.plain():
            state, trace = _run_piece(pytree, state, key, 0, num_steps, policy, stride)
            faults.check_state(state)
        return state, trace

    def arguments(start: int, state: State) -> tuple[Any, ...]:
        length = min(piece, num_steps - start)
        return pytree, state, key, start, length, policy, length if final else stride

    done, traces, store = 0, [], None
    if checkpoint is not None:
        # Under `jit`, even a new array is traced.
        if _validate.is_traced((pytree, state, key, jnp.zeros(()))):
            raise ValueError("checkpoint cannot be given inside jit, vmap or grad: traced numbers cannot be saved.")
        first = _run_piece.trace(*arguments(0, state))
        told = {"num_steps": num_steps, "every": "not used" if final else stride, "checkpoint_every": piece}
        settings = checkpoints.describe(pytree, state, key, save, first, **told)
        store = checkpoints.RunStore(checkpoint, settings, first.out_info, last_only=final)
        saved = store.newest()
        if saved is not None:
            done, state, traces = saved[0], saved[1], [saved[2]]

    meter = NoMeter() if progress is None else progress
    meter.start(num_steps, "rounds")
    try:
        if done:
            meter.advance(done)
        # Equal pieces share one compiled function; only a last, shorter piece needs a second one.
        for start in range(done, num_steps, piece):
            with faults.plain():
                state, trace = jax.block_until_ready(_run_piece(*arguments(start, state)))
            faults.check_state(state)
            traces = [trace] if final else [*traces, trace]
            finished = min(start + piece, num_steps)
            if store is not None:
                store.save(finished, state, trace)
            meter.advance(finished - start)
    finally:
        meter.stop()
    return state, traces[0] if len(traces) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces)


def _meter(progress: bool | Meter | None) -> Meter | None:
    """The meter that `progress` asks for, None for nothing."""
    if progress is not True:
        return None if progress is False else progress
    from plural_jax.progress import RichMeter  # which is made of what is here

    return RichMeter()


def _piece_length(num_steps: int, unit: int, checkpoint: str | Path | None, checkpoint_every: int | None) -> int:
    """Rounds between two reports or checkpoints, a multiple of `unit`."""
    if checkpoint_every is None:
        return unit * max(1, round(num_steps / unit / 20))
    if checkpoint is None:
        raise ValueError("checkpoint_every needs checkpoint, the folder to save in.")
    length = _validate.positive_integer(checkpoint_every, "checkpoint_every")
    if length % unit:
        raise ValueError(
            f"checkpoint_every must be a multiple of every, got checkpoint_every={length} and every={unit}."
        )
    return min(length, num_steps)


def check_save(save: Save, every: int, num_steps: int) -> tuple[Save, int]:
    """Validate a save policy; "final" becomes "summary" of the last round alone."""
    every = _validate.positive_integer(every, "every")
    if save == "final":
        return "summary", num_steps
    if not callable(save) and save not in ("summary", "density"):
        raise ValueError(f"save must be 'summary', 'final', 'density' or a function of (state, info), got {save!r}.")
    if num_steps % every:
        raise ValueError(f"every must divide num_steps, got every={every} and num_steps={num_steps}.")
    return save, every


def as_pytree(process: Process) -> Process:
    """Wrap plain functions so that the process can be an argument of a jitted function."""

    def wrap(function: Any) -> Any:
        return function if function is None or isinstance(function, Partial) else Partial(function)

    return Process(*(wrap(f) for f in process))


@partial(jax.jit, static_argnames=("num_steps", "save", "every"))
def _run_piece(
    process: Process, state: State, key: Array | None, start: Array | int, num_steps: int, save: Save, every: int
) -> tuple[State, Any]:
    return advance(process, state, key, start, num_steps, save, every)


def advance(
    process: Process, state: State, key: Array | None, start: Array | int, num_steps: int, save: Save, every: int
) -> tuple[State, Any]:
    """The loop over rounds without the host: pure, for use inside `jit`, `vmap` or `lax.map`.

    `start` is the number of rounds already done; the arguments have passed `check_save`.
    """
    if save == "summary" and process.rounds is not None:
        return process.rounds(key, state, num_steps, every)

    def one_round(state: State, t: Array) -> tuple[State, Info]:
        return process.step(None if key is None else jax.random.fold_in(key, t), state)

    def keep(state: State, info: Info) -> Any:
        if callable(save):
            return save(state, info)
        if save == "summary":
            return info
        if not hasattr(state, "log_p"):
            raise ValueError(f"save='density' needs a state with log_p, but this one is {type(state).__name__}.")
        return Density(state.log_p)

    def block(state: State, t: Array) -> tuple[State, Any]:
        if every > 1 and process.rounds is not None:
            state, infos = process.rounds(key, state, every, every)
            info = jax.tree.map(lambda x: x[-1], infos)
        else:
            if every > 1:  # the infos of these rounds are never used, so XLA does not compute them
                state, _ = jax.lax.scan(lambda s, i: (one_round(s, i)[0], None), state, t + jnp.arange(every - 1))
            state, info = one_round(state, t + every - 1)
        return state, keep(state, info)

    return jax.lax.scan(block, state, start + every * jnp.arange(num_steps // every))
