"""Densities over the rounds as an animation: a GIF, or an MP4 where ffmpeg is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
import matplotlib.animation
import matplotlib.colors
import matplotlib.patheffects
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.figures import base
from plural_jax.figures.densities import Rounds, checked, color_of, round_number
from plural_jax.grid import Grid

_DOTS_PER_INCH = 100
#: Seconds for which the last round stays before the animation begins again.
_REST = 1.0

#: Colours of densities in the plane; a GIF has 256 in all, and letters and rings need theirs.
_SHADES = 96

#: A figure, what changes in it from back to front, and a function that makes it show a round.
Scene: TypeAlias = tuple[Figure, list[Artist], Callable[[int], None]]


def animate(
    grid: Grid,
    log_p: ArrayLike,
    file: str | Path,
    *,
    steps: ArrayLike | None = None,
    start: ArrayLike | None = None,
    optima: ArrayLike | None = None,
    caption: str = "",
    frames_per_second: float = 8.0,
) -> Path:
    """Densities on a line or in the plane, a frame for each round; all frames have one scale.

    A GIF repeats for ever and can stand in a page or a talk; an MP4 is smaller and can be stopped. In the plane the colour
    scale is that of the density's cube root, so that the first, wide densities can be seen beside the last.

    Args:
        grid: of one or two dimensions, n cells.
        log_p: log-masses of the cells after each round, [rounds, n]: `trace.log_p` of `run(..., save="density")`. For every
            fifth round alone, run with `every=5` and give `steps`.
        file: where to write; its name ends in .gif, or in .mp4 where ffmpeg is installed. What is there is replaced.
        steps: the round of each row, increasing; default 1, 2, 3, ...
        start: log-masses before the first round, [n]: `state.log_p` of what `run` started from; shown as round 0.
        optima: where each preference is best served, [m] or [m, d]; lines or rings in the preferences' colours.
        caption: parameters to write below the picture.
        frames_per_second: rounds shown in a second.

    Returns:
        The file.

    Raises:
        ValueError: what `ridgelines` refuses, a name with another ending, .mp4 without ffmpeg, a folder that is not there, a
            rate that is not positive.

    Example:
        >>> import tempfile
        >>> import plural_jax as pj
        >>> grid = pj.Grid.uniform(-5.0, 5.0, 100)
        >>> land = pj.Landscape.on(grid, pj.rewards.bump(centers=[-2.0, 2.0], height=5.0, width=1.0))
        >>> process = pj.density.large_pool(land, phi=[0.3, 0.7])
        >>> state = process.init()
        >>> final, trace = pj.run(process, state, num_steps=2, save="density")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pj.figures.animate(grid, trace.log_p, f"{folder}/two.gif", start=state.log_p, optima=[-2.0, 2.0]).name
        'two.gif'
    """
    rounds = checked(grid, log_p, steps, start, optima, dimensions=(1, 2))
    _validate.positive(frames_per_second, "frames_per_second")
    path = Path(file)
    writer = _writer(path, float(frames_per_second))
    # Whoever looks meanwhile, or after an interruption, finds a whole animation or none.
    unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    try:
        with base.style():
            pictures = _pictures(*(_line if grid.num_dims == 1 else _plane)(rounds, caption), len(rounds.steps))
            first = next(pictures)
            # The writers draw a figure twice for each frame: theirs has nothing but the picture.
            screen = Figure(figsize=(first.shape[1] / _DOTS_PER_INCH, first.shape[0] / _DOTS_PER_INCH))
            screen.set_layout_engine("none")
            image = screen.figimage(first)
            with writer.saving(screen, str(unfinished), _DOTS_PER_INCH):
                writer.grab_frame()
                for picture in pictures:
                    image.set_data(picture)
                    writer.grab_frame()
                for _ in range(round(_REST * float(frames_per_second))):
                    writer.grab_frame()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _pictures(figure: Figure, moving: list[Artist], show: Callable[[int], None], count: int) -> Iterator[np.ndarray]:
    """Pixels of each frame, [height, width, 4]; laid out and drawn once, but for what moves, listed from back to front."""
    figure.set_dpi(_DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for artist in moving:
        artist.set_animated(True)  # what is drawn once leaves it out
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    for i in range(count):
        show(i)
        canvas.restore_region(background)
        for artist in moving:
            figure.draw_artist(artist)
        yield np.array(canvas.buffer_rgba())


def can_write_mp4() -> bool:
    """Whether ffmpeg is there."""
    return matplotlib.animation.writers.is_available("ffmpeg")


def _writer(path: Path, rate: float) -> Any:
    if not path.parent.is_dir():
        raise ValueError(f"file={str(path)!r} is in a folder that does not exist.")
    # Any number will do as their rate, but their annotations say int.
    pillow: Any = matplotlib.animation.PillowWriter
    ffmpeg: Any = matplotlib.animation.FFMpegWriter
    ending = path.suffix.lower()
    if ending == ".gif":
        return pillow(fps=rate)
    if ending != ".mp4":
        raise ValueError(f"file must end in .gif or .mp4, got {str(path)!r}.")
    if not can_write_mp4():
        raise ValueError(
            f"file={str(path)!r} needs ffmpeg, which is not installed; a name that ends in .gif needs nothing."
        )
    return ffmpeg(fps=rate, codec="h264")


def _line(rounds: Rounds, caption: str) -> Scene:
    figure, axes = base.panels(1, width=5.8, height=3.4)
    ax, x = axes[0, 0], rounds.axes[0]
    for i, optimum in enumerate(rounds.optima[:, 0]):
        ax.axvline(optimum, color=color_of(i), lw=1.6, ls="--", zorder=1, label=f"optimum of preference {i + 1}")
    ax.plot(x, rounds.density[0], color="0.55", lw=1.1, ls=":", label=f"round {rounds.steps[0]}")
    area = ax.fill_between(x, 0, rounds.density[0], color="0.2", alpha=0.25, lw=0)
    (line,) = ax.plot(x, rounds.density[0], color="0.15")
    ax.set(xlabel="x", ylabel="density", xlim=tuple(rounds.limits[0]), ylim=(0, 1.05 * rounds.density.max()))
    title = _finish(figure, rounds, caption)

    def show(i: int) -> None:
        line.set_ydata(rounds.density[i])
        area.set_data(x, 0, rounds.density[i])
        title.set_text(_named(rounds, i))

    return figure, [area, line, title], show


def _plane(rounds: Rounds, caption: str) -> Scene:
    x, y = rounds.axes
    inches = 3.6 * np.ptp(rounds.limits, axis=1) / np.ptp(rounds.limits, axis=1).max()
    figure = Figure(figsize=(max(2.4, inches[0]) + 1.6, max(1.4, inches[1]) + 1.4), layout="compressed")
    ax = figure.subplots()
    half = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2
    highest = float(rounds.density.max())
    image = ax.imshow(
        rounds.density[0].T,
        origin="lower",
        extent=(x[0] - half[0], x[-1] + half[0], y[0] - half[1], y[-1] + half[1]),
        cmap=mpl.colormaps[base.DENSITY_MAP].resampled(_SHADES),
        norm=matplotlib.colors.PowerNorm(1 / 3, vmin=0.0, vmax=highest),
        interpolation="nearest",
    )
    around = [matplotlib.patheffects.withStroke(linewidth=3.5, foreground="white")]
    for i, optimum in enumerate(rounds.optima):
        ring: dict[str, Any] = {"marker": "o", "ms": 13, "mfc": "none", "mec": color_of(i), "mew": 2, "ls": "none"}
        ax.plot(*optimum, **ring, path_effects=around, label=f"optimum of preference {i + 1}")
    ax.set(xlabel="$x_1$", ylabel="$x_2$", xlim=tuple(rounds.limits[0]), ylim=tuple(rounds.limits[1]))
    ax.set_facecolor("black")
    ax.grid(False)
    ticks = sorted({0.0, *(round_number(part * highest) for part in (0.01, 0.05, 0.2, 0.5, 1.0))})
    bar = figure.colorbar(image, ax=ax, label="density", ticks=ticks, format="%g")
    bar.minorticks_off()
    title = _finish(figure, rounds, caption)

    def show(i: int) -> None:
        image.set_data(rounds.density[i].T)
        title.set_text(_named(rounds, i))

    # The image hides what was drawn before it.
    return figure, [image, *ax.lines, ax.spines["left"], ax.spines["bottom"], title], show


def _named(rounds: Rounds, i: int) -> str:
    return f"round {rounds.steps[i]} of {rounds.steps[-1]}"


def _finish(figure: Figure, rounds: Rounds, caption: str) -> Any:
    """What every animation has around its axes; returns the title."""
    ax = figure.axes[0]
    if ax.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=3 if figure.get_figwidth() > 5.5 else 2)
    if caption:
        base.caption(figure, caption)
    return ax.set_title(_named(rounds, -1), loc="left")
