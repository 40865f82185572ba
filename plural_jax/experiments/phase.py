"""Phase diagrams of the exact limit: which preferences keep a mode of their own, over phi, distance, sharpness and m.

m quadratic rewards `-gamma ||x - mu_i||^2` with their centers on a regular polygon whose neighbors are `distance` apart (for
m = 2 a line). The first preference has weight phi and the others share the rest. Limits are solved for, not run to, and
their atoms are moved off the grid, so that the lines in the figures do not depend on it. All of it is one batched call: a
polygon of fewer centers is one whose other preferences have weight zero.

For m = 2 and phi = 1/2 one mode becomes two exactly at `distance = sqrt(2 temperature / gamma)`. For other phi the point
where one mode loses its stability is later than where two modes first win: between them, the two-mode limit is reached
although a single mode would be stable against small changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plural_jax import Grid, Landscape, Process, density, figures, rewards, sweep
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.base import Experiment, config_of, study, titled
from plural_jax.process import Meter
from plural_jax.theory import transition_distance

#: The grid reaches this far beyond the polygon, in units of its circumradius.
GRID_REACH = 1.2


@dataclass(frozen=True)
class Config:
    """Exact limits for m quadratic preferences on a polygon, and for centers scattered in the plane."""

    phi: Axis = tuple(round(0.05 * i, 2) for i in range(1, 20))
    """Weights of the first preference; the others share the rest."""
    distance: Axis = tuple(round(0.125 * i, 3) for i in range(4, 41))
    """Distances between neighboring centers, in units of x."""
    gamma: Axis = (0.5,)
    """Sharpness of the rewards, in reward per squared unit of x."""
    num_preferences: Axis = (2.0, 3.0, 5.0)
    """Numbers of preferences m."""
    temperature: float = 1.0
    """Temperature of the choice rule, in units of reward."""
    num: int = 31
    """Grid points per side, odd; atoms are moved off the grid."""
    num_scattered: int = 9
    """Centers of the picture in the plane."""
    scattered_gamma: Axis = (0.25, 0.5, 1.5)
    """Sharpness in that picture, a panel each."""
    seed: int = 3
    """Seed of the scattered centers and their weights."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """The limit of every combination, with the variables of `LimitInfo`."""
    _check(config)
    most = int(max(config.num_preferences))
    unit = Grid.uniform([-GRID_REACH, -GRID_REACH], [GRID_REACH, GRID_REACH], [config.num, config.num])

    def make(phi: Array, distance: Array, gamma: Array, num_preferences: Array) -> Process:
        place = jnp.arange(most, dtype=phi.dtype)
        radius = distance / (2 * jnp.sin(jnp.pi / num_preferences))
        angle = jnp.pi * (1 + 2 * place / num_preferences)  # the first center is on the left
        centers = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        rest = jnp.where(place < num_preferences, (1 - phi) / (num_preferences - 1), 0.0)
        weights = jnp.where(place == 0, phi, rest)
        reward = rewards.quadratic(centers, gamma)
        points = radius * unit.points.astype(phi.dtype)
        land = Landscape(rewards=reward(points).T, points=points, reward=reward)
        return density.to_limit(land, weights, temperature=config.temperature, refine=True)

    return sweep(
        make,
        phi=np.asarray(config.phi),
        distance=np.asarray(config.distance),
        gamma=np.asarray(config.gamma),
        num_preferences=np.asarray(config.num_preferences),
        num_steps=1,
        store=store,
        progress=progress,
        attrs=study("phase", config),
    )


def _check(config: Config) -> None:
    for m in config.num_preferences:
        if m != int(m) or m < 2:
            raise ValueError(f"num_preferences must be whole numbers of at least 2, got {m:g}.")
    for phi in config.phi:
        if not 0 < phi < 1:
            raise ValueError(f"phi must lie between 0 and 1, got {phi:g}.")
    for name in ("distance", "gamma", "scattered_gamma"):
        for value in getattr(config, name):
            if not value > 0 or math.isinf(value):
                raise ValueError(f"{name} must be positive, got {value:g}.")
    if config.num < 3 or config.num % 2 == 0:
        raise ValueError(f"num must be odd and at least 3, so that the middle is a grid point, got {config.num}.")
    if config.num_scattered < 1:
        raise ValueError(f"num_scattered must be at least 1, got {config.num_scattered}.")


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """From which distance on the first preference keeps a mode of its own."""
    config, last, rows = config_of(ds), ds.isel(step=-1), []
    for m in ds.num_preferences.values.tolist():
        for gamma in ds.gamma.values.tolist():
            for phi in ds.phi.values.tolist():
                at = last.sel(num_preferences=m, gamma=gamma, phi=phi)
                own = at.own_mode.isel(preference=0).values
                row = {
                    "m": int(m),
                    "gamma": gamma,
                    "phi": phi,
                    "own mode from": float(ds.distance[int(own.argmax())]) if own.any() else math.nan,
                    "largest |own mass - phi|": float(abs(at.own_mass.isel(preference=0) - phi).where(own).max()),
                    "not converged": int((~at.converged).sum()),
                }
                if m == 2:
                    row["one mode stable up to"] = float(
                        transition_distance(gamma, phi=phi, temperature=config["temperature"])
                    )
                rows.append(row)
    title = (
        "Where the first preference keeps a mode of its own in the limit: the least distance of the sweep; how far its\n"
        "mass then is from phi, at most; and for m = 2 the distance up to which one mode at the mean is stable."
    )
    return {"own_mode": titled(pd.DataFrame(rows), title)}


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """The number of modes and the first preference's mass over phi and distance; scattered centers in the plane."""
    with figures.style():
        return {"phase": _phase(ds), "plane": _plane(config_of(ds))}


def _parameters(config: dict[str, Any]) -> str:
    return f"rewards −γ‖x − μ‖², temperature {config['temperature']:g}"


def _phase(ds: xr.Dataset) -> Figure:
    config, last = config_of(ds), ds.isel(step=-1)
    cases = [(m, g) for m in ds.num_preferences.values.tolist() for g in ds.gamma.values.tolist()]
    figure, axes = figures.panels(2, rows=len(cases), width=4.4, height=3.1, sharex=True, sharey=True)
    most = int(last.num_modes.max())
    for row, (m, gamma) in zip(axes, cases, strict=True):
        at = last.sel(num_preferences=m, gamma=gamma).transpose("distance", "phi", ...)
        title = f"m = {m:g}" + (f", γ = {gamma:g}" if ds.sizes["gamma"] > 1 else "")
        mesh = {"shading": "nearest", "rasterized": True}
        # Left white: limits whose atoms could not be moved, which happens at a transition.
        count = at.num_modes.where(at.converged)
        modes = row[0].pcolormesh(
            ds.phi, ds.distance, count, cmap=figures.listed(most), vmin=0.5, vmax=most + 0.5, **mesh
        )
        kept = (at.own_mass.isel(preference=0) / ds.phi).where(at.converged).transpose("distance", "phi")
        share = row[1].pcolormesh(ds.phi, ds.distance, kept, cmap=figures.SEQUENCE_MAP, vmin=0, vmax=1.2, **mesh)
        for ax in row:
            ax.grid(False)
            ax.set_title(title)
            if m == 2:
                _transition(ax, ds, gamma, config["temperature"])
        row[0].set_ylabel("distance between neighbors")
    for ax in axes[-1]:
        ax.set_xlabel("weight φ of preference 1")
    figure.colorbar(modes, ax=axes[:, 0], label="modes of the limit", ticks=range(1, most + 1), location="bottom")
    figure.colorbar(share, ax=axes[:, 1], label="mass of preference 1's own mode / φ", location="bottom")
    fixed = "" if ds.sizes["gamma"] > 1 else f", γ = {float(ds.gamma[0]):g}"
    figures.caption(figure, f"Exact limits, atoms off the grid; {_parameters(config)}{fixed}")
    return figure


def _transition(ax: Axes, ds: xr.Dataset, gamma: float, temperature: float) -> None:
    """The distance up to which a single mode is stable, and the exact transition at phi = 1/2."""
    phi = np.linspace(0.01, 0.99, 197)
    low, high = float(ds.distance.min()), float(ds.distance.max())
    ax.plot(phi, transition_distance(gamma, phi=phi, temperature=temperature), color="w", lw=1.2, ls="--")
    exact = math.sqrt(2 * temperature / gamma)
    if low <= exact <= high:
        ax.plot(0.5, exact, "o", color="w", mec="k", ms=6)
        ax.annotate(
            f"√(2τ/γ) = {exact:.3g}", (0.5, exact), (0, -12), textcoords="offset points", ha="center", color="w", size=8
        )
    ax.set(ylim=(low, high), xlim=(float(ds.phi.min()), float(ds.phi.max())))


def _plane(config: dict[str, Any]) -> Figure:
    """Scattered centers: a disc for each preference, filled where it keeps a mode of its own, and the modes."""
    size, gammas = config["num_scattered"], config["scattered_gamma"]
    rng = np.random.default_rng(config["seed"])
    centers, phi = rng.uniform(-3, 3, size=(size, 2)), rng.dirichlet(np.full(size, 3.0))
    grid = Grid.uniform([-3.0, -3.0], [3.0, 3.0], [61, 61])

    @jax.jit
    def solve(gamma: Array) -> density.LimitInfo:
        land = Landscape.on(grid, rewards.quadratic(centers, gamma))
        process = density.to_limit(land, phi, temperature=config["temperature"], refine=True)
        return process.step(None, process.init())[1]

    figure, axes = figures.panels(len(gammas), width=3.6, height=3.9, sharex=True, sharey=True)
    for ax, gamma in zip(axes[0], gammas, strict=True):
        info = jax.tree.map(np.asarray, solve(jnp.asarray(gamma)))
        used = info.mode_mass > 0
        squared = ((centers[:, None] - info.mode_point) ** 2).sum(-1)
        share = phi[:, None] * np.exp(-gamma / config["temperature"] * squared - info.log_z[:, None])
        for i in range(size):
            for k in np.flatnonzero(used & (share[i] * info.mode_mass > 0.05 * phi[i])):
                part = share[i, k] * info.mode_mass[k] / phi[i]
                line = np.stack([centers[i], info.mode_point[k]])
                ax.plot(*line.T, color="0.55", lw=2.2 * part, zorder=1)
        own = info.own_mode
        blue, orange = figures.PREFERENCE_COLORS[0], figures.PREFERENCE_COLORS[1]
        ax.scatter(*centers.T, s=900 * phi, c=[blue if o else "white" for o in own], ec=blue, lw=1.4, zorder=2)
        stars = {"marker": "*", "c": orange, "ec": "k", "lw": 0.4, "zorder": 3}
        ax.scatter(*info.mode_point[used].T, s=900 * info.mode_mass[used], **stars)
        ax.set(
            title=f"γ = {gamma:g}: {int(own.sum())} of {size} keep their own mode",
            xlim=(-3.6, 3.6),
            ylim=(-3.6, 3.6),
            aspect="equal",
            xlabel="$x_1$",
        )
    axes[0, 0].set_ylabel("$x_2$")
    note = (
        "Discs: centers, area ∝ φ, filled where the preference keeps a mode of its own; stars: modes of the limit, "
        "area ∝ mass; lines: where a preference's weight goes"
    )
    figures.caption(figure, f"{note}; {_parameters(config)}")
    return figure


EXPERIMENT = Experiment(
    "phase",
    "exact limits: which preferences keep a mode of their own, over phi, distance and m",
    Config,
    run,
    tables,
    plot,
)
