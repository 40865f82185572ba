"""The main job: phi × distance × pool size on two competing rewards, to a labelled dataset, a table and a figure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jax import Array
from matplotlib.figure import Figure

from plural_jax import Grid, Landscape, Process, density, figures, rewards, sweep
from plural_jax._typing import ArrayLike
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.base import Experiment, config_of, study, titled
from plural_jax.experiments.movies import Movie, follow
from plural_jax.process import Meter

#: Axes that every sweep has; the others become dimensions when they hold more than one value.
_ALWAYS = ("phi", "distance", "pool_size")
_OPTIONAL = {"bump": ("height", "width", "temperature"), "quadratic": ("gamma", "temperature")}


@dataclass(frozen=True)
class Config:
    """Sweep the exact dynamics of two competing preferences over phi, distance, pool size and more."""

    phi: Axis = tuple(round(0.1 * i, 1) for i in range(1, 10))
    """Weights of the first preference."""
    distance: Axis = (1.0, 2.0, 3.0, 5.0)
    """Distances between the two optima, in units of x."""
    pool_size: Axis = (2.0, 10.0, float("inf"))
    """Candidates per draw, K >= 2; inf is the large-K limit."""
    reward: Literal["bump", "quadratic"] = "bump"
    """Shape of the rewards: bells of a height and width (C.9), or -gamma ||x - mu||^2 (C.4)."""
    height: Axis = (5.0,)
    """Reward of a bump at its centre."""
    width: Axis = (1.0,)
    """Standard deviation of a bump, in units of x."""
    gamma: Axis = (0.5,)
    """Sharpness of a quadratic reward."""
    temperature: Axis = (1.0,)
    """Temperature tau of the choice rule, in units of reward."""
    start: Literal["uniform", "gaussian"] = "uniform"
    """First density: uniform on the grid, or N(0, 1)."""
    low: float = -5.0
    """First grid point."""
    high: float = 5.0
    """Last grid point."""
    num: int = 100
    """Number of grid points."""
    num_steps: int = 50
    """Rounds of retraining."""
    every: int = 1
    """Keep the summaries of every so many rounds."""
    eps: float = 0.1
    """Width of the near-optimal basins, in units of reward."""
    batch_size: int | Literal["auto"] = "auto"
    """Configurations computed and stored at a time; "auto" is what fits in memory, a sixteenth of the sweep at most."""


def run(
    config: Config,
    store: Path | None = None,
    progress: bool | Meter = False,
    part: tuple[int, int] | None = None,
) -> xr.Dataset:
    """Sweep every combination; summaries of every round."""
    settings = dataclasses.asdict(config)
    optional = _OPTIONAL[config.reward]
    fixed = {name: getattr(config, name)[0] for name in optional if len(getattr(config, name)) == 1}
    axes = {name: getattr(config, name) for name in (*_ALWAYS, *optional) if name not in fixed}

    def make(phi: Array, distance: Array, pool_size: Array, **varied: Array) -> tuple[Process, Array]:
        return _process(settings, {"phi": phi, "distance": distance, "pool_size": pool_size, **fixed, **varied})

    return sweep(
        make,
        num_steps=config.num_steps,
        every=config.every,
        batch_size=config.batch_size,
        store=store,
        part=part,
        progress=progress,
        attrs=study("sweep", config),
        **axes,
    )


def _process(config: dict[str, Any], at: dict[str, ArrayLike]) -> tuple[Process, Array]:
    """The process of one configuration, and the log-masses that it starts from."""
    phi, distance = jnp.asarray(at["phi"]), jnp.asarray(at["distance"])
    centers = jnp.stack([-distance / 2, distance / 2])
    if config["reward"] == "bump":
        reward: Any = rewards.bump(centers, at["height"], at["width"])
    else:
        reward = rewards.quadratic(centers, at["gamma"])
    land = Landscape.on(Grid.uniform(config["low"], config["high"], config["num"]), reward)
    process = density.finite_pool(
        land,
        jnp.stack([phi, 1 - phi]),
        pool_size=at["pool_size"],
        temperature=at["temperature"],
        eps=config["eps"],
    )
    return process, land.uniform() if config["start"] == "uniform" else land.gaussian(0.0, 1.0)


def _weight(ds: xr.Dataset) -> xr.DataArray:
    """Mass of the first basin within both, a / (a + b)."""
    return ds.basin_mass.isel(preference=0) / ds.basin_mass.sum("preference")


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Weight of the first basin, mass outside both, and entropy after the last round; one column for each phi."""
    last = ds.isel(step=-1)
    weight = _weight(last)
    rounds = int(ds.step[-1])
    return {
        "weight": titled(_wide(weight), f"Weight of basin 1, a/(a+b), after {rounds} rounds; columns are phi."),
        "outside": titled(
            _wide(last.outside_mass), f"Mass outside both basins after {rounds} rounds; columns are phi."
        ),
        "entropy": titled(_wide(last.entropy), f"Entropy (nats) after {rounds} rounds; columns are phi."),
    }


def _wide(values: xr.DataArray) -> pd.DataFrame:
    """Rows for every combination of the other axes, columns for phi."""
    frame = values.drop_vars("step").to_series().unstack("phi")
    frame.columns = [f"{phi:g}" for phi in frame.columns]
    return frame.reset_index()


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Basin weight against phi, and entropy by round, a column for each pool size."""
    with figures.style():
        return {"sweep": _figure(ds)}


def _figure(ds: xr.Dataset) -> Figure:
    config = config_of(ds)
    # The figure shows the first value of any further axis; the dataset and the tables hold them all.
    extra = [str(d) for d in ds.entropy.dims if d not in (*_ALWAYS, "step")]
    shown = ds.isel(dict.fromkeys(extra, 0))
    sizes, distances = shown.pool_size.values, shown.distance.values
    middle = shown.sel(phi=0.5, method="nearest")
    figure, axes = figures.panels(len(sizes), rows=2, sharex="row", sharey="row")
    colors = figures.sequence_colors(len(distances))
    for column, size in zip(axes.T, sizes, strict=True):
        column[0].plot([0, 1], [0, 1], color="0.3", lw=0.8, ls="--", label="Nash point a = φ")
        for d, color in zip(distances, colors, strict=True):
            weight = _weight(shown.isel(step=-1)).sel(distance=d, pool_size=size)
            column[0].plot(shown.phi, weight, "o-", ms=3, color=color)
            entropy = middle.entropy.sel(distance=d, pool_size=size)
            column[1].plot(shown.step, entropy, color=color, label=f"distance {d:g}")
        column[0].set_title("K = ∞" if np.isinf(size) else f"K = {size:g}")
        column[0].set_xlabel("weight φ of preference 1")
        column[1].set_xlabel("round")
    axes[0, 0].set_ylabel(f"mass of basin 1, a/(a+b),\nafter {int(ds.step[-1])} rounds")
    axes[1, 0].set_ylabel(f"entropy (nats), φ = {float(middle.phi):g}")
    axes[0, 0].legend()
    axes[1, -1].legend()
    figures.caption(figure, f"{_parameters(config)}, eps = {config['eps']:g}")
    return figure


def _parameters(config: dict[str, Any]) -> str:
    kind = (
        f"bump rewards, height {config['height'][0]:g}, width {config['width'][0]:g}"
        if config["reward"] == "bump"
        else f"quadratic rewards, gamma {config['gamma'][0]:g}"
    )
    return (
        f"{kind}, temperature {config['temperature'][0]:g}; {config['num']} points on [{config['low']:g}, "
        f"{config['high']:g}], {config['start']} start"
    )


def _movie(ds: xr.Dataset) -> Movie:
    """The densities at the weight nearest to 0.3 and the distance nearest to 4, with the first values of the other axes."""
    config = config_of(ds)
    at = {name: config[name][0] for name in ("pool_size", *_OPTIONAL[config["reward"]])}
    at |= {name: float(ds[name].sel({name: v}, method="nearest")) for name, v in (("phi", 0.3), ("distance", 4.0))}
    process, start = _process(config, at)
    log_p, steps = follow(process, process.init(start), config["num_steps"])
    half, size = at["distance"] / 2, "∞" if np.isinf(at["pool_size"]) else f"{at['pool_size']:g}"
    caption = f"φ = {at['phi']:g}, distance {at['distance']:g}, K = {size}; {_parameters(config)}"
    return Movie(Grid.uniform(config["low"], config["high"], config["num"]), log_p, steps, [-half, half], caption)


EXPERIMENT = Experiment(
    "sweep", "phi × distance × pool size on two competing rewards", Config, run, tables, plot, True, _movie
)
