"""Names for numbers: from the pytree that a run saved to the variables and dimensions of an `xarray.Dataset`."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from plural_jax.density.core import INFO_DIMS

if TYPE_CHECKING:
    import xarray as xr

#: Packages whose versions can change a number.
_PACKAGES = ("plural_jax", "jax", "jaxlib", "numpy", "xarray")


class Variable(NamedTuple):
    """One saved array: its name, the names of its dimensions and its shape and type."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype


def variables(trace: Any, axes: dict[str, np.ndarray]) -> list[Variable]:
    """Describe the leaves of what one configuration saves, in the order of `jax.tree.leaves`.

    Args:
        trace: pytree of arrays (or shapes) with a leading axis over saved rounds, for one configuration.
        axes: the axes of the sweep, which come first in every variable.
    """
    lengths = tuple(len(values) for values in axes.values())
    described = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(trace):
        name = ".".join(_part(key) for key in path) or "value"
        rest = leaf.shape[1:]
        own: tuple[str, ...] = INFO_DIMS.get(name.rsplit(".", 1)[-1], ())
        if len(own) != len(rest):
            own = tuple(f"{name}_dim_{i}" for i in range(len(rest)))
        dims = (*axes, "step", *own)
        described.append(Variable(name, dims, (*lengths, *leaf.shape), np.dtype(leaf.dtype)))
    return described


def coordinates(axes: dict[str, np.ndarray], num_steps: int, every: int) -> dict[str, np.ndarray]:
    """The coordinate of every labelled dimension; `step` counts finished rounds."""
    return {**axes, "step": np.arange(every, num_steps + 1, every)}


def dataset(arrays: dict[str, tuple[tuple[str, ...], Any]], coords: dict[str, np.ndarray], attrs: dict) -> xr.Dataset:
    """A dataset with the project's attributes; `attrs` values that are not plain go in as JSON."""
    import xarray as xr  # with pandas, half a second that only those wait for who make a dataset

    return xr.Dataset(arrays, coords=coords, attrs=plain_attrs(attrs))


def plain_attrs(attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes that every store can hold: text and numbers as they are, the rest as JSON text."""
    return {k: v if isinstance(v, (str, int, float)) else json.dumps(v, default=str) for k, v in attrs.items()}


def versions() -> dict[str, str]:
    """Versions of everything that can change a number, and the devices that computed it."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    found["device"] = jax.devices()[0].device_kind
    return found


def _part(key: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
