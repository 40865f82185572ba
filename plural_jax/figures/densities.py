"""Densities round by round on one page: ridgelines, and the checked numbers that animations draw too.

Drawn is the density, mass divided by the size of a cell, so that grids of different spacing look alike and every line
has area one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.figures import base
from plural_jax.grid import Grid
from plural_jax.landscape import check_log_mass

#: Rounds that ridgelines show where none are asked for, beside the first.
_SHOWN = 8
#: How many gaps between two lines the highest density reaches over.
_OVERLAP = 1.9
#: Part of a round's highest density below which nothing can be seen, so that the axes need not reach there.
_VISIBLE = 1e-3


class Rounds(NamedTuple):
    """Numbers to draw, on the host.

    Attributes:
        axes: coordinates along each dimension, d arrays.
        density: per unit of x, area or length, [rounds, *grid.shape].
        steps: the round of each, [rounds].
        optima: where each preference is best served, [m, d]; m may be 0.
        limits: first and last coordinate along each dimension between which there is something to see, [d, 2].
    """

    axes: list[np.ndarray]
    density: np.ndarray
    steps: np.ndarray
    optima: np.ndarray
    limits: np.ndarray


def ridgelines(
    grid: Grid,
    log_p: ArrayLike,
    *,
    steps: ArrayLike | None = None,
    start: ArrayLike | None = None,
    show: ArrayLike | None = None,
    optima: ArrayLike | None = None,
    caption: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Densities on a line, one below the other, the first round on top.

    All lines have one scale: a bar beside the last one says how high a density is, and every line has area one.

    Args:
        grid: of one dimension, n cells.
        log_p: log-masses of the cells after each round, [rounds, n]: `trace.log_p` of `run(..., save="density")`.
        steps: the round of each row, increasing; default 1, 2, 3, ...
        start: log-masses before the first round, [n]: `state.log_p` of what `run` started from; drawn as round 0.
        show: rounds to draw; default: about nine, more of the early ones, in which most happens.
        optima: where each preference is best served, [m] or [m, 1]; dashed lines in the preferences' colours.
        caption: parameters to write below the figure.
        ax: draw there, and leave the legend to you: the lines of the optima have labels; default: a new figure.

    Returns:
        The figure.

    Raises:
        ValueError: a grid of more dimensions, log-masses of another shape or that do not sum to one in each round, rounds
            that are not there, optima that are not points of a line.

    Example:
        >>> import plural_jax as pj
        >>> grid = pj.Grid.uniform(-5.0, 5.0, 100)
        >>> land = pj.Landscape.on(grid, pj.rewards.bump(centers=[-2.0, 2.0], height=5.0, width=1.0))
        >>> process = pj.density.large_pool(land, phi=[0.3, 0.7])
        >>> state = process.init()
        >>> final, trace = pj.run(process, state, num_steps=20, save="density")
        >>> figure = pj.figures.ridgelines(grid, trace.log_p, start=state.log_p, optima=[-2.0, 2.0])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['0', '1', '2', '4', '6', '8', '13', '20']
    """
    rounds = checked(grid, log_p, steps, start, optima, dimensions=(1,))
    chosen = _places(rounds.steps, show)
    with base.style():
        if ax is not None:
            _draw(ax, rounds, chosen)
            found: Any = ax.get_figure(root=True)
        else:
            found, axes = base.panels(1, width=5.2, height=1.4 + 0.42 * len(chosen))
            _draw(axes[0, 0], rounds, chosen)
            if rounds.optima.size:
                found.legend(loc="outside upper center", ncols=3)
        if caption:
            base.caption(found, caption)
    return found


def _draw(ax: Axes, rounds: Rounds, chosen: np.ndarray) -> None:
    x, density = rounds.axes[0], rounds.density[chosen]
    gap = density.max() / _OVERLAP
    for i, optimum in enumerate(rounds.optima[:, 0]):
        ax.axvline(optimum, color=color_of(i), lw=1.1, ls="--", zorder=1, label=f"optimum of preference {i + 1}")
    for i, (p, color) in enumerate(zip(density, base.sequence_colors(len(chosen)), strict=True)):
        # The lower line is in front; the white edge of its area keeps the ones behind apart.
        ax.fill_between(x, -i * gap, p - i * gap, color=color, alpha=0.9, lw=0, zorder=2 + i)
        ax.plot(x, p - i * gap, color="0.15", lw=0.9, zorder=2 + i)
    bottom = -(len(chosen) - 1) * gap
    ax.set(xlabel="x", ylabel="round t", xlim=tuple(rounds.limits[0]))
    top = max(0.3 * gap, float((density.max(axis=1) - gap * np.arange(len(chosen))).max()))
    ax.set_ylim(bottom - 0.15 * gap, top + 0.1 * gap)
    ax.set_yticks(-gap * np.arange(len(chosen)), [str(t) for t in rounds.steps[chosen]])
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    unit = round_number(0.8 * gap * _OVERLAP)
    beside: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "clip_on": False}
    ax.plot([1.02, 1.02], [bottom, bottom + unit], color="0.3", lw=2, solid_capstyle="butt", **beside)
    ax.text(1.04, bottom + unit / 2, f"density {unit:g}", rotation=90, va="center", color="0.3", fontsize=8, **beside)


def _places(steps: np.ndarray, show: ArrayLike | None) -> np.ndarray:
    """Rows to draw: those of the asked rounds, or some that are evenly spaced on a logarithmic scale."""
    if show is None:
        first = max(1, int(steps[0]))
        targets = [int(steps[0]), *np.geomspace(first, max(first, int(steps[-1])), _SHOWN).round()]
        return np.unique([int(np.abs(steps - t).argmin()) for t in targets])
    asked = np.asarray(show)
    missing = [t for t in asked.ravel().tolist() if t not in steps]
    if asked.ndim != 1 or not asked.size or missing:
        raise ValueError(f"show must name rounds among those of log_p, {_validate.shown(steps)}, got {show!r}.")
    return np.unique(np.searchsorted(steps, asked))


def round_number(most: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that is not above `most`."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(k * power for k in (1, 2, 5) if k * power <= most * (1 + 1e-9)))


def color_of(preference: int) -> str:
    """The colour of a preference, counted from 0; after the last they begin again."""
    return base.PREFERENCE_COLORS[preference % len(base.PREFERENCE_COLORS)]


def checked(
    grid: Grid,
    log_p: ArrayLike,
    steps: ArrayLike | None,
    start: ArrayLike | None,
    optima: ArrayLike | None,
    dimensions: tuple[int, ...],
) -> Rounds:
    """The arguments of a picture as numbers on the host, with the start as the first row; what cannot be drawn is refused."""
    if not isinstance(grid, Grid):
        raise ValueError(f"grid must be a plural_jax.Grid, got {type(grid).__name__}.")
    if grid.num_dims not in dimensions or min(grid.shape) < 2:
        allowed = " or ".join(f"{d}" for d in dimensions)
        raise ValueError(
            f"grid must have {allowed} dimension{'s' if max(dimensions) > 1 else ''} with at least 2 points along each, got "
            f"shape {grid.shape}."
        )
    array = _validate.real_array(log_p, "log_p")
    if array is None:
        raise ValueError("log_p is traced: pictures are drawn outside of jit, vmap and grad.")
    n = grid.num_cells
    if array.ndim != 2 or array.shape[1] != n or not len(array):
        raise ValueError(
            f"log_p must have shape [rounds, n] with n = {n} cells, such as trace.log_p of run(..., save='density'), got "
            f"shape {array.shape}."
        )
    rounds = np.arange(1, len(array) + 1) if steps is None else _checked_steps(steps, len(array))
    array = array.astype(np.float64)
    if start is not None:
        if rounds[0] <= 0:
            raise ValueError(f"steps must begin after 0, which is the round of start, got {_validate.shown(rounds)}.")
        check_log_mass(start, n, "start")
        array = np.concatenate([np.asarray(start, np.float64)[None], array])
        rounds = np.concatenate([[0], rounds])
    with np.errstate(over="ignore"):
        mass = np.exp(array)
    total = mass.sum(axis=1)
    wrong = ~(np.abs(total - 1) < 1e-3)  # NaN is wrong too
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"log_p must hold log-masses that sum to one in each round, but those of round {rounds[i]} sum to {total[i]:.6g}."
        )
    density = (mass / np.exp(np.asarray(grid.log_measure, np.float64))).reshape(-1, *grid.shape)
    axes = [np.asarray(axis, np.float64) for axis in grid.axes]
    points = _checked_optima(optima, grid.num_dims)
    return Rounds(axes, density, rounds, points, _limits(axes, density, points))


def _checked_steps(steps: ArrayLike, count: int) -> np.ndarray:
    array = np.asarray(steps)
    if array.shape != (count,) or array.dtype.kind not in "iu" or (np.diff(array) <= 0).any():
        raise ValueError(
            f"steps must hold one whole number for each of the {count} rows of log_p, increasing, got {_validate.shown(array)}."
        )
    return array


def _checked_optima(optima: ArrayLike | None, dimensions: int) -> np.ndarray:
    if optima is None:
        return np.zeros((0, dimensions))
    _validate.finite(optima, "optima")
    array = np.asarray(optima, np.float64)
    if array.ndim == 1 and dimensions == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] != dimensions:
        raise ValueError(
            f"optima must hold one point of {dimensions} coordinate{'s' if dimensions > 1 else ''} for each preference, got "
            f"shape {np.shape(optima)}."
        )
    return array


def _limits(axes: list[np.ndarray], density: np.ndarray, optima: np.ndarray) -> np.ndarray:
    cells = tuple(range(1, density.ndim))
    seen = (density > _VISIBLE * density.max(axis=cells, keepdims=True)).any(axis=0)
    found = []
    for i, axis in enumerate(axes):
        some = axis[seen.any(axis=tuple(j for j in range(len(axes)) if j != i))]
        low, high = min(some[0], *optima[:, i], np.inf), max(some[-1], *optima[:, i], -np.inf)
        margin = 0.04 * (high - low) + (axis[1] - axis[0]) / 2
        found.append((low - margin, high + margin))
    return np.asarray(found)
