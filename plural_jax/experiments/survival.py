"""How many samples must each round keep so that a minority survives? Exact chain, and simulated finite curated sets.

Exact: two plateaus, a Markov chain on the count of the first one (`pj.theory.required_set_size`). With phi = 10 %, no leakage
and an infinite pool, 72 samples in each round keep a minority alive through 100 rounds with probability 0.95: each round loses
it with probability (1 - phi)^N. Leakage of 0.05 makes that 215, because the minority then holds less than its share, 5.8 %. With
ten candidates 4,000 samples are not enough: an item is kept at most K times as often as it was drawn, so that a preference
with phi K < 1 loses its plateau even in the exact law, and at phi K = 1 nothing pulls it back.

Simulated: `pj.density.finite_set` on a grid, once with the rewards constant on each half, which must agree with the chain, and
once with bumps of the same leakage. With bumps the minority's half survives about as often as the chain says, somewhat less
near the threshold. Its near-optimal basin S_1 is lost far more often, because the first sets need not hold any item in so small
a region, and what is not in the set cannot come back: the mode then stands beside the optimum.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jax import Array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, StrMethodFormatter

from plural_jax import Grid, Landscape, Process, density, figures, rewards, sweep
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.base import Experiment, config_of, study, titled
from plural_jax.process import Meter
from plural_jax.theory import extinction_probability, required_set_size


@dataclass(frozen=True)
class Config:
    """Samples that each round must keep so that a minority survives (finite curated sets)."""

    phi: Axis = (0.01, 0.02, 0.05, 0.1, 0.2)
    """Weights of the minority's preference, which is also its share at the start."""
    leakage: Axis = (0.0, 0.01, 0.05)
    """Leakages of both preferences: exp(-gap / temperature) between the plateaus."""
    pool_size: Axis = (2.0, 10.0, 25.0, float("inf"))
    """Candidates per draw, whole numbers of at least 2, or infinity."""
    survival: float = 0.95
    """Probability of survival asked for."""
    num_steps: int = 100
    """Rounds of retraining."""
    largest: int = 4000
    """Largest set of samples that is tried."""
    simulated_phi: Axis = (0.05, 0.1, 0.2)
    """Weights that are simulated as well, with an infinite pool."""
    set_size: Axis = (10.0, 20.0, 50.0, 100.0, 200.0, 400.0)
    """Samples per round that are simulated."""
    num_replicas: int = 200
    """Simulations of each."""
    distance: float = 4.0
    """Distance between the two optima of the simulated bumps, in units of x."""
    height: float = 5.0
    """Reward at an optimum."""
    width: float = 1.0
    """Standard deviation of a reward's bell, in units of x."""
    num: int = 100
    """Number of grid points on [-5, 5]; even."""
    eps: float = 0.1
    """Width of the near-optimal basins, in units of reward."""
    seed: int = 0
    """Seed of the simulations."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """The simulations: phi x set size x plateaus or bumps x replicas.

    basin_mass: p(S_1), the mass near the minority's optimum; on plateaus the half is the basin.
    near_mass: mass nearer to the minority's optimum than to the other one.
    """
    _check(config)
    grid = Grid.uniform(-5.0, 5.0, config.num)
    x = grid.points[:, 0]
    half = config.distance / 2
    bumps_of = rewards.bump([-half, half], height=config.height, width=config.width)(grid.points).T
    gap = jnp.asarray(-math.log(leakage_of(dataclasses.asdict(config))), x.dtype)
    plateaus = jnp.where(jnp.stack([x < 0, x > 0]), 0.0, -gap)

    def make(phi: Array, set_size: Array, bumps: Array, replica: Array) -> tuple[Process, Array]:
        del replica  # replicas differ in their keys alone
        table = jnp.where(bumps > 0, bumps_of, plateaus)
        land = Landscape(rewards=table, points=grid.points, log_measure=grid.log_measure)
        process = density.large_pool(land, jnp.stack([phi, 1 - phi]), eps=config.eps)
        return density.finite_set(process, set_size), jnp.log(jnp.where(x < 0, phi, 1 - phi))

    def save(state: Any, info: Any) -> dict[str, Array]:
        near = jnp.sum(jnp.where(x < 0, jnp.exp(state.log_p), 0.0))
        return {"basin_mass": info.basin_mass[0], "near_mass": near}

    return sweep(
        make,
        phi=np.asarray(config.simulated_phi),
        set_size=np.asarray(config.set_size),
        bumps=[0.0, 1.0],
        replica=np.arange(config.num_replicas),
        num_steps=config.num_steps,
        save=save,
        store=store,
        progress=progress,
        key=jax.random.key(config.seed),
        attrs=study("survival", config),
    )


def _check(config: Config) -> None:
    if config.num_replicas < 1:
        raise ValueError(f"num_replicas must be at least 1, got {config.num_replicas}.")
    if config.num % 2:
        raise ValueError(f"num must be even, so that each point belongs to one half, got {config.num}.")
    # What the chain refuses is refused before the simulation, not after it.
    for phi in (*config.phi, *config.simulated_phi):
        for kappa in config.leakage:
            for size in config.pool_size:
                required_set_size(phi, num_steps=1, survival=config.survival, leakage=kappa, pool_size=size, largest=1)


def leakage_of(config: dict[str, Any]) -> float:
    """What a preference's reward at the other optimum is worth beside its own, exp(r(other) - r*)."""
    at_other = math.exp(-((config["distance"] / config["width"]) ** 2) / 2)
    return math.exp(-config["height"] * (1 - at_other))


@lru_cache(maxsize=1024)
def _required(phi: float, kappa: float, size: float, survival: float, num_steps: int, largest: int) -> float:
    return required_set_size(
        phi, num_steps=num_steps, survival=survival, leakage=kappa, pool_size=size, largest=largest
    )


def _needed(config: dict[str, Any], phi: float, kappa: float, size: float) -> float:
    return _required(phi, kappa, size, config["survival"], config["num_steps"], config["largest"])


def _survival(config: dict[str, Any], phi: float, n: int) -> np.ndarray:
    """The exact survival probability by round with the simulations' leakage and an infinite pool."""
    extinct = extinction_probability(n, phi, num_steps=config["num_steps"], leakage=leakage_of(config))
    return np.maximum(1 - extinct, 0.0)


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The required number of samples, and how often the simulated minority survived."""
    return {"required": _table_required(ds), "simulated": _table_simulated(ds)}


def _table_required(ds: xr.Dataset) -> pd.DataFrame:
    config, rows = config_of(ds), []
    for kappa in config["leakage"]:
        for phi in config["phi"]:
            row: dict[str, Any] = {"leakage": kappa, "phi": phi}
            for size in config["pool_size"]:
                n = _needed(config, phi, kappa, size)
                row[_pool(size)] = f">{config['largest']}" if math.isinf(n) else f"{n:.0f}"
            rows.append(row)
    title = (
        f"Samples that each round must keep so that a minority of share phi survives {config['num_steps']} rounds with\n"
        f"probability {config['survival']:g}, for pools of K candidates; exact chain of two plateaus."
    )
    return titled(pd.DataFrame(rows), title)


def _table_simulated(ds: xr.Dataset) -> pd.DataFrame:
    config, rows = config_of(ds), []
    last = ds.isel(step=-1)
    for phi in ds.phi.values.tolist():
        for n in ds.set_size.values.tolist():
            alive = (last.sel(phi=phi, set_size=n) > 0).mean("replica")
            plateaus, bumps = alive.sel(bumps=0.0), alive.sel(bumps=1.0)
            rows.append(
                {
                    "phi": phi,
                    "N": n,
                    "chain": _survival(config, phi, int(n))[-1],
                    "plateaus": float(plateaus.near_mass),
                    "bumps": float(bumps.near_mass),
                    "bumps, S_1": float(bumps.basin_mass),
                }
            )
    title = (
        f"Survival after {config['num_steps']} rounds, K infinite, leakage {leakage_of(config):.3g}: exact chain, and the share\n"
        f"of {config['num_replicas']} simulations with a sample on the minority's plateau; then with bumps in place of those:\n"
        f"with a sample nearer to the minority's optimum, and with one in its near-optimal basin S_1, eps = {config['eps']:g}."
    )
    return titled(pd.DataFrame(rows), title)


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Survival by round and against the number of samples, and the number that is required."""
    with figures.style():
        return {"survival": _figure_survival(ds), "required": _figure_required(ds)}


def _figure_survival(ds: xr.Dataset) -> Figure:
    config = config_of(ds)
    phis = ds.phi.values.tolist()
    sizes = np.sort(ds.set_size.values)
    middle = float(sizes[(len(sizes) - 1) // 2])
    figure, axes = figures.panels(2, width=4.9, height=3.8, sharey=True)
    by_round, by_size = axes[0]
    colors = figures.sequence_colors(len(phis))
    shown = np.unique(np.geomspace(1, config["num_steps"], 12).round().astype(int))
    fine = np.unique(np.geomspace(sizes[0], sizes[-1], 40).round().astype(int))
    for phi, color in zip(phis, colors, strict=True):
        alive = (ds.sel(phi=phi) > 0).mean("replica")
        rounds = np.arange(1, config["num_steps"] + 1)
        by_round.plot(rounds, _survival(config, phi, int(middle)), color=color)
        dots = alive.near_mass.sel(set_size=middle, bumps=0.0, step=shown)
        by_round.plot(shown, dots, "o", ms=4, color=color, clip_on=False)
        by_size.plot(fine, [_survival(config, phi, int(n))[-1] for n in fine], color=color)
        end = alive.isel(step=-1).sel(set_size=sizes)
        marks = {"color": color, "ls": "none", "clip_on": False}
        by_size.plot(sizes, end.near_mass.sel(bumps=0.0), marker="o", ms=4, **marks)
        by_size.plot(sizes, end.near_mass.sel(bumps=1.0), marker="s", ms=6, mfc="none", **marks)
        by_size.plot(sizes, end.basin_mass.sel(bumps=1.0), marker="x", ms=6, **marks)
    by_size.axhline(config["survival"], color="0.3", lw=0.8, ls="--")
    by_round.set(xlabel="round t", ylabel="probability that the minority is alive", ylim=(0, 1.02))
    by_round.set_title(f"by round, {middle:g} samples kept in each")
    by_size.set(xlabel="samples kept in each round, N", xscale="log")
    by_size.set_title(f"after {config['num_steps']} rounds")
    by_size.set_xticks(sizes, [f"{n:g}" for n in sizes])
    by_size.minorticks_off()
    gray: dict[str, Any] = {"color": "0.3", "ls": "none"}
    handles = [Line2D([], [], color=c, label=f"φ = {phi:g}") for phi, c in zip(phis, colors, strict=True)]
    handles += [
        Line2D([], [], color="0.3", label="two plateaus, exact chain"),
        Line2D([], [], marker="o", ms=4, label="plateaus, simulated", **gray),
        Line2D([], [], marker="s", ms=6, mfc="none", label="bumps: nearer to its optimum", **gray),
        Line2D([], [], marker="x", ms=6, label="bumps: in its basin $S_1$", **gray),
    ]
    figure.legend(handles=handles, loc="outside right center")
    figures.caption(figure, _parameters(config))
    return figure


def _figure_required(ds: xr.Dataset) -> Figure:
    config = config_of(ds)
    phis, kappas, sizes = (sorted(config[name]) for name in ("phi", "leakage", "pool_size"))
    between = [math.sqrt(a * b) for a, b in itertools.pairwise(phis)]
    figure, axes = figures.panels(len(kappas), width=3.4, height=3.6, sharex=True, sharey=True)
    for ax, kappa in zip(axes[0], kappas, strict=True):
        colors = figures.sequence_colors(len(sizes))
        for size, color in zip(sizes, colors, strict=True):
            found: dict[float, float] = {}
            for phi in sorted({*phis, *between}, reverse=True):
                n = _needed(config, phi, kappa, size)
                if math.isinf(n):  # a smaller minority needs more still
                    break
                found[phi] = n
            label = _pool(size) if found else f"{_pool(size)}: nowhere"
            ax.plot(list(found), list(found.values()), color=color, label=label)
            marked = [phi for phi in phis if phi in found]
            ax.plot(marked, [found[phi] for phi in marked], "o", ms=4, color=color)
        ax.set(xscale="log", yscale="log", xlabel="share φ of the minority", title=f"leakage {kappa:g}")
        ax.set_xticks(phis, [f"{phi:g}" for phi in phis])
        # Few decades are shown, perhaps a single power of ten.
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.minorticks_off()
    axes[0, 0].set_xlim(0.9 * phis[0], 1.1 * phis[-1])
    axes[0, 0].set_ylabel("samples that each round must keep, N")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    figures.caption(
        figure,
        f"Survival of {config['num_steps']} rounds with probability {config['survival']:g}, exact chain of two plateaus. Where a "
        f"line is missing more than {config['largest']} samples are needed: the exact law itself loses a minority with φK < 1",
    )
    return figure


def _pool(size: float) -> str:
    return "K = ∞" if math.isinf(size) else f"K = {size:g}"


def _parameters(config: dict[str, Any]) -> str:
    return (
        f"K = ∞, leakage {leakage_of(config):.3g}, share φ at the start, {config['num_replicas']} replicas (standard error up to "
        f"{0.5 / math.sqrt(config['num_replicas']):.2g}); bumps of height {config['height']:g} and width {config['width']:g} at "
        f"distance {config['distance']:g} on {config['num']} points of [−5, 5], each half uniform at the start, "
        f"eps = {config['eps']:g}"
    )


EXPERIMENT = Experiment(
    "survival", "samples that each round must keep so that a minority survives", Config, run, tables, plot
)
