"""Several processes that compute one sweep: which part is whose, and where they meet.

The engine is `jax.distributed`, which finds its way in a Slurm, MPI, Kubernetes or TPU job. Batches are independent, so processes
meet only at the end; no array spans them.

What happens when one dies. JAX notices when its heartbeats stop (after 100 s by default). A process that called plain
`jax.distributed.initialize()` is then ended by JAX, with "another task died" in its log, wherever it is. One that called `join`
goes on, finishes its own part, and raises `MissingPartError` where it would have met the dead one. Process 0 hosts the
coordinator: when it dies, JAX ends the others at once in both cases. The store always keeps what was computed, and the same
command, with any number of processes, computes the rest.
"""

from __future__ import annotations

import operator
from typing import Any

import jax


class MissingPartError(RuntimeError):
    """Another process died, and its part of a sweep is missing."""


def own_part(part: Any) -> tuple[int, int]:
    """(index, count): the part that an argument `part` asks for; None is this process's among all of `jax.distributed`.

    Raises:
        ValueError: not two whole numbers with 0 <= index < count.
    """
    if part is None:
        return jax.process_index(), jax.process_count()
    try:
        index, count = (operator.index(number) for number in part)
    except (TypeError, ValueError):
        raise ValueError(f"part must be (index, count), two whole numbers, got {part!r}.") from None
    if not 0 <= index < count:
        raise ValueError(f"part must be (index, count) with 0 <= index < count, got {part!r}.")
    return index, count


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    **options: Any,
) -> None:
    """`jax.distributed.initialize` for a job whose processes go on when one of them dies.

    Call it before anything else of JAX, and `leave` at the end. All arguments may be left out where JAX finds them itself.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes, process_id: how many there are, and which this one is.
        **options: for `jax.distributed.initialize`, such as `heartbeat_timeout_seconds`.

    Raises:
        ValueError: nothing given and nothing found.
    """
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, **options)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"no job to join ({error}); outside of Slurm, MPI, Kubernetes and TPU pods give the coordinator, the number of "
            "processes and the process id."
        ) from error


def meet() -> int:
    """Wait for every other process that lives; returns how many are here."""
    from jax.experimental import multihost_utils

    # Unlike `sync_global_devices` it needs no program on the devices, and unlike any barrier it does not wait for the dead.
    live: list[Any] = []
    try:
        with multihost_utils.live_devices(jax.devices()) as found:
            live = list(found)
    except multihost_utils.ProcessFailureError as failure:
        live = [device for device in live if device not in failure.failed_devices]
    return len({device.process_index for device in live})


def leave() -> None:
    """Leave a job that was joined; process 0, without which no other can live, goes last."""
    if jax.process_index() == 0:
        while meet() > 1:
            pass
    else:
        jax.distributed.shutdown()
