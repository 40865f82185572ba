"""E5: how the weight phi of preference 1 shapes the mixture (Figures 6, 7, 10), in exact densities (`plane` says how).

The mass nearer to center 1 settles within 0.0005 of phi at distance 4. The limit itself is off by up to 0.0003, because
every item has some reward under the other preference. In the first rounds the weight moves past phi and returns; that
is not noise, it is in the exact dynamics.

Against the paper's text: it has "lower expected rewards and variances" of reward 1 for phi = 0.1 and 0.3 and "higher
corresponding values" of reward 2. The means are so, the variances are not. With weights a and 1 - a on the two modes
both rewards have variance `a (1 - a) (gamma distance^2)^2` to leading order, and what is left over makes the variance
of the reward with the smaller weight the larger one, in every round (5.80 against 5.49 after the last, at phi = 0.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from plural_jax import figures
from plural_jax.experiments import plane
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.base import Experiment, config_of, titled
from plural_jax.process import Meter

_SHOWN = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Config(plane.Config):
    """Weight of the first preference, swept at a fixed distance (E5)."""

    phi: Axis = tuple(round(0.1 * i, 1) for i in range(1, 10))
    """Weights of the first preference."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """The sweep over phi, summaries of every round."""
    return plane.run("e5", config, store, progress)


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The numbers after the last round."""
    config, rows = config_of(ds), []
    last = ds.isel(step=-1)
    entropy = plane.differential_entropy(last)
    for point, _ in plane.cases(ds, "phi"):
        for phi in ds.phi.values.tolist():
            where = {**point, "phi": phi}
            at = last.sel(where)
            row = {
                **plane.varied(ds, point),
                "phi": phi,
                "weight": float(at.weight),
                "weight - phi": float(at.weight) - phi,
                "mean r_1": float(at.reward_mean[0]),
                "mean r_2": float(at.reward_mean[1]),
                "var r_1": float(at.reward_variance[0]),
                "var r_2": float(at.reward_variance[1]),
                "entropy": float(entropy.sel(where)),
                "outside": float(at.outside_mass),
                "modes": int(at.modes),
            }
            if math.isinf(point["pool_size"]):
                row["limit of weight"] = float(_limit_weight(config, phi, point))
            rows.append(row)
    title = (
        f"Figure 10. After {config['num_steps']} rounds. weight = mass nearer to center 1; limit = infinitely many\n"
        f"rounds; entropy = differential, in nats; outside = mass outside both basins, eps = {config['eps']:g}."
    )
    return {"weights": titled(pd.DataFrame(rows), title)}


def _limit_weight(config: dict, phi: Any, point: dict[str, float]) -> np.ndarray:
    """Mass nearer to center 1 after infinitely many rounds; an atom at the midpoint counts half."""
    weights, atoms = plane.limit_atoms(phi, point["distance"], point["gamma"] / config["temperature"])
    return np.sum(weights * (0.5 - 0.5 * np.sign(np.round(atoms, 9))), axis=-1)


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Figures 6, 7 and 10, and the final densities."""
    with figures.style():
        return {
            "figure6": _figure6(ds),
            "figure7": _figure7(ds),
            "figure10": _figure10(ds),
            "figure10_densities": _densities(ds),
        }


def _figure6(ds: xr.Dataset) -> Figure:
    found, phis = plane.cases(ds, "phi"), ds.phi.values.tolist()
    figure, axes = figures.panels(4, rows=len(found), width=3.1, height=2.9, sharex=True)
    for row, (point, title) in zip(axes, found, strict=True):
        for phi, color in zip(phis, figures.sequence_colors(len(phis)), strict=True):
            rounds = plane.with_start(ds, {**point, "phi": phi})
            for i in range(2):
                row[i].plot(rounds.step, rounds.reward_mean[:, i], color=color, label=f"φ = {phi:g}")
                row[2 + i].plot(rounds.step, rounds.reward_variance[:, i], color=color)
        for i in range(2):
            row[i].set(ylabel=f"reward mean $E[r_{i + 1}]$", title=title)
            row[2 + i].set(ylabel=f"reward variance $Var[r_{i + 1}]$", title=title)
    for ax in axes[-1]:
        ax.set_xlabel("round t")
    # Beside the panels: no corner of them is free for every phi.
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    figures.caption(figure, plane.parameters(ds))
    return figure


def _figure7(ds: xr.Dataset) -> Figure:
    found, phis = plane.cases(ds, "phi"), ds.phi.values.tolist()
    figure, axes = figures.panels(len(found), width=5.0, height=3.8, sharey=True)
    for ax, (point, title) in zip(axes[0], found, strict=True):
        for phi, color in zip(phis, figures.sequence_colors(len(phis)), strict=True):
            rounds = plane.with_start(ds, {**point, "phi": phi})
            ax.axhline(phi, color=color, lw=0.8, ls="--")
            ax.plot(rounds.step, rounds.weight, color=color, label=f"φ = {phi:g}")
        ax.set(xlabel="round t", ylim=(0, 1), title=title)
    axes[0, 0].set_ylabel("mass nearer to center 1")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right center")
    figures.caption(figure, f"Dashed: φ; {plane.parameters(ds)}")
    return figure


def _figure10(ds: xr.Dataset) -> Figure:
    config, found, phis = config_of(ds), plane.cases(ds, "phi"), ds.phi.values
    figure, axes = figures.panels(2, rows=len(found), width=4.2, height=3.4, sharex=True)
    dense = np.linspace(0.005, 0.995, 199)
    for row, (point, title) in zip(axes, found, strict=True):
        weight = ds.weight.sel(point).isel(step=-1).values
        row[0].plot([0, 1], [0, 1], color="0.3", lw=0.8, ls="--", label="weight = φ")
        row[1].axhline(0, color="0.3", lw=0.8, ls="--", label="weight = φ")
        if math.isinf(point["pool_size"]):
            limit = _limit_weight(config, dense, point)
            for ax, line in zip(row, (0, dense), strict=True):
                ax.plot(dense, limit - line, color="0.3", lw=0.9, ls=":", label="infinitely many rounds")
        for ax, line in zip(row, (0, phis), strict=True):
            ax.plot(phis, weight - line, "o", ms=4.5, label=f"round {config['num_steps']}")
            ax.set_title(title)
        row[0].set_ylabel("mass nearer to center 1")
        row[1].set_ylabel("mass nearer to center 1, minus φ")
    for ax in axes[-1]:
        ax.set_xlabel("weight φ of preference 1")
    axes[0, 0].legend()
    figures.caption(figure, plane.parameters(ds))
    return figure


def _densities(ds: xr.Dataset) -> Figure:
    found, phis = plane.cases(ds, "phi"), plane.some(ds.phi.values.tolist(), _SHOWN)
    figure, axes = figures.panels(len(phis), rows=len(found), width=1.9, height=2.2)
    for row, (point, title) in zip(axes, found, strict=True):
        for ax, phi in zip(row, phis, strict=True):
            d = point["distance"]
            plane.show_density(ax, ds, plane.final_density(ds, {**point, "phi": phi}), d, max(2.5, d / 2 + 1))
            ax.set_title(", ".join(filter(None, [f"φ = {phi:g}", title])))
    figures.share_labels(axes, "$x_1$", "$x_2$")
    figures.caption(figure, f"After the last round. {plane.DENSITY_NOTE}; {plane.parameters(ds)}")
    return figure


EXPERIMENT = Experiment(
    "e5",
    "rewards and mixture weight by round for each phi: Figures 6, 7 and 10",
    Config,
    run,
    tables,
    plot,
    movie=plane.movie,
)
