"""A sweep on disk: a Zarr group that is written batch by batch, by any number of processes, and survives a kill at any moment.

One batch of a sweep is one chunk of every variable, so a batch is complete or absent, and batches never touch the same file.
Zarr writes a chunk to a temporary file and renames it. After all chunks of a batch its flag is written; a batch without a flag
is computed again. The group itself is made complete in a temporary folder and renamed, so that of several processes that start
together one makes it and the others find it whole. It is a plain labelled dataset:
`xarray.open_zarr(path, consolidated=False)` opens it at any time.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plural_jax import labels
from plural_jax.labels import Variable, plain_attrs

if TYPE_CHECKING:
    import xarray as xr

#: Array with one flag for each finished batch, in a subgroup that xarray does not see.
_FLAGS = "_finished/batches"


class SweepStore:
    """The store of one sweep, made by `create` or found by `find`.

    Args:
        path: its folder, which holds a complete group.

    Attributes:
        block: configurations along each axis in one batch.
    """

    def __init__(self, path: Path) -> None:
        import zarr

        self.path = path
        self._root = zarr.open_group(path, mode="r+")
        self._flags = self._root[_FLAGS]
        self.block = tuple(json.loads(self._root.attrs["block"]))

    @classmethod
    def find(cls, path: str | Path, attrs: dict[str, Any], block: tuple[int, ...] | None = None) -> SweepStore | None:
        """The store of this sweep in a folder, or None if the folder is free to use.

        Args:
            path: the folder.
            attrs: attributes of the sweep; `attrs["fingerprint"]` says which one it is.
            block: the batches that the sweep must have; None if any will do.

        Raises:
            ValueError: the folder holds something else, or another sweep.
        """
        path = Path(path).expanduser()
        found = _attributes(path)
        if found is None:
            return None
        if "fingerprint" not in found:
            raise ValueError(f"store={str(path)!r} exists and is not a sweep; choose a path that does not exist.")
        wanted = plain_attrs(attrs if block is None else {**attrs, "block": list(block)})
        differ = [k for k in wanted if k != "fingerprint" and found.get(k) != wanted[k]]
        if found["fingerprint"] != wanted["fingerprint"] or "block" in differ:
            detail = (
                "; ".join(f"{k} is {found.get(k)} there and {wanted[k]} now" for k in differ)
                if differ
                else "one of its axes, its `make` or a parameter inside it was different"
            )
            raise ValueError(f"store={str(path)!r} holds another sweep ({detail}); choose another path or delete it.")
        return cls(path)

    @classmethod
    def create(
        cls,
        path: str | Path,
        described: list[Variable],
        block: tuple[int, ...],
        coords: dict[str, np.ndarray],
        attrs: dict[str, Any],
        *,
        exact: bool = True,
    ) -> SweepStore:
        """Make an empty store in a free folder, or open the one that another process made there a moment ago.

        Args:
            path: the folder.
            described: the variables.
            block: configurations along each axis in one batch.
            coords: coordinates by dimension name.
            attrs: attributes of the dataset.
            exact: whether another process's store must have the same batches.
        """
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        # On the same file system, where renaming is one step.
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            _write_group(draft, described, block, coords, {**attrs, "block": list(block)})
            first = _move(draft, path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        store = cls(path) if first else cls.find(path, attrs, block if exact else None)
        if store is None:
            raise ValueError(f"store={str(path)!r} was removed while it was being made.")
        return store

    def finished(self) -> np.ndarray:
        """Which batches are finished now, as a boolean array over the batches along each axis."""
        return np.asarray(self._flags[...])

    def is_finished(self, batch: tuple[int, ...]) -> bool:
        """Whether a batch is finished now; another process may have written it a moment ago."""
        return bool(self._flags[batch])

    def write(self, batch: tuple[int, ...], region: tuple[slice, ...], values: dict[str, np.ndarray]) -> None:
        """Write one batch: every variable's chunk, then the flag."""
        for name, value in values.items():
            self._root[name][region] = value
        self._flags[tuple(slice(i, i + 1) for i in batch)] = True

    def open(self) -> xr.Dataset:
        """The dataset, read lazily from disk."""
        import xarray as xr

        return xr.open_zarr(self.path, consolidated=False, chunks=None)


class Arrays:
    """The results of a sweep in memory, with the methods of a store."""

    def __init__(
        self,
        described: list[Variable],
        block: tuple[int, ...],
        coords: dict[str, np.ndarray],
        attrs: dict[str, Any],
    ) -> None:
        self.block = block
        self._dims = {v.name: v.dims for v in described}
        self._arrays = {v.name: np.empty(v.shape, v.dtype) for v in described}
        self._coords, self._attrs = coords, {**attrs, "block": list(block)}
        self._flags = np.zeros(_counts(described, block), bool)

    def finished(self) -> np.ndarray:
        """Which batches are finished."""
        return self._flags

    def is_finished(self, batch: tuple[int, ...]) -> bool:
        """Whether a batch is finished."""
        return bool(self._flags[batch])

    def write(self, batch: tuple[int, ...], region: tuple[slice, ...], values: dict[str, np.ndarray]) -> None:
        """Keep one batch."""
        for name, value in values.items():
            self._arrays[name][region] = value
        self._flags[batch] = True

    def open(self) -> xr.Dataset:
        """The dataset."""
        named = {name: (self._dims[name], array) for name, array in self._arrays.items()}
        return labels.dataset(named, self._coords, self._attrs)


def _counts(described: list[Variable], block: tuple[int, ...]) -> tuple[int, ...]:
    """Batches along each axis."""
    return tuple(-(-length // size) for length, size in zip(described[0].shape, block, strict=False))


def _attributes(path: Path) -> dict[str, Any] | None:
    """The attributes of what a folder holds, or None if it is free: absent or empty."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    meta = path / "zarr.json"
    return json.loads(meta.read_text()).get("attributes", {}) if meta.is_file() else {}


def _write_group(
    path: Path,
    described: list[Variable],
    block: tuple[int, ...],
    coords: dict[str, np.ndarray],
    attrs: dict[str, Any],
) -> None:
    import zarr

    root = zarr.open_group(path, mode="w")
    for name, values in coords.items():
        array = root.create_array(
            name, shape=values.shape, chunks=values.shape, dtype=values.dtype, dimension_names=(name,)
        )
        array[:] = values
    for variable in described:
        root.create_array(
            variable.name,
            shape=variable.shape,
            chunks=(*block, *variable.shape[len(block) :]),
            dtype=variable.dtype,
            dimension_names=variable.dims,
            fill_value=np.nan if variable.dtype.kind == "f" else 0,
        )
    counts = _counts(described, block)
    root.create_array(_FLAGS, shape=counts, chunks=(1,) * len(counts), dtype=bool)
    root.attrs.update(plain_attrs(attrs))


def _move(draft: Path, path: Path) -> bool:
    """Rename a complete store to its place, in one step; False if something is there already."""
    try:
        if path.is_dir():
            path.rmdir()  # only an empty folder goes; not every system renames over one
        draft.rename(path)
    except OSError:
        if not path.exists():
            raise
        return False
    return True
