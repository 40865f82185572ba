"""E6, sampled: pools of K candidates for a retrained Gaussian mixture (Figure 11), beside exact pools of the same size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from plural_jax import figures
from plural_jax.experiments import mixtures
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.base import Experiment, config_of, titled
from plural_jax.process import Meter


@dataclass(frozen=True)
class Config(mixtures.Config):
    """Retrained Gaussian mixtures for pools of several sizes (E6)."""

    pool_size: Axis = (2.0, 5.0, 10.0, 25.0, 100.0, math.inf)
    """Candidates that each draw looks at, whole numbers of at least 2; infinity for all of them."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """A sweep for each pool size, joined; the exact density as the variables `exact_...`."""
    for name in ("phi", "distance"):
        if len(getattr(config, name)) != 1:
            raise ValueError(f"{name} must be one number here, got {len(getattr(config, name))}.")
    for size in config.pool_size:
        if not (size >= 2 and (math.isinf(size) or (size == int(size) and size <= config.num_candidates))):
            raise ValueError(
                f"pool_size must hold whole numbers from 2 to num_candidates={config.num_candidates}, or inf, got {size:g}."
            )
    parts = []
    for size in config.pool_size:
        # Shapes depend on it, so that each size is a sweep of its own, with a store of its own to continue from.
        own = None if store is None else Path(store).parent / "pools" / f"{size:g}"
        part = mixtures.run("e6-mixtures", config, own, progress, None if math.isinf(size) else int(size)).load()
        parts.append(part)
    attrs = parts[0].attrs
    ds = xr.concat([p.drop_attrs() for p in parts], dim="pool_size").assign_coords(pool_size=list(config.pool_size))
    ds.attrs = attrs
    exact = mixtures.exact_on_grid(config, pool_size=config.pool_size)
    for name in ("reward_mean", "reward_variance"):
        values = exact[name].transpose("pool_size", "phi", "distance", "step", "preference")
        ds[f"exact_{name}"] = (values.dims, values.values)
    if store is not None:
        ds.to_zarr(store, mode="w", consolidated=False)
    return ds


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The last round by pool size: medians over seeds, and the exact density."""
    config, rows = config_of(ds), []
    for size in ds.pool_size.values.tolist():
        last = ds.sel(pool_size=size).isel(phi=0, distance=0, step=-1)
        rows.append(
            {
                "K": size,
                "mean r_1": float(last.reward_mean.isel(preference=0).median()),
                "mean r_1, exact": float(last.exact_reward_mean.isel(preference=0)),
                "var r_1": float(last.reward_variance.isel(preference=0).median()),
                "var r_1, exact": float(last.exact_reward_variance.isel(preference=0)),
                "spread of x_1": float(np.sqrt(last.variance_along.median())),
                "distinct": float(last.num_distinct.median()),
            }
        )
    title = (
        f"E6, sampled. After {config['num_steps']} rounds, medians of {config['num_seeds']} seeds; exact = density of a\n"
        f"pool of K; distinct = candidates that were picked at least once, of {config['num_curated']} draws."
    )
    return {"pools": titled(pd.DataFrame(rows), title)}


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Mean and variance of the first reward by round, for each pool size."""
    with figures.style():
        return {"pools": _figure(ds)}


def _figure(ds: xr.Dataset) -> Figure:
    config, sizes = config_of(ds), ds.pool_size.values.tolist()
    figure, axes = figures.panels(2, width=4.4, height=3.2)
    for size, color in zip(sizes, figures.sequence_colors(len(sizes)), strict=True):
        at = ds.sel(pool_size=size).isel(phi=0, distance=0)
        label = "all" if math.isinf(size) else f"{size:g}"
        for ax, name in zip(axes[0], ("reward_mean", "reward_variance"), strict=True):
            mixtures.band(ax, ds.step.values, at[name].isel(preference=0), color, label)
            ax.plot(ds.step, at[f"exact_{name}"].isel(preference=0), color=color, ls="--", lw=1)
    for ax, label in zip(axes[0], ("reward mean $E[r_1]$", "reward variance $Var[r_1]$"), strict=True):
        ax.set(xlabel="round", ylabel=label)
    axes[0, 1].legend(title="K", ncols=2)
    figures.caption(
        figure,
        f"φ = {config['phi'][0]:g}, distance {config['distance'][0]:g}; dashed: exact density of a pool of K; "
        f"{mixtures.parameters(config)}",
    )
    return figure


EXPERIMENT = Experiment(
    "e6-mixtures", "sampled: pools of K candidates for a retrained mixture (E6, Figure 11)", Config, run, tables, plot
)
