"""E2: two preferences at growing distance (Figures 3 and 15), in exact densities of the plane (`plane` says how).

Infinitely many rounds end in one mode up to the distance `sqrt(2 temperature / gamma)`, which is 2 here, and in two
modes beyond. After 40 rounds the second mode is there from 2.03 on. The spread of the mass is smoother: it rises from
0.16 at distance 2 through one half at 2.34 to 0.89 at 3. For distant centers it is
`(1 - 1/(1 + 2 gamma T std^2 / temperature))^2`, 0.95 after 40 rounds, because the start still pulls a little.

Against the paper's text. The variance of a reward does not "drop sharply" at the transition alone: far above it, it
follows `(gamma distance^2)^2 / 4` and so falls with the distance everywhere; from distance 2.5 to 2 it falls by a
factor of nine. The transition itself is clearest in the spread. The rest agrees: two modes at large distance, one
compromise mode below the transition, and at distance 0, where both rewards are one, collapse to a point.
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
from plural_jax.theory import transition_distance

_SHOWN = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True)
class Config(plane.Config):
    """Transition as the reward centers move apart (E2)."""

    distance: Axis = tuple(0.25 * i for i in range(33))
    """Distances between the two centers, in units of x; the midpoint is the origin."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """The sweep over distances, summaries of every round."""
    return plane.run("e2", config, store, progress)


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The numbers of Figure 3, and where the transition lies."""
    return {"distances": _table(ds), "transition": _transitions(ds)}


def _table(ds: xr.Dataset) -> pd.DataFrame:
    config, rows = config_of(ds), []
    distances = ds.distance.values
    for point, _ in plane.cases(ds, "distance"):
        last = ds.sel(point).isel(step=-1)
        spread = plane.spread(last)
        infinite = math.isinf(point["pool_size"])
        closed = _closed_form(ds, point).isel(step=-1).sel(distance=distances) if infinite else None
        limit = _limit_spread(config, point, distances)
        for i, d in enumerate(distances):
            at = last.isel(distance=i)
            row = {
                **plane.varied(ds, point),
                "distance": d,
                "mean r_1": float(at.reward_mean[0]),
                "mean r_2": float(at.reward_mean[1]),
                "var r_1": float(at.reward_variance[0]),
                "var r_2": float(at.reward_variance[1]),
                "spread": float(spread[i]),
                "modes": int(at.modes),
            }
            if closed is not None:
                row["limit of spread"] = limit[i]
                row["var r_1, closed form"] = float(closed.reward_variance[i, 0])
            rows.append(row)
    title = (
        f"Figure 3. After {config['num_steps']} rounds. spread = (Var[x_1] - Var[x_2]) / (distance/2)^2: 0 for one\n"
        "mode, 1 for halves on the two centers; limit = infinitely many rounds; closed form = exact mixture of\n"
        "Gaussians, without a grid."
    )
    return titled(pd.DataFrame(rows), title)


def _transitions(ds: xr.Dataset) -> pd.DataFrame:
    config, rows = config_of(ds), []
    distances = ds.distance.values
    for point, _ in plane.cases(ds, "distance"):
        last = ds.sel(point).isel(step=-1)
        row: dict[str, Any] = {**point, "one point stable up to": _exact(config, point)}
        if _symmetric(point):
            row["two modes from, closed form"] = _two_modes_from(ds, point)[-1]
        two = last.modes.values >= 2
        row["two modes from"] = float(distances[two.argmax()]) if two.any() else math.nan
        row["spread reaches 1/2"] = _crossing(distances, plane.spread(last).values, 0.5)
        rows.append(row)
    title = (
        f"Where one mode becomes two. 'stable' is for infinitely many rounds, the rest after {config['num_steps']}:\n"
        "by the closed form between distances, the first of the distances above, and where the spread crosses 1/2."
    )
    table = pd.DataFrame(rows)
    return titled(table.rename(columns={"pool_size": "K"}), title)


def _exact(config: dict[str, Any], point: dict[str, float]) -> float:
    return float(
        transition_distance(
            point["gamma"], phi=point["phi"], temperature=config["temperature"], pool_size=point["pool_size"]
        )
    )


def _symmetric(point: dict[str, float]) -> bool:
    """Whether the closed form's curvature at the midpoint tells the number of modes."""
    return math.isinf(point["pool_size"]) and point["phi"] == 0.5


def _limit_spread(config: dict[str, Any], point: dict[str, float], distances: np.ndarray) -> np.ndarray:
    weights, atoms = plane.limit_atoms(point["phi"], distances, point["gamma"] / config["temperature"])
    mean = (weights * atoms).sum(axis=-1, keepdims=True)
    variance = (weights * (atoms - mean) ** 2).sum(axis=-1)
    return np.divide(variance, (distances / 2) ** 2, out=np.full_like(variance, np.nan), where=distances > 0)


def _crossing(x: np.ndarray, y: np.ndarray, level: float) -> float:
    """Where a curve first rises through a level, between points along a line; NaN where it does not."""
    above = np.nan_to_num(y, nan=-np.inf) >= level
    if not above.any() or above[0]:
        return math.nan
    i = int(np.argmax(above))
    return float(x[i]) if np.isnan(y[i - 1]) else float(np.interp(level, y[i - 1 : i + 1], x[i - 1 : i + 1]))


def _fine(ds: xr.Dataset) -> np.ndarray:
    """Distances for smooth lines."""
    return np.linspace(0, float(ds.distance.max()), 401)


def _closed_form(ds: xr.Dataset, point: dict[str, float]) -> xr.Dataset:
    """The exact mixture of Gaussians at the distances of the dataset and those of smooth lines."""
    return plane.closed_form(ds, point["phi"], point["gamma"], np.union1d(ds.distance.values, _fine(ds)))


def _two_modes_from(ds: xr.Dataset, point: dict[str, float]) -> np.ndarray:
    """The distance from which the density has two modes, after each round, by the closed form (phi = 1/2)."""
    closed = _closed_form(ds, point)
    curvature = closed.curvature.transpose("step", "distance").values
    return np.array([_crossing(closed.distance.values, values, 0.0) for values in curvature])


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Figure 3, how the transition moves from round to round, and Figure 15."""
    with figures.style():
        return {"figure3": _figure3(ds), "transition": _figure_transition(ds), "figure15": _figure15(ds)}


def _figure3(ds: xr.Dataset) -> Figure:
    config, found = config_of(ds), plane.cases(ds, "distance")
    distances = ds.distance.values
    fine = _fine(ds)
    thin = {"color": "0.3", "lw": 0.8}
    figure, axes = figures.panels(3, rows=len(found), width=3.6, height=3.0, sharex=True)
    for row, (point, title) in zip(axes, found, strict=True):
        last, exact = ds.sel(point).isel(step=-1), _exact(config, point)
        for ax, name in zip(row, ("reward_mean", "reward_variance"), strict=False):
            for i, color in enumerate(figures.PREFERENCE_COLORS[:2]):
                # The second line is dashed, because at phi = 1/2 it lies on the first.
                ax.plot(distances, last[name][:, i], color=color, ls=("-", (0, (3, 3)))[i], label=f"preference {i + 1}")
        row[2].plot(distances, plane.spread(last), color="k", label="grid")
        if math.isinf(point["pool_size"]):
            closed = _closed_form(ds, point).isel(step=-1).sel(distance=distances)
            mean, variance = plane.limit_rewards(config, point["phi"], fine, point["gamma"])
            for ax, name, limit in zip(row, ("reward_mean", "reward_variance"), (mean, variance), strict=False):
                for i, color in enumerate(figures.PREFERENCE_COLORS[:2]):
                    dots = {"ls": "none", "marker": "o", "ms": (5.5, 2.5)[i], "mfc": ("none", color)[i]}
                    ax.plot(distances, closed[name][:, i], color=color, **dots)
                    ax.plot(fine, np.where(limit[:, i] == 0, np.nan, limit[:, i]), ls=":", **thin)
            excess = (closed.covariance[:, 0, 0] - closed.covariance[:, 1, 1]).values
            apart = distances > 0
            dots = {
                "ls": "none",
                "marker": "o",
                "ms": 3.5,
                "mfc": "none",
                "color": "k",
                "label": "closed form (all panels)",
            }
            row[2].plot(distances[apart], excess[apart] / (distances[apart] / 2) ** 2, **dots)
            row[2].plot(fine, _limit_spread(config, point, fine), ls=":", **thin, label="infinitely many rounds")
        for ax in row:
            if exact <= distances.max():
                ax.axvline(exact, ls="--", **thin, label=f"d = {exact:.3g}")
            ax.set_title(title)
        row[1].set_yscale("log")
        # The limit is zero below the transition and would stretch the axis.
        row[1].set_ylim(0.5 * float(last.reward_variance.min()), 2 * float(last.reward_variance.max()))
        row[2].set_ylim(-0.05, 1.05)
        row[0].set_ylabel("reward mean $E[r_i]$")
        row[1].set_ylabel("reward variance $Var[r_i]$")
        row[2].set_ylabel("spread between the centers")
        row[2].legend(loc="lower right")
    for ax in axes[-1]:
        ax.set_xlabel("distance d between the centers")
    axes[0, 0].legend()
    note = "dashed: up to here all mass in one point is stable (phi = 1/2, K = ∞: one mode becomes two)"
    figures.caption(figure, f"After the last round; {plane.parameters(ds)}; {note.replace('phi', 'φ')}")
    return figure


def _figure_transition(ds: xr.Dataset) -> Figure:
    config, found = config_of(ds), plane.cases(ds, "distance")
    columns = min(3, len(found))
    figure, axes = figures.panels(
        columns, rows=-(-len(found) // columns), width=5.2, height=3.6, sharex=True, sharey=True
    )
    for ax in axes.flat[len(found) :]:
        ax.remove()
    for ax, (point, title) in zip(axes.flat, found, strict=False):
        spread = plane.spread(ds.sel(point)).transpose("distance", "step")
        image = ax.pcolormesh(
            ds.step, ds.distance, spread, vmin=0, vmax=1, cmap=figures.SEQUENCE_MAP, shading="nearest", rasterized=True
        )
        if _symmetric(point):
            ax.plot(ds.step, _two_modes_from(ds, point), color="w", label="two modes above (closed form)")
        exact = _exact(config, point)
        if exact <= ds.distance.max():
            ax.axhline(exact, color="w", lw=1, ls="--", label=f"one point stable up to d = {exact:.3g}")
        # No spread is defined at distance 0; the legend stands there and on the darkest colors.
        ax.set(title=title, facecolor=image.cmap(0.0), ylim=(0, float(ds.distance.max())))
        ax.grid(False)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(labelcolor="w", loc="lower right")
    figures.share_labels(axes, "round t", "distance d between the centers")
    figure.colorbar(image, ax=axes, label="spread between the centers")
    figures.caption(figure, plane.parameters(ds))
    return figure


def _figure15(ds: xr.Dataset) -> Figure:
    point, title = plane.cases(ds, "distance")[0]
    distances = plane.some(ds.distance.values.tolist(), _SHOWN)
    figure, axes = figures.panels(len(distances), rows=2, width=1.9, height=2.0)
    for column, d in zip(axes.T, distances, strict=True):
        half = max(2.5, d / 2 + 1.6)
        plane.show_density(column[0], ds, plane.first_density(ds), d, half)
        plane.show_density(column[1], ds, plane.final_density(ds, {**point, "distance": d}), d, half)
        column[0].set_title(f"distance {d:g}")
    figures.share_labels(axes, "$x_1$", "$x_2$")
    axes[0, 0].set_ylabel("start\n$x_2$")
    axes[1, 0].set_ylabel(f"round {config_of(ds)['num_steps']}\n$x_2$")
    figures.caption(figure, f"{plane.DENSITY_NOTE}; {title + ', ' if title else ''}{plane.parameters(ds)}")
    return figure


EXPERIMENT = Experiment(
    "e2", "transition as the reward centers move apart: Figures 3 and 15", Config, run, tables, plot, movie=plane.movie
)
