"""E9, sampled: a retrained Gaussian mixture under several preferences and under the baselines, beside the exact densities.

The plane of C.4 at phi = 0.3. Each baseline changes one thing of the loop: which reward selects, how, or what the model is refit
to. Dashed lines are the exact density of the same baseline with an infinite pool; one reward per round has none, as its path is
drawn at random.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jax import Array
from matplotlib.figure import Figure

from plural_jax import Process, curation, density, figures, labels, models, retraining, rewards, sweep
from plural_jax import run as run_process
from plural_jax.experiments import mixtures, plane
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.base import Experiment, config_of, study, titled
from plural_jax.experiments.e9 import LINES, reopened
from plural_jax.process import Meter
from plural_jax.progress import meter


@dataclass(frozen=True)
class Config(mixtures.Config):
    """A retrained Gaussian mixture under the baselines (E9)."""

    phi: Axis = (0.3,)
    """Weight of the first preference; one number."""
    greedy_pool: int = 10
    """Candidates of which greedy selection takes the best."""
    real_weight: float = 0.1
    """Probability that a curated sample is replaced by one of the real data, which are draws of the start."""
    baselines: tuple[str, ...] = tuple(LINES)
    """Which of them to run."""
    spacing: float = 0.125
    """Grid of the exact densities, in units of x."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """Every baseline for every seed, and its exact density (variables `exact_...`, NaN where there is none).

    Dimensions: baseline (numbered; the attribute `baselines` has the names), seed, step, preference.
    """
    mixtures.check(config)
    for name in ("phi", "distance"):
        if len(getattr(config, name)) != 1:
            raise ValueError(f"{name} must be one number here, got {len(getattr(config, name))}.")
    for name in config.baselines:
        if name not in LINES:
            raise ValueError(f"baselines must be among {', '.join(LINES)}, got {name!r}.")
    attrs = labels.plain_attrs({**study("e9-mixtures", config), "baselines": list(config.baselines)})
    if store is not None and Path(store).exists():
        return reopened(Path(store), attrs)
    shown = meter(progress)
    shown.start(len(config.baselines), "baselines")
    found = []
    try:
        for name in config.baselines:
            number = list(LINES).index(name)
            found.append(_arm(config, name, jax.random.fold_in(jax.random.key(config.seed), number)))
            shown.advance(1)
    finally:
        shown.stop()
    dataset = xr.concat(found, dim="baseline").assign_coords(baseline=np.arange(len(found)))
    dataset.attrs = attrs
    if store is not None:
        dataset.to_zarr(store, consolidated=False)
    return dataset


def _arm(config: Config, name: str, key: Array) -> xr.Dataset:
    process = _sampled(config, name, jax.random.fold_in(key, 0))

    def make(seed: Array) -> tuple[Process, Array]:
        return process, jax.random.fold_in(jax.random.key(config.seed), seed.astype(jnp.uint32))

    ds = sweep(make, seed=np.arange(config.num_seeds), num_steps=config.num_steps, key=key, save=mixtures.summary)
    exact = _exact(config, name)
    for field in ("reward_mean", "reward_variance"):
        values = np.full(ds[field].shape[1:], np.nan) if exact is None else np.asarray(getattr(exact, field))
        ds[f"exact_{field}"] = (ds[field].dims[1:], values)
    return ds.drop_attrs()


def _sampled(config: Config, name: str, key: Array) -> Process:
    phi = [config.phi[0], 1 - config.phi[0]]
    policies: dict[str, curation.Policy] = {
        "single reward 1": curation.single_reward(0),
        "single reward 2": curation.single_reward(1),
        "averaged reward": curation.averaged_reward(phi),
        "one reward per round": curation.reward_per_round(phi),
        "no curation": curation.no_curation(),
        "greedy": curation.greedy(phi),
    }
    options: dict[str, Any] = {"policy": policies.get(name)}
    if name == "greedy":
        options["pool_size"] = config.greedy_pool
    if name == "real data mixed in":
        options["real"] = config.std * jax.random.normal(key, (config.num_initial, 2))
        options["real_weight"] = config.real_weight
    if name == "accumulated data":
        options["accumulate"] = config.num_steps
        options["initial_sets"] = _initial_sets(config)
    return retraining.loop(
        models.gaussian_mixture(
            2, 2, std=config.std, num_initial=config.num_initial, one_component_rounds=config.one_component_rounds
        ),
        rewards.quadratic(plane.centers(config.distance[0]), config.gamma),
        phi,
        num_candidates=config.num_candidates,
        num_curated=config.num_curated,
        temperature=config.temperature,
        **options,
    )


def _initial_sets(config: Config) -> int:
    return max(1, round(config.num_initial / config.num_curated))


def _exact(config: Config, name: str) -> density.DensityInfo | None:
    """The exact density of a baseline in every round, on the grid of `plane`."""
    settings = {"reach": 5.0, "std": config.std, "distance": config.distance, "spacing": config.spacing}
    land, phi = plane.landscape(settings, config.distance[0], config.gamma), [config.phi[0], 1 - config.phi[0]]
    seen: dict[str, Any] = {"temperature": config.temperature}
    makes: dict[str, Callable[[], Process]] = {
        "single reward 1": lambda: density.single_reward(land, phi, 0, **seen),
        "single reward 2": lambda: density.single_reward(land, phi, 1, **seen),
        "averaged reward": lambda: density.averaged_reward(land, phi, **seen),
        "no curation": lambda: density.no_curation(land, phi, **seen),
        "greedy": lambda: density.greedy(land, phi, pool_size=config.greedy_pool, **seen),
    }
    start = land.gaussian(0.0, config.std)
    if name == "one reward per round":
        return None
    process = makes.get(name, lambda: density.large_pool(land, phi, **seen))()
    if name == "real data mixed in":
        process = density.mix_real(process, start, config.real_weight)
    if name == "accumulated data":
        process = density.accumulate(process, initial_sets=float(_initial_sets(config)))
    return run_process(process, process.init(start), config.num_steps)[1]


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The last round of every baseline: medians over seeds, and the exact density."""
    config, rows = config_of(ds), []
    for i, name in enumerate(json.loads(ds.attrs["baselines"])):
        last = ds.isel(baseline=i, step=-1)
        row: dict[str, Any] = {"baseline": name}
        for field, short in (("reward_mean", "mean"), ("reward_variance", "var")):
            for j in (0, 1):
                row[f"{short} r_{j + 1}"] = float(last[field].isel(preference=j).median())
                row[f"{short} r_{j + 1}, exact"] = float(last[f"exact_{field}"].isel(preference=j))
        row["near center 1"] = float(last.allocation.isel(preference=0).median())
        row["distinct"] = float(last.num_distinct.median())
        rows.append(row)
    title = (
        f"E9, sampled. After {config['num_steps']} rounds, medians of {config['num_seeds']} seeds; exact = density of an\n"
        f"infinite pool; distinct = candidates that were picked at least once, of {config['num_curated']} draws."
    )
    return {"baselines": titled(pd.DataFrame(rows), title)}


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Reward variances by round, a panel for each baseline."""
    with figures.style():
        return {"baselines": _figure(ds)}


def _figure(ds: xr.Dataset) -> Figure:
    config, names = config_of(ds), json.loads(ds.attrs["baselines"])
    figure, axes = figures.panels(3, rows=-(-len(names) // 3), width=3.5, height=2.3, sharex=True)
    for i, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        at = ds.isel(baseline=i)
        for j in (0, 1):
            color = figures.PREFERENCE_COLORS[j]
            values = at.reward_variance.isel(preference=j)
            mixtures.band(ax, ds.step.values, values, color, f"preference {j + 1}")
            ax.plot(ds.step, at.exact_reward_variance.isel(preference=j), color=color, ls="--", lw=1)
        ax.set_title(name)
        ax.set_yscale("symlog", linthresh=0.1)
        ax.set_ylim(0, 40)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    axes[0, 0].plot([], [], color="0.4", ls="--", lw=1, label="exact density")
    axes[0, 0].legend()
    figures.share_labels(axes, "round", "reward variance")
    figures.caption(
        figure,
        f"φ = {config['phi'][0]:g}, distance {config['distance'][0]:g}, greedy K = {config['greedy_pool']}, real data "
        f"{config['real_weight']:g}; {mixtures.parameters(config)}; linear up to 0.1, logarithmic above",
    )
    return figure


EXPERIMENT = Experiment(
    "e9-mixtures", "sampled: a retrained Gaussian mixture under the baselines of E9", Config, run, tables, plot
)
