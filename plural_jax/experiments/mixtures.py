"""Retrained Gaussian mixtures in the plane (C.4): what the sampled forms of E1 and its relatives share.

Candidates are drawn from a mixture, curated under two quadratic rewards with centers at `(-distance/2, 0)` and
`(distance/2, 0)`, and the mixture is refit to what was curated by EM: with one component in the first rounds, with two
after. Every combination of phi and distance is run for many seeds in one batch; figures show the median over seeds and a
band from the 5th to the 95th percentile, beside the exact density of `plane` on the same axes.

What a single Gaussian can do is known too. Its exact refit (infinitely many samples, moments of the curated law) has the
variance `v <- w / (2 g) + phi (1 - phi) distance^2 w^2` along the line of the centers, with `g = gamma / temperature` and
`w = 2 g v / (1 + 2 g v)`: it dies out up to `distance = 1 / sqrt(2 g phi (1 - phi))` and stays above zero beyond. At phi = 1/2
that is `sqrt(2 / g)`, where the exact density has its transition.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from matplotlib.axes import Axes

from plural_jax import Grid, Landscape, Process, density, models, retraining, rewards, sweep
from plural_jax.experiments import plane
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.base import config_of, study
from plural_jax.process import Meter

#: Distance between grid points of exact densities; a component is at least 0.15 wide after 40 rounds.
_SPACING = 0.125
#: Percentiles of a band.
BAND = (5, 95)


@dataclass(frozen=True)
class Config:
    """Gaussian mixtures retrained on curated samples in the plane (C.4)."""

    phi: Axis = (0.5,)
    """Weights of the first preference; 1 is the single-reward baseline."""
    distance: Axis = (4.0,)
    """Distances between the two centers, in units of x; the midpoint is the origin."""
    gamma: float = 0.5
    """Sharpness of the rewards, in reward per squared unit of x."""
    temperature: float = 1.0
    """Temperature of the choice rule, in units of reward."""
    std: float = 1.0
    """Standard deviation of the start in each direction, in units of x."""
    num_initial: int = 1000
    """Points that the first model is fit to."""
    num_candidates: int = 1000
    """Candidates in a round, from which every draw chooses; rewards are evaluated on as many."""
    num_curated: int = 500
    """Curated draws in a round."""
    one_component_rounds: int = 5
    """Rounds that refit a single component, before there are two."""
    num_steps: int = 40
    """Rounds of retraining."""
    num_seeds: int = 32
    """Independent runs of every combination."""
    seed: int = 0
    """Seed of all of them."""


def run(
    name: str,
    config: Config,
    store: Path | None = None,
    progress: bool | Meter = False,
    pool_size: int | None = None,
) -> xr.Dataset:
    """Every combination of phi, distance and seed, summaries of every round; each draw looks at `pool_size` or all candidates.

    Beside the fields of `RetrainingInfo` the dataset has `component_weight`, `component_mean` and `component_covariance`, from
    left to right, and the model's variances along and across the line of the centers.
    """
    check(config)

    def make(phi: Array, distance: Array, seed: Array) -> tuple[Process, Array]:
        model = models.gaussian_mixture(
            2, 2, std=config.std, num_initial=config.num_initial, one_component_rounds=config.one_component_rounds
        )
        process = retraining.loop(
            model,
            rewards.quadratic(plane.centers(distance), config.gamma),
            jnp.stack([phi, 1 - phi]),
            num_candidates=config.num_candidates,
            num_curated=config.num_curated,
            pool_size=pool_size,
            temperature=config.temperature,
        )
        return process, jax.random.fold_in(jax.random.key(config.seed), seed.astype(jnp.uint32))

    return sweep(
        make,
        phi=np.asarray(config.phi),
        distance=np.asarray(config.distance),
        seed=np.arange(config.num_seeds),
        num_steps=config.num_steps,
        key=jax.random.key(config.seed),
        save=summary,
        store=store,
        progress=progress,
        attrs=study(name, config),
    )


def summary(state: Any, info: Any) -> dict[str, Array]:
    """What is kept of a round; see `run`."""
    kept = {name: value for name, value in info._asdict().items() if value is not None}
    params = state.params
    order = jnp.argsort(jnp.where(params.weights > 0, params.means[:, 0], jnp.inf))
    mean = jnp.sum(params.weights[:, None] * params.means, axis=0)
    within = jnp.diagonal(params.covariances, axis1=1, axis2=2)
    variance = jnp.sum(params.weights[:, None] * (within + (params.means - mean) ** 2), axis=0)
    return {
        **kept,
        "component_weight": params.weights[order],
        "component_mean": params.means[order],
        "component_covariance": params.covariances[order],
        "variance_along": variance[0],
        "variance_across": variance[1],
    }


def check(config: Config) -> None:
    """Refuse a configuration that cannot be run, in one sentence."""
    for name in ("std", "temperature", "gamma"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}.")
    for name in ("num_initial", "num_candidates", "num_curated", "num_steps", "num_seeds"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")
    for phi in config.phi:
        if not 0 <= phi <= 1:
            raise ValueError(f"phi must lie between 0 and 1, got {phi:g}.")
    for distance in config.distance:
        if not (distance >= 0 and np.isfinite(distance)):
            raise ValueError(f"distance must be finite and not negative, got {distance:g}.")


def exact(ds: xr.Dataset, phi: float, distance: float) -> xr.Dataset:
    """The exact density of an infinite pool at the same parameters, every round; variables of `GaussianInfo`."""
    return plane.closed_form(ds, phi, config_of(ds)["gamma"], ds.distance.values).sel(distance=distance)


def exact_on_grid(config: Config, **axes: Any) -> xr.Dataset:
    """Exact densities of the plane at the same parameters, for values of phi, distance or pool_size; see `plane.run`."""
    fields = ("phi", "distance", "temperature", "std", "num_steps")
    same: dict[str, Any] = {"gamma": (config.gamma,), **{name: getattr(config, name) for name in fields}}
    return plane.run("exact", plane.Config(**{**same, **axes, "spacing": _SPACING})).isel(gamma=0)


def exact_leakage(ds: xr.Dataset, phi: float) -> xr.DataArray:
    """Probability that a draw of each preference picks from beyond the midpoint, by distance and round, in the exact density.

    Along the line of the centers only: rewards are sums of a part along it and one across, which is the same for both.
    """
    config = config_of(ds)
    reach = max(config["distance"]) / 2 + 5 * config["std"]
    grid = Grid.uniform(-reach, reach, 1000)  # an even number, so that no cell lies on both sides
    x = grid.points[:, 0]
    beyond = jnp.stack([x > 0, x < 0]).astype(x.dtype)

    def make(distance: Array) -> tuple[Process, Array]:
        land = Landscape.on(grid, rewards.quadratic(jnp.stack([-distance / 2, distance / 2]), config["gamma"]))
        process = density.large_pool(land, [phi, 1 - phi], temperature=config["temperature"])
        start = land.gaussian(0.0, config["std"])

        def step(key: Array | None, state: Any) -> tuple[Any, Any]:
            # Of the density before the round, as the draws are.
            log_q = jax.nn.log_softmax(state.log_p + land.rewards / config["temperature"], axis=1)
            return process.step(key, state)[0], {"leakage": jnp.sum(beyond * jnp.exp(log_q), axis=1)}

        return Process(init=process.init, step=step), start

    return sweep(make, distance=ds.distance.values, num_steps=config["num_steps"], save=_leakage).leakage


def _leakage(state: Any, info: Any) -> Any:
    return info


def one_gaussian(config: dict[str, Any], phi: float, distance: Any) -> np.ndarray:
    """Variance along the line of the centers that a single Gaussian ends with, refit exactly for ever.

    `v = phi (1 - phi) distance^2 - 1 / (2 g)`, `g = gamma / temperature`, and zero where that is negative: the fixed point of
    the recursion above, which has `w = 1 - 1 / (2 g phi (1 - phi) distance^2)`.
    """
    g = config["gamma"] / config["temperature"]
    spread = 2 * g * phi * (1 - phi) * np.asarray(distance, float) ** 2
    return np.maximum(spread - 1, 0) / (2 * g)


def mean_density(ds: xr.Dataset, points: np.ndarray) -> np.ndarray:
    """Density of the mixtures at points [n, 2], averaged over seeds, [n]; `ds` is one round of one combination."""
    total = np.zeros(len(points))
    for seed in range(ds.sizes["seed"]):
        at = ds.isel(seed=seed)
        for k in range(ds.sizes["component"]):
            weight = float(at.component_weight[k])
            if weight > 0:
                away = points - at.component_mean.values[k]
                covariance = at.component_covariance.values[k].astype(float)
                square = np.sum(away * np.linalg.solve(covariance, away.T).T, axis=1)
                total += weight * np.exp(-0.5 * square) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))
    return total / ds.sizes["seed"]


def quantiles(values: xr.DataArray) -> np.ndarray:
    """5 %, median and 95 % over seeds, [3, ...]; NaN where no seed has a number."""
    table = values.transpose("seed", ...).values
    known = ~np.isnan(table).all(axis=0)
    found = np.full((3, *table.shape[1:]), np.nan)
    found[:, known] = np.nanpercentile(table[:, known], (BAND[0], 50, BAND[1]), axis=0)
    return found


def band(ax: Axes, x: Any, values: xr.DataArray, color: Any, label: str) -> None:
    """Median over seeds as a line, and the band around it; values of the seeds along `x`."""
    low, middle, high = quantiles(values)
    ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
    ax.plot(x, middle, color=color, label=label)


def parameters(config: dict[str, Any]) -> str:
    """What a caption says of a run."""
    return (
        f"γ = {config['gamma']:g}, temperature {config['temperature']:g}; {config['num_curated']} curated of "
        f"{config['num_candidates']} candidates, one component for {config['one_component_rounds']} rounds and two after; "
        f"medians of {config['num_seeds']} seeds, bands from {BAND[0]} to {BAND[1]} %"
    )
