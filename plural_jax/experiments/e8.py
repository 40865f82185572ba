"""E8: leakage, the share of a preference's draws that come from the other's side (C.7), sampled, beside the exact density."""

from __future__ import annotations

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
    """Leakage of retrained Gaussian mixtures by distance and round (E8)."""

    distance: Axis = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
    """Distances between the two centers, in units of x; the midpoint is the origin."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """The sweep over distances, summaries of every round."""
    return mixtures.run("e8", config, store, progress)


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Leakage of the first and of the last round: medians over seeds, and the exact density."""
    config, rows = config_of(ds), []
    for phi in ds.phi.values.tolist():
        exact = mixtures.exact_leakage(ds, phi)
        for distance in ds.distance.values.tolist():
            for t in (0, config["num_steps"] - 1):
                at = ds.leakage.sel(phi=phi, distance=distance).isel(step=t, preference=0)
                low, middle, high = mixtures.quantiles(at)
                rows.append(
                    {
                        **({"phi": phi} if ds.sizes["phi"] > 1 else {}),
                        "distance": distance,
                        "round": t + 1,
                        "leakage 5 %": low,
                        "leakage": middle,
                        "leakage 95 %": high,
                        "exact": float(exact.sel(distance=distance).isel(step=t, preference=0)),
                    }
                )
    title = (
        f"Share of the draws of preference 1 from samples nearer to the other center (C.7), over {config['num_seeds']} seeds;\n"
        "exact = density of an infinite pool."
    )
    return {"leakage": titled(pd.DataFrame(rows), title)}


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Leakage by round for each distance, and of the last round by distance."""
    with figures.style():
        return {"leakage": _leakage(ds)}


def _leakage(ds: xr.Dataset) -> Figure:
    config, phis, distances = config_of(ds), ds.phi.values.tolist(), ds.distance.values
    figure, axes = figures.panels(2, rows=len(phis), width=4.4, height=3.2, sharey=True)
    for row, phi in zip(axes, phis, strict=True):
        at, exact = ds.leakage.sel(phi=phi).isel(preference=0), mixtures.exact_leakage(ds, phi).isel(preference=0)
        for distance, color in zip(distances.tolist(), figures.sequence_colors(len(distances)), strict=True):
            mixtures.band(row[0], ds.step.values, at.sel(distance=distance), color, f"{distance:g}")
            row[0].plot(ds.step.values, exact.sel(distance=distance), color=color, ls="--", lw=1)
        for t, color, name in ((0, "0.55", "first round"), (-1, "k", "last round")):
            mixtures.band(row[1], distances, at.isel(step=t), color, name)
            row[1].plot(distances, exact.isel(step=t), color=color, ls="--", lw=1)
        row[1].axvline(1 / np.sqrt(2 * config["gamma"] / config["temperature"] * phi * (1 - phi)), color="0.3", lw=0.8)
        row[0].set_ylabel("leakage of preference 1" + (f", φ = {phi:g}" if len(phis) > 1 else ""))
    axes[-1, 0].set_xlabel("round")
    axes[-1, 1].set_xlabel("distance between the centers")
    axes[0, 0].legend(title="distance", ncols=4, loc="upper center")
    axes[0, 0].set_ylim(-0.03, 0.95)
    axes[0, 1].legend()
    figures.caption(
        figure, f"Dashed: exact density; line: one point is stable up to here; {mixtures.parameters(config)}"
    )
    return figure


EXPERIMENT = Experiment(
    "e8", "sampled: leakage between two preferences, by distance and round (C.7)", Config, run, tables, plot
)
