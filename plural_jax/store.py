"""A sweep on disk: a Zarr group that is written batch by batch and survives a kill at any moment.

One batch of a sweep is one chunk of every variable, so a batch is complete or absent, and batches never touch the same file.
Zarr writes a chunk to a temporary file and renames it. After all chunks of a batch its flag is written; a batch without a flag
is computed again. The group is a plain labelled dataset: `xarray.open_zarr(path, consolidated=False)` opens it at any time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from plural_jax.labels import Variable, plain_attrs

#: Subgroup with one flag for each finished batch; xarray does not see it.
_FLAGS = "_finished"


class SweepStore:
    """The store of one sweep.

    Args:
        path: a folder that does not exist, is empty, or holds the same sweep begun earlier.
        described: the variables.
        block: number of configurations along each axis in one batch.
        coords: coordinates by dimension name.
        attrs: attributes of the dataset; `attrs["fingerprint"]` says which sweep it is.

    Raises:
        ValueError: the folder holds something else, or another sweep.
    """

    def __init__(
        self,
        path: str | Path,
        described: list[Variable],
        block: tuple[int, ...],
        coords: dict[str, np.ndarray],
        attrs: dict[str, Any],
    ) -> None:
        import zarr

        self.path = Path(path)
        self._described = described
        self._num_axes = len(block)
        counts = [-(-length // size) for length, size in zip(described[0].shape[: self._num_axes], block, strict=True)]
        # The group's attributes are written last, so a folder without a fingerprint was killed while being set up.
        if self._existing_fingerprint(attrs):
            self._root = zarr.open_group(self.path, mode="r+")
        else:
            self._root = zarr.open_group(self.path, mode="w")
            for name, values in coords.items():
                array = self._root.create_array(
                    name, shape=values.shape, chunks=values.shape, dtype=values.dtype, dimension_names=(name,)
                )
                array[:] = values
            for variable in described:
                self._root.create_array(
                    variable.name,
                    shape=variable.shape,
                    chunks=(*block, *variable.shape[self._num_axes :]),
                    dtype=variable.dtype,
                    dimension_names=variable.dims,
                    fill_value=np.nan if variable.dtype.kind == "f" else 0,
                )
            self._root.create_array(f"{_FLAGS}/batches", shape=tuple(counts), chunks=(1,) * len(counts), dtype=bool)
            self._root.attrs.update(plain_attrs(attrs))
        self.finished = np.asarray(self._root[f"{_FLAGS}/batches"][...])

    def _existing_fingerprint(self, attrs: dict[str, Any]) -> bool:
        """True if the folder holds this sweep, False if it is free to use."""
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return False
        meta = self.path / "zarr.json"
        found: dict[str, Any] = {}
        if meta.is_file():
            found = json.loads(meta.read_text()).get("attributes", {})
            if not found:
                return False  # killed before the group was complete
        if "fingerprint" not in found:
            raise ValueError(f"store={str(self.path)!r} exists and is not a sweep; choose a path that does not exist.")
        if found["fingerprint"] != attrs["fingerprint"]:
            wanted = plain_attrs(attrs)
            differ = [k for k in wanted if k != "fingerprint" and found.get(k) != wanted[k]]
            detail = (
                "; ".join(f"{k} is {found.get(k)} there and {wanted[k]} now" for k in differ)
                if differ
                else "its `make` or a parameter inside it was different"
            )
            raise ValueError(
                f"store={str(self.path)!r} holds another sweep ({detail}); choose another path or delete it."
            )
        return True

    def write(self, batch: tuple[int, ...], region: tuple[slice, ...], values: list[np.ndarray]) -> None:
        """Write one batch: every variable's chunk, then the flag."""
        for variable, value in zip(self._described, values, strict=True):
            self._root[variable.name][region] = value
        self._root[f"{_FLAGS}/batches"][tuple(slice(i, i + 1) for i in batch)] = True

    def open(self) -> xr.Dataset:
        """The dataset, read lazily from disk."""
        return xr.open_zarr(self.path, consolidated=False, chunks=None)
