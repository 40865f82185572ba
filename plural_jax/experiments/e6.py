"""E6: finite candidate pools against the limit of infinite ones (Figure 11), in exact densities (`plane` says how).

Every pool size is exact here (Lemma 1 by quadrature), so the difference to K = infinity is not masked by noise. It
decays like 1/K, faster than the rate sqrt(log K / K) that Lemma B.3 guarantees.

Against the paper's text:

- At distance 4 and phi = 1/2 the mean reward `E[r_i]` does not improve, it falls, and the variance rises, for every
  pool of 5 and more: half of the mass ends at the other preference's center. What an infinite pool improves is
  `sum_i phi_i log E[exp(r_i)]`.
- Small pools are not only slower, they end elsewhere. All mass in the one point `sum_i phi_i mu_i` is stable up to the
  distance `sqrt(K / (K - 2) temperature / (2 gamma phi (1 - phi)))` (`theory.transition_distance`): at phi = 1/2 and gamma = 0.5
  that is 2.58 for K = 5, 2.24 for K = 10 and 2 for K = infinity.
- K = 2 is a contest of pairs, which a compromise wins: at phi = 1/2 the midpoint is chosen over any other point in at
  least half of the contests, so its mass never decreases, and one mode remains at every distance. At phi = 0.7 the
  whole mass ends on the majority's side. Two modes in proportion phi, as for large pools, are not there.

The grid is coarser than in E2 and E5, because no number here is the mass of a small region; halving its spacing changes
what Figure 11 shows in the fifth digit, which is float32's.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

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

#: Pool sizes from which the difference to an infinite pool is fitted by a power of K.
_FITTED_FROM = 25.0


@dataclass(frozen=True)
class Config(plane.Config):
    """Size of the candidate pool (E6)."""

    phi: Axis = (0.5, 0.7)
    """Weights of the first preference."""
    pool_size: Axis = (2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 500.0, float("inf"))
    """Candidates per draw, K >= 2; infinity is added if it is not there, to compare with."""
    spacing: float = 0.125
    """Distance between grid points, in units of x."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """The sweep over pool sizes, summaries of every round."""
    if all(math.isinf(k) for k in config.pool_size):
        raise ValueError("pool_size needs a finite value to compare with an infinite pool.")
    if not any(math.isinf(k) for k in config.pool_size):
        config = dataclasses.replace(config, pool_size=(*config.pool_size, math.inf))
    return plane.run("e6", config, store, progress)


def _curves(rounds: xr.Dataset) -> xr.Dataset:
    """What Figure 11 shows, from all rounds of some configurations: alignment, diversity and weight."""
    phi = xr.concat([rounds.phi, 1 - rounds.phi], "preference")
    return xr.Dataset(
        {
            "mean": (phi * rounds.reward_mean).sum("preference"),
            "variance": (phi * rounds.reward_variance).sum("preference"),
            "entropy": plane.differential_entropy(rounds),
            "weight": rounds.weight,
        }
    )


_LABELS = {
    "mean": "alignment $\\Sigma_i\\,φ_i\\,E[r_i]$",
    "variance": "diversity $\\Sigma_i\\,φ_i\\,Var[r_i]$",
    "entropy": "differential entropy (nats)",
    "weight": "mass nearer to center 1",
}


def _apart(ds: xr.Dataset) -> xr.Dataset:
    """Largest difference over the rounds between the curve of each finite pool and that of the infinite pool."""
    curves = _curves(ds)
    finite = curves.pool_size.values[np.isfinite(curves.pool_size.values)]
    return abs(curves.sel(pool_size=finite) - curves.sel(pool_size=math.inf, drop=True)).max("step")


def _exponent(apart: xr.DataArray) -> tuple[float, int]:
    """Slope of log difference against log K over the larger pools, and their number."""
    large = apart.sel(pool_size=apart.pool_size >= _FITTED_FROM)
    if large.size < 2 or not (large > 0).all():
        return math.nan, large.size
    return float(np.polyfit(np.log(large.pool_size), np.log(large), 1)[0]), large.size


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The last round by pool size, and how the difference to an infinite pool decays."""
    return {"pools": _pools(ds), "decay": _decay(ds)}


def _pools(ds: xr.Dataset) -> pd.DataFrame:
    config, rows = config_of(ds), []
    apart, last = _apart(ds), ds.isel(step=-1)
    curves = _curves(last)
    for point, _ in plane.cases(ds, "pool_size"):
        for k in ds.pool_size.values.tolist():
            at = last.sel(point).sel(pool_size=k)
            here = curves.sel(point).sel(pool_size=k)
            row = {
                **plane.varied(ds, point),
                "K": k,
                "mean": float(here["mean"]),
                "variance": float(here.variance),
                "entropy": float(here.entropy),
                "weight": float(here.weight),
                "objective": float(at.objective),
                "modes": int(at.modes),
            }
            for name in ("mean", "variance", "entropy"):
                row[f"sup {name}"] = float(apart[name].sel(point).sel(pool_size=k)) if math.isfinite(k) else 0.0
            row["one point stable up to d"] = float(
                transition_distance(point["gamma"], phi=point["phi"], temperature=config["temperature"], pool_size=k)
            )
            rows.append(row)
    title = (
        f"Figure 11. After {config['num_steps']} rounds. mean, variance = averages of E[r_i] and Var[r_i] with\n"
        "weights phi_i; objective = sum_i phi_i log E[exp(r_i / temperature)]; sup = largest difference over the\n"
        "rounds to K = infinity."
    )
    return titled(pd.DataFrame(rows), title)


def _decay(ds: xr.Dataset) -> pd.DataFrame:
    rows, apart = [], _apart(ds)
    finite = apart.pool_size.values[apart.pool_size.values >= _FITTED_FROM]
    reference = np.nan
    if finite.size > 1:
        reference = np.polyfit(np.log(finite), 0.5 * np.log(np.log(finite) / finite), 1)[0]
    for point, _ in plane.cases(ds, "pool_size"):
        row: dict[str, float] = {**plane.varied(ds, point)}
        for name in ("mean", "variance", "entropy"):
            row[name], row["pools"] = _exponent(apart[name].sel(point))
        rows.append({**row, "sqrt(log K / K)": float(reference)})
    title = (
        f"Decay with K of the largest difference to K = infinity: exponent fitted over K >= {_FITTED_FROM:g}, and\n"
        "that of the bound of Lemma B.3 over the same pools."
    )
    return titled(pd.DataFrame(rows), title)


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Figure 11 and the decay of the difference to an infinite pool."""
    with figures.style():
        return {"figure11": _figure11(ds), "decay": _figure_decay(ds)}


def _figure11(ds: xr.Dataset) -> Figure:
    found, pools = plane.cases(ds, "pool_size"), sorted(ds.pool_size.values.tolist())
    figure, axes = figures.panels(len(_LABELS), rows=len(found), width=3.0, height=2.7, sharex=True)
    colors = [*figures.sequence_colors(len(pools) - 1), "k"]
    for row, (point, title) in zip(axes, found, strict=True):
        for k, color in zip(pools, colors, strict=True):
            curves = _curves(plane.with_start(ds, {**point, "pool_size": k}))
            style = {
                "color": color,
                "label": "K = ∞" if math.isinf(k) else f"K = {k:g}",
                "ls": "--" if math.isinf(k) else "-",
            }
            for ax, name in zip(row, _LABELS, strict=True):
                ax.plot(curves.step, curves[name], **style)
        for ax, label in zip(row, _LABELS.values(), strict=True):
            ax.set(ylabel=label, title=title)
        row[-1].set_ylim(-0.03, 1.03)
    for ax in axes[-1]:
        ax.set_xlabel("round t")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    figures.caption(figure, plane.parameters(ds))
    return figure


def _figure_decay(ds: xr.Dataset) -> Figure:
    found, apart = plane.cases(ds, "pool_size"), _apart(ds)
    shown = ("mean", "variance", "entropy")
    figure, axes = figures.panels(len(shown), width=3.4, height=3.0, sharex=True)
    k = np.sort(apart.pool_size.values)
    for ax, name in zip(axes[0], shown, strict=True):
        for (point, title), color in zip(found, figures.sequence_colors(len(found)), strict=True):
            values = apart[name].sel(point).sel(pool_size=k)
            slope, _ = _exponent(values)
            label = f"{title}: slope {slope:.2f}".lstrip(": ").replace("-", "−")
            ax.loglog(k, values, "o-", ms=4, color=color, label=label)
        # The bound's constant is unknown; this is the least that all pools allow.
        rate = np.sqrt(np.log(k) / k)
        constant = float((apart[name] / xr.DataArray(rate, {"pool_size": k}, "pool_size")).max())
        ax.loglog(k, constant * rate, color="0.3", lw=0.8, ls="--", label="$C\\sqrt{\\log K / K}$, least C")
        ax.set(xlabel="pool size K", ylabel=f"largest difference, {name}")
        ax.legend(loc="lower left")
    figures.caption(figure, f"Difference to K = ∞, slopes over K ≥ {_FITTED_FROM:g}; {plane.parameters(ds)}")
    return figure


EXPERIMENT = Experiment(
    "e6",
    "pool size: alignment and diversity against the infinite pool: Figure 11",
    Config,
    run,
    tables,
    plot,
    movie=plane.movie,
)
