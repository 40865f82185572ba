"""E7: many separations of the two preferences, sampled (Figures 3 and 15), beside the exact density.

The same transition as in E2, now for a model of two Gaussians that is refit to 500 samples in each round.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from plural_jax import density, figures
from plural_jax import run as run_process
from plural_jax.experiments import mixtures, plane
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.base import Experiment, config_of, titled
from plural_jax.process import Meter
from plural_jax.theory import transition_distance

#: Distances whose densities are shown.
_SHOWN = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Config(mixtures.Config):
    """Retrained Gaussian mixtures as the reward centers move apart (E7; E2 sampled)."""

    distance: Axis = tuple(0.5 * i for i in range(17))
    """Distances between the two centers, in units of x; the midpoint is the origin."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """The sweep over distances, summaries of every round."""
    return mixtures.run("e7", config, store, progress)


def spread(ds: xr.Dataset) -> xr.DataArray:
    """`(Var[x_1] - Var[x_2]) / (distance / 2)^2` of the model: 0 for one mode, 1 for halves on the two centers."""
    half = ds.distance.where(ds.distance > 0) / 2
    return (ds.variance_along - ds.variance_across) / half**2


def _exact_spread(ds: xr.Dataset, phi: float, distance: float) -> float:
    last = mixtures.exact(ds, phi, distance).isel(step=-1).covariance.values
    return float((last[0, 0] - last[1, 1]) / (distance / 2) ** 2) if distance > 0 else float("nan")


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The last round: medians over seeds and the exact density, by distance."""
    config, rows = config_of(ds), []
    for phi in ds.phi.values.tolist():
        for distance in ds.distance.values.tolist():
            last = ds.sel(phi=phi, distance=distance).isel(step=-1)
            exact = mixtures.exact(ds, phi, distance).isel(step=-1)
            low, middle, high = mixtures.quantiles(spread(last))
            rows.append(
                {
                    **({"phi": phi} if ds.sizes["phi"] > 1 else {}),
                    "distance": distance,
                    "mean r_1": float(last.reward_mean.isel(preference=0).median()),
                    "mean r_1, exact": float(exact.reward_mean[0]),
                    "var r_1": float(last.reward_variance.isel(preference=0).median()),
                    "var r_1, exact": float(exact.reward_variance[0]),
                    "spread 5 %": float(low),
                    "spread": float(middle),
                    "spread 95 %": float(high),
                    "spread, exact": _exact_spread(ds, phi, distance),
                }
            )
    title = (
        f"After {config['num_steps']} rounds, over {config['num_seeds']} seeds. spread = (Var[x_1] - Var[x_2]) / (d/2)^2:\n"
        "0 for one mode, 1 for halves on the two centers. exact = density of an infinite pool after as many rounds."
    )
    return {"separations": titled(pd.DataFrame(rows), title)}


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Reward means and variances and the spread, by distance; densities after the last round (Figure 15)."""
    with figures.style():
        return {"separations": _separations(ds), "figure15": _densities(ds)}


def _separations(ds: xr.Dataset) -> Figure:
    config, phis, distances = config_of(ds), ds.phi.values.tolist(), ds.distance.values
    figure, axes = figures.panels(3, rows=len(phis), width=3.6, height=3.0, sharex=True)
    for row, phi in zip(axes, phis, strict=True):
        last = ds.sel(phi=phi).isel(step=-1)
        exact = [mixtures.exact(ds, phi, d).isel(step=-1) for d in distances.tolist()]
        for i in (0, 1):
            color = figures.PREFERENCE_COLORS[i]
            for ax, name in zip(row, ("reward_mean", "reward_variance"), strict=False):
                mixtures.band(ax, distances, last[name].isel(preference=i), color, f"preference {i + 1}")
                ax.plot(distances, [float(e[name][i]) for e in exact], color=color, ls="--", lw=1)
        mixtures.band(row[2], distances, spread(last), "k", "mixture")
        row[2].plot(distances, [_exact_spread(ds, phi, d) for d in distances.tolist()], color="0.4", ls="--", lw=1,
                    label="exact density")  # fmt: skip
        fine = np.linspace(0.05, float(distances.max()), 400)
        one = mixtures.one_gaussian(config, phi, fine) / (fine / 2) ** 2
        row[2].plot(fine, one, color=figures.PREFERENCE_COLORS[2], ls=":", label="one Gaussian, for ever")
        threshold = float(transition_distance(config["gamma"], phi=phi, temperature=config["temperature"]))
        for ax, title in zip(row, ("reward mean", "reward variance", "spread"), strict=True):
            ax.axvline(threshold, color="0.3", lw=0.8)
            ax.set_title(title + (f", φ = {phi:g}" if len(phis) > 1 else ""))
        row[2].annotate(f"{threshold:.3g}", (threshold, 1.02), (4, 0), textcoords="offset points", size=8)
    axes[0, 0].plot([], [], color="0.4", ls="--", lw=1, label="exact density")
    axes[0, 0].legend()
    axes[0, 2].legend(loc="lower right")
    for ax in axes[-1]:
        ax.set_xlabel("distance between the centers")
    note = f"After {config['num_steps']} rounds; line: one point is stable up to here; {mixtures.parameters(config)}"
    figures.caption(figure, note)
    return figure


def _densities(ds: xr.Dataset) -> Figure:
    config, phi = config_of(ds), ds.phi.values.tolist()[0]
    among = ds.distance.values
    shown = list(dict.fromkeys(float(among[np.abs(among - d).argmin()]) for d in _SHOWN))
    figure, axes = figures.panels(len(shown), rows=2, width=2.3, height=1.35, sharex=True, sharey=True)
    # One grid for all, so that nothing compiles twice.
    settings = {"distance": (max(shown),), "std": config["std"], "spacing": 0.0625, "reach": 2.0}
    grid = plane.grid(settings)
    points = np.asarray(grid.points, float)
    x, y = (np.unique(points[:, i]) for i in (0, 1))
    for column, distance in zip(axes.T, shown, strict=True):
        land = plane.landscape(settings, distance, config["gamma"])
        process = density.large_pool(land, [phi, 1 - phi], temperature=config["temperature"])
        final, _ = run_process(
            process, process.init(land.gaussian(0.0, config["std"])), config["num_steps"], save="final"
        )
        last = ds.sel(phi=phi, distance=distance).isel(step=-1)
        for ax, values in zip(
            column, (np.exp(np.asarray(final.log_p)), mixtures.mean_density(last, points)), strict=True
        ):
            figures.density_image(ax, x, y, values.reshape(grid.shape))
            for i, center in enumerate((-distance / 2, distance / 2)):
                ax.plot(center, -1.0, "^", color=figures.PREFERENCE_COLORS[i], ms=5)
            half = max(shown) / 2 + 1
            ax.set(xlim=(-half, half), ylim=(-1.25, 1.25))
        column[0].set_title(f"d = {distance:g}")
        column[1].set_xlabel("$x_1$")
    axes[0, 0].set_ylabel("exact density")
    axes[1, 0].set_ylabel("mixtures")
    note = f"Densities after {config['num_steps']} rounds, each brightest at its maximum; mixtures: mean of all seeds"
    figures.caption(
        figure, f"{note}; triangles: first coordinate of the centers; φ = {phi:g}; {mixtures.parameters(config)}"
    )
    return figure


EXPERIMENT = Experiment(
    "e7",
    "sampled: retrained Gaussian mixtures at many separations (E2 and E7, Figures 3, 15)",
    Config,
    run,
    tables,
    plot,
)
