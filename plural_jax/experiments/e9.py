"""E9: several preferences against the baselines, in exact densities on the line of C.9.

Rewards `r_i(x) = 5 exp(-(x - mu_i)^2 / 2)`, `mu = ±D/2`, 100 points of [-5, 5], uniform start. Each baseline changes one thing:
which reward selects, how, or what the model is refit to.

At D = 4 and phi = 0.3 the averaged reward is no compromise but the majority's: the weighted bumps add up to two maxima, of which
the exact dynamics take the higher one. One reward per round is the averaged reward with the shares of rounds so far as weights:
it jumps from side to side while these are near a half, and ends as the averaged reward does. Both serve one preference only, as
a single reward does. Real data and accumulation keep entropy and cost Nash objective. Greedy selection reaches the objective's
limit soonest, since it leaves the two best points no neighbors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr
from jax import Array
from matplotlib.figure import Figure

from plural_jax import Grid, Landscape, Process, density, figures, labels, rewards, sweep
from plural_jax.density.core import parts, summarize
from plural_jax.experiments.base import Experiment, config_of, study, titled
from plural_jax.process import Meter
from plural_jax.progress import meter

#: Names of the baselines in the order of the dataset, with a color and a line style each.
LINES = {
    "several preferences": ("k", "-"),
    "single reward 1": ("#0072B2", "-"),
    "single reward 2": ("#D55E00", "-"),
    "averaged reward": ("#009E73", "-"),
    "one reward per round": ("#CC79A7", "-"),
    "no curation": ("0.6", "-"),
    "greedy": ("#E69F00", "--"),
    "real data mixed in": ("#56B4E9", "--"),
    "accumulated data": ("#7B5CB8", "--"),
}

#: Runs of a random baseline that a figure shows.
_PATHS = 3

_PANELS = {
    "entropy": "differential entropy, nats",
    "reward_mean_1": "reward mean $E[r_1]$",
    "reward_mean_2": "reward mean $E[r_2]$",
    "objective": "Nash objective F",
    "reward_variance_1": "reward variance $Var[r_1]$",
    "reward_variance_2": "reward variance $Var[r_2]$",
}


@dataclass(frozen=True)
class Config:
    """Several preferences against the baselines (E9)."""

    phi: float = 0.3
    """Weight of the first preference."""
    distance: float = 4.0
    """Distance between the two optima, in units of x."""
    pool_size: float = float("inf")
    """Candidates per draw, K >= 2; for greedy selection see greedy_pool."""
    greedy_pool: float = 10.0
    """Candidates of which greedy selection takes the best, K >= 2."""
    real_weight: float = 0.1
    """Share of real data, which are the start, where real data are mixed in."""
    initial_sets: float = 1.0
    """Size of the initial data, in curated sets, where data accumulate."""
    set_size: float = float("inf")
    """Curated samples that each round keeps; infinity for the exact law."""
    num_replicas: int = 40
    """Simulations of what is random: one reward per round, and everything if set_size is finite."""
    num_steps: int = 50
    """Rounds of retraining."""
    height: float = 5.0
    """Reward at an optimum."""
    width: float = 1.0
    """Standard deviation of a reward's bell, in units of x."""
    num: int = 100
    """Number of grid points on [-5, 5]."""
    eps: float = 0.1
    """Width of the near-optimal basins, in units of reward."""
    seed: int = 0
    """Seed of what is random."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """Every baseline from the same start: infos and log-masses of every round, and of the start as round 0.

    Dimensions: baseline (numbered; the attribute `baselines` has the names), replica, step, and preference or cell. What is
    not random is the same in all replicas.
    """
    if config.num_replicas < 1:
        raise ValueError(f"num_replicas must be at least 1, got {config.num_replicas}.")
    attrs = labels.plain_attrs({**study("e9", config), "baselines": list(LINES)})
    if store is not None and Path(store).exists():
        return reopened(Path(store), attrs)
    shown = meter(progress)
    shown.start(len(LINES), "baselines")
    found = []
    try:
        for i, make in enumerate(processes(config).values()):
            found.append(_trajectories(make, config, jax.random.fold_in(jax.random.key(config.seed), i)))
            shown.advance(1)
    finally:
        shown.stop()
    dataset = xr.concat(found, dim="baseline").assign_coords(baseline=np.arange(len(LINES)))
    dataset.attrs = attrs
    if store is not None:
        dataset.to_zarr(store, consolidated=False)
    return dataset


def processes(config: Config) -> dict[str, Callable[[], Process]]:
    """How each baseline is built, by its name."""
    land = landscape(config.distance, config.height, config.width, config.num)
    phi = [config.phi, 1 - config.phi]
    seen: dict[str, Any] = {"eps": config.eps}
    pool: dict[str, Any] = {"pool_size": config.pool_size, **seen}

    def several() -> Process:
        return density.finite_pool(land, phi, **pool)

    made: dict[str, Callable[[], Process]] = {
        "several preferences": several,
        "single reward 1": lambda: density.single_reward(land, phi, 0, **pool),
        "single reward 2": lambda: density.single_reward(land, phi, 1, **pool),
        "averaged reward": lambda: density.averaged_reward(land, phi, **pool),
        "one reward per round": lambda: density.reward_per_round(land, phi, **pool),
        "no curation": lambda: density.no_curation(land, phi, **seen),
        "greedy": lambda: density.greedy(land, phi, pool_size=config.greedy_pool, **seen),
        "real data mixed in": several,
        "accumulated data": several,
    }

    def finished(name: str) -> Process:
        # First what a round keeps, then what it is put together with.
        process = density.finite_set(made[name](), config.set_size)
        if name == "real data mixed in":
            return density.mix_real(process, land.uniform(), config.real_weight)
        if name == "accumulated data":
            return density.accumulate(process, initial_sets=config.initial_sets)
        return process

    return {name: (lambda name=name: finished(name)) for name in made}  # type: ignore[misc]


def landscape(distance: float, height: float, width: float, num: int) -> Landscape:
    """The two bumps of C.9."""
    bumps = rewards.bump([-distance / 2, distance / 2], height=height, width=width)
    return Landscape.on(Grid.uniform(-5.0, 5.0, num), bumps)


def _trajectories(make: Callable[[], Process], config: Config, key: Array) -> xr.Dataset:
    """One baseline: round 0 and all later ones, for every replica."""
    process = make()
    problem, _ = parts(process)

    def one(replica: Array) -> Process:
        del replica  # replicas differ in their keys alone
        return process

    def save(state: Any, info: Any) -> dict[str, Array]:
        return {**info._asdict(), "log_p": state.log_p}

    replicas = config.num_replicas if _is_random(process) else 1
    later = sweep(one, replica=np.arange(replicas), num_steps=config.num_steps, save=save, key=key)
    start = process.init()
    first = save(start, summarize(problem, density.DensityState(start.log_p, start.log_w)))
    before = xr.Dataset({name: (later[name].dims[2:], np.asarray(value)) for name, value in first.items()})
    both = xr.concat([before.expand_dims(replica=later.replica, step=[0]), later.drop_attrs()], dim="step")
    every = both.isel(replica=np.arange(config.num_replicas) % replicas)
    return every.assign_coords(replica=np.arange(config.num_replicas))


def _is_random(process: Process) -> bool:
    """Whether a step needs a key."""
    try:
        jax.eval_shape(lambda: process.step(None, process.init()))
    except ValueError:
        return True
    return False


def reopened(store: Path, attrs: dict[str, Any]) -> xr.Dataset:
    """A finished run in the same folder; it is quick, so that nothing less than all of it is kept."""
    dataset = xr.open_zarr(store, consolidated=False).load()
    if dataset.attrs != attrs:
        raise ValueError(
            f"store={str(store)!r} holds a run with another configuration; choose another path or delete it."
        )
    return dataset


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The last round of every baseline."""
    config, rows = config_of(ds), []
    last = ds.isel(step=-1).assign(entropy=_entropy(ds).isel(step=-1))
    for name in _names(ds):
        at = _of(last, name)
        average = at.mean("replica")
        rows.append(
            {
                "baseline": name,
                "entropy": float(average.entropy),
                "mean r_1": float(average.reward_mean[0]),
                "mean r_2": float(average.reward_mean[1]),
                "var r_1": float(average.reward_variance[0]),
                "var r_2": float(average.reward_variance[1]),
                "F": float(average.objective),
                "sd of F": float(at.objective.std("replica")),
                "basin 1": float(average.basin_mass[0]),
                "basin 2": float(average.basin_mass[1]),
                "outside": float(average.outside_mass),
            }
        )
    title = (
        f"E9. After {config['num_steps']} rounds; what is random as the mean of {config['num_replicas']} replicas. entropy is\n"
        f"differential, in nats; F = sum_i phi_i log E[exp(r_i)]; basins with eps = {config['eps']:g}."
    )
    return {"baselines": titled(pd.DataFrame(rows), title)}


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """All baselines by round, and where their mass is at the end."""
    with figures.style():
        return {"baselines": _figure_rounds(ds), "densities": _figure_densities(ds)}


def _figure_rounds(ds: xr.Dataset) -> Figure:
    shown = _panels(ds)
    figure, axes = figures.panels(3, rows=2, width=3.5, height=2.9, sharex=True)
    for ax, (variable, label) in zip(axes.flat, _PANELS.items(), strict=True):
        for name in _names(ds):
            color, line = LINES[name]
            values = _of(shown[variable], name)
            width = 2.4 if name == "several preferences" else 1.4
            if _varies(values):
                # A median of paths that jump at random would be the path of none.
                for i in range(min(_PATHS, values.sizes["replica"])):
                    ax.plot(ds.step, values.isel(replica=i), color=color, ls=line, lw=0.7, alpha=0.7)
                ax.plot([], [], color=color, ls=line, lw=width, label=name)
            else:
                ax.plot(ds.step, values.isel(replica=0), color=color, ls=line, lw=width, label=name)
        ax.set_ylabel(label)
        # Most happens in the first rounds.
        ax.set_xscale("symlog", linthresh=1.0, linscale=0.35)
        ticks = [t for t in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if t <= float(ds.step[-1])]
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
    for ax in axes[-1]:
        ax.set_xlabel("round t")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    figures.caption(figure, f"F = Σ φᵢ log E[exp(rᵢ)]; thin lines: single runs of what is random; {_parameters(ds)}")
    return figure


def _figure_densities(ds: xr.Dataset) -> Figure:
    config = config_of(ds)
    x, spacing = _cells(config)
    names = _names(ds)
    columns = 3
    figure, axes = figures.panels(
        columns, rows=-(-len(names) // columns), width=3.3, height=1.9, sharex=True, sharey=True
    )
    p = np.exp(ds.log_p.isel(step=-1)) / spacing
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for ax, name in zip(axes.flat, names, strict=False):
        for center, color in zip((-1, 1), figures.PREFERENCE_COLORS, strict=False):
            ax.axvline(center * config["distance"] / 2, color=color, lw=0.8, ls="--")
        values_of = _of(p, name)
        distinct = values_of.values[: _PATHS if _varies(values_of) else 1]
        for values in distinct:
            ax.plot(x, values, color=LINES[name][0], lw=1.5 if len(distinct) == 1 else 0.7)
        ax.fill_between(x, distinct.mean(axis=0), color=LINES[name][0], alpha=0.2, lw=0)
        ax.set_title(name)
        ax.set_yscale("symlog", linthresh=0.1)
        ax.set_ylim(0, 1.5 * float(p.max()))
    figures.share_labels(axes, "x", "density")
    figures.caption(
        figure,
        f"After the last round; dashed: the optima of preferences 1 and 2; density linear up to 0.1, logarithmic above; what is "
        f"random as single runs and their mean; {_parameters(ds)}",
    )
    return figure


def _varies(values: xr.DataArray) -> bool:
    return float(values.std("replica").max()) > 1e-5


def _names(ds: xr.Dataset) -> list[str]:
    return json.loads(ds.attrs["baselines"])


def _of(values: Any, name: str) -> Any:
    """What belongs to one baseline."""
    return values.isel(baseline=list(LINES).index(name))


def _cells(config: dict[str, Any]) -> tuple[np.ndarray, float]:
    x = np.linspace(-5.0, 5.0, config["num"])
    return x, float(x[1] - x[0])


def _entropy(ds: xr.Dataset) -> xr.DataArray:
    """Differential entropy: that of the cells without what the fineness of the grid adds."""
    return ds.entropy + math.log(_cells(config_of(ds))[1])


def _panels(ds: xr.Dataset) -> dict[str, xr.DataArray]:
    found = {"entropy": _entropy(ds), "objective": ds.objective}
    for name in ("reward_mean", "reward_variance"):
        found |= {f"{name}_{i + 1}": ds[name].isel(preference=i) for i in range(2)}
    return found


def _parameters(ds: xr.Dataset) -> str:
    c = config_of(ds)
    parts_of = [
        f"φ = {c['phi']:g}",
        f"bumps of height {c['height']:g} and width {c['width']:g} at distance {c['distance']:g}",
        f"uniform start on {c['num']} points of [−5, 5]",
        f"K = {c['pool_size']:g}, greedy K = {c['greedy_pool']:g}",
        f"share of real data {c['real_weight']:g}",
        f"initial data as {c['initial_sets']:g} curated set{'' if c['initial_sets'] == 1 else 's'}",
    ]
    if math.isfinite(c["set_size"]):
        parts_of.append(f"{c['set_size']:g} samples per round")
    return ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts_of).replace("inf", "∞")


EXPERIMENT = Experiment("e9", "several preferences against seven kinds of baseline", Config, run, tables, plot)
