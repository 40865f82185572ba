"""E5, sampled: how the weight phi shapes a retrained Gaussian mixture (Figures 6, 7, 10), beside the exact density."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from plural_jax import figures
from plural_jax.experiments import mixtures
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.base import Experiment, config_of, titled
from plural_jax.process import Meter


@dataclass(frozen=True)
class Config(mixtures.Config):
    """Retrained Gaussian mixtures for many weights of the first preference (E5)."""

    phi: Axis = tuple(round(0.1 * i, 1) for i in range(1, 10))
    """Weights of the first preference."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """The sweep over phi; the exact density as the variables `exact_...`."""
    if len(config.distance) != 1:
        raise ValueError(f"distance must be one number here, got {len(config.distance)}.")
    ds = mixtures.run("e5-mixtures", config, store, progress).load()
    exact = mixtures.exact_on_grid(config).isel(pool_size=0)
    for name in ("reward_mean", "reward_variance", "weight"):
        values = exact[name].transpose("phi", "distance", "step", ...)
        ds[f"exact_{name}"] = (values.dims, values.values)
    return ds


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The last round: the weight nearer to center 1 and reward variances, over seeds, and the exact density."""
    config, rows = config_of(ds), []
    for phi in ds.phi.values.tolist():
        last = ds.sel(phi=phi).isel(distance=0, step=-1)
        low, middle, high = mixtures.quantiles(last.allocation.isel(preference=0))
        rows.append(
            {
                "phi": phi,
                "weight 5 %": float(low),
                "weight": float(middle),
                "weight 95 %": float(high),
                "weight, exact": float(last.exact_weight),
                "var r_1": float(last.reward_variance.isel(preference=0).median()),
                "var r_1, exact": float(last.exact_reward_variance.isel(preference=0)),
                "var r_2": float(last.reward_variance.isel(preference=1).median()),
                "var r_2, exact": float(last.exact_reward_variance.isel(preference=1)),
            }
        )
    title = (
        f"E5, sampled. After {config['num_steps']} rounds, over {config['num_seeds']} seeds: share of the samples nearer to\n"
        "center 1, and reward variances; exact = density of an infinite pool."
    )
    return {"weights": titled(pd.DataFrame(rows), title)}


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """The weight by round and at the end, and both reward variances at the end."""
    with figures.style():
        return {"weights": _figure(ds)}


def _figure(ds: xr.Dataset) -> Figure:
    config, at = config_of(ds), ds.isel(distance=0)
    phis, step, last = ds.phi.values, ds.step.values, ds.isel(distance=0, step=-1)
    figure, axes = figures.panels(3, width=3.6, height=3.0)
    by_round, weight, variance = axes[0]
    for phi, color in zip(phis.tolist(), figures.sequence_colors(len(phis)), strict=True):
        one = at.sel(phi=phi)
        mixtures.band(by_round, step, one.allocation.isel(preference=0), color, f"{phi:g}")
        by_round.plot(step, one.exact_weight, color=color, ls="--", lw=1)
    by_round.set(xlabel="round", ylabel="weight nearer to center 1", ylim=(0, 1.5))
    by_round.legend(title="φ", ncols=5, loc="upper center", columnspacing=0.8, handlelength=1.0)
    mixtures.band(weight, phis, last.allocation.isel(preference=0), "k", "mixture")
    weight.plot(phis, last.exact_weight, color="0.4", ls="--", lw=1, label="exact density")
    weight.plot(phis, phis, color="0.4", ls=":", lw=1, label="φ")
    weight.set(xlabel="φ", ylabel="weight after the last round")
    weight.legend()
    for i in (0, 1):
        color = figures.PREFERENCE_COLORS[i]
        mixtures.band(variance, phis, last.reward_variance.isel(preference=i), color, f"preference {i + 1}")
        variance.plot(phis, last.exact_reward_variance.isel(preference=i), color=color, ls="--", lw=1)
    variance.set(xlabel="φ", ylabel="reward variance", ylim=(0, None))
    variance.legend(loc="lower center")
    figures.caption(figure, f"Distance {config['distance'][0]:g}; {mixtures.parameters(config)}")
    return figure


EXPERIMENT = Experiment(
    "e5-mixtures", "sampled: mixture weights track phi (E5, Figures 6, 7, 10)", Config, run, tables, plot
)
