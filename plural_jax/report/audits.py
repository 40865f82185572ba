"""What the audit says about the landscapes behind a run: at most four configurations of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plural_jax import Grid, Landscape, density, rewards, theory
from plural_jax.experiments.phase import GRID_REACH
from plural_jax.theory.report import Audit

#: Configurations of one run that are audited.
_MOST = 4
#: Rounds on a line, where they cost nothing and prove more; in the plane as many as the run had.
_ROUNDS = 1000
#: Cells of a plane at most; finer grids of an experiment are made coarser, which moves only masses of basins.
_CELLS = 20_000


class Case(NamedTuple):
    """One configuration of a run: its parameters by name, the landscape, its start and the rest of an audit's arguments."""

    label: dict[str, float]
    landscape: Callable[[], Landscape]
    start: Callable[[Landscape], Any]
    temperature: float
    eps: float
    num_steps: int


def audits(name: str, config: dict[str, Any], axes: dict[str, list[float]]) -> list[tuple[dict[str, float], Audit]]:
    """Audits of a few configurations of a run, in float64; none for an experiment without a landscape of its own.

    Args:
        name: of the experiment.
        config: its configuration as plain values, complete.
        axes: the values of phi and distance that the dataset has.

    Returns:
        The parameters of each configuration by name, and its audit, sharpened by the exact limit.
    """
    found = []
    with jax.enable_x64(True):
        for case in cases(name, config, axes):
            land = case.landscape()
            phi = np.array([case.label["φ"], 1 - case.label["φ"]])
            exact = density.solve_limit(land, phi, temperature=case.temperature)
            audit = theory.audit(
                land,
                phi,
                case.eps,
                initial=case.start(land),
                temperature=case.temperature,
                num_steps=case.num_steps,
                reference=exact.log_p,
            )
            found.append((case.label, audit))
    return found


def cases(name: str, config: dict[str, Any], axes: dict[str, list[float]]) -> list[Case]:
    """What to audit: several distances at the middle weight, or several weights where there is one distance."""
    make = _LINE.get(name) or _PLANE.get(name)
    if make is None or (name == "phase" and 2 not in config["num_preferences"]):
        return []
    chosen = _chosen(axes.get("phi", _listed(config, "phi")), axes.get("distance", _listed(config, "distance")))
    return [make(config, phi, distance) for phi, distance in chosen]


def _listed(config: dict[str, Any], name: str) -> list[float]:
    value = config[name]
    return list(value) if isinstance(value, list) else [value]


def _chosen(phis: list[float], distances: list[float]) -> list[tuple[float, float]]:
    middle = min(phis, key=lambda phi: round(abs(phi - 0.5), 9))
    if len(distances) > 1:
        return [(middle, d) for d in _spread(distances)]
    return [(phi, distances[0]) for phi in _spread(phis)]


def _spread(values: list[float]) -> list[float]:
    """At most `_MOST` of them, evenly spread, the ends among them."""
    places = np.linspace(0, len(values) - 1, min(_MOST, len(values)))
    return [values[round(float(place))] for place in places]


def _first(config: dict[str, Any], name: str, default: float = 1.0) -> float:
    value = config.get(name, default)
    return float(value[0] if isinstance(value, list) else value)


def _on_a_line(config: dict[str, Any], phi: float, distance: float) -> Case:
    """Two bumps, or two quadratic rewards, on a line: the sweep, C.9 and E9."""
    low, high, num = config.get("low", -5.0), config.get("high", 5.0), config["num"]
    quadratic = config.get("reward") == "quadratic"
    own = {"gamma": ("gamma",)} if quadratic else {"height": ("height",), "width": ("width",)}
    label = {"φ": phi, "distance": distance}
    for option in (*own, "temperature"):  # axes of a sweep beyond the three that it always has: their first values
        if isinstance(config.get(option), list) and len(config[option]) > 1:
            label[option] = _first(config, option)

    def landscape() -> Landscape:
        centers = [-distance / 2, distance / 2]
        if quadratic:
            shape: Any = rewards.quadratic(centers, gamma=_first(config, "gamma"))
        else:
            shape = rewards.bump(centers, height=_first(config, "height"), width=_first(config, "width"))
        return Landscape.on(Grid.uniform(low, high, num), shape)

    gaussian = config.get("start") == "gaussian"
    return Case(
        label,
        landscape,
        lambda land: land.gaussian(0.0, 1.0) if gaussian else land.uniform(),
        _first(config, "temperature"),
        config["eps"],
        max(config["num_steps"], _ROUNDS),
    )


def _in_the_plane(config: dict[str, Any], phi: float, distance: float) -> Case:
    """Two quadratic rewards in the plane and a Gaussian start (C.4): E2, E5, E6 and the retrained mixtures."""
    gamma, std = _first(config, "gamma"), config["std"]
    label = {"φ": phi, "distance": distance}
    if isinstance(config["gamma"], list) and len(config["gamma"]) > 1:
        label["gamma"] = gamma

    def landscape() -> Landscape:
        margin = config.get("reach", 5.0) * std
        width, height = max(_listed(config, "distance")) / 2 + margin, margin  # one shape, compiled once
        spacing = max(config.get("spacing", 0.125), float(np.sqrt(4 * width * height / _CELLS)))
        # An odd number each, so that the midpoint is a grid point.
        counts = [2 * int(np.ceil(side / spacing)) + 1 for side in (width, height)]
        grid = Grid.uniform([-width, -height], [width, height], counts)
        centers = jnp.asarray([[-distance / 2, 0.0], [distance / 2, 0.0]])
        return Landscape.on(grid, rewards.quadratic(centers, gamma))

    return Case(
        label,
        landscape,
        lambda land: land.gaussian(0.0, std),
        config["temperature"],
        config.get("eps", 0.1),
        config["num_steps"],
    )


def _two_halves(config: dict[str, Any], phi: float, distance: float) -> Case:
    """The bumps of the survival study, whose start gives each half its preference's weight."""
    case = _on_a_line(config, phi, distance)

    def start(land: Landscape) -> Any:
        assert land.points is not None
        return np.log(np.where(np.asarray(land.points[:, 0]) < 0, phi, 1 - phi))

    return case._replace(start=start)


def _on_a_polygon(config: dict[str, Any], phi: float, distance: float) -> Case:
    """Two quadratic preferences of the phase diagram, on its grid, from the uniform density."""
    gamma, radius = _first(config, "gamma"), distance / 2
    label = {"φ": phi, "distance": distance}
    if len(_listed(config, "gamma")) > 1:
        label["gamma"] = gamma

    def landscape() -> Landscape:
        side = [GRID_REACH * radius] * 2
        grid = Grid.uniform([-x for x in side], side, [config["num"]] * 2)
        return Landscape.on(grid, rewards.quadratic(jnp.asarray([[-radius, 0.0], [radius, 0.0]]), gamma))

    return Case(label, landscape, lambda land: land.uniform(), config["temperature"], 0.1, _ROUNDS)


#: How the landscapes of an experiment are built. Images and texts have none that an audit could enumerate.
_LINE: dict[str, Callable[[dict[str, Any], float, float], Case]] = {
    **dict.fromkeys(("sweep", "c9", "e9"), _on_a_line),
    "survival": _two_halves,
}
_PLANE: dict[str, Callable[[dict[str, Any], float, float], Case]] = {
    **dict.fromkeys(("e1", "e2", "e5", "e5-mixtures", "e6", "e6-mixtures", "e7", "e8", "e9-mixtures"), _in_the_plane),
    "phase": _on_a_polygon,
}
