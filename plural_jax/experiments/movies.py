"""The densities of one configuration of an experiment, round by round, as files that move."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plural_jax import Grid, Process, figures, run
from plural_jax.figures.animations import can_write_mp4

#: Rounds after the start that an animation shows at most; of more, some evenly spaced ones.
_FRAMES = 50


class Movie(NamedTuple):
    """What an animation shows: arguments of `figures.animate`."""

    grid: Grid
    log_p: np.ndarray
    steps: np.ndarray
    optima: Any
    caption: str


def follow(process: Process, state: Any, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-masses of the start and of at most fifty rounds, the last among them, and which rounds they are."""
    every = -(-num_steps // _FRAMES)
    whole = num_steps // every * every
    kept = [np.asarray(state.log_p)[None]]
    state, trace = run(process, state, whole, save="density", every=every)
    kept.append(np.asarray(trace.log_p))
    steps = list(range(0, whole + 1, every))
    if whole < num_steps:
        state, _ = run(process, state, num_steps - whole, save="final")
        kept.append(np.asarray(state.log_p)[None])
        steps.append(num_steps)
    return np.concatenate(kept), np.asarray(steps)


def write(movie: Movie, folder: Path) -> list[Path]:
    """Write `animation.gif`, and `animation.mp4` where ffmpeg is installed."""
    names = ["animation.gif", *(["animation.mp4"] if can_write_mp4() else [])]
    return [
        figures.animate(
            movie.grid, movie.log_p, folder / name, steps=movie.steps, optima=movie.optima, caption=movie.caption
        )
        for name in names
    ]
