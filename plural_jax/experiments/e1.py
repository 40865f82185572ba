"""E1: a Gaussian mixture retrained under two preferences and under one (Figure 2), sampled, beside the exact density.

Under two preferences (phi = 1/2) both reward variances stay away from zero and each component keeps about half of the weight:
the draws of every round set it anew, so it does not drift from round to round. Under one (phi = 1) the model collapses to that
preference's center. The exact density of an infinite pool lies within the band of the seeds in all rounds but the first ones, in
which a single Gaussian spreads faster than the exact density does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """A retrained Gaussian mixture: two preferences against one (E1)."""

    phi: Axis = (0.5, 1.0)
    """Weights of the first preference; 1 is the single-reward baseline."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """Both arms, summaries of every round."""
    return mixtures.run("e1", config, store, progress)


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The last round: quantiles over seeds, and the exact density."""
    config, rows = config_of(ds), []
    for phi, distance in _cases(ds):
        last = ds.sel(phi=phi, distance=distance).isel(step=-1)
        exact = mixtures.exact(ds, phi, distance).isel(step=-1)
        for i in (0, 1):
            variance = last.reward_variance.isel(preference=i)
            mean = last.reward_mean.isel(preference=i)
            share = last.allocation.isel(preference=i)
            rows.append(
                {
                    "phi": phi,
                    **({"distance": distance} if ds.sizes["distance"] > 1 else {}),
                    "preference": i + 1,
                    "mean": float(mean.median()),
                    "mean, exact": float(exact.reward_mean[i]),
                    "var 5 %": float(variance.quantile(0.05)),
                    "var": float(variance.median()),
                    "var 95 %": float(variance.quantile(0.95)),
                    "var, exact": float(exact.reward_variance[i]),
                    "weight 5 %": float(share.quantile(0.05)),
                    "weight": float(share.median()),
                    "weight 95 %": float(share.quantile(0.95)),
                    "leakage": float(last.leakage.isel(preference=i).median()),
                }
            )
    title = (
        f"Figure 2. After {config['num_steps']} rounds, over {config['num_seeds']} seeds: quantiles of reward mean and variance\n"
        "and of the weight of the samples nearer to the preference's center; leakage = share of its draws from the other's side."
    )
    return {"arms": titled(pd.DataFrame(rows), title)}


def _cases(ds: xr.Dataset) -> list[tuple[float, float]]:
    return [(p, d) for p in ds.phi.values.tolist() for d in ds.distance.values.tolist()]


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Reward means, reward variances, weights and component means by round, a row for each arm."""
    with figures.style():
        return {"figure2": _figure2(ds)}


def _figure2(ds: xr.Dataset) -> Figure:
    config, cases = config_of(ds), _cases(ds)
    figure, axes = figures.panels(4, rows=len(cases), width=3.0, height=2.6, sharex="col")
    step = ds.step.values
    for row, (phi, distance) in zip(axes, cases, strict=True):
        at, exact = ds.sel(phi=phi, distance=distance), mixtures.exact(ds, phi, distance)
        for i in (0, 1):
            color, name = figures.PREFERENCE_COLORS[i], f"preference {i + 1}"
            mixtures.band(row[0], step, at.reward_mean.isel(preference=i), color, name)
            row[0].plot(exact.step, exact.reward_mean[:, i], color=color, ls="--", lw=1)
            mixtures.band(row[1], step, at.reward_variance.isel(preference=i), color, name)
            row[1].plot(exact.step, exact.reward_variance[:, i], color=color, ls="--", lw=1)
            mixtures.band(row[2], step, at.allocation.isel(preference=i), color, name)
        for ax in row[:2]:
            ax.plot([], [], color="0.4", ls="--", lw=1, label="exact density")
        row[2].axhline(phi, color="0.4", ls=":", lw=1, label="φ")
        row[2].set_ylim(-0.03, 1.03)
        _trajectories(row[3], at, distance)
        arm = "one preference" if phi in (0.0, 1.0) else "two preferences"
        row[0].set_title(f"{arm}, φ = {phi:g}" + (f", d = {distance:g}" if ds.sizes["distance"] > 1 else ""))
    for ax, title in zip(
        axes[0], ("reward mean", "reward variance", "weight nearer to its center", "means"), strict=True
    ):
        ax.annotate(title, (0.5, 1.22), xycoords="axes fraction", ha="center", weight="bold")
    for ax in axes[-1, :3]:
        ax.set_xlabel("round")
    axes[-1, 3].set_xlabel("$x_1$")
    axes[0, 1].legend()
    axes[0, 2].legend()
    figures.caption(figure, f"Distance {cases[0][1]:g}; {mixtures.parameters(config)}" if ds.sizes["distance"] == 1
                    else mixtures.parameters(config))  # fmt: skip
    return figure


def _trajectories(ax: Any, at: xr.Dataset, distance: float) -> None:
    """Where the components' means went: a thin line for each seed."""
    weight, mean = at.component_weight.values, at.component_mean.values
    for seed in range(at.sizes["seed"]):
        for k in (0, 1):
            used = weight[seed, :, k] > 0.02
            ax.plot(*np.where(used[:, None], mean[seed, :, k], np.nan).T, color="0.45", lw=0.5, alpha=0.5)
            if used[-1]:
                ax.plot(*mean[seed, -1, k], ".", color="k", ms=2.5)
    for i, x in enumerate((-distance / 2, distance / 2)):
        ax.plot(x, 0, "*", color=figures.PREFERENCE_COLORS[i], ms=11, mec="k", mew=0.4, zorder=3)
    ax.set_ylim(-0.9, 0.9)
    ax.set_ylabel("$x_2$")


EXPERIMENT = Experiment(
    "e1", "sampled: a retrained Gaussian mixture under two preferences and one (Figure 2)", Config, run, tables, plot
)
