"""C.9: basin mass against Lemma 4, decay of the outside mass, distance from the Nash point (Tables 3–5, Figures 12–14).

Rewards `r_i(x) = 5 exp(-(x - mu_i)^2 / 2)` at `mu = ±D/2` on 100 evenly spaced points of [-5, 5], uniform start, 50 large-K
rounds, eps = 0.1. These constants were recovered from the printed tables; they reproduce the rows for D = 2 and D = 6. The
paper's rows for D = 4 repeat those for D = 2 and cannot be right.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from plural_jax import Grid, Landscape, Process, density, figures, rewards, sweep
from plural_jax._typing import ArrayLike
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.base import Experiment, config_of, study, titled
from plural_jax.experiments.movies import Movie, follow
from plural_jax.process import Meter
from plural_jax.theory import basin_weight_bounds, leakage

_TABLE_3_PHI = (0.1, 0.25, 0.4, 0.6, 0.75, 0.9)
_TABLE_3_DISTANCE = (2.0, 4.0, 6.0)
_TABLE_4_DISTANCE = (2.0, 4.0, 6.0, 8.0)
_TABLE_5_PHI = tuple(round(0.1 * i, 1) for i in range(1, 10))
_TABLE_5_DISTANCE = (1.0, 2.0, 3.0, 5.0)
#: Weight of the first preference whose densities are drawn.
_SHOWN_PHI = 0.25

#: Table 3 as printed: (distance, phi) -> lower bound, mass, upper bound. The rows for D = 4 are the paper's error.
_PRINTED: dict[tuple[float, float], tuple[float, float, float]] = {
    **{
        (d, phi): row
        for d in (2.0, 4.0)
        for phi, row in zip(
            _TABLE_3_PHI,
            (
                (0.082, 0.090, 0.102),
                (0.235, 0.244, 0.255),
                (0.388, 0.397, 0.408),
                (0.592, 0.603, 0.612),
                (0.745, 0.756, 0.765),
                (0.898, 0.910, 0.918),
            ),
            strict=True,
        )
    },
    **{
        (6.0, phi): row
        for phi, row in zip(
            _TABLE_3_PHI,
            (
                (0.093, 0.095, 0.101),
                (0.244, 0.247, 0.252),
                (0.395, 0.399, 0.403),
                (0.597, 0.601, 0.605),
                (0.748, 0.753, 0.756),
                (0.899, 0.905, 0.907),
            ),
            strict=True,
        )
    },
}


@dataclass(frozen=True)
class Config:
    """Basin mass, outside decay and Nash distance on two bumps (C.9)."""

    phi: Axis = ()
    """Weights of the first preference; none given: the paper's for each table."""
    distance: Axis = ()
    """Distances between the two optima; none given: the paper's for each table."""
    pool_size: float = float("inf")
    """Candidates per draw, K >= 2; the paper's tables are for infinity."""
    height: float = 5.0
    """Reward at an optimum."""
    width: float = 1.0
    """Standard deviation of a reward's bell, in units of x."""
    low: float = -5.0
    """First grid point."""
    high: float = 5.0
    """Last grid point."""
    num: int = 100
    """Number of grid points."""
    num_steps: int = 50
    """Rounds of retraining."""
    eps: float = 0.1
    """Width of the near-optimal basins, in units of reward."""


def _landscape(config: dict, distance: ArrayLike) -> Landscape:
    d = jnp.asarray(distance)
    grid = Grid.uniform(config["low"], config["high"], config["num"])
    return Landscape.on(grid, rewards.bump(jnp.stack([-d / 2, d / 2]), config["height"], config["width"]))


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """The sweep behind all three tables: every phi by every distance, summaries of every round."""
    settings = dataclasses.asdict(config)
    return sweep(
        lambda phi, distance: _process(settings, phi, distance),
        phi=config.phi or sorted({*_TABLE_3_PHI, *_TABLE_5_PHI}),
        distance=config.distance or sorted({*_TABLE_3_DISTANCE, *_TABLE_4_DISTANCE, *_TABLE_5_DISTANCE}),
        num_steps=config.num_steps,
        store=store,
        progress=progress,
        attrs=study("c9", config),
    )


def _process(config: dict, phi: ArrayLike, distance: ArrayLike) -> Process:
    land, first = _landscape(config, distance), jnp.asarray(phi)
    return density.finite_pool(land, jnp.stack([first, 1 - first]), pool_size=config["pool_size"], eps=config["eps"])


def _shown(ds: xr.Dataset, name: str, paper: tuple[float, ...]) -> list[float]:
    """The user's values of an axis, or the paper's where none were given."""
    return list(config_of(ds)[name] or paper)


def _weight(ds: xr.Dataset) -> xr.DataArray:
    """Weight of the first basin within both, a / (a + b), at the end: the mass column of Table 3."""
    mass = ds.basin_mass.isel(step=-1)
    return mass.isel(preference=0) / mass.sum("preference")


def _bounds(ds: xr.Dataset, phi: list[float], distance: float) -> tuple[np.ndarray, np.ndarray]:
    config = config_of(ds)
    kappa = np.asarray(leakage(_landscape(config, distance), eps=config["eps"]))
    lower, upper = basin_weight_bounds(jnp.asarray(phi), jnp.asarray([kappa[0, 1], kappa[1, 0]]))
    return np.asarray(lower), np.asarray(upper)


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Tables 3, 4 and 5."""
    return {"table3": _table3(ds), "table4": _table4(ds), "table5": _table5(ds)}


def _table3(ds: xr.Dataset) -> pd.DataFrame:
    config = config_of(ds)
    weight, rows = _weight(ds), []
    phis, distances = _shown(ds, "phi", _TABLE_3_PHI), _shown(ds, "distance", _TABLE_3_DISTANCE)
    defaults = dataclasses.asdict(Config())
    as_printed = all(config[k] == defaults[k] for k in defaults if k not in ("phi", "distance"))
    for d in distances:
        lower, upper = _bounds(ds, phis, d)
        for i, phi in enumerate(phis):
            point = {"phi": phi, "distance": d}
            row: dict[str, Any] = {
                "phi": phi,
                "D": d,
                "lower bound": round(float(lower[i]), 3),
                "a/(a+b)": round(float(weight.sel(point)), 3),
                "upper bound": round(float(upper[i]), 3),
                "a": round(float(ds.basin_mass.sel(point).isel(step=-1, preference=0)), 4),
                "outside": round(float(ds.outside_mass.sel(point).isel(step=-1)), 5),
                "within": bool(lower[i] <= weight.sel(point) <= upper[i]),
            }
            if as_printed and (d, phi) in _PRINTED:
                row["printed"] = "  ".join(f"{v:.3f}" for v in _PRINTED[d, phi])
            rows.append(row)
    title = (
        "Table 3. Weight of the first basin after the last round, between the bounds of Lemma 4.\n"
        "printed = lower bound, mass, upper bound of the paper; its rows for D = 4 repeat D = 2."
    )
    return titled(pd.DataFrame(rows).fillna(""), title)


def _decay(ds: xr.Dataset, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Rounds 0..T and the outside mass m_t, at the phi nearest to 1/2."""
    config = config_of(ds)
    land = _landscape(config, distance)
    start = np.asarray(jnp.exp(land.uniform()))
    outside = ~np.asarray(land.basins(config["eps"])).any(axis=0)
    mass = ds.outside_mass.sel(phi=0.5, method="nearest").sel(distance=distance)
    return np.arange(config["num_steps"] + 1), np.concatenate([[start[outside].sum()], mass.values])


def _table4(ds: xr.Dataset) -> pd.DataFrame:
    rows = []
    for d in _shown(ds, "distance", _TABLE_4_DISTANCE):
        t, mass = _decay(ds, d)
        positive = mass > 0
        slope = np.polyfit(t[positive], np.log(mass[positive]), 1)[0] if positive.sum() > 1 else np.nan
        rho = np.exp(ds.log_sup_w_outside.sel(phi=0.5, method="nearest").sel(distance=d))
        rows.append(
            {
                "D": d,
                "decay rate": -slope,
                "last round": float(np.log(mass[-2] / mass[-1])) if mass[-1] > 0 else np.nan,
                "m_0": mass[0],
                "m_T": mass[-1],
                "max sup W": float(rho.max()),
                "last sup W": float(rho[-1]),
            }
        )
    phi = float(ds.phi.sel(phi=0.5, method="nearest"))
    title = (
        f"Table 4. Decay of the mass outside the basins, phi = {phi:g}. decay rate = -slope of a line through log m_t over all\n"
        "rounds; sup W = rho of Assumption 1 (iii), round by round: Lemma 3 needs it below 1, and early on it is not."
    )
    return titled(pd.DataFrame(rows), title)


def _table5(ds: xr.Dataset) -> pd.DataFrame:
    phis = _shown(ds, "phi", _TABLE_5_PHI)
    weight = _weight(ds).sel(phi=phis)
    rows = []
    for d in _shown(ds, "distance", _TABLE_5_DISTANCE):
        error = (weight.sel(distance=d) - xr.DataArray(phis, dims="phi")).values
        rows.append({"D": d, "MSE": float(np.mean(error**2)), "largest error": float(np.abs(error).max())})
    title = "Table 5. Weight of the first basin against the Nash point a = phi, mean over phi of the squared error."
    return titled(pd.DataFrame(rows), title)


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Figures 12, 13 and 14, and some of the densities behind them."""
    with figures.style():
        return {
            "figure12": _figure12(ds),
            "figure13": _figure13(ds),
            "figure14": _figure14(ds),
            "densities": _densities(ds),
        }


def _parameters(ds: xr.Dataset) -> str:
    c = config_of(ds)
    return (
        f"bumps of height {c['height']:g} and width {c['width']:g}, {c['num']} points on [{c['low']:g}, {c['high']:g}], "
        f"uniform start, K = {c['pool_size']:g}, {c['num_steps']} rounds, eps = {c['eps']:g}"
    ).replace("inf", "∞")


def _figure12(ds: xr.Dataset) -> Figure:
    distances, phis = _shown(ds, "distance", _TABLE_3_DISTANCE), sorted(ds.phi.values.tolist())
    figure, axes = figures.panels(len(distances), rows=2, sharex=True, sharey="row")
    dense = np.linspace(0, 1, 201)
    for column, d in zip(axes.T, distances, strict=True):
        lower, upper = _bounds(ds, list(dense), d)
        weight = _weight(ds).sel(phi=phis, distance=d).values
        # The bounds are narrow: the second row takes the line a = φ away, so that they can be seen.
        for ax, line, points in ((column[0], 0 * dense, 0.0), (column[1], dense, np.asarray(phis))):
            ax.fill_between(dense, lower - line, upper - line, color="0.75", lw=0, label="allowed by Lemma 4")
            ax.plot(dense, dense - line, color="0.3", lw=0.8, ls="--", label="a = φ")
            ax.plot(phis, weight - points, "o", ms=3.5, label="after the last round")
        column[0].set_title(f"distance D = {d:g}")
        column[1].set_xlabel("weight φ of preference 1")
    axes[0, 0].legend()
    axes[0, 0].set_ylabel("mass of basin 1, a/(a+b)")
    axes[1, 0].set_ylabel("a/(a+b) − φ")
    figures.caption(figure, _parameters(ds))
    return figure


def _figure13(ds: xr.Dataset) -> Figure:
    distances = _shown(ds, "distance", _TABLE_4_DISTANCE)
    figure, axes = figures.panels(1, width=5.2, height=3.6)
    for d, color in zip(distances, figures.sequence_colors(len(distances)), strict=True):
        t, mass = _decay(ds, d)
        axes[0, 0].semilogy(t, np.where(mass > 0, mass, np.nan), color=color, label=f"D = {d:g}")
    axes[0, 0].set(xlabel="round t", ylabel="mass outside both basins, $m_t$")
    axes[0, 0].legend()
    phi = float(ds.phi.sel(phi=0.5, method="nearest"))
    figures.caption(figure, f"φ = {phi:g}; " + _parameters(ds))
    return figure


def _figure14(ds: xr.Dataset) -> Figure:
    distances, phis = _shown(ds, "distance", _TABLE_5_DISTANCE), _shown(ds, "phi", _TABLE_5_PHI)
    figure, axes = figures.panels(2, width=4.2, height=3.4)
    axes[0, 0].plot([0, 1], [0, 1], color="0.3", lw=0.8, ls="--", label="Nash point a = φ")
    for d, color in zip(distances, figures.sequence_colors(len(distances)), strict=True):
        weight = _weight(ds).sel(phi=phis, distance=d)
        axes[0, 0].plot(phis, weight, "o-", ms=3.5, color=color, label=f"D = {d:g}")
        axes[0, 1].plot(phis, weight - np.asarray(phis), "o-", ms=3.5, color=color)
    axes[0, 0].set(xlabel="weight φ of preference 1", ylabel="mass of basin 1, a/(a+b)")
    axes[0, 1].set(xlabel="weight φ of preference 1", ylabel="a/(a+b) − φ")
    axes[0, 0].legend()
    figures.caption(figure, _parameters(ds))
    return figure


def _densities(ds: xr.Dataset) -> Figure:
    distances = _shown(ds, "distance", _TABLE_3_DISTANCE)
    figure, axes = figures.panels(len(distances), width=3.4, height=4.4)
    for ax, d in zip(axes[0], distances, strict=True):
        shown = _movie(ds, _SHOWN_PHI, d)
        figures.ridgelines(shown.grid, shown.log_p, steps=shown.steps, optima=shown.optima, ax=ax)
        ax.set_title(f"distance D = {d:g}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figures.caption(figure, f"φ = {_nearest(ds, 'phi', _SHOWN_PHI):g}; {_parameters(ds)}")
    return figure


def _movie(ds: xr.Dataset, phi: float = _SHOWN_PHI, distance: float = 4.0) -> Movie:
    """The densities at the weight and the distance that are nearest to those asked for."""
    config = config_of(ds)
    phi, d = _nearest(ds, "phi", phi), _nearest(ds, "distance", distance)
    process = _process(config, phi, d)
    log_p, steps = follow(process, process.init(), config["num_steps"])
    grid = Grid.uniform(config["low"], config["high"], config["num"])
    return Movie(grid, log_p, steps, [-d / 2, d / 2], f"φ = {phi:g}, distance D = {d:g}; {_parameters(ds)}")


def _nearest(ds: xr.Dataset, name: str, value: float) -> float:
    return float(ds[name].sel({name: value}, method="nearest"))


EXPERIMENT = Experiment(
    "c9",
    "basin mass, outside decay and Nash distance: Tables 3, 4, 5 and Figures 12, 13, 14",
    Config,
    run,
    tables,
    plot,
    movie=_movie,
)
