"""A small copy of a finished run's dataset, in one file that needs nothing but SciPy to be read.

    python notebooks/results/keep.py RUN NAME

writes NAME beside this file, from the folder RUN that `plural-jax run ... --out RUN` left: all numbers, the configuration, the
versions, and of the images or texts as many as fit. `xarray.open_dataset(NAME)` opens it.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import xarray as xr

#: What a file may weigh, in bytes.
LIMIT = 200_000
#: The dimension of `shown` along which its images or texts lie.
EXAMPLES = ("image", "text")


def main() -> None:
    """Write the copy and say what is in it."""
    parser = argparse.ArgumentParser(description="Keep a small copy of a run's dataset.")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="of the file, such as e3_cpu.nc")
    parser.add_argument("--first", type=int, default=0, help="number of the first image or text to keep")
    options = parser.parse_args()
    ds = xr.open_zarr(options.run / "dataset.zarr", consolidated=False, chunks=None).load()
    ds.attrs["versions"] = json.dumps(json.loads((options.run / "versions.json").read_text()))
    found = re.search(r"(?<![\w.])[/\\]\w+[/\\]", json.dumps(ds.attrs))
    if found:
        raise ValueError(f"attributes must hold no paths, got {found.group()!r} among them.")
    ds, kept = shrunk(ds, options.first)
    path = Path(__file__).parent / options.name
    written = ds.copy()
    for name in [name for name in ds if ds[name].dtype == np.uint8]:
        # NetCDF-3 has no unsigned bytes; this is how it says that they are meant.
        written[name] = (ds[name].dims, ds[name].values.view(np.int8), {"_Unsigned": "true"})
    written.to_netcdf(path, engine="scipy")
    xr.testing.assert_equal(xr.open_dataset(path), ds)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB, {kept}")


def shrunk(ds: xr.Dataset, first: int) -> tuple[xr.Dataset, str]:
    """The dataset with as many examples as the limit leaves room for, and how many these are."""
    dim = next((d for d in EXAMPLES if "shown" in ds and d in ds["shown"].dims), None)
    if dim is None:
        return ds, "no examples"
    if dim == "text":  # filled up with zeros, as far as the longest needs none
        used = np.flatnonzero(ds["shown"].values.reshape(-1, ds.sizes["byte"]).any(0))
        ds = ds.isel(byte=slice(0, used[-1] + 1))
    each = ds["shown"].isel({dim: 0}).nbytes
    others = ds.nbytes - ds["shown"].nbytes + 20_000  # attributes and headers
    count = min(ds.sizes[dim] - first, max(1, (LIMIT - others) // each))
    return ds.isel({dim: slice(first, first + count)}), f"{count} of {ds.sizes[dim]} per {dim}"


if __name__ == "__main__":
    main()
