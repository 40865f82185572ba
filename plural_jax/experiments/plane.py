"""The plane of C.4 that E2, E5 and E6 share: two quadratic rewards, a Gaussian start, the exact density on a grid.

Rewards `r_i(x) = -gamma ||x - mu_i||^2` with centers `mu = (-distance/2, 0)` and `(distance/2, 0)`, so that the
midpoint stays where it is; start N(0, I). The paper refits a Gaussian mixture to samples in every round, with one
component in the first rounds and two after. Here p_t is the exact law of the curated sample, Eq. 5 or Lemma 1: no
sampling, no restriction to a family.

The grid needs a spacing below the standard deviation of the narrowest component after T rounds, which is
`1 / sqrt(1/std^2 + 2 gamma T / temperature)`, 0.16 by default; sums over Gaussians are then right to 1e-8. The default
is 0.0625. Halving it moves moments and entropies in the fifth digit, which is float32's rounding. Only masses of
regions see more of the grid: the nearest-center weight moves by up to 1e-4 in the first rounds and 1e-7 in the last,
masses of basins by up to 0.02 (0.001 at distance 4).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import Array
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from plural_jax import Grid, Landscape, Process, density, figures, rewards, sweep
from plural_jax import run as run_process
from plural_jax._typing import ArrayLike
from plural_jax.density.closed_form import gaussian
from plural_jax.density.core import problem, summarize
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.base import config_of, study
from plural_jax.experiments.movies import Movie, follow
from plural_jax.process import Meter

#: Axes of every dataset here, in the order of its dimensions, with the symbols that figures use.
SYMBOLS = {"phi": "φ", "distance": "distance", "gamma": "γ", "pool_size": "K"}

#: Limits that are solved for together.
_AT_A_TIME = 64

DENSITY_NOTE = (
    "Densities, each brightest at its maximum; triangles: first coordinate of centers 1 (blue) and 2 (orange)"
)


@dataclass(frozen=True)
class Config:
    """Two quadratic rewards in the plane (C.4)."""

    phi: Axis = (0.5,)
    """Weights of the first preference."""
    distance: Axis = (4.0,)
    """Distances between the two centers, in units of x; the midpoint is the origin."""
    gamma: Axis = (0.5,)
    """Sharpness of the rewards, in reward per squared unit of x."""
    pool_size: Axis = (float("inf"),)
    """Candidates per draw, K >= 2."""
    temperature: float = 1.0
    """Temperature of the choice rule, in units of reward."""
    std: float = 1.0
    """Standard deviation of the start in each direction, in units of x."""
    num_steps: int = 40
    """Rounds of retraining."""
    spacing: float = 0.0625
    """Distance between grid points, in units of x."""
    reach: float = 5.0
    """How far the grid extends beyond the outermost centers, in standard deviations of the start."""
    eps: float = 0.1
    """Width of the near-optimal basins, in units of reward."""


def run(name: str, config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """Every combination of the four axes, summaries of every round.

    Beside the fields of `DensityInfo` the dataset has what `_summary` adds.
    """
    _check(config)
    settings = dataclasses.asdict(config)

    def make(phi: Array, distance: Array, gamma: Array, pool_size: Array) -> tuple[Process, Array]:
        land = landscape(settings, distance, gamma)
        return _process(settings, land, phi, pool_size), land.gaussian(0.0, config.std)

    return sweep(
        make,
        phi=np.asarray(config.phi),
        distance=np.asarray(config.distance),
        gamma=np.asarray(config.gamma),
        pool_size=np.asarray(config.pool_size),
        num_steps=config.num_steps,
        save=_summary(grid(settings)),
        store=store,
        progress=progress,
        attrs=study(name, config),
    )


def grid(config: dict[str, Any]) -> Grid:
    """Points around the origin, which is one of them; the first coordinate runs along the line of the centers."""
    counts = _half_counts(config)
    ends = [c * config["spacing"] for c in counts]
    return Grid.uniform([-e for e in ends], ends, [2 * c + 1 for c in counts])


def _half_counts(config: dict[str, Any]) -> list[int]:
    """Points of the grid on one side of the origin, along each coordinate."""
    margin = config["reach"] * config["std"]
    return [math.ceil(w / config["spacing"] - 1e-9) for w in (max(config["distance"]) / 2 + margin, margin)]


def centers(distance: ArrayLike) -> Array:
    """The two centers, [2, 2]; the first preference has the one on the left."""
    d = jnp.asarray(distance, jnp.result_type(float))
    return jnp.stack([jnp.stack([-d / 2, jnp.zeros_like(d)]), jnp.stack([d / 2, jnp.zeros_like(d)])])


def landscape(config: dict[str, Any], distance: ArrayLike, gamma: ArrayLike) -> Landscape:
    """Both rewards on the grid."""
    return Landscape.on(grid(config), rewards.quadratic(centers(distance), gamma))


def final_density(ds: xr.Dataset, point: dict[str, float]) -> np.ndarray:
    """Masses of the cells after the last round at one point of the four axes, [len(x), len(y)]."""
    config = config_of(ds)
    land = landscape(config, point["distance"], point["gamma"])
    process = _process(config, land, point["phi"], point["pool_size"])
    state, _ = run_process(process, process.init(land.gaussian(0.0, config["std"])), config["num_steps"], save="final")
    return np.exp(np.asarray(state.log_p)).reshape(grid(config).shape)


def movie(ds: xr.Dataset) -> Movie:
    """The densities at the weight nearest to 0.3 and the distance nearest to 4, with the first values of the other axes."""
    config = config_of(ds)
    wanted = {"phi": 0.3, "distance": 4.0}
    point = {name: float(ds[name].sel({name: v}, method="nearest")) for name, v in wanted.items()}
    point |= {name: float(ds[name][0]) for name in SYMBOLS if name not in wanted}
    land = landscape(config, point["distance"], point["gamma"])
    process = _process(config, land, point["phi"], point["pool_size"])
    log_p, steps = follow(process, process.init(land.gaussian(0.0, config["std"])), config["num_steps"])
    varied = [_equals(name, v) for name, v in point.items() if ds.sizes[name] > 1]
    caption = ", ".join([*varied, parameters(ds)])
    return Movie(grid(config), log_p, steps, np.asarray(centers(point["distance"])), caption)


def first_density(ds: xr.Dataset) -> np.ndarray:
    """Masses of the cells at the start, the same for every point; [len(x), len(y)]."""
    config = config_of(ds)
    land = landscape(config, config["distance"][0], config["gamma"][0])
    return np.exp(np.asarray(land.gaussian(0.0, config["std"]))).reshape(grid(config).shape)


def with_start(ds: xr.Dataset, point: dict[str, float]) -> xr.Dataset:
    """All rounds of one point of the four axes, with the start as round 0."""
    config = config_of(ds)
    land = landscape(config, point["distance"], point["gamma"])
    phi = jnp.asarray([point["phi"], 1 - point["phi"]], land.dtype)
    state = _process(config, land, point["phi"], math.inf).init(land.gaussian(0.0, config["std"]))
    info = summarize(problem(land, phi, config["temperature"], config["eps"]), state)
    rest = ds.sel(point)
    values = {name: np.asarray(v) for name, v in _summary(grid(config))(state, info).items()}
    start = xr.Dataset({name: (rest[name].dims[1:], v) for name, v in values.items()}).expand_dims(step=[0])
    joined = xr.concat([start, rest.drop_vars(list(SYMBOLS))], "step", join="exact")
    return joined.assign_coords(point).assign_attrs(ds.attrs)


def closed_form(ds: xr.Dataset, phi: float, gamma: float, distances: Any) -> xr.Dataset:
    """An infinite pool without a grid, as an exact mixture of Gaussians, for several distances and every round.

    Variables as of `GaussianInfo`, and `curvature`: the second derivative of the density's logarithm at the midpoint,
    along the line of the centers, in units of a component's precision. At phi = 1/2 it is positive where there are two
    modes.
    """
    return _closed_form(ds.attrs["config"], phi, gamma, tuple(float(d) for d in distances))


@lru_cache(maxsize=16)
def _closed_form(config_text: str, phi: float, gamma: float, distances: tuple[float, ...]) -> xr.Dataset:
    config = json.loads(config_text)

    def make(distance: Array) -> Process:
        weights = jnp.asarray([phi, 1 - phi], distance.dtype)
        sharpness = jnp.asarray(gamma, distance.dtype)
        return gaussian(
            centers(distance),
            sharpness,
            weights,
            std=config["std"],
            temperature=config["temperature"],
            num_steps=config["num_steps"],
        )

    def with_curvature(state: Any, info: Any) -> dict[str, Array]:
        x, v = state.means[:, 0], state.variances
        # All components are equally wide, so their normalizers drop out; by symmetry the first derivative is zero.
        here = state.weights * jnp.exp(-0.5 * x * x / v)
        return {**info._asdict(), "curvature": jnp.sum(here * (x * x / v - 1.0)) / jnp.sum(here)}

    return sweep(make, distance=np.asarray(distances), num_steps=config["num_steps"], save=with_curvature)


def limit_atoms(phi: Any, distance: Any, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the dynamics of an infinite pool end: one or two points on the line of the centers, as weights and places.

    Args:
        phi: weight of the first preference, any shape.
        distance: between the centers, any shape; broadcast with phi.
        rate: gamma / temperature.

    Returns:
        Weights and first coordinates of the points, [..., 2] each, in float64. A point that is not needed has weight 0 and
        the place of the other.
    """
    phi, distance = np.broadcast_arrays(np.asarray(phi, float), np.asarray(distance, float))
    # In pieces of one size: whatever is asked, the solver compiles once.
    flat = np.stack([phi.ravel(), distance.ravel()])
    padded = np.pad(flat, ((0, 0), (0, -flat.shape[1] % _AT_A_TIME)), mode="edge")
    with jax.enable_x64(True):  # the exact answer that others are compared with
        pieces = [_limits(*piece, rate) for piece in np.split(padded, padded.shape[1] // _AT_A_TIME, axis=1)]
    found = (np.concatenate(parts)[: phi.size] for parts in zip(*pieces, strict=True))
    weights, places = (v.reshape(*phi.shape, 2) for v in found)
    return weights, np.where(weights > 0, places, places[..., ::-1])


@jax.jit
def _limits(phi: Array, distance: Array, rate: Array) -> tuple[Array, Array]:
    line = Grid.uniform(-1.0, 1.0, 81)

    def one(phi: Array, distance: Array) -> tuple[Array, Array]:
        half = distance / 2
        points = (half + 0.5) * line.points.astype(phi.dtype)
        reward = rewards.quadratic(jnp.stack([-half, half]), rate)
        land = Landscape(rewards=reward(points).T, points=points, reward=reward)
        limit = density.solve_limit(land, jnp.stack([phi, 1 - phi]), refine=True)
        assert limit.points is not None  # the landscape has points
        return limit.weights, limit.points[:, 0]

    return jax.vmap(one)(phi, distance)


def limit_rewards(config: dict[str, Any], phi: float, distance: Any, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each reward in the limit of `limit_atoms`, [..., 2] each."""
    weights, atoms = limit_atoms(phi, distance, gamma / config["temperature"])
    mu = np.asarray(distance, float)[..., None] / 2 * np.array([-1.0, 1.0])
    values = -gamma * (atoms[..., None, :] - mu[..., :, None]) ** 2
    mean = (weights[..., None, :] * values).sum(axis=-1)
    return mean, (weights[..., None, :] * (values - mean[..., None]) ** 2).sum(axis=-1)


def spread(ds: xr.Dataset) -> xr.DataArray:
    """How far the mass lies apart along the line of the centers: 0 for one mode, 1 for halves on the two centers.

    `(Var[x_1] - Var[x_2]) / (distance / 2)^2`. The second variance takes away the width that every component has.
    """
    half = ds.distance.where(ds.distance > 0) / 2
    return (ds.variance_along - ds.variance_across) / half**2


def differential_entropy(ds: xr.Dataset) -> xr.DataArray:
    """Differential entropy in nats: the entropy of the cells without what the fineness of the grid adds."""
    return ds.entropy + 2 * math.log(config_of(ds)["spacing"])


def varied(ds: xr.Dataset, point: dict[str, float]) -> dict[str, float]:
    """The entries of a point that tell rows of a table apart, named as its columns."""
    return {"K" if name == "pool_size" else name: v for name, v in point.items() if ds.sizes[name] > 1}


def cases(ds: xr.Dataset, *shown: str) -> list[tuple[dict[str, float], str]]:
    """Every combination of the axes that a figure does not show, each with a title that names what varies."""
    rest = [name for name in SYMBOLS if name not in shown]
    found = []
    for values in itertools.product(*(ds[name].values.tolist() for name in rest)):
        point = dict(zip(rest, values, strict=True))
        found.append((point, ", ".join(_equals(name, v) for name, v in point.items() if ds.sizes[name] > 1)))
    return found


def parameters(ds: xr.Dataset) -> str:
    """The caption: everything that does not vary."""
    config = config_of(ds)
    fixed = [_equals(name, float(ds[name][0])) for name in SYMBOLS if ds.sizes[name] == 1]
    x, y = (float(axis[-1]) for axis in grid(config).axes)
    start = f"start N(0, {config['std'] ** 2:g} I)" if config["std"] != 1 else "start N(0, I)"
    parts = [
        "rewards −γ‖x − μ‖²",
        *fixed,
        f"temperature {config['temperature']:g}",
        start,
        f"{config['num_steps']} rounds",
        f"spacing {config['spacing']:g} on [−{x:g}, {x:g}] × [−{y:g}, {y:g}]",
    ]
    # A line of the caption may end after a parameter, not inside it.
    return ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)


def show_density(ax: Axes, ds: xr.Dataset, mass: np.ndarray, distance: float, half: float) -> None:
    """A density in a square window around the origin, with a triangle below each center."""
    x, y = (np.asarray(axis) for axis in grid(config_of(ds)).axes)
    figures.density_image(ax, x, y, mass)
    # The first triangle is larger, so that both can be seen where they are at one place.
    for center, color, size in zip((-distance / 2, distance / 2), figures.PREFERENCE_COLORS, (8, 5), strict=False):
        ax.plot(center, -0.6 * half, "^", color=color, ms=size)
    ax.set(xlim=(-half, half), ylim=(-half, half), facecolor="black")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))


def some(values: list[float], wanted: tuple[float, ...]) -> list[float]:
    """The wanted values that there are, or up to six spread over all."""
    found = [v for v in wanted if v in values]
    if len(found) < min(2, len(values)):
        found = [values[i] for i in np.unique(np.linspace(0, len(values) - 1, 6).round().astype(int))]
    return found


def _equals(name: str, value: float) -> str:
    shown = "∞" if math.isinf(value) else f"{value:g}"
    return f"distance {shown}" if name == "distance" else f"{SYMBOLS[name]} = {shown}"


def _process(config: dict[str, Any], land: Landscape, phi: ArrayLike, pool_size: ArrayLike) -> Process:
    first = jnp.asarray(phi, land.dtype)
    weights = jnp.stack([first, 1 - first])
    options = {"temperature": config["temperature"], "eps": config["eps"]}
    # With no finite pool in the sweep the quadrature of finite pools need not be there at all.
    if all(math.isinf(k) for k in config["pool_size"]):
        return density.large_pool(land, weights, **options)
    # In the farthest corner from a center; distances and sharpness are traced in the sweep, their largest values are known.
    x, y = (count * config["spacing"] for count in _half_counts(config))
    reward_range = max(config["gamma"]) * ((x + max(config["distance"]) / 2) ** 2 + y**2)
    return density.finite_pool(land, weights, pool_size=pool_size, reward_range=reward_range, **options)


def _summary(where: Grid) -> Callable[[Any, Any], dict[str, Array]]:
    """What is kept of a round: `DensityInfo` and more.

    weight: mass nearer to the first center than to the second; points as near to both count half.
    mean_along: mean of the coordinate along the line of the centers.
    variance_along, variance_across: variance of the coordinate along that line and of the one across it.
    modes: local maxima of the density along that line, the other coordinate integrated out.
    """
    x, y = where.axes
    nearest = 0.5 - 0.5 * jnp.sign(jnp.round(x / (x[1] - x[0])))

    def summary(state: Any, info: Any) -> dict[str, Array]:
        p = jnp.exp(state.log_p).reshape(where.shape)
        along, across = p.sum(axis=1), p.sum(axis=0)
        mean_x, mean_y = jnp.sum(along * x), jnp.sum(across * y)
        inner = along[1:-1]
        # A maximum of less than a thousandth of the greatest is rounding in a tail.
        peak = (inner > along[:-2]) & (inner >= along[2:]) & (inner > 1e-3 * along.max())
        return {
            **info._asdict(),
            "weight": jnp.sum(along * nearest),
            "mean_along": mean_x,
            "variance_along": jnp.sum(along * (x - mean_x) ** 2),
            "variance_across": jnp.sum(across * (y - mean_y) ** 2),
            "modes": jnp.sum(peak, dtype=jnp.int32),
        }

    return summary


def _check(config: Config) -> None:
    if any(not 0 <= d < math.inf for d in config.distance):
        raise ValueError(f"distance must be finite and not negative, got {config.distance}.")
    for name in ("temperature", "std", "spacing", "reach"):
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {getattr(config, name)}.")
    pull = 2 * max(0.0, *config.gamma) * config.num_steps / config.temperature
    narrowest = 1 / math.sqrt(config.std**-2 + pull)
    if config.spacing > narrowest:
        raise ValueError(
            f"spacing={config.spacing:g} cannot resolve the density after {config.num_steps} rounds, whose components "
            f"have a standard deviation of {narrowest:.3g}; choose at most that."
        )
