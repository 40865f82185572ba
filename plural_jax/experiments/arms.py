"""Experiments that run one arm after another: each arm is kept when it is finished, and goes on where it was interrupted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from plural_jax.process import Meter, Process


def kept(
    store: Path | None, name: str, attrs: dict[str, Any], compute: Callable[[Path | None], xr.Dataset]
) -> xr.Dataset:
    """One arm's dataset: from the folder `arms` beside the store, or computed now and kept there.

    Args:
        store: of the whole dataset; None: nothing is kept.
        name: of the arm, which names its files.
        attrs: attributes that say what was run; a finished arm must have the same.
        compute: `folder -> dataset`; the folder is for checkpoints, and is removed when the arm is finished.

    Raises:
        ValueError: the arm that lies there was run with another configuration.
    """
    known = {**attrs, "arm": name}
    if store is None:
        return compute(None).assign_attrs(known)
    # Not `with_suffix`, which takes the .1 of "phi-0.1" for a suffix.
    folder = Path(store).parent / "arms" / name
    done, partial = (folder.with_name(name + ending) for ending in (".zarr", ".zarr.partial"))
    if not done.exists():
        found = compute(folder).assign_attrs(known)
        shutil.rmtree(partial, ignore_errors=True)
        found.to_zarr(partial, consolidated=False)
        os.replace(partial, done)
        shutil.rmtree(folder, ignore_errors=True)  # its checkpoints are of no more use
    found = xr.open_zarr(done, consolidated=False).load()
    if found.attrs != known:
        raise ValueError(f"{str(done)!r} was run with another configuration; choose another folder.")
    return found


@jax.jit
def first_state(process: Process, key: jax.Array) -> Any:
    """The first state of a process; the models in it are arguments of what is compiled, not constants, and arms share it."""
    return process.init(key)


def together(store: Path | None, dataset: xr.Dataset) -> xr.Dataset:
    """The whole dataset, written to the store in place of what was there."""
    if store is not None:
        shutil.rmtree(store, ignore_errors=True)
        dataset.to_zarr(store, consolidated=False)
    return dataset


class NamedMeter:
    """A meter that says which part of a run its rounds belong to."""

    def __init__(self, meter: Meter, name: str) -> None:
        self.meter, self.name = meter, name

    def start(self, total: int, description: str) -> None:
        self.meter.start(total, f"{self.name}: {description}")

    def advance(self, amount: int) -> None:
        self.meter.advance(amount)

    def stop(self) -> None:
        self.meter.stop()
